"""What is wrong with a set-up, in plain words, and how to mend it: ``python -m diffutils doctor``.

It runs where the rest of the module can't, so it needs nothing but Python, and imports what it looks at only when it
looks. Every check is a function of the conditions that it judges, and :func:`examine` finds out what they are.
"""

from __future__ import annotations  # so that a Python that is too old gets to hear that it is

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the book, if the module is used from there.

:meta hide-value:
"""

GIB = 2**30
PYTHON = (3, 11)

WHY = {
    "jupyter-book": "Jupyter Book 2 is another program: it ignores _config.yml and builds none of these pages.",
    "jupyterlab": "jupyterlab-myst, which draws the boxes and numbers in JupyterLab, is not built for other versions.",
    "torchvision": "Each torchvision fits one torch: install the two together.",
    "sphinx-mathjax-offline": "Without it the site takes its mathematics from another host.",
}
"""What a reader should know beside the range that is asked for.

:meta hide-value:
"""


class Finding(NamedTuple):
    """One thing that was looked at."""

    kind: str
    """``fine``, ``note`` (a fact to know) or ``fault``."""
    what: str
    """What is."""
    mend: str = ""
    """What to do about it."""


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Is this Python new enough?"""
    name = f"Python {'.'.join(map(str, version))}"
    if tuple(version) >= PYTHON:
        return Finding("fine", name)
    least = ".".join(map(str, PYTHON))
    mend = f"Install a newer one, then start again with it: make lab PYTHON=python{least}"
    return Finding("fault", f"{name} is too old: the book needs {least} or newer.", mend)


def asked(root: Path = ROOT) -> list[str]:
    """What must be installed, each with its range: from ``pyproject.toml`` and ``requirements.txt`` in the book's
    folder, or, where the module is used without them, from what it was installed with.
    """
    if not (root / "pyproject.toml").exists():
        return [line for line in metadata.requires("diffutils") or [] if "extra ==" not in line]
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (root / "requirements.txt").read_text("utf-8").splitlines() if (root / "requirements.txt").exists() else []
    lines = [line.split("#")[0].strip() for line in lines]
    return [*project["dependencies"], *(line for line in lines if line and not line.startswith("-"))]


def installed(name: str) -> str | None:
    """The version of a package that is installed here, if it is."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages(asked: Iterable[str], version: Callable[[str], str | None] = installed) -> Iterator[Finding]:
    """Is every package that is ``asked`` for there, in the range it is asked for in?"""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip brings one along
        from pip._vendor.packaging.requirements import Requirement

    needs = [need for need in map(Requirement, asked) if not need.marker or need.marker.evaluate()]
    faults = 0
    for need in needs:
        found = version(need.name)
        if found is not None and need.specifier.contains(found, prereleases=True):
            continue
        is_there = "is not installed" if found is None else f"{found} is installed"
        what = f"{need.name} {is_there}; the book needs {need}. {WHY.get(need.name, '')}".strip()
        wanted = "torch torchvision" if need.name in ("torch", "torchvision") else f'"{need}"'
        yield Finding("fault", what, f"pip install {wanted}, or all at once: pip install -r requirements.txt")
        faults += 1
    if not faults:
        yield Finding("fine", f"{len(needs)} packages, all within their ranges")


def imports(names: Iterable[str] = ("torch", "torchvision"), load: Callable[[str], Any] = importlib.import_module):
    """Do the packages that are most often broken start at all?"""
    for name in names:
        try:
            load(name)
        except Exception as error:
            mend = "pip install --force-reinstall torch torchvision"
            yield Finding("fault", f"{name} is installed but does not start: {_line(error)}", mend)


def kernel(
    found: dict[str, Any] | None, prefix: str = sys.prefix, package: str | None = str(Path(__file__).resolve().parent)
) -> Finding:
    """Does the notebooks' kernel, ``python3``, run in this environment, and find this module?

    ``found`` is what the kernel's Python says of itself: ``prefix``, and the folder that it imports ``diffutils``
    from; ``None`` if there is no such kernel.
    """
    if found is None:
        mend = "python -m ipykernel install --sys-prefix"
        return Finding("fault", "There is no kernel called python3, which the notebooks ask for.", mend)
    if "error" in found:
        mend = "jupyter kernelspec list shows where it is; remove it, or: python -m ipykernel install --sys-prefix"
        return Finding("fault", f"The kernel python3 does not start: {found['error']}", mend)
    if not _same(found["prefix"], prefix):
        what = f"The kernel python3 runs in {found['prefix']}, not in this environment, {prefix}."
        return Finding("fault", what, "python -m ipykernel install --sys-prefix, then start JupyterLab from here")
    if found["package"] is None:
        return Finding("fault", "The notebooks do not find diffutils.", "From the book's folder: pip install -e .")
    if not _same(found["package"], package):
        what = f"The notebooks import diffutils from {found['package']}, and this is {package}."
        return Finding("fault", what, "From this book's folder: pip install -e .")
    return Finding("fine", "the kernel python3 runs in this environment and finds diffutils")


def gpu(names: list[str], driver: bool = False, cuda: str | None = None) -> Finding:
    """Which GPUs can PyTorch use? None is a fact and no fault: the book runs on a processor.

    ``driver``: an NVIDIA driver is installed; ``cuda``: the version of CUDA that PyTorch was built with, if any.
    """
    if names:
        return Finding("fine", f"{len(names)} GPU{'s' * (len(names) > 1)}: {', '.join(names)}")
    if driver and cuda is None:
        mend = "Install a build of PyTorch with CUDA, as pytorch.org says for your system."
        return Finding("note", "There is an NVIDIA GPU, but this PyTorch was built without CUDA.", mend)
    if driver:
        mend = f"Update the driver to one for CUDA {cuda}, or install the build of PyTorch for the driver you have."
        return Finding("note", f"There is an NVIDIA GPU, but PyTorch (CUDA {cuda}) cannot use it.", mend)
    return Finding("note", "No NVIDIA GPU. Every chapter runs without one; only the larger recipes take long.")


def bf16(supported: bool, where: str) -> Finding:
    """Is half precision of use here? Where it is not, the recipes train in float32."""
    if supported:
        return Finding("fine", f"bfloat16 in hardware ({where})")
    return Finding("note", f"No bfloat16 in hardware ({where}): training uses float32 there, more slowly.")


def cores(count: int, threads: str | None = None) -> Finding:
    """How many cores are there? The chapters' times are those of two. ``threads`` is ``OMP_NUM_THREADS``."""
    if threads and threads.isdigit() and int(threads) < min(count, 2):
        mend = "unset OMP_NUM_THREADS"
        return Finding("note", f"OMP_NUM_THREADS is {threads}: chapters take longer than they say.", mend)
    if count < 2:
        return Finding("note", "1 core: chapters take about twice as long as they say.")
    return Finding("fine", f"{count} cores")


def memory(free: int | None) -> Finding:
    """Is there enough memory for a chapter, 2 GiB? ``free``: bytes that can be had now."""
    if free is None:
        return Finding("note", "How much memory is free can't be told here; a chapter needs up to 2 GiB.")
    what = f"{free / GIB:.1f} GiB of memory free"
    if free < 2 * GIB:
        mend = "Shut down other kernels and programs; in a container, raise its limit."
        return Finding("fault", f"{what}: too little, a chapter needs up to 2 GiB.", mend)
    if free < 4 * GIB:
        return Finding("note", f"{what}: enough for the chapters, one at a time.")
    return Finding("fine", what)


def disk(free: int, folder: str) -> Finding:
    """Is there room for what is built and trained? ``free``: bytes on the disk of ``folder``."""
    what = f"{free / GIB:.1f} GiB free on the disk of {folder}"
    if free < 0.5 * GIB:
        mend = "Make room: `make clean` removes the built site, and runs/ holds what you trained."
        return Finding("fault", f"{what}: too little, the site and a training's checkpoints need 0.5 GiB.", mend)
    if free < 2 * GIB:
        return Finding("note", f"{what}: enough to read and run, not for all the recipes.")
    return Finding("fine", what)


def image_sets(named: str | None, folder: Path) -> Finding:
    """Are the larger image sets where they are looked for? ``named`` is what ``DIFFUTILS_DATA`` says, ``folder`` the
    place that follows from it. Only recipes on these sets need them.
    """
    if named and not folder.is_dir():
        mend = f"mkdir -p {folder}, or set DIFFUTILS_DATA to the folder that has MNIST/raw, or unset it"
        return Finding("fault", f"DIFFUTILS_DATA names {folder}, and there is no such folder.", mend)
    places = {
        "MNIST": "MNIST/raw/train-images-idx3-ubyte*",
        "Fashion-MNIST": "FashionMNIST/raw/train-images-idx3-ubyte*",
        "CIFAR-10": "cifar-10-batches-py/data_batch_1",
    }
    there = [name for name, place in places.items() if any(folder.glob(place))]
    if there:
        return Finding("fine", f"{', '.join(there)} in {folder}")
    what = f"No MNIST in {folder}. No chapter needs it; training the MNIST recipes does, and fetches it once."
    return Finding("note", what, "Set DIFFUTILS_DATA to the folder that has MNIST/raw, if you have one.")


def examine() -> Iterator[Finding]:
    """Look at this machine, one finding after the other, the most basic first."""
    yield python()
    if sys.version_info[:2] < PYTHON:
        return
    try:
        yield from packages(asked())
    except ImportError:
        yield Finding("fault", "Nothing is installed in this Python.", "From the book's folder: make lab")
        return
    names = [name for name in ("torch", "torchvision") if installed(name)]
    broken = [*imports(names)]
    yield from broken
    if installed("jupyter_client"):
        yield kernel(_ask_kernel())
    if "torch" in names and not any(finding.what.startswith("torch ") for finding in broken):
        yield from _accelerators()
    yield cores(os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS"))
    yield memory(_free_memory())
    here = Path.cwd()
    yield disk(shutil.disk_usage(here).free, str(here))
    named = os.environ.get("DIFFUTILS_DATA")
    yield image_sets(named, Path(named or "data").expanduser())


def _accelerators() -> Iterator[Finding]:
    import torch

    from . import runtime

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    yield gpu(names, shutil.which("nvidia-smi") is not None, torch.version.cuda)
    where = runtime.device()
    yield bf16(runtime.has_bf16(where), runtime.hardware(where))


def _ask_kernel() -> dict[str, Any] | None:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return None
    if program in {"python", "python3", f"python3.{sys.version_info[1]}"}:
        program = sys.executable  # so does Jupyter
    code = """
import importlib.util, json, os, sys
spec = importlib.util.find_spec("diffutils")
print(json.dumps({"prefix": sys.prefix, "package": spec and os.path.dirname(spec.origin)}))"""
    folder = ROOT / "notebooks"  # where a kernel starts
    try:
        asked = [program, "-c", code]
        answer = subprocess.run(
            asked, cwd=folder if folder.is_dir() else None, capture_output=True, text=True, timeout=60, check=True
        )
        return json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"error": _line(error)}


def _free_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that can be had, no more than a container's limit (that of ``group``) leaves; what it keeps of
    files that nothing uses now can be had too.
    """
    try:
        import psutil

        free = psutil.virtual_memory().available
    except ImportError:
        return None
    try:
        limit, used = ((group / name).read_text("utf-8").strip() for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        return free if limit == "max" else min(free, int(limit) - int(used) + int(kept["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return free


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _same(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and os.path.realpath(one) == os.path.realpath(other)


def report(findings: Iterable[Finding]) -> int:
    """Print the findings as they come, and what they come to; return 1 if one is a fault, else 0."""
    faults = 0
    for finding in findings:
        faults += finding.kind == "fault"
        print(f"{finding.kind:6} {finding.what}", flush=True)
        if finding.mend:
            print(f"       -> {finding.mend}", flush=True)
    if faults:
        print(f"\n{faults} fault{'s' * (faults > 1)}. Mend the first, then ask again.")
    else:
        print("\nNothing is wrong with this set-up.")
    return int(faults > 0)


def main() -> int:
    """Examine this machine and report."""
    print(f"{platform.system()} {platform.release()}, {platform.machine()}, {sys.executable}\n")
    return report(examine())


if __name__ == "__main__":
    sys.exit(main())
