"""The sweeps that chapters read their tables from: what is varied, what is measured, from one command.

A study is a list of cells, each with its settings and a function that measures it. ``python -m diffutils study NAME``
measures one after the other and writes a file after each; started again, it goes on with those that are missing.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import data, evaluation, latents, objectives, recipes, runtime, zoo
from .metrics import bits_per_dim
from .process import denoiser, q_sample
from .recipes import FOLDER
from .zoo import Model

Cell = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""Settings, and a function that gives what was measured with them."""

SEEDS = (0, 1, 2)
SCORES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def families() -> Iterator[Cell]:
    """Diffusion model, VAE and GAN of equal size, trained on the digits for about equal time."""
    samplings = {"ddim, 50 steps": ("ddim", 50), "ddpm, 1000 steps": ("ddpm", 1000)}
    for seed in SEEDS:
        for name in "digits-ddpm", "digits-vae", "digits-gan":
            recipe = recipes.recipe(name, seed=seed)
            several = samplings if recipe["method"] == "ddpm" else {"one call": ()}
            yield {"recipe": name, "seed": seed}, partial(_family, recipe, several)


def _family(recipe: recipes.Recipe, samplings: dict[str, tuple]) -> dict[str, Any]:
    model, found = _train(recipe)
    if recipe["method"] != "gan":
        found["bits/dim"] = bits(model)
    return found | {how: _scores(model, *arguments) for how, arguments in samplings.items()}


def predictions() -> Iterator[Cell]:
    """What the network predicts (eps, x_0, v or the mean), by two recipes of the digits at equal budget."""
    for seed in SEEDS:
        for name in "digits-ddpm-canonical", "digits-ddpm":
            for kind in "eps", "x_0", "v", "mean":
                recipe = recipes.recipe(name, seed=seed, predicts=kind)
                yield {"recipe": name, "predicts": kind, "seed": seed}, partial(_prediction, recipe)


def _prediction(recipe: recipes.Recipe) -> dict[str, Any]:
    model, found = _train(recipe)
    return found | {"error of x_0": errors(model)} | _scores(model)


def bound() -> Iterator[Cell]:
    """The simple loss against the bound's own weights, at equal budget: bits/dim and distances."""
    for seed in SEEDS:
        for name in "digits-ddpm-canonical", "digits-ddpm-bound":
            yield {"recipe": name, "seed": seed}, partial(_bound, recipes.recipe(name, seed=seed))


def _bound(recipe: recipes.Recipe) -> dict[str, Any]:
    model, found = _train(recipe)
    return found | {"bits/dim": bits(model), "error of x_0": errors(model)} | _scores(model, "ddpm", 1000)


def guidance(name: str = "digits-ddpm-class", n: int = 360) -> Iterator[Cell]:
    """A shipped network with classes, asked for each class equally often, over the weight of guidance."""
    for weight in 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0:
        yield {"recipe": name, "weight": weight, "n": n}, partial(_guidance, name, weight, n)


def _guidance(name: str, weight: float, n: int) -> dict[str, Any]:
    model = zoo.load(name)
    by, y = evaluation.judge(model.header["recipe"]["judge"]), torch.arange(n) % 10
    found: dict[str, list[Any]] = {"as asked": []}
    for seed in SEEDS:
        x = zoo.draw(model, n, seed=seed, y=y, weight=weight)
        with torch.no_grad():
            label = by.network(x).argmax(1)
        found["as asked"].append(round((label == y).double().mean().item(), 4))
        _append(found, evaluation.compare(by, x))
    return found


STUDIES: dict[str, Callable[[], Iterator[Cell]]] = {
    "families": families,
    "predictions": predictions,
    "bound": bound,
    "guidance": guidance,
    "latent-cost": latents.cost,
    "autoencoders": latents.autoencoders,
    "latent-scale": latents.scales,
    "latent-pixel": latents.spaces,
    "rate-distortion": latents.rates,
}


def run(name: str, path: str | Path) -> Iterator[dict[str, Any]]:
    """Measure the cells of a study that the file ``path`` lacks, writing it after each, and yield the rows.

    Raises ``ValueError`` for an unknown study, and if the file is of another one.
    """
    if name not in STUDIES:
        raise ValueError(f"name: must be one of {', '.join(STUDIES)}, got {name!r}")
    path = Path(path)
    kept = {"study": name, "setting": runtime.setting(runtime.device()), "rows": []}
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept.get("study") != name:
            raise ValueError(f"{path}: holds the study {kept.get('study')}, not {name}")
    for settings, measure in STUDIES[name]():
        if any(settings.items() <= row.items() for row in kept["rows"]):
            continue
        row = settings | measure()
        kept["rows"].append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        part.replace(path)
        yield row


def results(name: str) -> dict[str, Any]:
    """The shipped results called ``name``. Raises ``FileNotFoundError`` if there are none."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def _train(recipe: recipes.Recipe) -> tuple[Model, dict[str, Any]]:
    """The trained model, its number of parameters, and what its training took."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for _ in recipes.Run(recipe, folder, checkpoint=float("inf"), every=50):
            pass
        model = zoo.load(Path(folder) / "weights.safetensors")
    size = sum(parameter.numel() for parameter in model.network.parameters())
    trained = model.header["trained"]
    return model, {
        "parameters": size,
        "images": trained["images"],
        "seconds": trained["seconds"],
        "core seconds": round(time.process_time() - start, 1),
    }


def _scores(model: Model, sampler: str = "ddim", steps: int = 50) -> dict[str, list[Any]]:
    """Every score for three sampling seeds."""
    found: dict[str, list[Any]] = {}
    for seed in SEEDS:
        _append(found, evaluation.evaluate(model, None, sampler, steps, seed=seed))
    return found


def _append(found: dict[str, list[Any]], compared: dict[str, Any]) -> None:
    for name in SCORES:
        found.setdefault(name, []).append(compared[name]["value"])
    for name in "sure", "classes":
        found.setdefault(name, []).append(compared[name])


def bits(model: Model, n: int = 120, seed: int = 0) -> dict[str, float]:
    """The bound on ``n`` test images in bits/dim, term by term: of a diffusion model (variance beta), or a VAE."""
    x = data.images(model.header["recipe"]["data"], train=False).x[:n]
    levels = 17 if model.header["recipe"]["data"] == "digits" else 256
    generator = runtime.generator(seed)
    with torch.no_grad():
        if model.schedule is None:
            draws = torch.stack([objectives.vae_terms(model.network, x, generator, levels) for _ in range(100)])
            distortion, rate = draws.double().mean((0, 2))
            terms = {"distortion": distortion, "rate": rate}
        else:
            each = objectives.bound_terms(model.denoise, x, model.schedule, generator, "beta", levels)
            each = each.double().mean(1)
            terms = {"L_0": each[0], "L_1 to L_(T-1)": each[1:-1].sum(), "L_T": each[-1]}
    per_dim = {name: bits_per_dim(value.item(), x[0].numel()) for name, value in terms.items()}
    return {"total": round(sum(per_dim.values()), 5)} | {name: round(value, 5) for name, value in per_dim.items()}


def errors(model: Model, seed: int = 0) -> dict[str, float]:
    """Mean squared error of the estimate of x_0, not clipped, on the test images, at 20 steps t."""
    recipe, chain = model.header["recipe"], model.schedule
    x_0, generator = data.images(recipe["data"], train=False).x, runtime.generator(seed)
    estimate = denoiser(model.network, chain, recipe["predicts"])
    found = {}
    for t in (1, 2, 5, 10, 20, *range(50, chain.T + 1, 50)):
        x_t = q_sample(x_0, t, torch.randn(x_0.shape, generator=generator), chain)
        error = (estimate(x_t, torch.full((len(x_0),), t)) - x_0).square().mean().item()
        found[str(t)] = float(f"{error:.4g}")
    return found
