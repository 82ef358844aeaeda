"""Work is never lost: files written whole or not at all, and runs that go on bit for bit from wherever they were
killed.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch

from diffutils import checkpoints
from diffutils.checkpoints import Checkpoints, pack, read, unpack, write
from diffutils.objectives import simple_loss
from diffutils.runtime import Randomness, generator, seeded
from diffutils.schedules import linear
from diffutils.training import Batches, Budget, Descent, average, fit

STEPS = 400


class Small(torch.nn.Module):
    """A network with dropout and with weights for both Muon and Adam, quick to step and to save."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)
        self.middle = torch.nn.Sequential(
            torch.nn.SiLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 16), torch.nn.SiLU()
        )

    def forward(self, x_t, t):
        return self.leave(self.middle(self.enter(torch.cat([x_t, t[:, None] / 50], 1))))


def tensors() -> dict[str, torch.Tensor]:
    return {
        "half": torch.randn(3, 4, generator=generator(0)).half(),
        "brain": torch.randn(5, generator=generator(1)).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 2),
    }


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "new" / "a.safetensors", tensors(), {"n": 1, "name": "é", "nested": {"list": [1, 2.5, None]}})
    found, header = read(tmp_path / "new" / "a.safetensors")
    assert header == {"n": 1, "name": "é", "nested": {"list": [1, 2.5, None]}}
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_a_state_comes_back_as_it_was():
    tree = {
        "optimiser": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "groups": [{"lr": 0.1, "betas": [0.9, 0.99]}]}
    }
    tree |= {"none": None, "text": "x", "flag": True}
    found, structure = pack(tree)
    back = unpack(found, json.loads(json.dumps(structure)))
    assert torch.equal(back["optimiser"]["state"][0].pop("step"), torch.tensor(3.0))
    tree["optimiser"]["state"][0].pop("step")
    assert back == tree and all(isinstance(key, int) for key in back["optimiser"]["state"])


@pytest.mark.parametrize("keep", [0, 4, 9, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    write(path, tensors(), {"n": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.safetensors: no whole file"):
        read(path)


def test_a_file_edited_in_any_byte_of_its_content_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, tensors(), {"n": 1})
    good = path.read_bytes()
    for position in range(8, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(ValueError, match="a.safetensors: "):
            read(path)
    path.write_bytes(good)
    assert read(path)[1] == {"n": 1}


def test_a_file_of_someone_else_is_refused(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no whole file of this book's weights"):
        read(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("hello, world, this is no safetensors file")
    with pytest.raises(ValueError, match="no whole file of this book's weights"):
        read(tmp_path / "b.safetensors")


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path):
    """The limit on a file's size makes the operating system refuse the bytes, as a full disk does."""
    path = tmp_path / "a.safetensors"
    write(path, {"w": torch.zeros(10)}, {"n": 1})
    code = f"""
import resource, signal, torch
from diffutils.checkpoints import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    write({str(path)!r}, {{"w": torch.zeros(100_000)}}, {{"n": 2}})
except OSError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{path}: could not be written (File too large); nothing was changed" in result.stdout, result.stderr
    assert read(path)[1] == {"n": 1} and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.safetensors"
    write(path, {"w": torch.zeros(10)}, {"n": 1})
    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(
        OSError, match="a.safetensors: could not be written .No space left on device.; nothing was changed"
    ):
        write(path, {"w": torch.zeros(10)}, {"n": 2})
    assert read(path)[1] == {"n": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        write(tmp_path / "file" / "a.safetensors", {"w": torch.zeros(1)}, {})
    (tmp_path / "locked").mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:  # root may write anywhere: be nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(OSError, match="could not be written .Permission denied.; nothing was changed"):
            write(tmp_path / "locked" / "a.safetensors", {"w": torch.zeros(1)}, {})
    finally:
        os.seteuid(user)


class Counter:
    """The smallest thing with a state."""

    def __init__(self, value: int = 0):
        self.value = value

    def state_dict(self):
        return {"value": self.value, "tensor": torch.full((3,), float(self.value))}

    def load_state_dict(self, state):
        assert torch.equal(state["tensor"], torch.full((3,), float(state["value"])))
        self.value = state["value"]


def test_the_last_ones_are_kept_and_the_last_is_restored(tmp_path):
    counter = Counter()
    saved = Checkpoints(tmp_path, {"lr": 1}, keep=2, counter=counter)
    assert saved.restore() == 0
    for index in (5, 10, 15):
        counter.value = index
        saved.save(index)
    assert [path.name for path in saved.files()] == ["step-00000010.safetensors", "step-00000015.safetensors"]
    fresh = Counter()
    assert Checkpoints(tmp_path, {"lr": 1}, counter=fresh).restore() == 15 and fresh.value == 15


def test_a_checkpoint_of_another_recipe_is_refused_and_stays(tmp_path):
    Checkpoints(tmp_path, {"lr": 1, "seed": 0, "old": True}, counter=Counter(3)).save(3)
    fresh = Counter()
    with pytest.raises(ValueError, match=r"lr = 1 \(now 2\), new = None \(now 5\), old = True \(now None\)"):
        Checkpoints(tmp_path, {"lr": 2, "seed": 0, "new": 5}, counter=fresh).restore()
    assert fresh.value == 0 and len(list(tmp_path.iterdir())) == 1


def test_a_recipe_with_tuples_is_the_same_recipe_when_it_is_read(tmp_path):
    Checkpoints(tmp_path, {"levels": (1, 2)}, counter=Counter(3)).save(3)
    assert Checkpoints(tmp_path, {"levels": (1, 2)}, counter=Counter()).restore() == 3


def test_a_folder_that_cannot_be_written_is_found_out_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run: nothing can be written there"):
        Checkpoints(tmp_path / "file" / "run", {}).restore()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    for name in (".step-00000005.safetensors.abc", ".weights.safetensors.abc"):
        (tmp_path / name).write_text("half")
    assert Checkpoints(tmp_path, {}).restore() == 0 and not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path):
    saved = Checkpoints(tmp_path, {}, counter=Counter(1))
    saved.save(1)
    saved.parts["counter"].value = 2
    saved.save(2)
    last = saved.files()[-1]
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(ValueError, match="step-00000002.safetensors.*Delete it to go on from the checkpoint before it"):
        saved.restore()
    last.unlink()
    assert saved.restore() == 1 and saved.parts["counter"].value == 1


def test_a_failed_save_deletes_nothing(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path, {}, keep=1, counter=Counter(1))
    saved.save(1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved.save(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]


@pytest.mark.parametrize(("name", "value"), [("keep", 0), ("every", -1)])
def test_settings_that_make_no_sense_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}: .*got {value}"):
        Checkpoints(tmp_path, {}, **{name: value})


def run(folder: str, every: float, started=None, steps: int = STEPS) -> None:
    """A whole training run in small: Muon and Adam, an average, dropout, micro-batches; weights at the end."""
    torch.set_num_threads(1)
    with seeded(0):
        network = Small()
    ema, budget, noise = average(network, 0.95), Budget(steps), [generator(1), generator(2)]
    stream, schedule = cycle(noise), linear(50)
    x = torch.randn(44, 2, generator=generator(3))
    batches = Batches(x, size=8, generator=generator(4))
    update = Descent(
        network,
        lambda x_0: simple_loss(network, x_0, schedule, next(stream)),
        budget,
        1e-2,
        ema,
        optimiser="muon",
        micro=2,
    )
    own = Randomness(*noise, seed=5)
    saved = Checkpoints(folder, {}, every, budget=budget, update=update, batches=batches, randomness=own)

    def step(batch):
        with own.inside():
            return update(batch)

    for _ in fit(step, batches, budget, checkpoints=saved):
        if started is not None and not started.is_set():
            started.set()
    write(Path(folder) / "weights.safetensors", network.state_dict() | ema.state_dict(), {"steps": update.index})


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_weights_bit_for_bit(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["diffutils.recipes"])
    whole = processes.Process(target=run, args=(str(tmp_path / "whole"), 1e9))
    whole.start()
    whole.join(300)
    assert whole.exitcode == 0
    expected, _ = read(tmp_path / "whole" / "weights.safetensors")

    chance, kills, codes = random.Random(0), 0, set()
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        while not (folder / "weights.safetensors").exists():
            started = processes.Event()
            child = processes.Process(target=run, args=(str(folder), 0.05, started))
            child.start()
            started.wait(60)
            time.sleep(chance.uniform(0, 0.25))
            how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            if child.is_alive():
                os.kill(child.pid, how)
            child.join(60)
            kills += child.exitcode != 0
            codes.add(child.exitcode)
        found, header = read(folder / "weights.safetensors")
        assert header["steps"] == STEPS and found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        if kills >= 20:
            break
    assert kills >= 20 and {-signal.SIGKILL, 128 + signal.SIGTERM} <= codes
    assert not list(tmp_path.glob("*/.step-*"))


def test_a_run_that_is_told_to_stop_saves_where_it_is(tmp_path):
    """Checkpoints are far apart here, so what is there was saved because of the signal."""
    processes = multiprocessing.get_context("forkserver")
    started = processes.Event()
    child = processes.Process(target=run, args=(str(tmp_path), 1e9, started))
    child.start()
    assert started.wait(60)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 128 + signal.SIGTERM
    (only,) = tmp_path.glob("step-*.safetensors")
    assert 1 <= read(only)[1]["index"] < STEPS and not (tmp_path / "weights.safetensors").exists()


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    counter = Counter()

    def update(batch):
        counter.value += 1
        return {"loss": torch.tensor(1.0 if counter.value < 4 else float("nan"))}

    saved = Checkpoints(tmp_path, {}, every=0, counter=counter)
    with pytest.raises(FloatingPointError, match="step 4: loss is nan"):
        list(fit(update, [()] * 9, 9, checkpoints=saved))
    assert saved.restore() == 3 and counter.value == 3
