"""How good a trained model is: its samples beside real images, in the features of a classifier of the book."""

import functools
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import canvas, checkpoints, metrics, runtime, zoo
from .networks.classifier import Classifier
from .recipes import FOLDER, located

SIZES = (360, 1000, 2000, 5000)
"""Numbers of images at which floors are measured."""


class Judge(NamedTuple):
    """A classifier, and what it makes of real images."""

    network: Classifier
    """In whose features images are compared."""
    reference: Tensor
    """Features ``(N, D)`` of the real images that samples are compared with, in random order."""
    header: dict[str, Any]
    """``results``: its accuracy, and the ``floor``: every score of so many other real images."""


@functools.cache
def judge(name: str) -> Judge:
    """The shipped classifier called ``name`` with its reference features. Raises as :func:`diffutils.recipes.weights`
    does, saying how to make a judge that is not shipped.
    """
    try:
        network, of = zoo.weights(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the judge {name} is not shipped: python -m diffutils train {name}, then python -m diffutils evaluate "
            f"runs/{name}/weights.safetensors --record {FOLDER}"
        ) from error
    path = FOLDER / f"{name}-reference.safetensors"
    tensors, header = checkpoints.read(path)
    if header["results"] != of["results"]:
        raise ValueError(f"{path}: does not belong to the classifier beside it; evaluate that again")
    return Judge(network, tensors["features"].float(), header)


@torch.no_grad()
def features(network: Classifier, x: Tensor, size: int = 500) -> Tensor:
    """The classifier's features of images, ``(N, C, H, W)`` to ``(N, D)``, in batches.

    Raises ``ValueError`` for images that are not finite, for values outside [-1, 1] (a little beyond is rounding), and
    for a network that is being trained, whose features depend on the rest of the batch.
    """
    if network.training:
        raise ValueError("network: is in training mode, where features depend on the batch; call network.eval()")
    if not x.isfinite().all():
        raise ValueError("x: has values that are not finite")
    if x.abs().max() > 1.001:
        raise ValueError(f"x: must lie in [-1, 1], got values from {x.min():g} to {x.max():g}")
    return torch.cat([network.features(part) for part in x.split(size)])


def scores(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Every distance of the features of samples, ``(n, D)``, from those of real images, ``(m, D)`` with m >= n.

    The Fréchet distance is from all of y; the others, which compare every pair, are from the first n of y (precision,
    recall, density and coverage depend on the size of both samples).
    """
    same = y[: len(x)]
    precision, recall = metrics.precision_recall(x, same)
    density, coverage = metrics.density_coverage(x, same)
    return {
        "frechet": metrics.frechet_distance(x, y),
        "kernel": metrics.kernel_distance(x, same),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def calibrate(path: str | Path, folder: str | Path | None = None) -> dict[str, Any]:
    """Measure a trained classifier, and write it with its reference features into ``folder``, if one is given.

    Its recipe says which half of the data is the ``reference``; the floor at n is the mean and the standard deviation
    of the :func:`scores` against it of ten random sets of n images of the other half (of the one set there is, and no
    deviation, if that half has n images). Gives the results.
    """
    network, header = zoo.weights(path)
    recipe = header["recipe"]
    halves = {part: canvas.images(recipe["data"], part == "train") for part in ("train", "test")}
    of = {part: features(network, images.x) for part, images in halves.items()}
    with torch.no_grad():
        right = {part: (network.head(of[part]).argmax(1) == halves[part].y).double().mean().item() for part in of}
    generator = runtime.generator(recipe["seed"])
    reference = of.pop(recipe["reference"])
    reference = reference[torch.randperm(len(reference), generator=generator)]
    (other,) = of.values()
    floor: dict[str, Any] = {}
    for n in SIZES:
        if reference.shape[1] < n <= min(len(other), len(reference)):
            sets = [torch.randperm(len(other), generator=generator)[:n] for _ in range(10 if n < len(other) else 1)]
            found = [scores(other[rows], reference) for rows in sets]
            floor[str(n)] = {name: _spread([one[name] for one in found]) for name in found[0]}
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


def _spread(values: list[Tensor]) -> list[float | None]:
    """Mean and standard deviation; of a single value, no deviation."""
    stacked = torch.stack(values)
    return [round(stacked.mean().item(), 5), round(stacked.std().item(), 5) if len(values) > 1 else None]


def compare(by: Judge, x: Tensor, seed: int = 0) -> dict[str, Any]:
    """Images ``(n, C, H, W)`` against the judge's real ones.

    For each of the :func:`scores`: its ``value``, its standard ``error`` (over random halves of the images, drawn by
    ``seed``), and the ``floor``: the same of n real images, with its standard deviation over sets of them. Beside them
    how many times the floor the Fréchet distance is, the share of images that the classifier is more than 90 % sure
    of, and how many it counts in each class. Raises ``ValueError`` as :func:`features` does, and if the floor is not
    known at that n.
    """
    n = len(x)
    check_n(by, n)
    seen = features(by.network, x)
    with torch.no_grad():
        sure, label = by.network.head(seen).softmax(1).max(1)
    values, floor = scores(seen, by.reference), by.header["results"]["floor"][str(n)]

    def stacked(part: Tensor) -> Tensor:
        return torch.stack(list(scores(part, by.reference).values()))

    errors = torch.full((len(values),), torch.nan, dtype=torch.float64)
    if n // 2 > seen.shape[1]:
        errors = metrics.half_sample_error(stacked, seen, runtime.generator(seed))
    measured = {
        name: {"value": round(value.item(), 5), "error": round(error, 5), "floor": floor[name]}
        for (name, value), error in zip(values.items(), errors.tolist(), strict=True)
    }
    return (
        {"n": n}
        | measured
        | {
            "frechet / floor": round(values["frechet"].item() / floor["frechet"][0], 2),
            "sure": round((sure > 0.9).double().mean().item(), 4),
            "classes": label.bincount(minlength=10).tolist(),
        }
    )


def inception(x: Tensor, y: Tensor, weights: str | Path, layer: str = "2048") -> dict[str, float]:
    """Fréchet and kernel distance of images ``(n, C, H, W)`` in [-1, 1] from real ones, in Inception's features:
    ``fid`` and ``kid`` as papers report them (who use 50,000 images), by the library torch-fidelity.

    ``weights`` is the file of that library's Inception network, 91 MB, which is not part of the book; ``layer`` is
    one of its layers. Raises ``ImportError`` without the library, ``FileNotFoundError`` without the file.
    """
    library = _fidelity(weights)

    def bytes_of(images: Tensor) -> Tensor:
        return ((images.cpu() + 1) * 127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)

    found = library.calculate_metrics(
        input1=_Rows(bytes_of(x)),
        input2=_Rows(bytes_of(y)),
        fid=True,
        kid=True,
        kid_subset_size=min(1000, len(x), len(y)),
        feature_layer_fid=layer,
        feature_layer_kid=layer,
        feature_extractor_weights_path=str(weights),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"fid": found["frechet_inception_distance"], "kid": found["kernel_inception_distance_mean"]}


def _fidelity(weights: str | Path) -> ModuleType:
    import torch_fidelity

    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: the weights of torch-fidelity's Inception network are not there")
    return torch_fidelity


class _Rows(Dataset[Tensor]):
    """A tensor as the data set that torch-fidelity wants: it gives images, not tuples."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return self.rows[i]


def check_n(by: Judge, n: int) -> None:
    """Raise ``ValueError`` if the judge knows no floor for n images."""
    floor = by.header["results"]["floor"]
    if str(n) not in floor:
        raise ValueError(f"n: the floor is known at {', '.join(floor)} images, got {n}")


def evaluate(
    model: zoo.Model,
    n: int | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    weights: str | Path | None = None,
    power: float = 1.0,
) -> dict[str, Any]:
    """Draw ``n`` images and :func:`compare` them with real ones; the time an image took beside it.

    By default n is 5000, or the most below that at which the recipe's judge knows its floor. A network with classes is
    asked for each of them equally often, without guidance beyond the label (weight 1). With ``weights`` the scores of
    :func:`inception` against the training images are added, which needs the data; for an ``n`` that the judge knows no
    floor of, such as the papers' 50,000, or without the judge, they are all there is.
    """
    recipe, by = model.header["recipe"], None
    if weights is not None:  # what is missing is missed before anything is drawn
        _fidelity(weights)
        real = canvas.images(recipe["data"]).x
    alone = weights is not None and n is not None
    try:
        by = judge(recipe["judge"])
    except FileNotFoundError:
        if not alone:
            raise
    if by is not None:
        floor = by.header["results"]["floor"]
        if n is None:
            n = max(known for known in map(int, floor) if known <= 5000)
        if alone and str(n) not in floor:
            by = None
        else:
            check_n(by, n)
    classes = getattr(model.network, "classes", None)
    y = None if classes is None else torch.arange(n) % classes
    start = time.perf_counter()
    x = zoo.draw(model, n, sampler, steps, eta, seed, y=y, power=power)
    seconds = time.perf_counter() - start
    settings = {"name": sampler, "steps": steps, "eta": eta, "seed": seed}
    if power != 1:
        settings["power"] = power
    if model.schedule is None:
        settings = {"name": "one call", "seed": seed}
    elif model.denoise is None:
        settings = {"name": "ddg", "steps": model.schedule.T, "seed": seed}
    results = {"sampler": settings, "seconds an image": round(seconds / n, 5)}
    results |= {"n": n} if by is None else compare(by, x)
    if weights is not None:
        results["inception"] = inception(x, real, weights)
    return results


def record(name: str | Path, results: dict[str, Any], to: str | Path) -> None:
    """Copy the weights file ``name`` (or a recipe's shipped one) to ``to`` with ``results`` added to its header; of
    ``evaluations`` those with other settings stay.
    """
    tensors, header = checkpoints.read(located(name))
    added, kept = results.get("evaluations", []), header["results"].get("evaluations", [])
    settings = [(one["n"], one["sampler"]) for one in added]
    header["results"] |= results
    if added:
        header["results"]["evaluations"] = [one for one in kept if (one["n"], one["sampler"]) not in settings] + added
    checkpoints.write(to, tensors, header)
