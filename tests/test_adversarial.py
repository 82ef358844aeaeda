"""Two networks against each other: the losses, the update, and what it leaves behind when it stops."""

import math

import pytest
import torch
from torch import nn

from diffutils import recipes, zoo
from diffutils.adversarial import Duel, discriminator_loss, generator_loss, r1_penalty
from diffutils.checkpoints import read
from diffutils.networks.discriminator import GAN, Discriminator
from diffutils.training import average


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def small(seed: int = 0) -> GAN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GAN(8, latent=4, width=8, against=8)


def test_losses_are_the_logarithms_of_the_papers():
    real, drawn = randn(9).double(), randn(9, seed=1).double()
    probability = torch.sigmoid
    value = -(probability(real).log().mean() + (1 - probability(drawn)).log().mean())
    assert abs(discriminator_loss(real, drawn) - value) < 1e-12
    assert abs(generator_loss(drawn) + probability(drawn).log().mean()) < 1e-12
    undecided = torch.zeros(5)
    assert abs(discriminator_loss(undecided, undecided) - 2 * math.log(2)) < 1e-6


def test_a_saturated_discriminator_still_moves_the_generator():
    drawn = torch.full((4,), -50.0, requires_grad=True)
    generator_loss(drawn).backward()
    assert (drawn.grad + 0.25).abs().max() < 1e-6  # that of log(1 - D) would be 0


def test_the_penalty_of_a_linear_discriminator_is_its_squared_length_and_can_be_differentiated():
    w = torch.tensor([3.0, -4.0], requires_grad=True)
    penalty = r1_penalty(lambda x: x @ w, randn(7, 2))
    assert abs(penalty - 25) < 1e-4
    penalty.backward()
    assert (w.grad - 2 * w).abs().max() < 1e-4


def test_the_discriminator_sees_that_all_images_of_a_batch_are_the_same():
    network = Discriminator(8, width=8).eval()
    seen = []
    network.head[0].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0][:, -1]))
    one = randn(1, 1, 8, 8)
    network(one.expand(8, -1, -1, -1))
    network(randn(8, 1, 8, 8))
    assert seen[0].abs().max() < 1e-3 < 0.01 < seen[1].min()
    assert network(randn(6, 1, 8, 8)).shape == (6,)


def test_a_step_moves_both_players_and_the_penalty_comes_lazily():
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ema = average(network, 0.9)
    update = Duel(network, seeded(1), 10, 1e-2, ema, gamma=0.5, lazy=3)
    losses = [update((randn(8, 1, 8, 8, seed=i),)) for i in range(6)]
    assert ["r1" in each for each in losses] == [True, False, False] * 2
    after = network.state_dict()
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(moved) == len(after) and all(value.isfinite().all() for value in after.values())
    assert not torch.equal(ema.module.state_dict()["generator.0.weight"], after["generator.0.weight"])


def test_the_generators_loss_leaves_the_discriminator_alone():
    network = small()
    update = Duel(network, seeded(), 10, 0.0)
    update((randn(8, 1, 8, 8),))
    update.optimisers[0].zero_grad()
    weights = [value.clone() for value in network.discriminator.parameters()]
    update.lr = 1e-2
    update._descend(1, generator_loss(network.discriminator(network.sample(8, seeded(2)))), 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(weights, network.discriminator.parameters(), strict=True))


def test_a_generator_learns_where_the_data_is():
    """One number: data at 2 with a spread of 0.3, and a generator that can move and stretch its noise."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = nn.Linear(1, 1)
            self.discriminator = nn.Sequential(
                nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1), nn.Flatten(0)
            )

        def sample(self, n, generator):
            return self.generator(torch.randn(n, 1, generator=generator))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Line()
    ema = average(network, 0.99)
    update, data = Duel(network, seeded(1), 1500, 3e-3, ema, gamma=0.1, lazy=2), seeded(2)
    for _ in range(1500):
        update((2 + 0.3 * torch.randn(128, 1, generator=data),))
    drawn = ema.module.sample(10_000, seeded(3))
    assert abs(drawn.mean() - 2) < 0.1 and abs(drawn.std() - 0.3) < 0.1


@pytest.mark.parametrize(("name", "value"), [("lazy", 0), ("gamma", -1.0), ("ratio", 0.0)])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: .*got {value}"):
        Duel(small(), seeded(), 10, **{name: value})


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    recipe = recipes.recipe("digits-gan", steps=5, batch=16)
    for _ in recipes.Run(recipe, tmp_path / "whole"):
        pass
    for step in recipes.Run(recipe, tmp_path / "parts", checkpoint=0):
        if step.index == 2:
            break
    for step in recipes.Run(recipe, tmp_path / "parts", checkpoint=0):
        assert step.index > 2
    whole, parts = (read(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(ValueError, match="micro, shard: a GAN is trained whole"):
        recipes.Run(recipe, tmp_path, micro=2)
    x = zoo.draw(zoo.load(tmp_path / "whole" / "weights.safetensors", "cpu"), 7, size=3)
    assert x.shape == (7, 1, 8, 8) and x.abs().max() <= 1
