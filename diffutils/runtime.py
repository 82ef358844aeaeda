"""Device, precision, seeding, processes and signals: what depends on the machine rather than on the mathematics."""

import contextlib
import difflib
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from . import __version__

_started = time.perf_counter()


def device(name: str | torch.device | None = None) -> torch.device:
    """The device to compute on: ``name`` if given, else a CUDA GPU if there is one, else the CPU.

    Raises ``ValueError`` if ``name`` is no device of this machine, or one without float64, which schedules are made of.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        why = re.split(r"[\n:.]", str(error))[0][:100]
        raise ValueError(f"device: {name!r} is not usable here ({why})") from error
    return torch.device(name)


def own_device(name: str | torch.device | None = None) -> torch.device:
    """The :func:`device` to train on: of the processes that ``torchrun`` starts, each takes the GPU of its own number,
    and touches no other. Raises ``ValueError`` if there is none for it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and torch.cuda.is_available() and "cuda" in str(name or "cuda"):
        rank, count = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
        if rank is None or int(rank) >= count:
            raise ValueError(
                f"device: of {count} GPUs there is none for process {rank}; start as many processes as there are "
                f"(torchrun --nproc-per-node={count}), or use --device cpu"
            )
        name = torch.device("cuda", int(rank))
        torch.cuda.set_device(name)
    return device(name)


def average_over_processes(values: Sequence[Tensor]) -> None:
    """Put into tensors of one dtype their means over all processes, by a single message. Alone, do nothing."""
    world = place()[1]
    if world > 1:
        together = torch.cat([value.flatten() for value in values])
        torch.distributed.all_reduce(together)
        together /= world
        for value, mean in zip(values, together.split([value.numel() for value in values]), strict=True):
            value.copy_(mean.view_as(value))


def named(word: str, known: Iterable[str]) -> str:
    """The word in quotes, for a message that it is unknown, and the known one that it may have been meant for."""
    near = difflib.get_close_matches(word, known, 1)
    return repr(word) + (f" (did you mean {near[0]!r}?)" if near else "")


def generator(seed: int, device: torch.device | str = "cpu") -> Generator:
    """A fresh random generator on ``device`` seeded with ``seed``. Every random call of the book takes one of
    these.
    """
    return Generator(device).manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, what torch draws on its own (first weights, dropout) on the CPU and on ``device`` follows from ``seed``;
    outside, nothing changes.
    """
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def has_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies bfloat16 numbers in hardware, and so faster than float32 ones.

    True on NVIDIA GPUs since Ampere and on CPUs with AVX-512 BF16 or AMX.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device | str, enabled: bool = True) -> contextlib.AbstractContextManager:
    """A context in which matrix products and convolutions run in bfloat16 (half the memory, float32's exponent
    range), where ``device`` has it in hardware; elsewhere, or when not ``enabled``, one that changes nothing.
    """
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bf16(device))


def fast_float32() -> None:
    """Let float32 matrix products and convolutions on NVIDIA GPUs run in TF32: 10 bits of mantissa, many times
    faster. It changes the setting for the whole process.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def place() -> tuple[int, int]:
    """This process's rank and the number of processes that train together: (0, 1) unless ``torchrun`` started them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def first(value: Any) -> Any:
    """The first process's value, for all to act on."""
    values = [value]
    if place()[1] > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def any_process(stops: list[BaseException]) -> BaseException | None:
    """The reason to stop, if any process has one: all must then stop after the same step."""
    everyone: list[Any] = [stops[:1]]
    if (world := place()[1]) > 1:
        everyone = [None] * world
        torch.distributed.all_gather_object(everyone, stops[:1])
    return next((reason for some in everyone for reason in some), None)


class Randomness:
    """The random states of a run: the generators given, and a state of its own for what torch draws by itself
    (dropout), which begins with ``seed`` and is in force :meth:`inside`.

    It can be saved. With several processes the states of all of them are: every process must ask for the state, and
    takes its own back.
    """

    def __init__(self, *generators: Generator, seed: int = 0, device: torch.device | str = "cpu"):
        self.generators, self.device = generators, torch.device(device)
        with seeded(seed, device):
            self.own = self._now()

    def _now(self) -> list[Tensor]:
        if self.device.type == "cuda":
            return [torch.get_rng_state(), torch.cuda.get_rng_state(self.device)]
        return [torch.get_rng_state()]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, torch draws from this run's state; outside, from whatever it drew from before."""
        before = self._now()
        self._set(self.own)
        try:
            yield
        finally:
            self.own = self._now()
            self._set(before)

    def state_dict(self) -> dict[str, Any]:
        """For each process, the states of its generators, and the run's own."""
        mine = {"generators": [generator.get_state() for generator in self.generators], "own": self.own}
        everyone: list[Any] = [mine]
        if (world := place()[1]) > 1:
            everyone = [None] * world
            torch.distributed.all_gather_object(everyone, mine)
        return {"processes": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the states back. Raises ``ValueError`` if they are those of other processes or generators."""
        rank, world = place()
        if len(state["processes"]) != world:
            raise ValueError(
                f"this checkpoint was written by {len(state['processes'])} processes, and there are {world} now; "
                f"start as many again"
            )
        mine = state["processes"][rank]
        if len(mine["generators"]) != len(self.generators) or len(mine["own"]) != len(self.own):
            raise ValueError("this checkpoint is of a run with other generators, or on another kind of device")
        for generator, saved in zip(self.generators, mine["generators"], strict=True):
            generator.set_state(saved)
        self.own = mine["own"]


@contextlib.contextmanager
def stop_later(enabled: bool) -> Iterator[list[BaseException]]:
    """Collect Ctrl-C and SIGTERM instead of obeying at once. A second one is obeyed."""
    stops: list[BaseException] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stops
        return
    reasons = {signal.SIGINT: KeyboardInterrupt(), signal.SIGTERM: SystemExit(128 + signal.SIGTERM)}
    before = {number: signal.getsignal(number) for number in reasons}

    def note(number: int, frame: object) -> None:
        stops.append(reasons[number])
        signal.signal(number, before[number])

    for number in reasons:
        signal.signal(number, note)
    try:
        yield stops
    finally:
        for number in reasons:
            signal.signal(number, before[number])


def hardware(device: torch.device) -> str:
    """What computes: the GPU's name, or the CPU's as the system has it, with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} CPU, {os.cpu_count()} cores"


def setting(device: torch.device, *packages: str) -> dict[str, Any]:
    """What a measurement depends on besides its seed: hardware, threads, versions; and the day it was made."""
    installed = {name for name in packages if importlib.util.find_spec(name.replace("-", "_"))}
    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": {"diffutils": __version__}
        | {name: metadata.version(name) for name in ("torch", *sorted(installed))},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def revision(file: str | Path = __file__) -> str | None:
    """The commit of the git repository that ``file`` is part of, by default that of this module, with ``+`` if its
    files have been changed since; ``None`` if it is part of none, or there is no git.
    """
    git = ["git", "-C", str(Path(file).parent)]
    asked = (["ls-files", "--error-unmatch", str(file)], ["rev-parse", "--short=12", "HEAD"])
    try:
        _, commit, changed = (
            subprocess.run([*git, *words], capture_output=True, check=True, text=True).stdout.strip()
            for words in (*asked, ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)


def stamp() -> str:
    """One paragraph for the end of a chapter: versions, device, threads, and seconds since this module was
    imported.
    """
    names = "torch", "torchvision", "numpy", "matplotlib", "scikit-learn"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return (
        f"Python {sys.version.split()[0]}, {versions}\n"
        f"{where}, {torch.get_num_threads()} threads, {time.perf_counter() - _started:.0f} s since the first import"
    )
