"""What keeps the book well: the style that pre-commit asks for, the changelog, the commands of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import diffutils

ROOT = Path(__file__).parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_passes_over_code_and_notebooks(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hooks_look_at_code_and_notebooks_and_download_nothing():
    ruff = [hook for hook in HOOKS if hook["entry"].startswith("ruff ")]
    assert {tuple(hook["entry"].split()[:2]) for hook in ruff} == {("ruff", "check"), ("ruff", "format")}
    assert all(set(hook["types_or"]) == {"python", "jupyter"} for hook in ruff)
    assert all(hook["language"] == "system" for hook in HOOKS)


def test_the_changelog_has_a_part_for_what_is_new_or_for_this_version():
    parts = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert parts[0] == "Unreleased" or parts[0].startswith(diffutils.__version__)


def test_the_script_for_engineers_runs(capsys):
    """With three steps of training in place of its 300."""
    page = (ROOT / "book" / "engineers.md").read_text("utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1].replace("300", "3"), {})
    said = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert float(said["training digits"]) < float(said["noise"])


def test_every_command_of_the_readme_exists():
    from diffutils.__main__ import parser

    commands = next(action.choices for action in parser()._actions if action.choices)
    told = set(re.findall(r"-m diffutils ([a-z]+)", (ROOT / "README.md").read_text("utf-8")))
    assert "doctor" in told and told <= set(commands)
    page = (ROOT / "book" / "api" / "command_line.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == re.findall(r":path: (\w+)", page) == list(commands)
    for name, command in commands.items():
        assert all(action.help for action in command._actions), name
