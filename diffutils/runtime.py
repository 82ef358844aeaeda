"""Device, precision and seeding: everything that depends on the machine rather than on the mathematics."""

import contextlib
import platform
import sys
import time
from importlib import metadata

import torch
from torch import Generator

_started = time.perf_counter()


def device(name: str | None = None) -> torch.device:
    """The device to compute on: ``name`` if given, else a CUDA GPU if there is one, else the CPU.

    Raises ``ValueError`` if ``name`` is no device of this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not usable here ({str(error).splitlines()[0]})") from error
    return torch.device(name)


def generator(seed: int, device: torch.device | str = "cpu") -> Generator:
    """A fresh random generator on ``device`` seeded with ``seed``. Every random call of the book takes one of
    these.
    """
    return Generator(device).manual_seed(seed)


def autocast(device: torch.device, enabled: bool = True) -> contextlib.AbstractContextManager:
    """A context in which matrix products and convolutions run in bfloat16 (half the memory, float32's exponent
    range).
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


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
