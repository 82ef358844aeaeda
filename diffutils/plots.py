"""The figures of the book: one look, and one palette that colour-blind readers can tell apart.

Every function returns a figure that has been taken off pyplot's list, so a cell shows it once, by naming it in its
last line.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""The palette of Okabe and Ito (2008), in the order in which lines take it."""

STYLE = {
    "axes.prop_cycle": plt.cycler(color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "image.cmap": "gray",
    "savefig.facecolor": "white",
}


def panels(
    *titles: str, width: float = 8.0, height: float = 2.7, rows: int = 1, **options: object
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of ``width`` x ``height`` inches with one set of axes a title: ``(figure, axes)``, bare axes if there
    is one title.

    ``rows`` breaks the titles into rows; ``options`` go to ``plt.subplots``. Raises ``ValueError`` if the titles do
    not fill the rows.
    """
    if not titles or len(titles) % rows:
        raise ValueError(f"titles: {len(titles)} do not fill {rows} rows")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, len(titles) // rows, figsize=(width, height), layout="constrained", squeeze=False, **options
        )
        for ax, title in zip(axes.flat, titles, strict=True):
            ax.set_title(title, fontsize=STYLE["axes.titlesize"])
            ax.tick_params(labelsize=STYLE["xtick.labelsize"])
    plt.close(figure)
    return figure, axes.flat[0] if len(titles) == 1 else axes.squeeze() if rows > 1 else axes[0]


def labels(ax: Axes, x: str = "", y: str = "", legend: bool = False, **properties: object) -> None:
    """Name the axes in the book's sizes; ``properties`` go to ``ax.set`` (limits, scales)."""
    ax.set(**properties)
    ax.set_xlabel(x, fontsize=STYLE["axes.labelsize"])
    ax.set_ylabel(y, fontsize=STYLE["axes.labelsize"])
    if legend:
        ax.legend(fontsize=STYLE["legend.fontsize"], frameon=False)


def tile(x: Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Images ``(B, C, H, W)`` in [-1, 1] as one picture ``(H', W', C)`` in [0, 1], ``columns`` abreast, ``gap``
    pixels apart.
    """
    rows = -(-len(x) // columns)
    B, C, H, W = x.shape
    sheet = torch.ones(rows, columns, C, H + gap, W + gap)
    sheet.view(-1, C, H + gap, W + gap)[:B, :, :H, :W] = x.detach().float().cpu().clamp(-1, 1) / 2 + 0.5
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(rows * (H + gap), columns * (W + gap), C)
    return sheet[: rows * (H + gap) - gap, : columns * (W + gap) - gap].numpy()


def images(
    x: Tensor, columns: int, width: float = 8.0, top: Sequence[str] = (), left: Sequence[str] = (), smooth: bool = False
) -> Figure:
    """Images ``(B, C, H, W)`` on a grid of ``columns``, with names above the columns and beside the rows if given.

    ``smooth`` enlarges each image eight times by bicubic interpolation, which makes very small images easier to read.
    Raises ``ValueError`` if the names do not match the grid.
    """
    if smooth:
        x = F.interpolate(x.float(), scale_factor=8, mode="bicubic").clamp(-1, 1)
    gap = 4 if smooth else 1
    rows = -(-len(x) // columns)
    if len(top) not in (0, columns) or len(left) not in (0, rows):
        raise ValueError(f"top, left: need {columns} and {rows} names or none, got {len(top)} and {len(left)}")
    sheet = tile(x, columns, gap)
    H, W = sheet.shape[:2]
    figure, ax = panels("", width=width, height=width * H / W + (0.3 if top else 0.05))
    ax.imshow(sheet.squeeze(), vmin=0, vmax=1, interpolation="nearest", cmap="gray")
    ax.set_frame_on(False)
    step_x, step_y = (W + gap) / columns, (H + gap) / rows
    ax.set_xticks([(i + 0.5) * step_x - 0.5 - gap / 2 for i in range(len(top))], top)
    ax.set_yticks([(i + 0.5) * step_y - 0.5 - gap / 2 for i in range(len(left))], left)
    ax.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    return figure


def scatter(ax: Axes, x: Tensor, limit: float = 2.4, colour: str = BLUE) -> None:
    """Points ``(n, 2)`` in a square frame without ticks."""
    ax.scatter(*x.detach().cpu().T, s=2, alpha=0.5, linewidths=0, color=colour)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])


def heat(ax: Axes, density: Tensor, x: tuple[float, float], y: tuple[float, float]) -> None:
    """A density ``(rows, columns)`` as shades, each column scaled to its own maximum, over the extents ``x`` and
    ``y``.
    """
    shade = density / density.max(0, keepdim=True).values
    ax.imshow(
        shade.cpu().numpy(), origin="lower", aspect="auto", extent=(*x, *y), cmap="Blues", interpolation="nearest"
    )


def spread(ax: Axes, x: Sequence[float], runs: Tensor, label: str, colour: str | None = None) -> None:
    """Repeated measurements ``(runs, len(x))``: every run as a dot and a line through the means."""
    (line,) = ax.plot(x, runs.mean(0), label=label, color=colour)
    for run in runs:
        ax.plot(x, run, "o", ms=3, alpha=0.6, color=line.get_color())
