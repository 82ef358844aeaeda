"""What several test files share: the site, which is built once."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
