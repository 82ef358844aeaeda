"""Figures that move: a slider that turns the pages of a flipbook, with a kernel and without one.

The frames are drawn when the cell runs and are stored in the notebook, and the slider is linked to them in the browser
(``jslink``). So it works in JupyterLab, and in the built page too, where ``book/_static/flipbook.js`` shows the same
widgets without a kernel and without a network.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

BUDGET = 400_000
"""Bytes that the frames of one flipbook may take, as PNG files: a notebook with three stays small."""


class Flipbook(ipywidgets.VBox):
    """A slider above one picture, which it changes.

    Args:
        frames: matplotlib figures of one size, in order.
        values: what the slider says at each of them, such as ``["t = 0", "t = 50"]``.
        name: what is moved, in a word or two: the slider's label.
        alt: for each frame, what is to be seen, for readers who can't see it.
        start: the index of the frame that is shown first, also where no widget can be shown, as in print.
        dots: dots per inch. Fewer make smaller frames.

    Raises:
        ValueError: if there are fewer than two frames, the lengths differ, ``start`` is no index, a description is
            empty, or the frames take more than 400 kB.
    """

    def __init__(
        self,
        frames: Sequence[Figure],
        values: Sequence[str],
        name: str,
        alt: Sequence[str],
        start: int = 0,
        dots: int = 80,
    ):
        if not 2 <= len(frames) == len(values) == len(alt):
            raise ValueError(
                f"frames, values, alt: need the same number, two or more, got {len(frames)}, {len(values)}, {len(alt)}"
            )
        if not 0 <= start < len(frames):
            raise ValueError(f"start: must be an index of the {len(frames)} frames, got {start}")
        if not all(text.strip() for text in alt):
            raise ValueError("alt: every frame needs a description")
        pages = [png(frame, dots) for frame in frames]
        if (size := sum(map(len, pages))) > BUDGET:
            raise ValueError(
                f"frames: {size:,} bytes are more than {BUDGET:,}; take fewer frames, a smaller figure or fewer dots"
            )
        self.first, self.summary = pages[start], f"{name}: {values[0]} to {values[-1]}, {len(values)} frames"
        pictures = [ipywidgets.HTML(_img(page, text)) for page, text in zip(pages, alt, strict=True)]
        stack = ipywidgets.Stack(pictures, selected_index=start)
        wide = ipywidgets.Layout(width="95%", max_width="40em")
        slider = ipywidgets.SelectionSlider(options=list(values), index=start, description=name, layout=wide)
        slider.style.description_width = "initial"
        self.link = ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
        super().__init__([slider, stack])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and for places without widgets the first frame, and a line that is the same on every machine."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle | {"text/plain": self.summary, "image/png": base64.b64encode(self.first).decode()}


def png(figure: Figure, dots: int = 80) -> bytes:
    """The figure as a PNG file with a palette of 64 greys and 64 colours: less than half the usual size, and to the eye
    the same. Greys have a share of their own, so that a small dot keeps its colour beside a picture of many greys.
    """
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dots, facecolor="white")
    pixels = np.asarray(Image.open(drawn).convert("RGB"))
    index, coloured = pixels[..., 1] // 4, np.ptp(pixels, axis=2) > 8
    palette = [round(255 * i / 63) for i in range(64) for _ in "RGB"]
    if coloured.any():
        colours = Image.fromarray(pixels[coloured][None]).quantize(64, kmeans=1, dither=Image.Dither.NONE)
        index[coloured] = 64 + np.asarray(colours)[0]
        palette += colours.getpalette()
    page = Image.fromarray(index)
    page.putpalette(palette)
    page.save(small, "png", optimize=True)
    return small.getvalue()


def _img(page: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(page).decode()}"
    return f'<img src="{source}" alt="{html.escape(alt, quote=True)}" style="max-width: 100%">'
