"""The benchmark and the race, in small: what they print, what they refuse, and how other models are wrapped."""

import pytest
import torch
from torch import nn

from diffutils import bench, process, race, recipes, schedules
from diffutils.networks.unet import UNet

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    return UNet(32, width=8, multipliers=(1, 1), blocks=1, attention=1)


def test_the_benchmark_times_contenders_in_turn_and_takes_ratios_within_a_round(monkeypatch):
    one, other = (bench.Contender(name, None, name == "b", "adam", tiny) for name in "ab")
    monkeypatch.setattr(bench, "CONTENDERS", [one, other])
    monkeypatch.setattr(bench, "RATIOS", [("a", "b", 2.0)])
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "memory", lambda name, device: 2**20)  # a process of its own does not see this patch
    found = dict(bench.measure(rounds=3, device="cpu"))
    assert list(found) == ["machine", "a", "b", "a : b"]
    assert {"hardware", "threads", "versions", "peak GFLOP/s"} <= found["machine"].keys()
    row = found["a"]
    assert row["parameters"] == sum(p.numel() for p in tiny().parameters()) and row["training memory MiB"] == 1
    middle, low, high = row["training img/s"]
    assert 0 < low <= middle <= high and 0 < row["share of peak"] < 1 and row["MFLOP an image and step"] > 1
    assert found["a : b"]["goal"] == 2.0 and 0.1 < found["a : b"]["times as fast"][0] < 10


def test_the_flops_of_a_step_are_those_of_its_convolutions(monkeypatch):
    """Forward once and backward twice, but for the first layer's input, which needs no gradient."""
    plain = bench.Contender("plain", None, False, "adam", lambda: Plain())
    monkeypatch.setattr(bench, "CONTENDERS", [plain])
    monkeypatch.setattr(bench, "RATIOS", [])
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "memory", lambda name, device: 0)
    found = dict(bench.measure(rounds=2, device="cpu"))
    product = 2 * 32 * 32 * 9 * 4  # one convolution from 1 to 4 channels, or back
    assert found["plain"]["MFLOP an image and step"] == pytest.approx(5 * product / 1e6, abs=0.06)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.there, self.back = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x_t, t):
        return self.back(self.there(x_t))


def test_memory_is_measured_in_a_process_of_its_own():
    if bench._peak_bytes("cpu") == 0:
        pytest.skip("this system does not say how much memory a process has used at most (Linux does)")
    assert 2**20 < bench.memory("recipe, fp32", "cpu") < 2**32


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds: must be at least 2, got 1"):
        next(bench.measure(1))


def test_a_race_of_seconds_on_the_digits():
    how = {"n": 360, "steps": 3, "judge": "digits-classifier", "device": "cpu"}
    rows = list(race.race(["digits-ddpm"], [0.05], seeds=(0, 1), **how))
    assert [(row["name"], row["seed"]) for row in rows] == [("digits-ddpm", 0), ("digits-ddpm", 1)]
    size = sum(p.numel() for p in recipes.build(recipes.recipe("digits-ddpm")).parameters())
    assert all(row["parameters"] == size and row["images"] > 0 and row["n"] == 360 for row in rows)
    assert all(
        row["frechet"]["value"] > 10 * row["frechet"]["floor"][0] for row in rows
    )  # three seconds are no training
    again = list(race.race(["digits-ddpm"], [0.05, 0.02], seeds=(0, 1), done=rows, **how))
    assert [(row["minutes"], row["seed"]) for row in again] == [(0.02, 0), (0.02, 1)]


def test_a_race_refuses_before_it_starts():
    with pytest.raises(ValueError, match="n: the floor is known at 360 images, got 100"):
        next(race.race(["digits-ddpm"], [1], 100, judge="digits-classifier"))
    with pytest.raises(ValueError, match="names: must be recipes judged by digits-classifier"):
        next(race.race(["mnist-ddpm"], [1], 360, judge="digits-classifier"))


@pytest.mark.parametrize("name", ["diffusers, fitted", "denoising-diffusion-pytorch, fitted"])
def test_another_librarys_model_trains_and_denoises_as_ours_do(name):
    package = name.split(",")[0].replace("-", "_")
    pytest.importorskip(package, reason=f"the package {package} is needed only to measure against it")
    x = torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    denoise, chain, parameters, images = race.LIBRARIES[name](x, 0.1, 0, CPU)
    assert chain.T == 1000 and images >= 16 and parameters > 1e6
    if name.startswith("diffusers"):
        assert (chain.alpha_bar - schedules.linear().alpha_bar).abs().max() == 0
    # with almost no noise, x_0 is x_t: the estimate shows that t, the schedule and the sign of eps are the library's
    t = torch.ones(4, dtype=torch.int64)
    x_t = process.q_sample(x[:4], 1, torch.zeros_like(x[:4]), chain)
    found = denoise(x_t, t)
    assert found.shape == x_t.shape and found.abs().max() <= 1 and (found - x[:4]).abs().mean() < 0.1
