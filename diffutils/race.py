"""Who draws best after equal time: recipes against each other, and against other libraries with their own defaults."""

import importlib.util
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from . import bench, data, evaluation, recipes, runtime, samplers, schedules, zoo
from .objectives import simple_loss
from .process import Denoiser, denoiser
from .schedules import Schedule
from .training import Batches, Budget, fit

Trained = tuple[Denoiser, Schedule, int, int]
"""A denoiser and its schedule, its number of parameters, and how many images it was trained on."""


def _recipe(name: str, x: Tensor, seconds: float, seed: int, device: torch.device) -> Trained:
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipes.recipe(name, seed=seed)
        for _ in recipes.Run(recipe, folder, device, seconds, checkpoint=float("inf")):
            pass
        model = zoo.load(Path(folder) / "weights.safetensors", device)
    return model.denoise, model.schedule, _size(model.network), model.header["trained"]["images"]


def _diffusers(x: Tensor, seconds: float, seed: int, device: torch.device, fitted: bool = False) -> Trained:
    """The library's example of unconditional training: its network, AdamW, batch, rate, average; float32; no flips.

    ``fitted``: its network at about the parameters of our recipe, and its cosine rate ending with the time.
    """
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    with runtime.seeded(seed):
        network = (bench.Diffusers(40) if fitted else _Example(*x.shape[1:3])).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimiser, num_warmup_steps=500, num_training_steps=100 * len(x) // 16)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noise, chain, budget = runtime.generator(seed, device), schedules.linear().to(device), Budget(seconds=seconds)
    if fitted:
        rate = LambdaLR(optimiser, lambda i: min((i + 1) / 500, 0.5 + 0.5 * math.cos(math.pi * budget.fraction(i))))

    def update(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        loss = simple_loss(network, batch[0], chain, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        ema.step(network.parameters())
        return {"loss": loss.detach()}

    images = _run(update, x, 16, budget, seed)
    ema.copy_to(network.parameters())
    return denoiser(network, chain, clip=True), schedules.linear(), _size(network), images


class _Example(nn.Module):
    """The network of that example, our t for its t - 1."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        from diffusers import UNet2DModel

        down, up = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
        down[4], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
        self.network = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t - 1).sample


def _lucidrains(x: Tensor, seconds: float, seed: int, device: torch.device, width: int = 64) -> Trained:
    """denoising-diffusion-pytorch as its front page has it, trained by its Trainer's defaults; no flips."""
    import ema_pytorch
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    with runtime.seeded(seed):
        # the front page has flash attention on; on a GPU that takes no float32, in which the Trainer works by default
        network = Unet(width, dim_mults=(1, 2, 4, 8), flash_attn=device.type == "cpu", channels=x.shape[1])
    diffusion = GaussianDiffusion(network, image_size=x.shape[-1], timesteps=1000).to(device)
    optimiser = torch.optim.Adam(diffusion.parameters(), 1e-4, (0.9, 0.99))
    ema = ema_pytorch.EMA(diffusion, beta=0.995, update_every=10)

    def update(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        loss = diffusion((batch[0] + 1) / 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.update()
        return {"loss": loss.detach()}

    with runtime.seeded(seed):
        images = _run(update, x, 16, Budget(seconds=seconds), seed)
    kept = ema.ema_model.eval()
    alpha_bar = kept.alphas_cumprod.double().cpu()
    chain = Schedule.from_alpha_bar(torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar]))

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return kept.model_predictions(x_t, t - 1, clip_x_start=True).pred_x_start

    return denoise, chain, _size(network), images


LIBRARIES: dict[str, Callable[..., Trained]] = {
    "diffusers": _diffusers,
    "diffusers, fitted": partial(_diffusers, fitted=True),
    "denoising-diffusion-pytorch": _lucidrains,
    "denoising-diffusion-pytorch, fitted": partial(_lucidrains, width=16),
}
"""Other libraries as they come, and ``fitted``: with about as many parameters as our recipe.

:meta hide-value:
"""


def _run(update: Callable, x: Tensor, size: int, budget: Budget, seed: int) -> int:
    batches = Batches(x, size=size, generator=runtime.generator(seed, x.device))
    steps = 0
    for step in fit(update, batches, budget):
        steps = step.index
    return steps * size


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def race(
    names: Iterable[str],
    minutes: Iterable[float],
    n: int = 2000,
    steps: int = 50,
    eta: float = 0.0,
    seeds: Iterable[int] = (0,),
    judge: str = "mnist-classifier",
    device: str | None = None,
    done: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Train each for each of ``minutes`` on the judge's data, draw ``n`` images by DDIM with so many ``steps`` and
    ``eta``, and measure them.

    ``names`` are recipes or ``diffusers`` or ``denoising-diffusion-pytorch``, which bring their own network, schedule,
    optimiser and batch; the sampler is the same for all. Every time is a training of its own, from nothing, whose
    learning rate has fallen when it is over. One result for each seed, time and name, as it comes, but for those that
    are among the results ``done``. Raises
    ``ValueError`` for a name that is neither, a library that is not installed, a recipe that is no diffusion model of
    the judge's data without classes, and an n at which the judge knows no floor, all before the first is trained.
    """
    names, by, where = list(names), evaluation.judge(judge), runtime.device(device)
    known = recipes.recipes()
    for name in names:
        if name in LIBRARIES:
            package = name.split(",")[0]
            if not importlib.util.find_spec(package.replace("-", "_")):
                raise ValueError(f"names: {package} is not installed (pip install {package})")
        elif name not in known or not recipes.is_plain(known[name]) or known[name]["judge"] != judge:
            raise ValueError(
                f"names: must be recipes judged by {judge}, of diffusion models of pixels without classes, or of "
                f"{', '.join(map(repr, LIBRARIES))}, got {runtime.named(name, [*known, *LIBRARIES])}"
            )
    evaluation.check_n(by, n)
    x = data.images(known[judge]["data"]).x.to(where)
    for seed, time, name in itertools.product(list(seeds), list(minutes), names):
        key = {"name": name, "seed": seed, "minutes": time, "n": n, "steps": steps, "eta": eta}
        if any(key.items() <= row.items() for row in done):
            continue
        if name in LIBRARIES:
            trained = LIBRARIES[name](x, 60 * time, seed, where)
        else:
            trained = _recipe(name, x, 60 * time, seed, where)
        denoise, chain, parameters, images = trained
        times, shape = schedules.subsequence(chain.T, steps), (n, *x.shape[1:])
        kernel = samplers.ddim(denoise, chain, eta)
        drawn = zoo.walk(lambda rows, kernel=kernel: kernel, times, shape, runtime.generator(seed, where))
        yield key | {"parameters": parameters, "images": images} | evaluation.compare(by, drawn)
