"""Named recipes and how to follow them.

A recipe is plain data (``zoo/recipes.toml``): network, objective, schedule, budget, seed. :func:`train` follows one.
"""

import itertools
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from . import checkpoints, data, objectives, runtime, schedules, training
from .networks.classifier import Classifier
from .networks.unet import Attention, ResBlock, UNet
from .schedules import Schedule
from .training import Step

FOLDER = Path(__file__).parent / "zoo"
Recipe = dict[str, Any]
"""What a recipe says, by name; ``zoo/recipes.toml`` explains the names."""


def recipes() -> dict[str, Recipe]:
    """All recipes of the book by name. One with ``like`` says only what differs from another."""
    written = tomllib.loads((FOLDER / "recipes.toml").read_text("utf-8"))

    def whole(name: str) -> Recipe:
        own = written[name]
        return (whole(own["like"]) if "like" in own else {}) | {key: own[key] for key in own if key != "like"}

    return {name: {"name": name} | whole(name) for name in written}


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe called ``name`` with some of its entries changed. Raises ``ValueError`` for a name or an entry that
    does not exist.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"name: must be one of {', '.join(known)}, got {name!r}")
    unknown = sorted(changes.keys() - known[name].keys())
    if unknown:
        raise ValueError(f"changes: {name} has no {', '.join(unknown)}; it has {', '.join(known[name])}")
    return known[name] | changes


def build(recipe: Recipe) -> nn.Module:
    """The recipe's network with its first weights, which follow from the recipe's seed."""
    kinds = {"unet": UNet, "classifier": Classifier}
    settings = dict(recipe["network"])
    with runtime.seeded(recipe["seed"]):
        return kinds[settings.pop("name")](**settings)


def schedule(recipe: Recipe) -> Schedule:
    """The recipe's noise schedule."""
    kinds = {"linear": schedules.linear, "cosine": schedules.cosine, "few_step": schedules.few_step}
    settings = dict(recipe["schedule"])
    return kinds[settings.pop("name")](**settings)


def objective(recipe: Recipe, network: nn.Module, noise: Iterator[torch.Generator]) -> Callable[..., Tensor]:
    """What the recipe minimises, as a function of a batch (images, classes)."""
    if recipe["method"] == "classifier":
        return lambda x, y: objectives.classification_loss(network, x, y, next(noise), recipe["shift"])
    chain = schedule(recipe)
    return lambda x_0, y: objectives.simple_loss(network, x_0, chain, next(noise), recipe["predicts"])


def train(
    recipe: Recipe,
    folder: Path | str,
    device: str | None = None,
    seconds: float | None = None,
    micro: int = 1,
    shard: bool = False,
    compiled: bool | None = None,
    snapshots: int = 0,
    every: int = 1,
    checkpoint: float = 60,
    progress: bool | None = None,
) -> Iterator[Step]:
    """Follow a recipe, from the last checkpoint in ``folder`` if there is one; then write ``weights.safetensors``.

    Args:
        recipe: as :func:`recipe` gives it.
        folder: for checkpoints and weights.
        device: by default a GPU if there is one. Under ``torchrun`` each process takes its own.
        seconds: train so long, instead of the recipe's number of steps.
        micro: parts to divide each process's batch in. The noise of a part has its own seed, so P processes of M parts
            train the same weights as 1 process of P M parts, up to rounding.
        shard: with several processes, spread the weights over them (FSDP), for networks too large for one GPU.
        compiled: compile the network (``torch.compile``); by default on GPUs only.
        snapshots: also keep the average as it is after 1/2, 1/4, ... of the steps, so many times.
        every: yield after so many steps.
        checkpoint: seconds from one checkpoint to the next.
        progress: show a bar; by default in a terminal.

    Raises what :func:`diffutils.training.fit` raises, and ``OSError`` if nothing can be written in ``folder``.
    """
    rank, world = runtime.place()
    where = runtime.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and world > 1 else device)
    network = build(recipe).to(where)
    ema = training.average(network, recipe["ema"])
    if compiled if compiled is not None else where.type == "cuda":
        network.compile()
    if world > 1 and shard:
        for of in network, ema.module:
            for module in of.modules():
                if isinstance(module, ResBlock | Attention):
                    fully_shard(module)
            fully_shard(of)
    elif world > 1:
        network = DistributedDataParallel(network)

    seed = 10_000 * recipe["seed"]
    noise = [runtime.generator(seed + 1 + rank * micro + i, where) for i in range(micro)]
    images = data.images(recipe["data"])
    batches = training.Batches(
        *(tensor.to(where) for tensor in images), size=recipe["batch"], generator=runtime.generator(seed, where)
    )
    budget = training.Budget(None if seconds else recipe["steps"], seconds)
    update = training.Descent(
        network,
        objective(recipe, network, itertools.cycle(noise)),
        budget,
        recipe["lr"],
        ema,
        warmup=recipe["warmup"],
        optimiser=recipe["optimiser"],
        micro=micro,
        bf16=recipe["bf16"],
    )
    saved = checkpoints.Checkpoints(
        folder,
        recipe | {"seconds": seconds},
        checkpoint,
        budget=budget,
        update=update,
        batches=batches,
        randomness=training.Randomness(*noise),
    )

    keep = {recipe["steps"] >> i for i in range(1, snapshots + 1)} if seconds is None else set()
    with runtime.seeded(seed + 1 + rank):
        for step in training.fit(update, batches, budget, every, saved, progress):
            if step.index in keep:
                _write_weights(Path(folder) / f"weights-{step.index:08d}.safetensors", recipe, update, step, where)
            yield step
    step = Step(update.index, {}, budget.spent())
    _write_weights(Path(folder) / "weights.safetensors", recipe, update, step, where)


def _write_weights(path: Path, recipe: Recipe, update: training.Descent, step: Step, where: torch.device) -> None:
    """The average's weights in float16, with how they came about in the header."""
    average = update.state_dict()["ema"]
    rank, world = runtime.place()
    if rank:
        return
    tensors = {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
    trained = {
        "steps": step.index,
        "images": step.index * recipe["batch"],
        "seconds": round(step.seconds, 1),
        "processes": world,
    }
    trained |= runtime.setting(where)
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    checkpoints.write(path, half, {"recipe": recipe, "trained": trained, "results": {}})
