"""Trained networks: what is shipped with the book, and how to draw from it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import captions, runtime, samplers, schedules
from .networks.latent import LatentUNet
from .process import Denoiser, denoiser, drawer, guided
from .recipes import schedule, weights
from .samplers import Kernel
from .schedules import Schedule

SAMPLERS: dict[str, Callable[[Denoiser, Schedule, float], Kernel]] = {
    "ddpm": lambda denoise, schedule, eta: samplers.ddpm(denoise, schedule),
    "ddpm-beta": lambda denoise, schedule, eta: samplers.ddpm(denoise, schedule, "beta"),
    "ddim": samplers.ddim,
    "dpm-solver": lambda denoise, schedule, eta: samplers.dpm_solver(denoise, schedule),
    "heun": lambda denoise, schedule, eta: samplers.heun(denoise, schedule),
}
"""The kernels by name; ``ddpm-beta`` is ``ddpm`` with the larger variance, and eta is for ``ddim`` alone.

:meta hide-value:
"""


class Model(NamedTuple):
    """A trained network that draws images."""

    denoise: Denoiser | None
    """Its estimate of x_0, if it is a diffusion model; a VAE and a GAN draw by their network's ``sample``, a denoising
    diffusion GAN by its generator, step by step."""
    schedule: Schedule | None
    """Of its chain, if it has one."""
    network: nn.Module
    """With its trained weights."""
    header: dict[str, Any]
    """``recipe``, how it was ``trained``, and the ``results`` of its evaluation."""


def load(name: str | Path, device: str | torch.device | None = None) -> Model:
    """A ready denoiser and its schedule: ``load("mnist-ddpm")``, or a weights file of your own.

    Estimates of x_0 are kept in [-1, 1], but for latents, which have no such range. Raises as
    :func:`diffutils.recipes.weights` does, and ``ValueError`` if it is a classifier or an autoencoder.
    """
    network, header = weights(name)
    return model(network.to(runtime.device(device)), header)


def model(network: nn.Module, header: dict[str, Any]) -> Model:
    """A network trained by the recipe in ``header``, ready to draw. Raises ``ValueError`` if it is a classifier or an
    autoencoder.
    """
    recipe = header["recipe"]
    if recipe["method"] in ("classifier", "autoencoder"):
        what = "a classifier" if recipe["method"] == "classifier" else "an autoencoder"
        raise ValueError(f"name: {recipe['name']} is {what}, and cannot be sampled")
    if recipe["method"] in ("vae", "gan"):
        return Model(None, None, network.eval(), header)
    chain, where = schedule(recipe), next(network.parameters()).device
    if recipe["method"] == "ddg":
        return Model(None, chain, network.eval(), header)
    denoise = denoiser(network, chain.to(where), recipe["predicts"], "autoencoder" not in recipe, recipe["bf16"])
    return Model(denoise, chain, network, header)


def kernel(denoise: Denoiser, schedule: Schedule, sampler: str, eta: float = 0.0) -> Kernel:
    """The reverse step called ``sampler``. Raises ``ValueError`` for a name that is not among ``SAMPLERS``, and for an
    ``eta`` with another than ``ddim``.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if eta and sampler != "ddim":
        raise ValueError(f"eta: is for ddim alone, got {eta:g} with {sampler}")
    return SAMPLERS[sampler](denoise, schedule, eta)


def generator_kernel(network: nn.Module, schedule: Schedule, bf16: bool = False, clip: bool = True) -> Kernel:
    """The reverse step of a denoising diffusion GAN's network, x_0 kept in [-1, 1] if ``clip``."""
    if network.direct:
        return samplers.direct(drawer(network.generator, False, bf16))
    return samplers.ddg(drawer(network.generator, clip, bf16), schedule)


def draw(
    model: Model,
    n: int,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    size: int = 250,
    y: Tensor | None = None,
    weight: float = 1.0,
    power: float = 1.0,
    prompts: Sequence[str] | None = None,
) -> Tensor:
    """``n`` images ``(n, C, H, W)`` in [-1, 1] on the CPU, drawn in batches of ``size``; from a diffusion model with
    ``steps`` spaced by ``power`` (:func:`diffutils.schedules.subsequence`), and of the classes ``y``, ``(n,)``, or
    after ``n`` prompts, if they are given, by guidance of ``weight``. A latent diffusion model walks in its latents,
    and decodes what it arrives at; a denoising diffusion GAN walks in the steps that it was trained for.

    The first images are the same however many follow, in whole batches. Raises ``ValueError`` for an unknown sampler,
    steps outside 1..T, classes or prompts that are not n, both of them, and either for a network that takes none.
    """
    network, recipe = model.network, model.header["recipe"]
    where = next(network.parameters()).device
    generator = runtime.generator(seed, where)
    if y is not None and (len(y) != n or getattr(network, "classes", None) is None):
        raise ValueError(f"y: {recipe['name']} takes {'n labels' if len(y) != n else 'no labels'}, got {len(y)}")
    if y is not None and prompts is not None:
        raise ValueError("y, prompts: give one of them")
    y = y if prompts is None else _read(model, prompts, n)
    if model.schedule is None:
        with torch.no_grad():
            return torch.cat([network.sample(min(size, n - i), generator).cpu() for i in range(0, n, size)])

    shape = n, network.channels, network.size, network.size
    if recipe["method"] == "ddg":
        one = generator_kernel(network, model.schedule.to(where), recipe["bf16"])
        return walk(lambda rows: one, range(model.schedule.T, -1, -1), shape, generator, size)
    decode = network.decode if isinstance(network, LatentUNet) else None

    def step(rows: slice) -> Kernel:
        denoise = model.denoise if y is None else _told(model, y[rows].to(where), weight)
        return kernel(denoise, model.schedule, sampler, eta)

    return walk(step, schedules.subsequence(model.schedule.T, steps, power), shape, generator, size, decode)


def _read(model: Model, prompts: Sequence[str], n: int) -> Tensor:
    """The tokens of n prompts."""
    if getattr(model.network, "text", None) is None:
        raise ValueError(f"prompts: {model.header['recipe']['name']} takes no prompts, got {len(prompts)}")
    if isinstance(prompts, str) or len(prompts) != n:
        raise ValueError(f"prompts: needs a list of {n}, one for each image, got {prompts!r}")
    return captions.tokens(prompts)


def _told(model: Model, y: Tensor, weight: float) -> Denoiser:
    """The denoiser guided by classes or tokens."""
    recipe = model.header["recipe"]
    pixels = not isinstance(model.network, LatentUNet)
    return guided(model.network, model.schedule.to(y.device), y, weight, recipe["predicts"], pixels, recipe["bf16"])


def redraw(
    model: Model,
    x: Tensor,
    prompts: Sequence[str],
    strength: float = 1.0,
    keep: Tensor | None = None,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    weight: float = 1.0,
    again: int = 1,
) -> Tensor:
    """Images ``(n, C, H, W)`` in [-1, 1] made of the images ``x``, ``(n, C, H, W)``, by a latent model of text: of as
    much noise as ``strength`` says (:func:`diffutils.samplers.image_to_image`), and with what is to be kept of them
    (True in ``keep``, which broadcasts to ``(n, 1, H, W)``) put back at every step
    (:func:`diffutils.samplers.inpaint`): a number of a latent where all of its pixels are to be kept, and at the end
    every pixel.

    The rest is as for :func:`draw`. Raises ``ValueError`` as these do.
    """
    network, where = model.network, next(model.network.parameters()).device
    y, generator = _read(model, prompts, len(x)).to(where), runtime.generator(seed, where)
    chain, x = model.schedule.to(where), x.to(where)
    step = kernel(_told(model, y, weight), chain, sampler, eta)
    x_0 = network.encode(x, generator)
    if keep is not None:
        keep = keep.to(where).expand(len(x), 1, *x.shape[2:])
        latent_keep = F.avg_pool2d(keep.float(), network.autoencoder.factor) == 1
        step = samplers.inpaint(step, x_0, latent_keep, chain, again)
    times = schedules.subsequence(chain.T, steps)
    drawn = network.decode(samplers.image_to_image(step, x_0, times, strength, chain, generator)).clamp(-1, 1)
    return (drawn if keep is None else torch.where(keep, x, drawn)).cpu()


def walk(
    step: Callable[[slice], Kernel],
    times: Sequence[int],
    shape: tuple[int, ...],
    generator: torch.Generator,
    size: int = 250,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Images of ``shape`` ``(n, C, H, W)`` in [-1, 1] on the CPU: from noise through ``times``, in batches of ``size``,
    on the generator's device. ``step`` gives the kernel for some of the n rows; what it leads to is given to
    ``decode``, if there is one.
    """
    images = []
    for start in range(0, shape[0], size):
        rows = slice(start, min(start + size, shape[0]))
        x_T = torch.randn(rows.stop - start, *shape[1:], generator=generator, device=generator.device)
        x_0 = samplers.sample(step(rows), x_T, times, generator)
        images.append((decode(x_0) if decode else x_0).clamp(-1, 1).cpu())
    return torch.cat(images)
