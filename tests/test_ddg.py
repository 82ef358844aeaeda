"""The denoising diffusion GAN: the kernel against exact mixtures, the game, and the watch over it."""

import math
import warnings

import pytest
import torch
from torch import nn

from diffutils import evaluation, recipes, zoo
from diffutils.adversarial import DiffusionDuel, Duel, Watch, posterior_draw, spread, step_pair
from diffutils.checkpoints import read
from diffutils.data import bumps, twenty_five_gaussians
from diffutils.metrics import mode_coverage, two_sample_test, wasserstein_1d
from diffutils.networks.discriminator import DDG, Discriminator, PointDDG, PointGAN
from diffutils.process import drawer, generate, ideal_denoiser, ideal_drawer, q_posterior
from diffutils.samplers import ddg, ddpm, direct, sample
from diffutils.schedules import few_step
from diffutils.training import Step, average, fit


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def small(seed: int = 0, **settings) -> DDG:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DDG(8, latent=settings.pop("latent", 4), width=8, against=8, **settings)


def awake(network: nn.Module) -> nn.Module:
    """Residual blocks start as the identity, deaf to what they are told: give them other weights."""
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=seeded(weight.numel()))
    return network


def points(seed: int = 0, **settings) -> PointDDG:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointDDG(width=16, depth=1, **settings)


@pytest.mark.parametrize("T", [1, 2, 4, 8])
def test_with_an_ideal_generator_the_chain_ends_in_the_mixture_and_the_gaussian_step_does_not(T):
    mixture, schedule, n = bumps(), few_step(T), 20_000
    data = mixture.sample(n, seeded(1))
    x_T = mixture.diffuse(schedule.alpha_bar[T].item()).sample(n, seeded(2))
    steps = list(range(T, -1, -1))
    drawn = sample(ddg(ideal_drawer(mixture, schedule), schedule), x_T, steps, seeded(3))
    gaussian = sample(ddpm(ideal_denoiser(mixture, schedule), schedule), x_T, steps, seeded(3))
    floor = wasserstein_1d(mixture.sample(n, seeded(4))[:, 0], data[:, 0])
    assert wasserstein_1d(drawn[:, 0], data[:, 0]) < 0.03 and floor < 0.03
    assert wasserstein_1d(gaussian[:, 0], data[:, 0]) > {1: 0.5, 2: 0.15, 4: 0.1, 8: 0.06}[T]
    assert two_sample_test(drawn[:500], data[:500], seeded(5), 199) > 0.02


def test_steps_may_be_skipped_when_the_generator_is_ideal():
    mixture, schedule, n = twenty_five_gaussians(), few_step(8), 5000
    x_T = mixture.diffuse(schedule.alpha_bar[8].item()).sample(n, seeded(2))
    drawn = sample(ddg(ideal_drawer(mixture, schedule), schedule), x_T, [8, 5, 1, 0], seeded(3))
    near, which = torch.cdist(drawn, mixture.mean).min(1)
    assert near.max() < 0.02 * 5.5 and abs(near.square().mean() / (2 * 0.02**2) - 1) < 0.1
    assert (which.bincount(minlength=25) / n - 1 / 25).abs().max() < 0.015


def test_with_the_mean_for_a_draw_it_is_the_step_of_ddpm():
    mixture, schedule = bumps(), few_step(4)
    mean = ideal_denoiser(mixture, schedule)
    x_T = randn(50, 1).double()
    for steps in [4, 3, 2, 1, 0], [4, 1, 0]:
        ours = sample(ddg(lambda x_t, t, generator: mean(x_t, t), schedule), x_T, steps, seeded(3))
        assert torch.equal(ours, sample(ddpm(mean, schedule), x_T, steps, seeded(3)))


def test_an_ideal_generator_wants_one_t_for_a_batch():
    with pytest.raises(ValueError, match="t: must be the same for all of the batch, got 1 to 2"):
        ideal_drawer(bumps(), few_step(4))(torch.zeros(2, 1).double(), torch.tensor([1, 2]), seeded())


def test_neighbours_of_a_chain_have_the_moments_of_the_forward_process():
    schedule, n = few_step(4), 200_000
    for t in 1, 2, 4:
        at_t = torch.full((n,), t)
        x_s, x_t = step_pair(torch.full((n, 1), 0.7, dtype=torch.float64), at_t, schedule, seeded(t))
        before, after, beta = schedule.alpha_bar[t - 1], schedule.alpha_bar[t], schedule.beta[t]
        assert abs(x_s.mean() - before.sqrt() * 0.7) < 0.01 and abs(x_t.mean() - after.sqrt() * 0.7) < 0.01
        assert abs(x_s.var() - (1 - before)) < 0.01 and abs(x_t.var() - (1 - after)) < 0.01
        assert abs(((x_t - (1 - beta).sqrt() * x_s) * x_s).mean()) < 0.01  # what is added does not know x_s
    assert torch.equal(step_pair(x := randn(5, 2), torch.ones(5, dtype=torch.int64), schedule, seeded())[0], x)
    with pytest.raises(ValueError, match="t: every entry must lie in 1..T"):
        step_pair(x, torch.zeros(5, dtype=torch.int64), schedule, seeded())


def test_the_posterior_draw_has_its_moments_and_lets_the_gradient_through_to_x_0():
    schedule, n = few_step(4), 100_000
    x_t, x_0 = torch.full((n, 1), -0.4).double(), torch.full((n, 1), 0.7, requires_grad=True, dtype=torch.float64)
    drawn = posterior_draw(x_t, x_0, torch.full((n,), 3), schedule, seeded())
    mean, variance = q_posterior(x_t[:1], x_0[:1].detach(), 3, schedule)
    assert abs(drawn.mean() - mean) < 0.01 and abs(drawn.var() / variance - 1) < 0.02
    drawn.sum().backward()
    weight = schedule.alpha_bar[2].sqrt() * schedule.beta[3] / (1 - schedule.alpha_bar[3])
    assert (x_0.grad - weight).abs().max() < 1e-9
    assert torch.equal(posterior_draw(x_t, x_0, torch.ones(n).long(), schedule, seeded()), x_0)


@pytest.mark.parametrize("build", [small, points])
def test_gradients_flow_only_where_they_should(build):
    network, schedule = build(), few_step(4)
    update = DiffusionDuel(network, schedule, seeded(1), 10, 0.0)
    x = randn(8, 1, 8, 8) if build is small else randn(8, 2)
    seen = {}
    descend = update._descend

    def spy(player, loss, rate):
        for parameter in network.parameters():
            parameter.grad = None
        descend(player, loss, rate)
        seen[player] = {
            name: any(p.grad is not None and p.grad.any() for p in part.parameters())
            for name, part in network.named_children()
        }

    update._descend = spy
    update((x,))
    assert seen == {
        0: {"generator": False, "discriminator": True},
        1: {"generator": True, "discriminator": False},
    }


def test_the_generator_listens_to_z_and_t_and_x_t_and_can_do_without_z():
    network = awake(small())
    x_t, t = randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    z = randn(4, 4, seed=1)
    answer = network.generator(x_t, t, z=z)
    assert answer.shape == x_t.shape and answer.abs().max() < 1
    for other in (x_t, t, -z), (x_t, t.flip(0), z), (-x_t, t, z):
        assert not torch.allclose(answer, network.generator(other[0], other[1], z=other[2]), atol=1e-4)
    with pytest.raises(ValueError, match=r"z: this network needs \(B, 4\)"):
        network.generator(x_t, t)
    without = small(latent=0)
    assert torch.equal(generate(without.generator, x_t, t, seeded(1)), generate(without.generator, x_t, t, seeded(2)))
    with pytest.raises(ValueError, match="z: this network takes none"):
        without.generator(x_t, t, z=z)


def test_the_discriminator_of_steps_listens_to_both_images_and_to_t():
    network = awake(Discriminator(8, width=8, paired=True))
    x_s, x_t, t = randn(4, 1, 8, 8), randn(4, 1, 8, 8, seed=1), torch.tensor([1, 2, 3, 4])
    answer = network(x_s, x_t, t)
    assert answer.shape == (4,)
    for other in (-x_s, x_t, t), (x_s, -x_t, t), (x_s, x_t, t.flip(0)):
        assert not torch.allclose(answer, network(*other), atol=1e-3)


def test_one_step_of_a_chain_of_one_is_a_step_of_a_plain_gan():
    """Networks that look at neither x_t nor t, the same first weights, and the same z: the same weights after."""

    class Blind(nn.Module):
        latent, direct = 2, False

        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.make = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))
                self.tell = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))

    class Maker(nn.Module):
        latent = 2

        def __init__(self, of):
            super().__init__()
            self.of = of

        def forward(self, x_t, t, z):
            return self.of(z)

    class Teller(Maker):
        def forward(self, x, x_t=None, t=None):
            return self.of(x)

    def build():
        blind = Blind()
        blind.generator, blind.discriminator = Maker(blind.make), Teller(blind.tell)
        return blind

    chain, plain = build(), build()
    first, draws = True, seeded(1)

    def draw(
        n, generator
    ):  # what the chain draws, in its order: t and the two noises once a step; z, and a noise unused
        nonlocal first
        if first:
            torch.randint(1, 2, (n,), generator=generator), torch.randn(2, n, 2, generator=generator)
        first = not first
        z = torch.randn(n, 2, generator=generator)
        torch.randn(n, 2, generator=generator)
        return plain.make(z)

    plain.sample = draw
    one = DiffusionDuel(chain, few_step(1), seeded(1), 10, 1e-2, gamma=0.3, lazy=2)
    other = Duel(plain, draws, 10, 1e-2, gamma=0.3, lazy=2)
    for i in range(4):
        told, same = one((randn(8, 2, seed=i),)), other((randn(8, 2, seed=i),))
        assert all(abs(told[name] - same[name]) < 1e-6 for name in told) and told.keys() == same.keys()
    assert all(torch.equal(a, b) for a, b in zip(chain.parameters(), plain.parameters(), strict=True))


def test_a_generator_learns_two_points_that_the_mean_step_cannot_draw():
    """Data at +1 and -1, in two steps: the exact reverse step has two modes, and the drawn points are at both."""

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointDDG(1, latent=2, width=32, depth=1, highest=1)
    schedule, noise = few_step(2), seeded(1)
    ema = average(network, 0.98)
    update = DiffusionDuel(network, schedule, noise, 250, 3e-3, ema, gamma=0.3)
    for _ in range(250):
        x = torch.randint(0, 2, (128, 1), generator=noise) * 2.0 - 1
        losses = update((x,))
    assert {"discriminator", "generator", "right", "spread"} <= losses.keys()
    drawn = sample(ddg(drawer(ema.module.generator), schedule), torch.randn(2000, 1, generator=noise), [2, 1, 0], noise)
    assert 0.35 < (drawn > 0).double().mean() < 0.65
    near = ((drawn.abs() - 1).abs() < 0.35).double().mean()  # 0.34 of normal noise is, and nothing of a mean of both
    assert near > 0.5


def test_a_direct_generator_steps_once_at_a_time_and_adds_nothing():
    network = points(direct=True)
    kernel = direct(drawer(network.generator))
    x_t = randn(5, 2)
    by_hand = generate(network.generator, x_t, torch.full((5,), 3), seeded(1))
    assert torch.equal(kernel(x_t, 3, 2, seeded(1)), by_hand)
    with pytest.raises(ValueError, match="s: a direct generator steps from t to t - 1, got t = 3, s = 1"):
        kernel(x_t, 3, 1, seeded())
    update = DiffusionDuel(network, few_step(3), seeded(), 5)
    deal = update.deal(randn(6, 2))
    assert deal.draw().shape == (6, 2) and deal.judge(deal.real).shape == (6,)


def test_the_learning_rates_may_fall_as_a_half_cosine_and_the_generators_be_lower():
    network, rates = points(), []
    update = DiffusionDuel(network, few_step(2), seeded(), 8, 1e-2, warmup=2, fall=True, ratio=0.25)
    for _ in range(9):
        update((randn(4, 2),))
        rates.append([optimiser.param_groups[0]["lr"] for optimiser in update.optimisers])
    expected = [1e-2 * min((i + 1) / 2, 0.5 + 0.5 * math.cos(math.pi * i / 8)) for i in range(8)] + [0.0]
    assert max(abs(rate[0] - right) for rate, right in zip(rates, expected, strict=True)) < 1e-9
    assert max(abs(rate[1] - 0.25 * right) for rate, right in zip(rates, expected, strict=True)) < 1e-9


def test_the_spread_is_a_ratio_and_the_least_over_t():
    x = randn(400, 3)
    t = torch.arange(400) % 4
    assert abs(spread(x, x, t, 4) - 1) < 1e-6 and abs(spread(0.25 * x + 7, x, t, 4) - 0.25) < 1e-5
    narrow = torch.where(t[:, None] == 2, x * 0.1, x)
    assert abs(spread(narrow, x, t, 4) - 0.1) < 1e-5
    assert spread(torch.ones(4, 3), x[:4], torch.zeros(4).long(), 1) < 1e-6
    assert abs(spread(x[:2], x[:2], torch.tensor([0, 1]), 2) - 1) < 1e-6  # alone at their t, they tell nothing


def test_the_watch_says_once_what_it_saw_and_what_to_try():
    def fed(right, wide, steps=60, watch=None):
        watch = watch or Watch(window=20)
        for i in range(1, steps + 1):
            watch(Step(i, {"right": right, "spread": wide}, 0.0))
        return watch.said

    assert fed(0.7, 0.9) == []
    assert fed(0.5, 1.0) == []
    (said,) = fed(0.8, 0.05)
    assert "by step 20" in said and "collapsed" in said and "0.05 times" in said and "larger gamma" in said
    (said,) = fed(0.999, 0.9)
    assert "discriminator has won: 99.9%" in said
    assert fed(0.999, 0.9, steps=19) == []  # too early to tell
    with pytest.raises(ValueError, match="window: must be at least 1, got 0"):
        Watch(0)


def test_a_provoked_collapse_is_told_in_words():
    """Without a penalty and with steps far too large, one of the players loses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointGAN(width=32, depth=1)
    noise, watch = seeded(), Watch(window=20)
    update = Duel(network, noise, 200, 0.05, gamma=0.0)
    batches = iter(lambda: (twenty_five_gaussians(std=0.05).sample(128, noise).float(),), None)
    for step in fit(update, batches, 200):
        watch(step)
    assert watch.said and all("Try a larger gamma" in message for message in watch.said)


def test_a_run_warns_and_writes_the_warning_into_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "Watch", lambda: Watch(window=2, narrow=9.0))
    with pytest.warns(RuntimeWarning, match="digits-gan: by step 2, the generator has collapsed: .*Try a larger gamma"):
        for _ in recipes.Run(recipes.recipe("digits-gan", steps=3, batch=8), tmp_path, checkpoint=float("inf")):
            pass
    (said,) = read(tmp_path / "weights.safetensors")[1]["trained"]["warnings"]
    assert said.startswith("by step 2, the generator has collapsed")


def test_an_interrupted_run_ends_with_the_same_weights_and_draws(tmp_path):
    recipe = recipes.recipe("digits-ddg", steps=4, batch=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in recipes.Run(recipe, tmp_path / "whole"):
            pass
        for step in recipes.Run(recipe, tmp_path / "parts", checkpoint=0):
            if step.index == 2:
                break
        for step in recipes.Run(recipe, tmp_path / "parts", checkpoint=0):
            assert step.index > 2
    whole, parts = (read(tmp_path / name / "weights.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    model = zoo.load(tmp_path / "whole" / "weights.safetensors", "cpu")
    calls = []
    model.network.generator.register_forward_hook(lambda *_: calls.append(1))
    x = zoo.draw(model, 7, size=7)
    assert x.shape == (7, 1, 8, 8) and x.abs().max() <= 1 and len(calls) == recipe["schedule"]["T"]
    assert torch.equal(x, zoo.draw(model, 7, size=7)) and not torch.equal(x, zoo.draw(model, 7, size=7, seed=1))
    found = evaluation.evaluate(model, 360)
    assert found["sampler"] == {"name": "ddg", "steps": 4, "seed": 0} and math.isfinite(found["frechet"]["value"])
    with pytest.raises(ValueError, match="micro, shard: a denoising diffusion GAN is trained whole"):
        recipes.Run(recipe, tmp_path, micro=2)


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_both_players_together_have_no_more_parameters_than_the_diffusion_model_and_not_far_fewer(data):
    size = {
        name: sum(p.numel() for p in recipes.build(recipes.recipe(f"{data}-{name}")).parameters())
        for name in ("ddpm", "ddg")
    }
    assert 0.8 < size["ddg"] / size["ddpm"] < 1.05, size


def test_mode_coverage_counts_what_is_there():
    grid = twenty_five_gaussians()
    exact = mode_coverage(grid.sample(5000, seeded()), grid)
    assert exact["found"] == 25 and exact["good"] > 0.998 and exact["uneven"] < 0.05
    some = grid.mean[:5].repeat(200, 1)
    assert mode_coverage(some, grid) == {"found": 5, "good": 1.0, "uneven": pytest.approx(0.8)}
    between = some + 0.35
    assert mode_coverage(between, grid) == {"found": 0, "good": 0.0, "uneven": pytest.approx(0.5)}
    with pytest.raises(ValueError, match="mixture: needs a single one"):
        mode_coverage(some, grid.reverse(some[:3], 0.5))
