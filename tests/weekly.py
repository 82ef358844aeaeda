"""What to run every week or so, to hear of a break before a reader does: make weekly, or python tests/weekly.py.

A fresh environment gets the newest packages that the ranges of ``requirements.txt`` allow. In it run all tests, with
the built site and its inner links among them; every cell of every chapter, on one thread and then on two; and, where
there is a network, the links to other sites. A step that fails does not stop the others. Each leaves its output in
``.weekly/``, and the last lines say what failed. Needs nothing but Python.

    python tests/weekly.py --dry-run             # what would be run
    python tests/weekly.py --only links          # some steps
    python tests/weekly.py --here --notebooks notebooks/A_gaussian_identities.ipynb --only cells-1 cells-2
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".weekly"


@dataclass
class Step:
    name: str
    what: str
    commands: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    says: Callable[[], list[str]] = list  # what to add about it, once it has run
    network: bool = False


def steps(python: str, fresh: bool, notebooks: list[str]) -> list[Step]:
    """All steps, in order. ``python`` is the one of the environment in which they run."""

    def cells(threads: int) -> Step:
        return Step(
            f"cells-{threads}",
            f"every cell against its stored output, on {threads} thread{'s' * (threads > 1)}",
            [[python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", *notebooks]],
            {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )

    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    jupyter_book = str(Path(python).with_name("jupyter-book"))
    environment = Step(
        "environment",
        "a fresh environment with the newest packages in the ranges",
        [
            [sys.executable, "-m", "venv", "--clear", str(FOLDER / "venv")],
            [*install, "pip"],
            [*install, "-r", "requirements.txt"],
            [python, "-m", "pip", "check"],
        ],
        says=lambda: moved(locked(), installed(python)),
    )
    return [
        *([environment] if fresh else []),
        Step("doctor", "what the doctor says of it", [[python, "-m", "diffutils", "doctor"]]),
        Step("tests", "all tests, with the built site and its inner links", [[python, "-m", "pytest", "-q", "tests"]]),
        cells(1),
        cells(2),
        Step(
            "links",
            "links to other sites",
            [[jupyter_book, "build", "book", "--builder", "linkcheck", "--path-output", str(FOLDER)]],
            says=lambda: broken(FOLDER / "_build" / "html" / "output.json"),
            network=True,
        ),
    ]


def locked() -> dict[str, str]:
    """The versions that the stored outputs were made with."""
    text = (ROOT / "requirements.lock").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def installed(python: str) -> dict[str, str]:
    """What is in the environment of this Python, by name; nothing, if there is none."""
    try:
        done = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True)
    except OSError:
        return {}
    return {one["name"]: one["version"] for one in json.loads(done.stdout or "[]")}


def moved(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Which of the packages have another version than in requirements.lock: where to look first if something broke."""

    def plain(versions: dict[str, str]) -> dict[str, str]:
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}

    before, now = plain(before), plain(now)
    other = [name for name in sorted(before) if now.get(name, before[name]) != before[name]]
    return [f"{name} {before[name]} -> {now[name]}" for name in other]


def broken(output: Path) -> list[str]:
    """The links that sphinx could not follow, and where they stand."""
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()] if output.exists() else []
    bad = [line for line in lines if line["status"] in ("broken", "timeout")]
    return [f"{line['filename']}, line {line['lineno']}: {line['uri']}: {line['info']}" for line in bad]


def online() -> bool:
    """Whether another site answers, whatever it says."""
    try:
        urllib.request.urlopen("https://www.sphinx-doc.org", timeout=10)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def run(step: Step) -> bool:
    """Run the commands of a step, up to the first that fails, and keep what they print."""
    with open(FOLDER / f"{step.name}.log", "w", encoding="utf-8") as log:
        for command in step.commands:
            print("$", shlex.join(command), file=log, flush=True)
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=os.environ | step.environment, stdout=log, stderr=subprocess.STDOUT
                )
            except OSError as error:  # the program is not there: the environment was not made
                print(error, file=log)
                return False
            if done.returncode:
                return False
    return True


def weekly(todo: list[Step], dry: bool) -> int:
    """Run the steps, say how each went, and return how many failed."""
    failed = []
    for step in todo:
        if dry:
            print(f"{step.name}: {step.what}")
            for command in step.commands:
                print("   ", *(f"{name}={value}" for name, value in step.environment.items()), shlex.join(command))
            continue
        if step.network and not online():
            print(f"{step.name}: left out, no network", flush=True)
            continue
        start = time.monotonic()
        well = run(step)
        if not well:
            failed.append(step.name)
        print(f"{step.name}: {'ok' if well else 'FAILED'}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
        for line in step.says():
            print("   ", line)
    if failed:
        print(f"Failed: {', '.join(failed)}. See {', '.join(f'.weekly/{name}.log' for name in failed)}.")
    elif not dry:
        print("All is well.")
    return len(failed)


def main() -> int:
    options = argparse.ArgumentParser(description="The checks of every week, in a fresh environment.")
    options.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    options.add_argument("--here", action="store_true", help="in the environment of this Python, not in a fresh one")
    options.add_argument("--only", nargs="+", metavar="STEP", help="some of the steps, by the names that --dry-run has")
    options.add_argument("--notebooks", nargs="+", default=["notebooks"], help="whose cells to run; all by default")
    chosen = options.parse_args()
    folder = "Scripts" if os.name == "nt" else "bin"
    python = sys.executable if chosen.here else str(FOLDER / "venv" / folder / "python")
    todo = steps(python, not chosen.here, chosen.notebooks)
    names = [step.name for step in todo]
    if unknown := set(chosen.only or []) - set(names):
        options.error(f"--only: {', '.join(sorted(unknown))}: the steps are {', '.join(names)}")
    FOLDER.mkdir(exist_ok=True)
    return min(1, weekly([step for step in todo if step.name in (chosen.only or names)], chosen.dry_run))


if __name__ == "__main__":
    sys.exit(main())
