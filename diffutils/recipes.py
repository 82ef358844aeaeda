"""Named recipes and how to follow them.

A recipe is plain data (``zoo/recipes.toml``): network, objective, schedule, budget, seed. A :class:`Run` follows one.
"""

import functools
import itertools
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from . import canvas, captions, checkpoints, compression, data, objectives, runtime, schedules, training
from .adversarial import DiffusionDuel, Duel, Watch
from .networks.autoencoder import VAE
from .networks.classifier import Classifier
from .networks.discriminator import DDG, GAN
from .networks.latent import Autoencoder, LatentUNet, PatchDiscriminator, VQAutoencoder
from .networks.text import TextEncoder
from .networks.unet import Attention, CrossAttention, ResBlock, UNet
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


FOLDER_OF = "folder:"
"""What ``data`` begins with in a recipe for one's own pictures, before the folder that has them."""


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe called ``name`` with some of its entries changed. Raises ``ValueError`` for a name or an entry that
    does not exist.
    """
    known = recipes()
    if name not in known:
        raise ValueError(f"name: must be one of {', '.join(known)}, got {runtime.named(name, known)}")
    unknown = sorted(changes.keys() - known[name].keys())
    if unknown:
        raise ValueError(f"changes: {name} has no {', '.join(unknown)}; it has {', '.join(known[name])}")
    return known[name] | changes


def is_plain(recipe: Recipe) -> bool:
    """Whether it is of a diffusion model of pixels that is told nothing about them."""
    return recipe["method"] == "ddpm" and not recipe.keys() & {"autoencoder", "drop"}


def for_folder(recipe: Recipe, folder: str | Path) -> Recipe:
    """The recipe of a diffusion model, for the pictures in ``folder``, as :func:`diffutils.data.folder` reads them, at
    the size and with the channels of its network. Raises ``ValueError`` if it is of another kind, or of classes.
    """
    if not is_plain(recipe):
        raise ValueError(f"images: must be for a diffusion model of pixels without classes, got {recipe['name']}")
    return recipe | {"data": f"{FOLDER_OF}{Path(folder).resolve()}"}


def build(recipe: Recipe, stage: Recipe | None = None) -> nn.Module:
    """The recipe's network with its first weights, which follow from the recipe's seed.

    One that learns in latents holds an autoencoder, of the recipe ``stage``; by default of that which it names.
    """
    kinds = {"unet": UNet, "classifier": Classifier, "vae": VAE, "gan": GAN, "ddg": DDG}
    kinds |= {"autoencoder": Autoencoder, "vq": VQAutoencoder}
    settings = dict(recipe["network"])
    with runtime.seeded(recipe["seed"]):
        if "text" in settings:
            settings["text"] = TextEncoder(len(captions.VOCABULARY) + 1, captions.LENGTH, **settings["text"])
        if "autoencoder" in recipe:
            settings.pop("name")
            return LatentUNet(build(stage or recipes()[recipe["autoencoder"]]), **settings)
        return kinds[settings.pop("name")](**settings)


def located(name: str | Path) -> Path:
    """The file of a recipe's shipped weights, or the weights file itself. Raises as :func:`weights` does for names."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if str(name) not in recipes():
        raise ValueError(
            f"name: must be a .safetensors file or one of {', '.join(recipes())}, "
            f"got {runtime.named(str(name), recipes())}"
        )
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: its weights are not shipped with the book. Train them (python -m diffutils train {name}), "
            f"then give the file that this writes"
        )
    return path


def weights(name: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe with its shipped weights, or that of a weights file, and the file's header.

    Raises ``ValueError`` for a name that is neither a recipe nor a file, and if the file is damaged;
    ``FileNotFoundError`` if that recipe's weights are not shipped.
    """
    path = located(name)
    tensors, header = checkpoints.read(path)
    if "recipe" not in header or "trained" not in header:
        raise ValueError(f"{path}: holds no trained network (a checkpoint? its weights are written at the end)")
    network = build(header["recipe"], header.get("autoencoder"))
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    )
    return network.eval(), header


def schedule(recipe: Recipe) -> Schedule:
    """The recipe's noise schedule."""
    kinds = {"linear": schedules.linear, "cosine": schedules.cosine, "few_step": schedules.few_step}
    settings = dict(recipe["schedule"])
    return kinds[settings.pop("name")](**settings)


def objective(recipe: Recipe, network: nn.Module, noise: Iterator[torch.Generator]) -> Callable[..., Tensor]:
    """What the recipe minimises, as a function of a batch (images, classes), or (images, the tokens of several
    captions of each), of which it takes one at random.

    A network with classes or words learns without them too: it is told them with probability 1 - ``drop``.
    With ``loss = "bound"`` a diffusion model's errors are weighted as in the variational bound, divided by the mean
    weight; with ``loss = "bound by chance"`` each step is drawn as often as it should weigh instead.
    """
    if recipe["method"] == "classifier":
        return lambda x, y: objectives.classification_loss(network, x, y, next(noise), recipe["shift"])
    if recipe["method"] == "vae":
        return lambda x, y: objectives.vae_terms(network, x, next(noise), recipe["levels"]).sum() / x.numel()
    chain = schedule(recipe).to(next(network.parameters()).device)
    kind, nothing, weight, chance = recipe["predicts"], training.plain(network).nothing, None, None
    if recipe.get("loss") in ("bound", "bound by chance"):
        weight = objectives.bound_weight(schedule(recipe), kind).to(chain.beta.device)
        weight = weight / weight[1:].mean()
    if recipe.get("loss") == "bound by chance":
        chance = weight / weight.sum()

    def loss(x_0: Tensor, y: Tensor) -> Tensor:
        generator = next(noise)
        if "autoencoder" in recipe:  # mean and standard deviation of the latents, side by side
            x_0 = training.plain(network).draw(*x_0.chunk(2, 1), generator)
        if nothing is None:
            return objectives.simple_loss(network, x_0, chain, generator, kind, weight, chance)
        if y.ndim == 3:
            one = torch.randint(y.shape[1], (len(y),), generator=generator, device=y.device)
            y = y[torch.arange(len(y), device=y.device), one]
        untold = torch.rand(len(y), generator=generator, device=y.device) < recipe["drop"]
        y = y.masked_fill(untold.reshape(-1, *[1] * (y.ndim - 1)), nothing)
        return objectives.simple_loss(network, x_0, chain, generator, kind, weight, chance, y=y)

    return loss


class Run(Iterable[Step]):
    """A recipe being followed: iterate over it to train, from the last checkpoint in ``folder`` if there is one; at the
    end it writes ``weights.safetensors`` there. A GAN is watched: if its training fails it warns, in words, and the
    warning goes into the header of the weights.

    Args:
        recipe: as :func:`recipe` gives it.
        folder: for checkpoints and weights.
        device: by default a GPU if there is one. Under ``torchrun`` each process takes its own.
        seconds: train so long, instead of the recipe's number of steps.
        micro: parts to divide each process's batch in. The noise of a part has its own seed, so P processes of M parts
            train the same weights as 1 process of P M parts, up to rounding (but for dropout, and for a classifier's
            batch statistics, which are each process's own).
        shard: with several processes, spread the weights over them (FSDP), for networks too large for one GPU.
        compiled: compile the network (``torch.compile``); by default on GPUs only.
        snapshots: also keep the average as it is after 1/2, 1/4, ... of the steps, so many times.
        every: yield after so many steps.
        checkpoint: seconds from one checkpoint to the next.
        progress: show a bar; by default in a terminal.
        autoencoder: of a model of latents, the autoencoder's weights file; by default what is shipped of that which the
            recipe names.

    Raises ``ValueError`` if a GAN, a denoising diffusion GAN or an autoencoder is to be trained with ``micro`` or
    ``shard``. Iterating raises what :func:`diffutils.training.fit` raises, and ``OSError`` if nothing can be written in
    ``folder``.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | str,
        device: str | torch.device | None = None,
        seconds: float | None = None,
        micro: int = 1,
        shard: bool = False,
        compiled: bool | None = None,
        snapshots: int = 0,
        every: int = 1,
        checkpoint: float = 60,
        progress: bool | None = None,
        autoencoder: Path | str | None = None,
    ):
        rank, world = runtime.place()
        where = runtime.own_device(device)
        self.recipe, self.folder, self.device = recipe, Path(folder), where
        x, y = (tensor.to(where) for tensor in _batch(recipe))
        self.stage = None
        if "autoencoder" in recipe:
            trained, header = weights(autoencoder or recipe["autoencoder"])
            self.stage = header["recipe"]
            network = build(recipe, self.stage).to(where)
            network.autoencoder.load_state_dict(trained.state_dict())
            x = network.fit_scale(x, recipe["scale"])
        else:
            network = build(recipe).to(where)
        ema = training.average(network, recipe["ema"])
        self.average = ema.module
        if compiled if compiled is not None else where.type == "cuda":
            network.compile()
        duel = recipe["method"] in ("gan", "ddg", "autoencoder")
        self.watch = Watch() if recipe["method"] in ("gan", "ddg") else None
        if (micro > 1 and duel) or (shard and recipe["method"] != "ddpm"):
            what = {"gan": "a GAN", "ddg": "a denoising diffusion GAN", "vae": "a VAE", "classifier": "a classifier"}
            how = f"{what.get(recipe['method'], 'an autoencoder')} is trained whole"
            raise ValueError(f"micro, shard: {how}, by one process or by several")
        if world > 1 and not duel:
            network = _spread(network, ema.module, shard, where)

        seed = 10_000 * recipe["seed"]
        noise = [runtime.generator(seed + 1 + rank * micro + i, where) for i in range(micro)]
        self.batches = training.Batches(x, y, size=recipe["batch"], generator=runtime.generator(seed, where))
        self.randomness = runtime.Randomness(*noise, seed=seed + 5000 + rank, device=where)
        self.budget = training.Budget(recipe["steps"] if seconds is None else None, seconds)
        common = {"lr": recipe["lr"], "ema": ema, "warmup": recipe["warmup"], "bf16": recipe["bf16"]}
        if recipe["method"] == "autoencoder":
            self.update = compression.Compression(
                network,
                noise[0],
                self.budget,
                *_opponents(recipe, where),
                optimiser=recipe["optimiser"],
                **common,
                **recipe["game"],
            )
        elif duel:
            game = {"gamma": recipe["gamma"], "lazy": recipe["lazy"]}
            game |= {"fall": recipe.get("fall", False), "ratio": recipe.get("ratio", 1.0)}
            kind = Duel if recipe["method"] == "gan" else partial(DiffusionDuel, schedule=schedule(recipe))
            self.update = kind(network, noise=noise[0], steps=self.budget, **game, **common)
        else:
            loss = objective(recipe, network, itertools.cycle(noise))
            optimiser = recipe["optimiser"]
            self.update = training.Descent(network, loss, self.budget, optimiser=optimiser, micro=micro, **common)
        settings = {"seconds": seconds, "micro": micro, "processes": world, "device": where.type}
        if self.stage:
            settings |= {"measured scale": training.plain(network).scale.item()}
        self.checkpoints = checkpoints.Checkpoints(
            folder,
            {key: value for key, value in recipe.items() if key != "about"} | settings,
            checkpoint,
            budget=self.budget,
            update=self.update,
            batches=self.batches,
            randomness=self.randomness,
        )
        self.every, self.progress = every, progress
        self.snapshots = {recipe["steps"] >> i for i in range(1, snapshots + 1)} if seconds is None else set()

    def __iter__(self) -> Iterator[Step]:
        def update(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            with self.randomness.inside():
                return self.update(batch)

        walk = training.fit(
            update, self.batches, self.budget, self.every, self.snapshots, self.checkpoints, self.progress
        )
        for step in walk:
            if self.watch and (message := self.watch(step)):
                warnings.warn(f"{self.recipe['name']}: {message}", RuntimeWarning, stacklevel=2)
            if step.index in self.snapshots:
                self._write(f"weights-{step.index:08d}.safetensors", step.seconds)
            yield step
        self._write("weights.safetensors", self.budget.spent())

    def _write(self, name: str, seconds: float) -> None:
        """The average's weights in float16, with how they came about in the header."""
        average, (rank, world) = self.update.average(), runtime.place()
        if rank:
            return
        steps = self.update.index
        trained = {"steps": steps, "images": steps * self.recipe["batch"], "seconds": round(seconds, 1)}
        trained |= {"processes": world} | runtime.setting(self.device)
        if self.watch and self.watch.said:
            trained["warnings"] = self.watch.said
        tensors = {key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"}
        header = {"recipe": self.recipe, "trained": trained, "results": {}}
        if self.stage:
            header |= {"autoencoder": self.stage}
            trained["scale"] = self.average.scale.item()
        checkpoints.write(self.folder / name, checkpoints.half(tensors), header)


def _batch(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The training images and their classes, or the tokens of several captions of each; with several processes, the
    first one fetches them before the others look.
    """
    rank, world = runtime.place()
    if rank:
        torch.distributed.barrier()
    if recipe["data"].startswith(FOLDER_OF):
        size, channels = recipe["network"]["size"], recipe["network"].get("channels", 1)
        x, y = data.folder(recipe["data"].removeprefix(FOLDER_OF), size, channels)
    elif "captions" in recipe:
        x, of = canvas.described(recipe["data"])
        generator = runtime.generator(recipe["seed"])
        y = captions.variants(of, **recipe["captions"], generator=generator, limits=captions.strokes(recipe["data"]))
    else:
        x, y = canvas.images(recipe["data"])
    if world > 1 and not rank:
        torch.distributed.barrier()
    return x, y


def _opponents(recipe: Recipe, where: torch.device) -> tuple[nn.Module | None, compression.Distance | None]:
    """The discriminator of an autoencoder's recipe, if its loss has one, and the distance by its features."""
    discriminator = distance = None
    if recipe["against"]:
        with runtime.seeded(recipe["seed"] + 1):
            discriminator = PatchDiscriminator(recipe["network"].get("channels", 1), recipe["against"]).to(where)
    if recipe["features"] == "lpips":
        distance = compression.lpips_distance(device=where)
    elif recipe["features"]:
        judge = weights(recipe["features"])[0].to(where).requires_grad_(False)
        distance = functools.partial(compression.feature_distance, judge)
    return discriminator, distance


def _spread(network: nn.Module, average: nn.Module, shard: bool, where: torch.device) -> nn.Module:
    """The network as several processes train it: each with all of it, or each with a share of every block."""
    if not shard:
        return DistributedDataParallel(network)
    mesh = init_device_mesh(where.type, (runtime.place()[1],))
    for of in network, average:
        for module in of.modules():
            if isinstance(module, ResBlock | Attention | CrossAttention | TextEncoder):
                fully_shard(module, mesh=mesh)
        fully_shard(of, mesh=mesh)
    return network
