"""Trained networks: what is shipped with the book, how to draw from it, and how good it is."""

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoints, data, metrics, runtime, samplers, schedules
from .networks.classifier import Classifier
from .process import Denoiser, denoiser
from .recipes import FOLDER, build, recipes, schedule
from .samplers import Kernel
from .schedules import Schedule

SAMPLERS = ("ddpm", "ddim")


class Model(NamedTuple):
    """A trained diffusion model."""

    denoise: Denoiser
    schedule: Schedule
    network: nn.Module
    header: dict[str, Any]
    """``recipe``, how it was ``trained``, and the ``results`` of its evaluation."""


def weights(name: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe with its shipped weights, or that of a weights file, and the file's header.

    Raises ``ValueError`` for a name that is neither a recipe nor a file, and if the file is damaged;
    ``FileNotFoundError`` if that recipe's weights are not shipped.
    """
    path = Path(name)
    if path.suffix != ".safetensors":
        if str(name) not in recipes():
            raise ValueError(f"name: must be a .safetensors file or one of {', '.join(recipes())}, got {str(name)!r}")
        path = FOLDER / f"{name}.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{name}: its weights are not shipped with the book. Train them (python -m diffutils train {name}), "
                f"then give the file that this writes"
            )
    tensors, header = checkpoints.read(path)
    if "recipe" not in header or "trained" not in header:
        raise ValueError(f"{path}: holds no trained network (a checkpoint? its weights are written at the end)")
    network = build(header["recipe"])
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    )
    return network.eval(), header


def load(name: str | Path, device: str | torch.device | None = None) -> Model:
    """A ready denoiser and its schedule: ``load("mnist-ddpm")``, or a weights file of your own.

    Estimates of x_0 are kept in [-1, 1]. Raises as :func:`weights` does, and ``ValueError`` if it is a classifier.
    """
    network, header = weights(name)
    return model(network.to(runtime.device(device)), header)


def model(network: nn.Module, header: dict[str, Any]) -> Model:
    """A network, trained by the recipe in ``header``, as a denoiser. Raises ``ValueError`` if it is a classifier."""
    recipe = header["recipe"]
    if recipe["method"] != "ddpm":
        raise ValueError(f"name: {recipe['name']} is a {recipe['method']}, and cannot be sampled")
    chain, where = schedule(recipe), next(network.parameters()).device
    denoise = denoiser(network, chain.to(where), recipe["predicts"], True, recipe["bf16"])
    return Model(denoise, chain, network, header)


def kernel(model: Model, sampler: str, eta: float = 0.0) -> Kernel:
    """The reverse step called ``sampler``. Raises ``ValueError`` for another name than ``ddpm`` and ``ddim``."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler == "ddpm":
        return samplers.ddpm(model.denoise, model.schedule)
    return samplers.ddim(model.denoise, model.schedule, eta)


def draw(
    model: Model, n: int, sampler: str = "ddim", steps: int = 50, eta: float = 0.0, seed: int = 0, size: int = 250
) -> Tensor:
    """``n`` images ``(n, C, H, W)`` in [-1, 1] on the CPU, drawn in batches of ``size`` with evenly spaced ``steps``.

    Raises ``ValueError`` for an unknown sampler, or steps outside 1..T.
    """
    step, times = kernel(model, sampler, eta), schedules.subsequence(model.schedule.T, steps)
    network = model.network
    where = next(network.parameters()).device
    generator = runtime.generator(seed, where)
    images = []
    for start in range(0, n, size):
        shape = min(size, n - start), network.channels, network.size, network.size
        x_T = torch.randn(shape, generator=generator, device=where)
        images.append(samplers.sample(step, x_T, times, generator).clamp(-1, 1).cpu())
    return torch.cat(images)


class Judge(NamedTuple):
    """A classifier, and what it makes of real images."""

    network: Classifier
    reference: Tensor
    """Features ``(N, D)`` of the real images that samples are compared with."""
    header: dict[str, Any]
    """``results``: its accuracy, and the ``floor``: Fréchet distance of so many other real images."""


@functools.cache
def judge(name: str) -> Judge:
    """The shipped classifier called ``name`` with its reference features. Raises as :func:`weights` does."""
    network, of = weights(name)
    path = FOLDER / f"{name}-reference.safetensors"
    tensors, header = checkpoints.read(path)
    if header["results"] != of["results"]:
        raise ValueError(f"{path}: does not belong to the classifier beside it; evaluate that again")
    return Judge(network, tensors["features"].float(), header)


@torch.no_grad()
def features(network: Classifier, x: Tensor, size: int = 500) -> Tensor:
    """The classifier's features of images, ``(N, C, H, W)`` to ``(N, D)``, in batches."""
    return torch.cat([network.features(part) for part in x.split(size)])


def calibrate(path: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """Measure a trained classifier, and write it with its reference features into ``folder``, if one is given.

    Its recipe says which half of the data is the ``reference``; the floor at n is the mean and the standard deviation
    of the Fréchet distances from it of ten random sets of n images of the other half (of the one set there is, and no
    deviation, if that half has n images). Gives the results.
    """
    network, header = weights(path)
    recipe = header["recipe"]
    halves = {part: data.images(recipe["data"], part == "train") for part in ("train", "test")}
    of = {part: features(network, images.x) for part, images in halves.items()}
    with torch.no_grad():
        right = {part: (network.head(of[part]).argmax(1) == halves[part].y).double().mean().item() for part in of}
    reference = of.pop(recipe["reference"])
    (other,) = of.values()
    generator, floor = runtime.generator(recipe["seed"]), {}
    for n in (360, 1000, 2000, 5000, 10_000):
        if reference.shape[1] < n <= len(other):
            sets = [torch.randperm(len(other), generator=generator)[:n] for _ in range(10 if n < len(other) else 1)]
            distances = torch.stack([metrics.frechet_distance(other[rows], reference) for rows in sets])
            spread = round(distances.std().item(), 5) if len(sets) > 1 else None
            floor[str(n)] = [round(distances.mean().item(), 5), spread]
    results = {"accuracy": right, "reference": f"{recipe['data']} {recipe['reference']}", "floor": floor}
    if folder is None:
        return results
    header["results"] = results
    tensors = checkpoints.half(network.state_dict())
    checkpoints.write(Path(folder) / f"{recipe['name']}.safetensors", tensors, header)
    checkpoints.write(
        Path(folder) / f"{recipe['name']}-reference.safetensors", {"features": reference.half()}, {"results": results}
    )
    return results


def compare(by: Judge, x: Tensor) -> dict[str, Any]:
    """Images ``(n, C, H, W)`` against the judge's real ones.

    Gives the Fréchet distance of their features beside its floor at the same n, the share of images that the
    classifier is more than 90 % sure of, and how many it counts in each class. Raises ``ValueError`` if the floor is
    not known at that n.
    """
    n = len(x)
    check_n(by, n)
    seen = features(by.network, x)
    with torch.no_grad():
        sure, label = by.network.head(seen).softmax(1).max(1)
    distance, floor = metrics.frechet_distance(seen, by.reference).item(), by.header["results"]["floor"][str(n)]
    return {
        "n": n,
        "frechet": round(distance, 4),
        "floor": floor,
        "frechet / floor": round(distance / floor[0], 2),
        "sure": round((sure > 0.9).double().mean().item(), 4),
        "classes": label.bincount(minlength=10).tolist(),
    }


def check_n(by: Judge, n: int) -> None:
    """Raise ``ValueError`` if the judge knows no floor for n images."""
    floor = by.header["results"]["floor"]
    if str(n) not in floor:
        raise ValueError(f"n: the floor is known at {', '.join(floor)} images, got {n}")


def evaluate(
    model: Model, n: int = 5000, sampler: str = "ddim", steps: int = 50, eta: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Draw ``n`` images and :func:`compare` them with real ones; the time an image took beside it."""
    by = judge(model.header["recipe"]["judge"])
    check_n(by, n)
    start = time.perf_counter()
    x = draw(model, n, sampler, steps, eta, seed)
    seconds = time.perf_counter() - start
    settings = {"name": sampler, "steps": steps, "eta": eta, "seed": seed}
    return {"sampler": settings, "seconds an image": round(seconds / n, 5)} | compare(by, x)


def record(path: str | Path, results: dict[str, Any], to: str | Path) -> None:
    """Copy a weights file to ``to`` with ``results`` added to its header."""
    tensors, header = checkpoints.read(path)
    header["results"] |= results
    checkpoints.write(to, tensors, header)
