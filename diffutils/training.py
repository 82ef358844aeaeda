"""How it is learned: batches, one gradient step, and the loop round it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Update = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]
"""batch -> named losses, having changed whatever it trains."""


class Step(NamedTuple):
    """What :func:`fit` yields after each update."""

    index: int
    """1, 2, ..., steps."""
    losses: dict[str, float]
    seconds: float
    """Since the first batch was asked for."""


def batches(*tensors: Tensor, size: int, generator: Generator | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Endless batches of ``size`` rows of each tensor, every row once an epoch in a new random order.

    A last, smaller batch of an epoch is left out (its rows come up in other epochs). Raises ``ValueError`` if the
    tensors differ in length or hold fewer than ``size`` rows.
    """
    n = len(tensors[0])
    if any(len(tensor) != n for tensor in tensors):
        raise ValueError(f"tensors: must have equal length, got {[len(tensor) for tensor in tensors]}")
    if not 1 <= size <= n:
        raise ValueError(f"size: must lie in 1..{n}, the number of rows, got {size}")
    return _epochs(tensors, n, size, generator)


def _epochs(
    tensors: tuple[Tensor, ...], n: int, size: int, generator: Generator | None
) -> Iterator[tuple[Tensor, ...]]:
    while True:
        order = torch.randperm(n, generator=generator, device=generator.device if generator else None)
        for rows in order[: n - n % size].split(size):
            yield tuple(tensor[rows.to(tensor.device)] for tensor in tensors)


def average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    r"""An exponential moving average of the network's weights:
    :math:`\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta`.

    Sample with ``average(...).module``. Raises ``ValueError`` unless ``0 <= decay < 1``.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: must lie in [0, 1), got {decay}")
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def descend(
    network: nn.Module,
    loss: Callable[..., Tensor],
    steps: int,
    lr: float = 1e-3,
    ema: AveragedModel | None = None,
    clip: float = 1.0,
    warmup: int = 50,
) -> Update:
    r"""The usual update: the gradient of ``loss(*batch)``, clipped to norm ``clip``, an Adam step, a step of the
    average.

    The learning rate rises linearly for ``warmup`` steps, then falls as a half cosine to zero at ``steps``. Raises
    ``ValueError`` if ``steps < 1``. Source: chapter 2; Kingma & Ba (2015).
    """
    if steps < 1:
        raise ValueError(f"steps: must be at least 1, got {steps}")
    optimiser = torch.optim.Adam(network.parameters(), lr, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / max(warmup, 1), 0.5 + 0.5 * math.cos(math.pi * min(i / steps, 1)))
    )

    def update(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        network.train()
        value = loss(*batch)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
        rate.step()
        if ema is not None:
            ema.update_parameters(network)
        return {"loss": value.detach()}

    return update


def fit(update: Update, batches: Iterable[tuple[Tensor, ...]], steps: int) -> Iterator[Step]:
    """Call ``update`` on ``steps`` batches, yielding after each. A notebook plots from the loop; no callbacks are
    needed.

    Raises:
        ValueError: if ``steps < 1``, or the batches run out before.
        FloatingPointError: at the first loss that is not finite, naming the step and the loss.
    """
    if steps < 1:
        raise ValueError(f"steps: must be at least 1, got {steps}")
    start, index = time.perf_counter(), 0
    for index, batch in zip(range(1, steps + 1), batches, strict=False):
        losses = {name: float(value) for name, value in update(batch).items()}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"step {index}: {name} is {value}: lower the learning rate, or look at the batch"
                )
        yield Step(index, losses, time.perf_counter() - start)
    if index < steps:
        raise ValueError(f"batches: ran out after {index} of {steps} steps")
