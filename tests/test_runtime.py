"""Device, seeding and the stamp."""

from importlib import metadata

import pytest
import torch

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
