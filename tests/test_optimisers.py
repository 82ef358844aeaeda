"""Muon: what its step is, and that it is for hidden matrices only."""

import pytest
import torch
from torch import nn

from diffutils import optimisers
from diffutils.networks.unet import UNet
from diffutils.optimisers import Muon, make, orthogonal
from diffutils.runtime import generator, has_bf16


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16), (1, 5)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonal_keeps_the_singular_vectors_and_brings_the_values_near_one(shape, scale):
    matrix = scale * torch.randn(shape, generator=generator(0))
    found = orthogonal(matrix)
    assert found.dtype == (torch.bfloat16 if has_bf16("cpu") else torch.float32) and found.shape == shape
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ found.float() @ v.T  # diagonal, if the singular vectors are the same
    assert (core - core.diag().diag()).abs().max() < 0.05
    large = s > 0.1 * s.max()  # five rounds are enough for these
    assert core.diag()[large].min() > 0.6 and core.diag().max() < 1.3


def test_the_step_is_the_formula_for_matrices_and_kernels():
    for shape in (6, 4), (6, 4, 3, 3):
        weight = nn.Parameter(torch.randn(shape, generator=generator(0)))
        optimiser, expected, momentum = Muon([weight], 0.1, 0.9), weight.detach().clone(), torch.zeros(shape)
        for seed in 1, 2, 3:
            gradient = torch.randn(shape, generator=generator(seed))
            weight.grad = gradient.clone()
            optimiser.step()
            momentum = 0.9 * momentum + 0.1 * gradient
            step = orthogonal((0.9 * momentum + 0.1 * gradient).flatten(1)).float().reshape(shape)
            columns = 36 if len(shape) == 4 else 6
            expected -= 0.1 * 0.2 * columns**0.5 * step
            assert (weight - expected).abs().max() < 2e-3  # a difference of one bfloat16 rounding
    assert weight.grad is not None


def test_a_step_is_about_as_large_as_one_of_adam():
    gradient = torch.randn(64, 32, 3, 3, generator=generator(1))
    for optimiser, low, high in (
        ((lambda p: Muon(p, 1.0)), 0.12, 0.25),
        ((lambda p: torch.optim.Adam(p, 1.0)), 0.9, 1.1),
    ):
        weight = nn.Parameter(torch.zeros(64, 32, 3, 3))
        weight.grad = gradient.clone()
        optimiser([weight]).step()
        assert low < weight.detach().square().mean().sqrt() < high


def test_every_parameter_has_one_optimiser_and_only_hidden_matrices_have_muon():
    network = UNet(8, width=8, blocks=1, classes=3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    muon, adam = ([names[id(p)] for p in o.param_groups[0]["params"]] for o in make("muon", network))
    assert sorted(muon + adam) == sorted(names.values())
    assert not [name for name in muon if name.split(".")[0] in ("enter", "leave", "time", "label") or "bias" in name]
    assert "down.0.0.enter.2.weight" in muon and "label.weight" in adam and "enter.1.weight" in adam
    (only,) = make("adam", network)
    assert len(only.param_groups[0]["params"]) == len(names)


def test_an_optimiser_of_another_name_is_refused():
    with pytest.raises(ValueError, match="optimiser: must be 'adam' or 'muon', got 'sgd'"):
        make("sgd", nn.Linear(2, 2))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_without_bfloat16_in_hardware_steps_are_made_in_float32(monkeypatch, shape):
    matrix = torch.randn(shape, generator=generator(0))
    monkeypatch.setattr(optimisers, "has_bf16", lambda device: False)
    found = orthogonal(matrix)
    assert found.dtype == torch.float32 and found.shape == shape
    assert (torch.linalg.svdvals(found) - 0.95).abs().max() < 0.35
