"""How fast: training and sampling measured in pairs, against the machine's peak and against other libraries.

The diffusers library and ``denoising-diffusion-pytorch`` are imported only here and in ``race``, if they are installed.
"""

import importlib.util
import itertools
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import recipes, runtime, training
from .networks.unet import UNet
from .objectives import simple_loss
from .schedules import linear

BATCH = 64
DIFFUSERS, LUCIDRAINS = "diffusers", "denoising-diffusion-pytorch"


class Contender(NamedTuple):
    """Something that is timed: a network and how it is trained."""

    name: str
    """As the results call it."""
    package: str | None
    """The package that it needs, if not ours."""
    bf16: bool
    """Whether it multiplies in bfloat16."""
    optimiser: str
    """``adam`` or ``muon``."""
    build: Callable[[], nn.Module]
    """Makes the network."""


def _recipe() -> nn.Module:
    return recipes.build(recipes.recipe("mnist-ddpm"))


def _unet() -> nn.Module:
    return UNet(32, width=48, multipliers=(1, 2, 2), blocks=2, attention=8)


class Diffusers(nn.Module):
    """UNet2DModel of the diffusers library with ``width`` in place of its default, our t for its t - 1."""

    def __init__(self, width: int):
        super().__init__()
        from diffusers import UNet2DModel

        self.network = UNet2DModel(
            sample_size=32,
            in_channels=1,
            out_channels=1,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            norm_num_groups=8,
            attention_head_dim=32,
            resnet_time_scale_shift="scale_shift",
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``(B, C, H, W)`` and t ``(B,)`` in 1..T to ``(B, C, H, W)``."""
        return self.network(x_t, t - 1).sample


class _Lucidrains(nn.Module):
    """Unet of denoising-diffusion-pytorch, its own levels, ``width`` in place of its default of 64."""

    def __init__(self, width: int):
        super().__init__()
        from denoising_diffusion_pytorch import Unet

        self.network = Unet(width, channels=1, flash_attn=True)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t - 1)


CONTENDERS = [
    Contender("recipe, bf16", None, True, "muon", _recipe),
    Contender("recipe, fp32", None, False, "muon", _recipe),
    Contender("same architecture, ours, bf16", None, True, "adam", _unet),
    Contender("same architecture, diffusers, bf16", DIFFUSERS, True, "adam", lambda: Diffusers(48)),
    Contender("same architecture, ours, fp32", None, False, "adam", _unet),
    Contender("same architecture, diffusers, fp32", DIFFUSERS, False, "adam", lambda: Diffusers(48)),
    Contender("equal parameters, diffusers, bf16", DIFFUSERS, True, "adam", lambda: Diffusers(40)),
    Contender("equal parameters, diffusers, fp32", DIFFUSERS, False, "adam", lambda: Diffusers(40)),
    Contender("equal parameters, denoising-diffusion-pytorch, bf16", LUCIDRAINS, True, "adam", lambda: _Lucidrains(16)),
    Contender(
        "equal parameters, denoising-diffusion-pytorch, fp32", LUCIDRAINS, False, "adam", lambda: _Lucidrains(16)
    ),
]
RATIOS = [
    ("same architecture, ours, bf16", "same architecture, diffusers, bf16", 1.0),
    ("same architecture, ours, fp32", "same architecture, diffusers, fp32", 1.0),
    ("recipe, bf16", "equal parameters, diffusers, bf16", 2.0),
    ("recipe, fp32", "equal parameters, diffusers, fp32", None),
    ("recipe, bf16", "equal parameters, diffusers, fp32", 3.0),
    ("recipe, bf16", "equal parameters, denoising-diffusion-pytorch, bf16", None),
    ("recipe, bf16", "equal parameters, denoising-diffusion-pytorch, fp32", 4.0),
]
"""(ours, theirs, how many times as fast ours should be, if that was said beforehand).

:meta hide-value:
"""


def available() -> list[Contender]:
    """The contenders whose package is installed."""
    return [one for one in CONTENDERS if one.package is None or importlib.util.find_spec(one.package.replace("-", "_"))]


def _training(one: Contender, device: torch.device) -> tuple[nn.Module, Callable[[], None]]:
    """A network and a function that takes one training step with it, all that belongs to one included."""
    with runtime.seeded(0):
        network = one.build().to(device)
    schedule, generator = linear().to(device), runtime.generator(0, device)
    x_0 = torch.rand(BATCH, 1, 32, 32, generator=generator, device=device) * 2 - 1
    update = training.Descent(
        network,
        lambda x_0: simple_loss(network, x_0, schedule, generator),
        10_000,
        ema=training.average(network),
        optimiser=one.optimiser,
        bf16=one.bf16,
    )
    return network, lambda: update((x_0,)) and None


def _sampling(one: Contender, network: nn.Module, device: torch.device) -> Callable[[], None]:
    """One call of the network as a sampler makes it."""
    x_t, t = torch.zeros(BATCH, 1, 32, 32, device=device), torch.full((BATCH,), 500, device=device)

    @torch.no_grad()
    def call() -> None:
        network.eval()
        with runtime.autocast(device, one.bf16):
            network(x_t, t)

    return call


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """The fastest of ten products of square matrices, in FLOP/s."""
    a = torch.randn(size, size, generator=runtime.generator(0, device), device=device).to(dtype)
    times = [_seconds(lambda: a @ a, device) for _ in range(12)][2:]
    return 2 * size**3 / min(times)


def _memory(name: str, device: str, answer: Any) -> None:
    """Bytes that three training steps add, at their peak, to a fresh process that has built the network."""
    one = next(one for one in CONTENDERS if one.name == name)
    _, step = _training(one, torch.device(device))
    before = _peak_bytes(device)
    for _ in range(3):
        step()
    answer.put(_peak_bytes(device) - before)


def _peak_bytes(device: str) -> int:
    """The most memory that this process has had: of the GPU, or of the machine (Linux; 0 elsewhere)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found.group(1)) * 1024 if found else 0


def memory(name: str, device: str) -> int:
    """Peak memory in bytes of training the contender called ``name``, measured in a process of its own."""
    processes = multiprocessing.get_context("spawn")
    answer = processes.SimpleQueue()
    child = processes.Process(target=_memory, args=(name, device, answer))
    child.start()
    child.join()
    if child.exitcode:
        raise ChildProcessError(f"{name}: its process ended with code {child.exitcode} while memory was measured")
    return answer.get()


def utilisation(name: str, device: str, batch: int = 128, steps: int = 20) -> float:
    """The share of the measured bfloat16 peak that compiled training steps of a recipe reach on a GPU."""
    where, recipe = runtime.device(device), recipes.recipe(name)
    network = recipes.build(recipe).to(where)
    noise = runtime.generator(0, where)
    x = torch.rand(batch, network.channels, network.size, network.size, generator=noise, device=where) * 2 - 1
    loss = recipes.objective(recipe, network, itertools.repeat(noise))
    update = training.Descent(network, loss, 10_000, ema=training.average(network), bf16=True)
    batch_of = x, torch.zeros(batch, dtype=torch.int64, device=where)
    with FlopCounterMode(display=False) as counter:
        update(batch_of)
    network.compile()
    for _ in range(5):
        update(batch_of)
    seconds = _seconds(lambda: [update(batch_of) for _ in range(steps)] and None, where) / steps
    return counter.get_total_flops() / seconds / peak(where, torch.bfloat16, 8192)


def measure(rounds: int = 15, device: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time all contenders in turn, ``rounds`` times over, and yield named results: the machine, each contender, the
    ratios.

    In a round each contender takes one training step and answers one call, so whatever slows the machine for a while
    slows all of them, and each begins a round in turn; ratios are taken within a round. Times are given as median and
    quartiles. Raises ``ValueError`` if ``rounds < 2``.
    """
    if rounds < 2:
        raise ValueError(f"rounds: must be at least 2, got {rounds}")
    where = runtime.device(device)
    runtime.fast_float32()
    peaks = {str(dtype): peak(where, dtype) for dtype in (torch.float32, torch.bfloat16)}
    packages = {one.package for one in available() if one.package}
    rates = {name: round(value / 1e9, 1) for name, value in peaks.items()}
    yield "machine", runtime.setting(where, *packages) | {"batch": BATCH, "rounds": rounds, "peak GFLOP/s": rates}
    made = {one: _training(one, where) for one in available()}
    calls = {one: _sampling(one, network, where) for one, (network, _) in made.items()}
    steps: dict[str, list[float]] = {one.name: [] for one in made}
    samples: dict[str, list[float]] = {one.name: [] for one in made}
    order = list(made)
    for turn in range(rounds + 2):
        for one in order[turn % len(order) :] + order[: turn % len(order)]:
            step = made[one][1]
            times = _seconds(step, where), _seconds(calls[one], where)
            if turn >= 2:
                steps[one.name].append(times[0])
                samples[one.name].append(times[1])
    for one, (network, step) in made.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops = counter.get_total_flops() / BATCH
        rate = BATCH / statistics.median(steps[one.name])
        top = peaks[str(torch.bfloat16 if one.bf16 else torch.float32)]
        yield (
            one.name,
            {
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "training img/s": _spread([BATCH / seconds for seconds in steps[one.name]]),
                "network calls/s, of one image": _spread([BATCH / seconds for seconds in samples[one.name]]),
                "img/s by 50 calls": round(BATCH / statistics.median(samples[one.name]) / 50, 2),
                "MFLOP an image and step": round(flops / 1e6, 1),
                "share of peak": round(flops * rate / top, 3),
                "training memory MiB": round(memory(one.name, str(where)) / 2**20, 1),
            },
        )
    for ours, theirs, goal in RATIOS:
        if ours in steps and theirs in steps:
            pairs = [b / a for a, b in zip(steps[ours], steps[theirs], strict=True)]
            yield f"{ours} : {theirs}", {"times as fast": _spread(pairs), "goal": goal}


def _spread(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return [round(value, 3) for value in (middle, low, high)]
