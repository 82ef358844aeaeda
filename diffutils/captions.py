"""What is to be said about a canvas: plain sentences, and the words that they are made of."""

from collections.abc import Sequence

import torch
from torch import Generator

from .canvas import APART, COLOURS, SIZES, Attributes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACROSS, DOWN = ("left", "middle", "right"), ("top", "middle", "bottom")
STROKES = (0.15, 0.21)
"""Strokes thinner than the first are called thin, bolder than the second bold."""
SLANTS = (-0.15, 0.1)
"""Digits that lean less are said to lean left, those that lean more to lean right."""


def _nearest(values: Sequence[float], value: float) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - value))


def caption(of: Attributes, row: int, generator: Generator | None = None, leave_out: float = 0.0) -> str:
    """A plain sentence on canvas ``row``, such as "a large thin red seven leaning right at the top left", or "a small
    red three to the left of a medium blue seven".

    With a ``generator``, each word that could be missed is left out with probability ``leave_out``. Raises
    ``ValueError`` if that is not in [0, 1].
    """
    if not 0 <= leave_out <= 1:
        raise ValueError(f"leave_out: must lie in [0, 1], got {leave_out}")

    def said(text: str) -> str:
        gone = leave_out and torch.rand((), generator=generator) < leave_out
        return "" if gone else text

    def one(k: int, alone: bool) -> str:
        size, stroke, slant = (value[row, k].item() for value in (of.size, of.stroke, of.slant))
        words = [said(list(SIZES)[_nearest(list(SIZES.values()), size)])]
        words += [said("thin") if stroke < STROKES[0] else said("bold") if stroke > STROKES[1] else ""]
        words += [said(list(COLOURS)[of.colour[row, k]]), DIGITS[of.digit[row, k]]]
        words += [said("leaning left") if slant < SLANTS[0] else said("leaning right") if slant > SLANTS[1] else ""]
        if alone:
            across, down = (_nearest((-APART, 0.0, APART), value) for value in of.place[row, k].tolist())
            where = " ".join(dict.fromkeys(w for w in (DOWN[down], ACROSS[across]) if w != "middle"))
            words += [said(f"at the {where}" if where else "in the middle")]
        return " ".join(["a", *(word for word in words if word)])

    if of.digit[row, 1] < 0:
        return one(0, True)
    right, down = (of.place[row, 1] - of.place[row, 0]).abs().tolist()
    return f"{one(0, False)} {'to the left of' if right > down else 'above'} {one(1, False)}"


VOCABULARY = tuple(
    sorted(
        {*SIZES, *COLOURS, *DIGITS, *ACROSS, "top", "bottom", "thin", "bold", "leaning"}
        | set("a at the in to of above left".split())
    )
)
"""Every word that :func:`caption` uses."""
