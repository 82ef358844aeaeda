"""The checks of every week: what they would run, and that one failure neither stops the others nor is overlooked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import weekly  # noqa: E402

ECHO, FAIL = [sys.executable, "-c", "print('said')"], [sys.executable, "-c", "raise SystemExit(3)"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(weekly, "FOLDER", tmp_path)
    return tmp_path


def test_a_dry_run_names_all_that_is_run():
    command = [sys.executable, weekly.__file__, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    names = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    assert names == ["environment", "doctor", "tests", "cells-1", "cells-2", "links"]
    install = next(line for line in lines if "requirements.txt" in line)
    assert "--upgrade --upgrade-strategy eager" in install and ".weekly" in install
    for threads in "12":
        (cells,) = [line for line in lines if f"OMP_NUM_THREADS={threads}" in line]
        assert "--nbval notebooks" in cells


def test_a_step_that_fails_is_named_and_the_others_run(folder, capsys):
    todo = [
        weekly.Step("one", "", [ECHO, FAIL, ECHO], says=lambda: ["more about it"]),
        weekly.Step("two", "", [ECHO]),
    ]
    assert weekly.weekly(todo, dry=False) == 1
    said = capsys.readouterr().out
    assert "one: FAILED" in said and "    more about it" in said and "two: ok" in said
    assert "Failed: one. See .weekly/one.log." in said
    assert (folder / "one.log").read_text().count("said\n") == 1


def test_an_environment_that_was_not_made_fails_its_steps_and_no_more(folder, capsys):
    missing = weekly.Step("doctor", "", [[str(folder / "venv" / "python"), "-V"]])
    assert weekly.weekly([missing, weekly.Step("two", "", [ECHO])], dry=False) == 1
    assert "doctor: FAILED" in (said := capsys.readouterr().out) and "two: ok" in said
    assert "No such file" in (folder / "doctor.log").read_text() and weekly.installed(str(folder / "none")) == {}


def test_a_step_has_its_own_environment(folder, monkeypatch):
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert weekly.run(weekly.Step("two", "", [show], {"OMP_NUM_THREADS": "2"}))
    assert (folder / "two.log").read_text().endswith("2\n")


def test_links_are_left_out_without_a_network(folder, monkeypatch, capsys):
    monkeypatch.setattr(weekly, "online", lambda: False)
    assert weekly.weekly([weekly.Step("links", "", [FAIL], network=True)], dry=False) == 0
    assert "links: left out, no network" in capsys.readouterr().out


def test_packages_that_have_moved_since_the_lock_are_named():
    before = {"Torch": "2.11.0", "ruff": "0.9", "gone": "1", "ruamel.yaml": "0.18"}
    now = {"torch": "2.12.0", "ruff": "0.9", "new": "1", "ruamel_yaml": "0.19"}
    assert weekly.moved(before, now) == ["ruamel-yaml 0.18 -> 0.19", "torch 2.11.0 -> 2.12.0"]
    assert len(weekly.locked()) > 50


def test_broken_links_are_named_with_their_place(tmp_path):
    lines = [
        {"filename": "notation.md", "lineno": 7, "status": status, "uri": f"https://{status}.org", "info": "404"}
        for status in ("working", "broken", "redirected", "timeout")
    ]
    (tmp_path / "output.json").write_text("\n".join(map(json.dumps, lines)))
    found = weekly.broken(tmp_path / "output.json")
    assert found == [f"notation.md, line 7: https://{status}.org: 404" for status in ("broken", "timeout")]
    assert weekly.broken(tmp_path / "none.json") == []


def test_an_unknown_step_is_named():
    command = [sys.executable, weekly.__file__, "--only", "cells-3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "cells-3: the steps are environment, doctor" in done.stderr
