"""How it is learned: batches, one gradient step, and the loop round it, on a laptop or on many GPUs."""

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributed.checkpoint import state_dict as whole
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import optimisers
from .checkpoints import Checkpoints
from .runtime import any_process, autocast, average_over_processes, first, place, stop_later

Update = Callable[[tuple[Tensor, ...]], dict[str, Tensor]]
"""batch -> named losses, having changed whatever it trains."""


class Step(NamedTuple):
    """What :func:`fit` yields."""

    index: int
    """How many updates there have been."""
    losses: dict[str, float]
    """Each loss, averaged over the updates since the last yield."""
    seconds: float
    """Time spent training so far, before an interruption included."""


class Budget:
    """How long to train: a number of steps, or of seconds.

    With seconds, the learning rate falls with the time, and where a run ends depends on the machine; only a number of
    steps can be repeated exactly. Raises ``ValueError`` unless exactly one of the two is given and is positive.
    """

    def __init__(self, steps: int | None = None, seconds: float | None = None):
        if (steps is None) == (seconds is None):
            raise ValueError(f"steps, seconds: give exactly one of them, got {steps} and {seconds}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps: must be at least 1, got {steps}")
        if seconds is not None and seconds <= 0:
            raise ValueError(f"seconds: must be positive, got {seconds}")
        self.steps, self.seconds = steps, seconds
        self._before, self._started = 0.0, None

    def spent(self) -> float:
        """Seconds since this was first asked, and those of the runs that this one goes on from."""
        if self._started is None:
            self._started = time.perf_counter()
        return self._before + time.perf_counter() - self._started

    def fraction(self, index: int) -> float:
        """The share of the budget that is used up after ``index`` steps.

        When several processes train together, the first one's clock counts, and all of them must ask.
        """
        return index / self.steps if self.steps else first(self.spent()) / self.seconds

    def state_dict(self) -> dict[str, float]:
        """The seconds spent."""
        return {"spent": self.spent()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the seconds spent."""
        self._before, self._started = state["spent"], None


class Batches(Iterator[tuple[Tensor, ...]]):
    """Endless batches of ``size`` rows of each tensor, every row once an epoch in a new random order.

    A last, smaller batch of an epoch is left out (its rows come up in other epochs). The tensors stay on the device
    they are on. When several processes train together, ``size`` is the number of rows of all of them, and each gets
    its own part. Raises ``ValueError`` if the tensors differ in length, hold fewer than ``size`` rows, or ``size``
    rows cannot be divided among the processes.
    """

    def __init__(self, *tensors: Tensor, size: int, generator: Generator | None = None):
        n, (rank, world) = len(tensors[0]), place()
        if any(len(tensor) != n for tensor in tensors):
            raise ValueError(f"tensors: must have equal length, got {[len(tensor) for tensor in tensors]}")
        if not 1 <= size <= n:
            raise ValueError(f"size: must lie in 1..{n}, the number of rows, got {size}")
        if size % world:
            raise ValueError(f"size: must be a multiple of the number of processes, {world}, got {size}")
        self.tensors, self.size, self.generator = tensors, size, generator
        self._mine = slice(rank * size // world, (rank + 1) * size // world)
        self._order, self._position = torch.empty(0, dtype=torch.int64), 0

    def __next__(self) -> tuple[Tensor, ...]:
        n, generator = len(self.tensors[0]), self.generator
        if self._position + self.size > len(self._order):
            where = generator.device if generator else None
            self._order, self._position = torch.randperm(n, generator=generator, device=where), 0
        rows = self._order[self._position : self._position + self.size][self._mine]
        self._position += self.size
        return tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        """This epoch's order, the place in it, and the generator of the next one's."""
        generator = None if self.generator is None else self.generator.get_state()
        return {"order": self._order.int(), "position": self._position, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place in an epoch."""
        where = self.generator.device if self.generator else None
        self._order, self._position = state["order"].long().to(where), state["position"]
        if self.generator is not None:
            self.generator.set_state(state["generator"])


def average(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    r"""An exponential moving average of the network's weights:
    :math:`\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta`.

    Sample with ``average(...).module``. Raises ``ValueError`` unless ``0 <= decay < 1``.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: must lie in [0, 1), got {decay}")
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class Descent:
    r"""The usual update: the gradient of ``loss(*batch)``, clipped to norm ``clip``, a step of the optimiser, a step
    of the average.

    The learning rate rises linearly for ``warmup`` steps, then falls as a half cosine to zero at the end of the
    budget ``steps`` (a number, or a :class:`Budget`).

    Args:
        network: what is trained; wrapped in ``DistributedDataParallel`` when several processes train it.
        loss: the rows of a batch to a scalar, the mean over them.
        ema: an :func:`average` of the network, if there is to be one.
        optimiser: ``adam``, or ``muon`` (:class:`diffutils.optimisers.Muon`) for the same loss in fewer steps.
        micro: go through a batch in so many equal parts, one after the other, adding up their gradients: less memory,
            the same step. The loss is called once a part.
        bf16: multiply in bfloat16 where the hardware can (weights, gradients and the optimiser stay float32).

    Calling it returns the loss before the step and the norm of its gradient before clipping. Raises ``ValueError``
    if ``steps < 1`` or ``micro < 1``, and when called if a batch cannot be divided in ``micro`` equal parts.
    Source: chapter 2.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[..., Tensor],
        steps: int | Budget,
        lr: float = 1e-3,
        ema: AveragedModel | None = None,
        clip: float = 1.0,
        warmup: int = 50,
        optimiser: str = "adam",
        micro: int = 1,
        bf16: bool = False,
    ):
        if micro < 1:
            raise ValueError(f"micro: must be at least 1, got {micro}")
        self.network, self.loss, self.ema, self.clip, self.micro, self.bf16 = network, loss, ema, clip, micro, bf16
        self.budget = steps if isinstance(steps, Budget) else Budget(steps)
        self.lr, self.warmup, self.index = lr, max(warmup, 1), 0
        self.optimisers = optimisers.make(optimiser, network)

    def __call__(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        self.network.train()
        rate = self._rate()
        self.network.zero_grad(set_to_none=True)
        loss = self._gradients(batch)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.lr * rate
            optimiser.step()
        self.index += 1
        if self.ema is not None:
            self.ema.update_parameters(plain(self.network))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return {"loss": loss, "gradient": norm.detach()}

    def _rate(self) -> float:
        """The share of the peak learning rate that this step has."""
        return min((self.index + 1) / self.warmup, 0.5 + 0.5 * math.cos(math.pi * min(self._fraction(), 1)))

    def _fraction(self) -> float:
        return self.budget.fraction(self.index)

    def _gradients(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Leave the gradient of the mean loss in the parameters, and return that loss."""
        parts = [batch]
        if self.micro > 1:
            parts = list(zip(*(split(tensor, self.micro) for tensor in batch), strict=True))
        where = next(self.network.parameters()).device
        total = torch.zeros((), device=where)
        for i, part in enumerate(parts):
            with _together(self.network, now=i == len(parts) - 1):
                with autocast(where, self.bf16):
                    value = self.loss(*part) / len(parts)
                value.backward()
            total = total + value.detach()
        return total

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, but for the batches and the noise.

        However the network is spread over processes, the first of them gets its tensors whole, the others nothing.
        """
        network = whole.get_model_state_dict(self.network, options=_WHOLE)
        optimiser = None  # there is nothing to save before the first step, and asking would change it
        if self.index:
            optimiser = whole.get_optimizer_state_dict(self.network, self.optimisers, options=_WHOLE)
        return {"network": network, "ema": self.average(), "optimiser": optimiser, "index": self.index}

    def average(self) -> dict[str, Any] | None:
        """The state of the average, whole in the first process, or ``None`` if there is none."""
        return None if self.ema is None else whole.get_model_state_dict(self.ema, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        whole.set_model_state_dict(self.network, state["network"], options=_WHOLE)
        if state["index"]:
            whole.set_optimizer_state_dict(self.network, self.optimisers, state["optimiser"], options=_WHOLE)
        if self.ema is not None:
            whole.set_model_state_dict(self.ema, state["ema"], options=_WHOLE)
        self.index = state["index"]


_WHOLE = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)


@contextlib.contextmanager
def _together(network: nn.Module, now: bool) -> Iterator[None]:
    """Gradients travel between processes once a step: with its last part."""
    if isinstance(network, DistributedDataParallel) and not now:
        with network.no_sync():
            yield
    else:
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(now)
        yield


def plain(network: nn.Module) -> nn.Module:
    """The network itself, out of the wrapping that several processes need."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def split(tensor: Tensor, parts: int) -> Sequence[Tensor]:
    """``tensor`` in equal parts along its first dimension. Raises ``ValueError`` if that cannot be done."""
    if len(tensor) % parts:
        raise ValueError(f"micro: a batch of {len(tensor)} rows cannot be divided in {parts} equal parts")
    return tensor.split(len(tensor) // parts)


def fit(
    update: Update,
    batches: Iterable[tuple[Tensor, ...]],
    steps: int | Budget,
    every: int = 1,
    at: Collection[int] = (),
    checkpoints: Checkpoints | None = None,
    progress: bool | None = None,
) -> Iterator[Step]:
    """Call ``update`` on batch after batch, yielding now and then. A notebook plots from the loop; no callbacks are
    needed.

    Args:
        update: one training step; a GAN's trains two networks.
        batches: may be endless.
        steps: how many, or a :class:`Budget`.
        every: yield after so many updates. Losses are read only then, and a GPU need not wait for them in between.
        at: yield after these updates too.
        checkpoints: go on from the last one, if there is one, and save more. While they are given, Ctrl-C and SIGTERM
            let the update end and save a last one before they stop the run.
        progress: show a bar with the time left; by default only in a terminal, and not where ``CI`` is set.

    Raises:
        ValueError: if ``steps < 1`` or ``every < 1``, or the batches run out before.
        FloatingPointError: at the first loss that is not finite, naming the step and the loss; the last checkpoint is
            from before it.
        KeyboardInterrupt, SystemExit: after Ctrl-C and after SIGTERM.
    """
    budget = steps if isinstance(steps, Budget) else Budget(steps)
    if every < 1:
        raise ValueError(f"every: must be at least 1, got {every}")
    index = checkpoints.restore() if checkpoints else 0
    saved = budget.spent()
    with stop_later(checkpoints is not None) as stops, _bar(progress, budget, index) as bar:
        walk = iter(batches)
        while budget.fraction(index) < 1:
            recent: list[dict[str, Tensor]] = []
            for batch in itertools.islice(walk, every):
                recent.append(update(batch))
                done = index + len(recent)
                # a signal is one process's own: with several, they agree on it below
                if budget.fraction(done) >= 1 or done in at or (stops and place()[1] == 1):
                    break
            if not recent:
                raise ValueError(f"batches: ran out after {index}{f' of {budget.steps}' if budget.steps else ''} steps")
            losses = _mean(recent, index)
            index += len(recent)
            bar.update(len(recent) if budget.steps else budget.spent() - bar.n)
            stop = any_process(stops)
            if checkpoints:
                due = first(budget.spent() - saved >= checkpoints.every)
                if stop or due or budget.fraction(index) >= 1:
                    checkpoints.save(index)
                    saved = budget.spent()
            if stop:
                raise stop
            yield Step(index, losses, budget.spent())


def _mean(recent: list[dict[str, Tensor]], index: int) -> dict[str, float]:
    """Each loss averaged over processes and over the updates after step ``index`` that have it; the first that is not
    finite stops the run.
    """
    named = [(i, name, loss) for i, losses in enumerate(recent) for name, loss in losses.items()]
    if not named:
        return {}
    together = torch.stack([loss.detach().double() for _, _, loss in named])
    average_over_processes([together])
    values: dict[str, list[float]] = {}
    for (i, name, _), value in zip(named, together.tolist(), strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"step {index + i + 1}: {name} is {value}: lower the learning rate, or look at the batch"
            )
        values.setdefault(name, []).append(value)
    return {name: sum(of) / len(of) for name, of in values.items()}


def _bar(progress: bool | None, budget: Budget, index: int) -> tqdm:
    """A bar on standard error, with the time left."""
    shown = sys.stderr.isatty() and "CI" not in os.environ and place()[0] == 0 if progress is None else progress
    total, done, unit = (budget.steps, index, " steps") if budget.steps else (budget.seconds, budget.spent(), " s")
    form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} [{elapsed}, {remaining} left]"
    return tqdm(total=total, initial=done, unit=unit, disable=not shown, smoothing=0.05, bar_format=form)
