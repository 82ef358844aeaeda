"""Device, seeding and the stamp."""

import shutil
import subprocess
from importlib import metadata

import pytest
import torch

import diffutils
from diffutils import runtime


def test_device_is_the_one_named_and_usable_when_none_is_named():
    assert runtime.device("cpu") == torch.device("cpu")
    assert torch.ones(2, device=runtime.device()).sum() == 2


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_here_is_a_value_error_with_its_name(name):
    with pytest.raises(ValueError, match=f"device: '{name}'"):
        runtime.device(name)


def test_generators_of_one_seed_draw_the_same_and_of_two_seeds_do_not():
    draw = [torch.randn(5, generator=runtime.generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_autocast_multiplies_matrices_in_bfloat16_only_when_enabled():
    x = torch.ones(2, 2)
    for enabled, dtype in (True, torch.bfloat16), (False, torch.float32):
        with runtime.autocast(torch.device("cpu"), enabled):
            assert (x @ x).dtype == dtype


def test_stamp_names_versions_and_threads():
    stamp = runtime.stamp()
    assert f"torch {metadata.version('torch')}" in stamp and f"{torch.get_num_threads()} threads" in stamp


def test_the_revision_is_the_commit_and_whether_anything_was_changed(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed here")
    file, who = tmp_path / "a.py", ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    file.write_text("1")
    assert runtime.revision(file) is None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], capture_output=True, check=True, text=True).stdout

    git("init")
    assert runtime.revision(file) is None
    git("add", "a.py")
    git(*who, "commit", "-m", "a")
    commit = git("rev-parse", "HEAD")[:12]
    (tmp_path / "new.py").write_text("2")
    assert runtime.revision(file) == commit and runtime.revision(tmp_path / "new.py") is None
    file.write_text("3")
    assert runtime.revision(file) == commit + "+"


def test_each_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(runtime, "device", lambda name: name)
    assert runtime.own_device("cuda:3") == "cuda:3" and not chosen  # alone, it is what it is asked for
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.own_device() == runtime.own_device("cuda:0") == torch.device("cuda", 1)
    assert runtime.own_device("cpu") == "cpu" and chosen == [torch.device("cuda", 1)] * 2
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="device: of 2 GPUs there is none for process 2; start as many"):
        runtime.own_device()
    monkeypatch.delenv("LOCAL_RANK")  # started by something else than torchrun
    with pytest.raises(ValueError, match="device: of 2 GPUs there is none"):
        runtime.own_device()


def test_the_setting_of_a_measurement_needs_no_installed_module(monkeypatch):
    """A clone on the path is enough; what is not installed has no metadata."""

    def version(name):
        if name == "diffutils":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(runtime.metadata, "version", version)
    assert runtime.setting(torch.device("cpu"))["versions"]["diffutils"] == diffutils.__version__
