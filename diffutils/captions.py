"""What is to be said about a canvas: words for what was measured, plain sentences, and sentences as numbers."""

import re
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from . import runtime
from .canvas import APART, COLOURS, SIZES, Attributes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACROSS, DOWN = ("left", "middle", "right"), ("top", "middle", "bottom")
STROKES = (0.15, 0.21)
"""Strokes thinner than the first are called thin, bolder than the second bold: about a fifth each of the digits'."""
MNIST_STROKES = (0.11, 0.16)
"""The same for MNIST's digits, which were written with a finer pen."""
SLANTS = (-0.15, 0.1)
"""Digits that lean less are said to lean left, those that lean more to lean right."""
PLACES = tuple(
    "at the " + " ".join(word for word in (down, across) if word != "middle")
    if (down, across) != ("middle", "middle")
    else "in the middle"
    for down in DOWN
    for across in ACROSS
)
WORDS: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "stroke": ("thin", "bold"),
    "colour": tuple(COLOURS),
    "digit": DIGITS,
    "slant": ("leaning left", "leaning right"),
    "place": PLACES,
    "relation": ("to the left of", "above"),
}
"""What can be said of each attribute."""
VOCABULARY = tuple(
    sorted({word for phrases in WORDS.values() for phrase in phrases for word in phrase.split()} | {"a"})
)
"""Every word of a caption."""
LENGTH = 20
"""The most words of a prompt; a caption has at most 18."""


def strokes(data: str) -> tuple[float, float]:
    """What is called thin and bold on the canvases called ``data``."""
    return MNIST_STROKES if data.startswith("mnist") else STROKES


def said(of: Attributes, limits: tuple[float, float] = STROKES) -> dict[str, Tensor]:
    """For each attribute the position in ``WORDS`` of what is to be said of each digit, ``(N, K)`` int64, and -1 where
    there is nothing to say: of strokes and slants in between, of the place of one of two digits, of the relation of a
    single one (that of two is said with the first). ``limits`` are those of :func:`strokes`. Source: chapter 12.
    """
    there = of.size > 0
    two = there[:, 1:]

    def nearest(value: Tensor, named: Sequence[float]) -> Tensor:
        return (value[..., None] - torch.tensor(list(named))).abs().argmin(-1)

    def beyond(value: Tensor, low: float, high: float) -> Tensor:
        return (value < low).long() + 2 * (value > high).long() - 1  # -1 in between

    across, down = nearest(of.place, (-APART, 0.0, APART)).unbind(-1)
    apart = (of.place[:, 1] - of.place[:, 0]).abs()
    relation = (apart[:, :1] <= apart[:, 1:]).long().expand(-1, 2)
    first = torch.tensor([True, False])
    return {
        "size": nearest(of.size, SIZES.values()).where(there, -1),
        "stroke": beyond(of.stroke, *limits).where(there, -1),
        "colour": of.colour.where(there, -1),
        "digit": of.digit.where(there, -1),
        "slant": beyond(of.slant, *SLANTS).where(there, -1),
        "place": (3 * down + across).where(there & ~two, -1),
        "relation": relation.where(two & first, -1),
    }


def caption(
    of: Attributes,
    row: int,
    generator: Generator | None = None,
    leave_out: float = 0.0,
    limits: tuple[float, float] = STROKES,
) -> str:
    """A plain sentence on canvas ``row``, such as "a large thin red seven leaning right at the top left", or "a small
    red three to the left of a medium blue seven".

    With a ``generator``, each word that could be missed is left out with probability ``leave_out``. Raises
    ``ValueError`` if that is not in [0, 1].
    """
    one = Attributes(*(value[row : row + 1] for value in of))
    return sentences(said(one, limits), generator, leave_out)[0]


def sentences(of: dict[str, Tensor], generator: Generator | None = None, leave_out: float = 0.0) -> list[str]:
    """A sentence for each row of what is :func:`said`; the rest is as for :func:`caption`. Raises
    ``ValueError`` unless ``0 <= leave_out <= 1``.
    """
    if not 0 <= leave_out <= 1:
        raise ValueError(f"leave_out: must lie in [0, 1], got {leave_out}")
    rows = {name: value.tolist() for name, value in of.items()}
    found = []
    for row in range(len(of["digit"])):
        words = []
        for k in range(2):
            for name, phrases in WORDS.items():
                i = rows[name][row][k]
                missed = name not in ("digit", "relation") and leave_out
                if name == "size" and rows["digit"][row][k] >= 0:
                    words.append("a")
                if i >= 0 and not (missed and torch.rand((), generator=generator) < leave_out):
                    words.append(phrases[i])
        found.append(" ".join(words))
    return found


def tokens(prompts: str | Sequence[str]) -> Tensor:
    """Prompts as numbers, ``(N, LENGTH)`` int64: each word's position in ``VOCABULARY`` plus one, then zeros. The empty
    prompt is all zeros. Capitals and punctuation count for nothing.

    Raises ``ValueError`` for a word that is not in the vocabulary, with the nearest one and all that there are, and for
    a prompt of more than ``LENGTH`` words. Source: chapter 12.
    """
    number = {word: i + 1 for i, word in enumerate(VOCABULARY)}
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
    for row, prompt in zip(rows, prompts, strict=True):
        words = re.findall(r"\w+", prompt.lower())
        if unknown := [word for word in dict.fromkeys(words) if word not in number]:
            raise ValueError(
                f"prompts: the words known are {', '.join(VOCABULARY)}; unknown in {prompt!r}: "
                + ", ".join(runtime.named(word, VOCABULARY) for word in unknown)
            )
        if len(words) > LENGTH:
            raise ValueError(f"prompts: at most {LENGTH} words, got {len(words)} in {prompt!r}")
        row[: len(words)] = torch.tensor([number[word] for word in words], dtype=torch.int64)
    return rows


def variants(
    of: Attributes, count: int, leave_out: float, generator: Generator, limits: tuple[float, float] = STROKES
) -> Tensor:
    """The :func:`tokens` of ``count`` captions of each canvas, ``(N, count, LENGTH)``, each with other words left out:
    what a model learns to follow prompts from that say less than all.
    """
    words = said(of, limits)
    return torch.stack([tokens(sentences(words, generator, leave_out)) for _ in range(count)], 1)
