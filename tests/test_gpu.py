"""What is different on a GPU: checked where there is one, skipped with a reason elsewhere."""

import subprocess
import sys
from itertools import islice, repeat

import pytest
import torch

from diffutils import bench, recipes, runtime, zoo
from diffutils.checkpoints import read
from diffutils.networks.unet import UNet
from diffutils.objectives import simple_loss
from diffutils.schedules import linear
from diffutils.training import Descent, average

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and there is none here"),
]


def small(seed: int = 0) -> UNet:
    with runtime.seeded(seed):
        return UNet(8, width=16, blocks=1, attention=4)


def test_the_default_device_is_the_gpu():
    assert runtime.device().type == DEVICE


def test_a_trained_network_predicts_on_the_gpu_what_it_predicts_on_the_cpu():
    here, there = zoo.load("digits-ddpm", "cpu"), zoo.load("digits-ddpm", DEVICE)
    x_t, t = torch.randn(16, 1, 8, 8, generator=runtime.generator(0)), torch.arange(1, 1001, 63)
    with torch.no_grad():
        difference = here.network(x_t, t) - there.network(x_t.to(DEVICE), t.to(DEVICE)).cpu()
    assert difference.abs().max() < 1e-2  # TF32 has 10 bits of mantissa


def test_bfloat16_costs_little_accuracy_and_keeps_float32_weights():
    network = zoo.load("digits-ddpm", DEVICE).network
    x_t, t = torch.randn(64, 1, 8, 8, generator=runtime.generator(0)).to(DEVICE), torch.arange(1, 1025, 16).to(DEVICE)
    t = t.clamp(max=1000)
    with torch.no_grad():
        exact = network(x_t, t)
        with runtime.autocast(DEVICE):
            rounded = network(x_t, t)
    assert rounded.dtype == torch.bfloat16 and next(network.parameters()).dtype == torch.float32
    assert (rounded - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_no_step_makes_the_processor_wait(optimiser):
    recipe = recipes.recipe("digits-ddpm", optimiser=optimiser)
    network, noise = small().to(DEVICE), runtime.generator(0, DEVICE)
    loss = recipes.objective(recipe, network, repeat(noise))
    update = Descent(network, loss, 100, ema=average(network), optimiser=optimiser, bf16=True)
    batch = torch.zeros(32, 1, 8, 8, device=DEVICE), torch.zeros(32, device=DEVICE)
    update(batch)  # the first step sets things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["digits-vae", "digits-gan", "digits-ddg", "digits-autoencoder", "digits-vq"])
def test_no_step_of_another_method_makes_it_wait(tmp_path, name):
    recipe = recipes.recipe(name)
    if "game" in recipe:  # the discriminator plays from the beginning
        recipe["game"] = recipe["game"] | {"start": 0, "head_start": 0}
    run = recipes.Run(recipe, tmp_path, DEVICE, compiled=False)
    batch = next(run.batches)
    run.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiling_does_not_change_what_is_learned():
    x = torch.rand(32, 1, 8, 8, generator=runtime.generator(1)).to(DEVICE) * 2 - 1
    losses = []
    for compiled in False, True:
        network, noise, schedule = small().to(DEVICE), runtime.generator(2, DEVICE), linear(100)
        if compiled:
            network.compile()
        update = Descent(network, lambda x_0, n=network, g=noise, s=schedule: simple_loss(n, x_0, s, g), 20, warmup=1)
        losses.append([update((x,))["loss"].item() for _ in range(20)])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.02 * losses[0][0]
    assert losses[0][-1] < 0.8 * losses[0][0]  # so wrong gradients would show


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """With deterministic algorithms, and not compiled: only so does a GPU repeat itself to the bit."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        recipe = recipes.recipe("digits-ddpm", steps=12)
        list(recipes.Run(recipe, tmp_path / "whole", DEVICE, compiled=False))
        list(islice(recipes.Run(recipe, tmp_path / "parts", DEVICE, compiled=False, checkpoint=0.0), 5))
        list(recipes.Run(recipe, tmp_path / "parts", DEVICE, compiled=False))
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = (read(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_sampling_on_the_gpu_is_as_good_as_its_header_says(as_stored):
    model = zoo.load("mnist-ddpm", DEVICE)
    as_stored(model, 2000, 1.0)
    assert zoo.draw(model, 3, "ddpm", 20).device.type == "cpu"


def test_a_gpu_reaches_a_good_share_of_its_peak_on_the_network_of_the_paper():
    """40 % of the measured bfloat16 peak in a training step, compiled, at the batch of the paper."""
    assert bench.utilisation("cifar10-ddpm", DEVICE) > 0.4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_learn_what_one_learns(tmp_path):
    command = ["-m", "diffutils", "train", "digits-ddpm-canonical", "--steps", "20"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    for start, options in ([], ["--micro", "2", "--out", tmp_path / "one"]), (torchrun, ["--out", tmp_path / "two"]):
        subprocess.run([sys.executable, *start, *command, *options], check=True, timeout=300)
    one, two = (read(tmp_path / name / "weights.safetensors")[0] for name in ("one", "two"))
    assert max((one[name].float() - two[name].float()).abs().max() for name in one) < 5e-3
