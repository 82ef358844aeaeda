"""The models that the last chapter compares, and what is measured of each: scores of its images, and what they cost."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import canvas, evaluation, latents, studies, zoo
from .zoo import Model

Draw = Callable[[int, int], Tensor]
"""``(n, seed)`` -> n images ``(n, C, H, W)`` in [-1, 1]."""


class Entrant(NamedTuple):
    """A model of the zoo, and how it is sampled."""

    name: str
    """As the table calls it."""
    model: str
    """The recipe's name without the data set."""
    sampler: str = "ddim"
    """One of :data:`diffutils.zoo.SAMPLERS`, for a diffusion model."""
    steps: int | None = None
    """Of a diffusion model's walk; the others have a number of their own."""

    def draw(self, model: Model, n: int, seed: int, steps: int | None = None) -> Tensor:
        """``n`` images ``(n, C, H, W)`` on the CPU, in batches of 64; where there are classes, each equally often."""
        classes = getattr(model.network, "classes", None)
        y = None if classes is None else torch.arange(n) % classes
        return zoo.draw(model, n, self.sampler, steps or self.steps or 1, seed=seed, size=64, y=y)


ENTRANTS = (
    Entrant("VAE", "vae"),
    Entrant("GAN", "gan"),
    Entrant("DDIM 10", "ddpm", "ddim", 10),
    Entrant("DDIM 20", "ddpm", "ddim", 20),
    Entrant("DDIM 50", "ddpm", "ddim", 50),
    Entrant("DPM-Solver++ 10", "ddpm", "dpm-solver", 10),
    Entrant("DDPM 50", "ddpm", "ddpm", 50),
    Entrant("DDPM 1000", "ddpm", "ddpm", 1000),
    Entrant("DDG 4", "ddg"),
    Entrant("DDIM 50, class", "ddpm-class", "ddim", 50),
    Entrant("LDM 50, class", "ldm", "ddim", 50),
)
"""The rows of the table. ``DDPM 50`` leaves steps out with the posterior of the longer step, which is the right way
(chapter 7); a ``class`` is told to the network, by guidance of weight 1."""

JUDGES = {
    "digits": ("digits-classifier", "digits-32-classifier"),
    "mnist": ("mnist-classifier",),
    "cifar10": ("cifar10-classifier",),
}
"""The judges of each data set. Latent diffusion draws digits of 32 pixels, and no fair way leads from there to 8; the
other models' are enlarged as its training data were (:func:`diffutils.canvas.enlarged`), so all stand before the last.
"""


def seen(x: Tensor, judges: Sequence[str]) -> dict[str, Any]:
    """What the judges say of images ``(n, C, H, W)``: every score and its error, ``sure`` and ``classes`` as
    :func:`diffutils.evaluation.compare` has them. Digits are enlarged for judges of larger ones; judges of smaller ones
    are not asked. Raises ``ValueError`` as ``compare`` does.
    """
    found = {}
    for name in judges:
        by = evaluation.judge(name)
        if x.shape[-1] > by.network.size:
            continue
        shown = x if x.shape[-1] == by.network.size else canvas.enlarged(x, by.network.size)
        said = evaluation.compare(by, shown)
        scores = {score: [said[score]["value"], said[score]["error"]] for score in studies.SCORES}
        found[name] = scores | {"sure": said["sure"], "classes": said["classes"]}
    return found


def drawn(draw: Draw, n: int, seed: int, judges: Sequence[str]) -> dict[str, Any]:
    """``n`` images, seconds an image, and what the judges say of them."""
    start = time.perf_counter()
    x = draw(n, seed)
    seconds = (time.perf_counter() - start) / n
    return {"n": n, "seconds an image": float(f"{seconds:.4g}"), "seen by": seen(x, judges)}


def cost(draw: Draw, network: nn.Module, short: Draw | None = None) -> dict[str, Any]:
    """Drawing one image: calls of the network (of the part that is called most), parameters of the parts that are
    called, times after one image to warm up; and the MiB that tensors hold while 64 are drawn, at most, those
    parameters included (:class:`diffutils.latents.Peak`). ``short`` draws in fewer steps with as much memory, if that
    is possible.
    """
    calls: dict[nn.Module, int] = {}

    def note(part: nn.Module, *_: Any) -> None:
        calls[part] = calls.get(part, 0) + 1

    hooks = [
        part.register_forward_hook(note) for part in network.modules() if next(part.parameters(False), None) is not None
    ]
    first = _seconds(draw, 0)
    for hook in hooks:
        hook.remove()
    taken = [_seconds(draw, seed) for seed in range(1, 3 if first > 20 else 4)]
    used = [weight for part in calls for weight in part.parameters(recurse=False)]
    with latents.Peak() as peak:
        (short or draw)(64, 0)
    held = peak.most + sum(weight.numel() * weight.element_size() for weight in used)
    return {
        "calls": max(calls.values(), default=0),
        "parameters in use": sum(weight.numel() for weight in used),
        "seconds, batch of 1": taken,
        "MiB, batch of 64": round(held / 2**20, 2),
    }


def _seconds(draw: Draw, seed: int) -> float:
    start = time.perf_counter()
    draw(1, seed)
    return float(f"{time.perf_counter() - start:.4g}")


def join(results: dict[str, Any], name: str, draw: Draw, network: nn.Module | None = None) -> dict[str, Any]:
    """The results of a data set (:func:`diffutils.trilemma.results`) with one more model in them: yours.

    ``draw(n, seed)`` gives n images ``(n, C, H, W)`` in [-1, 1]; in batches of 64, if its times are to be compared.
    With ``network`` its calls and parameters are counted. It is measured as the others were, with as many images and
    seeds. Raises ``ValueError`` if there is a model of that name, and as :func:`diffutils.evaluation.compare` does.
    Source: chapter 13.
    """
    if any(row.get("name") == name for row in results["rows"]):
        raise ValueError(f"name: there is a model {name!r} already")
    n, judges, named = results["settings"]["n"], results["judges"], {"name": name, "recipe": name}
    rows: list[dict[str, Any]] = [{"kind": "cost"} | named | cost(draw, network or nn.Identity())]
    for seed in range(results["settings"]["draws"]):
        rows.append({"kind": "draw"} | named | {"training": 0, "draw": seed} | drawn(draw, n, seed, judges))
    if network is not None:
        size = sum(weight.numel() for weight in network.parameters())
        rows.append({"kind": "training", "recipe": name, "training": 0, "parameters": size})
    return results | {"rows": results["rows"] + rows}
