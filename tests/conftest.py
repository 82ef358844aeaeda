"""What several test files share: the site, which is built once, and a check of a model against its own header."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffutils import evaluation

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def site():
    """The folder of the site, built from nothing."""
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [jupyter_book, "build", "book", "--all", "-n", "-W", "--keep-going"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    problems = [line for line in (built.stdout + built.stderr).splitlines() if re.search("WARNING|ERROR|rror:", line)]
    assert built.returncode == 0 and not problems, "\n".join(problems) or built.stderr[-3000:]
    return ROOT / "_build" / "html"


@pytest.fixture
def as_stored():
    """A function that measures a model anew, with a seed of its own, and asserts that the Fréchet distance is the one
    that its header has for so many images and that eta, within four standard errors.
    """

    def check(model, n, eta):
        stored = next(
            one["frechet"]
            for one in model.header["results"]["evaluations"]
            if one["n"] == n and one["sampler"]["steps"] == 50 and one["sampler"]["eta"] == eta
        )
        found = evaluation.evaluate(model, n, steps=50, eta=eta, seed=9)["frechet"]
        assert abs(found["value"] - stored["value"]) < 4 * (found["error"] ** 2 + stored["error"] ** 2) ** 0.5

    return check
