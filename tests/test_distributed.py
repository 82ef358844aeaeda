"""Two processes train what one process trains, through the commands that a reader types."""

import os
import subprocess
import sys

import pytest
import torch

from diffutils.checkpoints import read

SCRIPT = """
import os, sys
from itertools import cycle
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from diffutils.checkpoints import Checkpoints
from diffutils.networks.unet import UNet
from diffutils.objectives import simple_loss
from diffutils.runtime import Randomness, generator, place, seeded
from diffutils.schedules import linear
from diffutils.training import Batches, Descent, average, fit

folder, shard, micro, steps = sys.argv[1], sys.argv[2] == "shard", int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if "WORLD_SIZE" in os.environ:
    torch.distributed.init_process_group("gloo")
rank, world = place()
with seeded(0):
    network = UNet(8, width=8, blocks=1, attention=4).double()
ema = average(network, 0.9)
if world > 1 and shard:
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(network, mesh=mesh), fully_shard(ema.module, mesh=mesh)
elif world > 1:
    network = DistributedDataParallel(network)
noise = [generator(1 + rank * micro + i) for i in range(micro)]
stream, schedule = cycle(noise), linear(50)
x = torch.rand(40, 1, 8, 8, generator=generator(9)).double() * 2 - 1
batches = Batches(x, size=16, generator=generator(8))
update = Descent(network, lambda x_0: simple_loss(network, x_0, schedule, next(stream)), 8, 1e-2, ema, micro=micro)
saved = Checkpoints(folder, {}, every=1e9, update=update, batches=batches, randomness=Randomness(*noise))
for step in fit(update, batches, steps, checkpoints=saved):
    pass
if rank == 0:
    print(step.losses["loss"], step.losses["gradient"])
if world > 1:
    torch.distributed.destroy_process_group()
"""


def launch(processes: int, *arguments: object) -> str:
    """Run a script or a module in so many processes, each of one thread."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"}
    result = subprocess.run([*python, *map(str, arguments)], capture_output=True, text=True, env=settings, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def states(folder) -> dict[str, torch.Tensor]:
    tensors, _ = read(sorted(folder.glob("step-*.safetensors"))[-1])
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


@pytest.mark.parametrize("how", ["replicate", "shard"])
def test_two_processes_train_the_weights_of_one_with_the_same_batch(tmp_path, how):
    """Float64, so that only the order of sums differs: networks, averages and Adam's state, by largest difference.

    The second half is trained after a restart, from the checkpoint.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    for steps in 4, 8:
        one = launch(1, tmp_path / "script.py", tmp_path / "one", "-", 4, steps)
        two = launch(2, tmp_path / "script.py", tmp_path / "two", how, 2, steps)
    expected, found = states(tmp_path / "one"), states(tmp_path / "two")
    assert found.keys() == expected.keys() and len(found) > 300
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-9, name
    for a, b in zip(one.split(), two.split(), strict=True):  # the loss and the norm of the gradient
        assert abs(float(a) - float(b)) < 1e-9
    network = {name: value for name, value in found.items() if name.startswith("/update/network/")}
    moved = max(
        (value - found[name.replace("network/", "ema/module.", 1)]).abs().max() for name, value in network.items()
    )
    assert moved > 1e-3


@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["replicate", "shard"])
def test_the_command_line_trains_the_same_on_two_processes(tmp_path, options):
    command = ["-m", "diffutils", "train", "digits-ddpm-canonical", "--steps", "4", "--batch", "32", "--device", "cpu"]
    launch(1, *command, "--micro", "2", "--out", tmp_path / "one")
    out = launch(2, *command, "--out", tmp_path / "two", *options)
    assert out.count("4 steps in") == 1
    expected, found = (read(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert (expected[1]["trained"]["processes"], found[1]["trained"]["processes"]) == (1, 2)
    assert found[1]["recipe"] == expected[1]["recipe"] and found[0].keys() == expected[0].keys()
    for name, value in expected[0].items():  # float16 weights after steps in bfloat16: alike, not equal
        assert (found[0][name].float() - value.float()).abs().max() < 2e-3, name


@pytest.mark.parametrize("recipe", ["digits-vae", "digits-classifier", "digits-ldm"])
def test_every_kind_of_network_learns_the_same_from_two_processes(tmp_path, recipe):
    """Of one process, half a batch after the other; of two, side by side. A batch norm counts its own part only."""
    command = ["-m", "diffutils", "train", recipe, "--steps", "4", "--batch", "32", "--device", "cpu"]
    launch(1, *command, "--micro", "2", "--out", tmp_path / "one")
    launch(2, *command, "--out", tmp_path / "two")
    expected, found = (read(tmp_path / name / "weights.safetensors")[0] for name in ("one", "two"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if "running_" not in name and "num_batches" not in name:
            assert (found[name].float() - value.float()).abs().max() < 2e-3, name


@pytest.mark.parametrize("recipe", ["digits-gan", "digits-ddg", "digits-autoencoder", "digits-vq"])
def test_players_stay_the_same_in_all_processes(tmp_path, recipe):
    """Each has another part of the batch; a code book starts from the batch, too."""
    (tmp_path / "script.py").write_text("""
import sys
import torch
from diffutils import recipes
torch.distributed.init_process_group("gloo")
recipe = recipes.recipe(sys.argv[2], steps=3, batch=16)
if "game" in recipe:
    recipe["game"] = recipe["game"] | {"start": 1, "head_start": 0}
run = recipes.Run(recipe, sys.argv[1], "cpu")
first = {name: value.clone() for name, value in run.update.network.state_dict().items()}
list(run)
networks = [run.update.network, getattr(run.update, "discriminator", None)]
moved = apart = 0.0
for network in filter(None, networks):
    for name, value in network.state_dict().items():
        others = [torch.empty_like(value) for _ in range(2)]
        torch.distributed.all_gather(others, value)
        apart = max(apart, float((others[0].float() - others[1].float()).abs().max()))
for name, value in run.update.network.state_dict().items():
    moved = max(moved, float((value.float() - first[name].float()).abs().max()))
if torch.distributed.get_rank() == 0:
    print(apart, moved)
torch.distributed.destroy_process_group()
""")
    apart, moved = launch(2, tmp_path / "script.py", tmp_path / "run", recipe).split()
    assert float(apart) == 0 and float(moved) > 1e-5


@pytest.mark.parametrize("every", [1, 3])
def test_a_time_budget_ends_two_processes_at_the_same_step(tmp_path, every):
    """Their clocks differ; the first one's counts."""
    command = ["-m", "diffutils", "train", "digits-ddpm", "--batch", "16", "--device", "cpu", "--minutes", "0.05"]
    out = launch(2, *command, "--every", every, "--out", tmp_path / "run")
    _, header = read(tmp_path / "run" / "weights.safetensors")
    assert header["trained"]["steps"] >= 1 and f"{header['trained']['steps']} steps in" in out


def test_a_checkpoint_of_two_processes_is_refused_by_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch(2, tmp_path / "script.py", tmp_path / "run", "replicate", 1, 2)
    with pytest.raises(AssertionError, match="written by 2 processes, and there are 1 now"):
        launch(1, tmp_path / "script.py", tmp_path / "run", "-", 1, 4)
