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
from torch import nn

from . import adherence, data, evaluation, latents, objectives, recipes, runtime, samplers, schedules, training, zoo
from .adversarial import DiffusionDuel, Duel
from .metrics import bits_per_dim, mode_coverage
from .networks.discriminator import PointDDG, PointGAN
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
    """The simple loss, the bound, and the bound with its steps drawn by importance, at equal budget: bits/dim and
    distances.
    """
    for seed in SEEDS:
        for name in "digits-ddpm-canonical", "digits-ddpm-bound", "digits-ddpm-chance":
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


def ddim() -> Iterator[Cell]:
    """Steps and noise of DDIM with a shipped network, then solvers and spacings of the steps; what takes long comes
    last, for a start that is stopped early.
    """
    few = [(seed, steps, *how, 1.0) for seed in SEEDS for steps in (1, 2, 5, 10, 20, 50, 100) for how in ETAS]
    for seed in SEEDS:
        few += [(seed, steps, "dpm-solver", 0.0, 1.0) for steps in (2, 5, 10, 20, 50)]
        few += [(seed, steps, "heun", 0.0, 1.0) for steps in (3, 5, 10, 25)]
        few += [(seed, steps, "ddim", 0.0, power) for power in (0.5, 0.75, 1.5, 2.0, 3.0) for steps in (5, 10, 20)]
    full = [(seed, 1000, *ETAS[i], 1.0) for seed in SEEDS for i in (0, 3, 4, 1, 2)]
    yield from _walks("digits-ddpm", 360, few + full)


def ddim_mnist() -> Iterator[Cell]:
    """The same on MNIST, from one seed: few steps with every kind of noise, solvers, and 100 and all 1000 steps without
    noise.
    """
    walks = [(0, steps, *how, 1.0) for steps in (50, 10, 20, 5) for how in ETAS]
    walks += [(0, 1000, *ETAS[0], 1.0)]
    walks += [(0, steps, "dpm-solver", 0.0, 1.0) for steps in (5, 10, 20)]
    walks += [(0, steps, "heun", 0.0, 1.0) for steps in (3, 5, 10)]
    walks += [(0, 100, *ETAS[0], 1.0)]
    walks += [(0, 4, *ETAS[0], 1.0), (0, 4, *ETAS[3], 1.0)]  # as many calls as the denoising diffusion GAN
    yield from _walks("mnist-ddpm", 1000, walks)


ETAS = ("ddim", 0.0), ("ddim", 0.2), ("ddim", 0.5), ("ddim", 1.0), ("ddpm-beta", 0.0)
"""How much noise a step adds: the rows of the table in the DDIM paper."""


def _walks(name: str, n: int, walks: list[tuple[int, int, str, float, float]]) -> Iterator[Cell]:
    for take in SEEDS:
        yield {"recipe": name, "pair": [50, 1000], "take": take}, partial(_pair, name)
    for seed, steps, sampler, eta, power in walks:
        how = {"sampler": sampler, "steps": steps, "eta": eta, "power": power, "seed": seed}
        yield {"recipe": name, "n": n} | how, partial(_drawn, name, n, how)


def _drawn(name: str, n: int, how: dict[str, Any]) -> dict[str, Any]:
    found = evaluation.evaluate(zoo.load(name), n, **how)
    return {key: found[key]["value"] for key in SCORES} | {key: found[key] for key in ("sure", "seconds an image")}


def _pair(name: str, few: int = 50, many: int = 1000, batch: int = 16) -> dict[str, Any]:
    """Seconds for the same images with few steps and with many, few before and after so that drift cancels; meant for
    an otherwise idle machine, which the processor's own seconds beside them attest.
    """
    model, clocks = zoo.load(name), (time.perf_counter, time.process_time)
    taken = []
    for steps in (few, many, few):
        start = [clock() for clock in clocks]
        zoo.draw(model, batch, steps=steps)
        taken.append([clock() - began for clock, began in zip(clocks, start, strict=True)])
    (short, short_core), (long, long_core) = ([(a + b) / 2 for a, b in zip(taken[0], taken[2], strict=True)], taken[1])
    return {
        "seconds": [round(short, 3), round(long, 3)],
        "core seconds": [round(short_core, 3), round(long_core, 3)],
        "times faster": round(long / short, 2),
    }


def ddg() -> Iterator[Cell]:
    """Denoising diffusion GANs on points and on digits: the number of steps, no z, x_s instead of x_0; beside a plain
    GAN, and DDPM and DDIM at as many calls of the shipped network.
    """
    for seed in SEEDS:
        yield {"data": "points", "model": "gan", "seed": seed}, partial(_points, seed)
        for settings in ABLATIONS:
            yield {"data": "points", "model": "ddg", "seed": seed} | settings, partial(_points, seed, **settings)
    for sampler in "ddim", "ddpm":
        for T in 1, 2, 4, 8:
            yield {"data": "digits", "model": sampler, "T": T}, partial(_calls, sampler, T)
    for seed in SEEDS:
        for settings in ABLATIONS:
            yield {"data": "digits", "model": "ddg", "seed": seed} | settings, partial(_ddg, seed, **settings)


ABLATIONS: list[dict[str, Any]] = [{"T": T, "z": True, "predicts": "x_0"} for T in (4, 1, 2, 8)]
ABLATIONS += [{"T": 4, "z": False, "predicts": "x_0"}, {"T": 4, "z": True, "predicts": "x_s"}]


def _points(seed: int, T: int = 0, z: bool = True, predicts: str = "x_0") -> dict[str, Any]:
    """A training on the 25 Gaussians as in chapter 10; no T, and it is a plain GAN."""
    start = time.process_time()
    network, found = train_points(seed, T, 4 if z else 0, predicts == "x_s"), {}
    found["core seconds"] = round(time.process_time() - start, 1)
    for i in SEEDS:
        x = draw_points(network, T, 5000, runtime.generator(i))
        for name, value in mode_coverage(x, POINTS).items():
            found.setdefault(name, []).append(round(value, 4))
    return found


POINTS = data.twenty_five_gaussians(std=0.05)
"""The points of chapter 10.

:meta hide-value:
"""


def train_points(seed: int, T: int = 4, latent: int = 4, direct: bool = False, steps: int = 1200) -> nn.Module:
    """A denoising diffusion GAN of T steps, or a plain GAN if T is 0, trained on :data:`POINTS`: the average."""
    with runtime.seeded(seed):
        network = PointDDG(latent=latent, direct=direct) if T else PointGAN(latent=latent)
    noise, ema = runtime.generator(seed), training.average(network, 0.99)
    settings = {"lr": 3e-3, "ema": ema, "gamma": 0.01, "fall": True}
    if T:
        update = DiffusionDuel(network, schedules.few_step(T), noise, steps, **settings)
    else:
        update = Duel(network, noise, steps, **settings)
    for _ in training.fit(update, iter(lambda: (POINTS.sample(512, noise).float(),), None), steps, every=steps):
        pass
    return ema.module


def draw_points(network: nn.Module, T: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """``n`` points ``(n, 2)`` from what :func:`train_points` gives."""
    if not T:
        with torch.no_grad():
            return network.eval().sample(n, generator)
    kernel = zoo.generator_kernel(network, schedules.few_step(T), clip=False)
    return samplers.sample(kernel, torch.randn(n, 2, generator=generator), range(T, -1, -1), generator)


def _calls(sampler: str, T: int) -> dict[str, Any]:
    model = zoo.load("digits-ddpm")
    return _scores(model, sampler, T)


def _ddg(seed: int, T: int, z: bool, predicts: str) -> dict[str, Any]:
    recipe = recipes.recipe("digits-ddg", seed=seed)
    recipe["schedule"] = recipe["schedule"] | {"T": T}
    recipe["network"] = recipe["network"] | {"latent": recipe["network"]["latent"] * z, "direct": predicts == "x_s"}
    model, found = _train(recipe)
    return found | {"warnings": model.header["trained"].get("warnings", [])} | _scores(model)


STUDIES: dict[str, Callable[[], Iterator[Cell]]] = {
    "families": families,
    "predictions": predictions,
    "bound": bound,
    "guidance": guidance,
    "ddim": ddim,
    "ddim-mnist": ddim_mnist,
    "ddg": ddg,
    "latent-cost": latents.cost,
    "autoencoders": latents.autoencoders,
    "latent-scale": latents.scales,
    "latent-pixel": latents.spaces,
    "rate-distortion": latents.rates,
    "text": partial(adherence.cells, "canvas-text"),
    "text-digits": partial(adherence.cells, "digits-text"),
}


def run(name: str, path: str | Path) -> Iterator[dict[str, Any]]:
    """Measure the cells of a study that the file ``path`` lacks, writing it after each, and yield the rows.

    Raises ``ValueError`` for an unknown study, and if the file is of another one, or from another machine.
    """
    if name not in STUDIES:
        raise ValueError(f"name: must be one of {', '.join(STUDIES)}, got {runtime.named(name, STUDIES)}")
    path = Path(path)
    kept = resumed(path, {"study": name, "setting": runtime.setting(runtime.device()), "rows": []})
    write(path, kept)  # if it cannot be written, that is known before hours of measuring
    for settings, measure in STUDIES[name]():
        if any(settings.items() <= row.items() for row in kept["rows"]):
            continue
        row = settings | measure()
        kept["rows"].append(row)
        write(path, kept)
        yield row


def resumed(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The results file that a run may go on with, which is ``fresh`` if there is none.

    Raises ``ValueError`` if the file is none, is of another study, table or race, or was measured with other settings,
    hardware, threads or versions: its seconds, and on another machine its last digits too, would be of two kinds.
    """
    if not path.exists():
        return fresh
    try:
        kept = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no whole results file ({error}). Give another file.") from error
    if not isinstance(kept, dict):
        raise ValueError(f"{path}: holds no results that can be gone on with. Give another file.")

    def same(of: dict[str, Any]) -> dict[str, Any]:
        setting = {key: value for key, value in of.get("setting", {}).items() if key != "date"}
        return {key: of[key] for key in ("study", "trilemma", "race") if key in of} | of.get("settings", {}) | setting

    there, here = same(kept), same(fresh)
    differ = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if differ:
        found = ", ".join(f"{key} = {there.get(key)!r} (now {here.get(key)!r})" for key in differ)
        raise ValueError(f"{path}: was measured with {found}. Give another file.")
    return kept


def write(path: Path, kept: dict[str, Any]) -> None:
    """Write a results file, which is whole at every moment. Raises ``OSError`` if that cannot be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    part.replace(path)


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
