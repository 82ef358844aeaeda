"""What an autoencoder is trained with, and what a diffusion model's own compression is."""

import math

import pytest
import torch
from torch import nn

from diffutils import compression, objectives, process, schedules
from diffutils.compression import Compression, adaptive_weight, feature_distance, hinge_loss, latent_rate, progressive
from diffutils.data import GaussianMixture
from diffutils.networks.classifier import Classifier
from diffutils.networks.latent import Autoencoder, PatchDiscriminator, VQAutoencoder
from diffutils.training import average


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def made(kind, *args, seed: int = 0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*args, **settings)


def test_the_feature_distance_is_that_of_unit_vectors_at_each_place():
    network = made(Classifier, 8, width=4).eval()
    x, y = randn(3, 1, 8, 8), randn(3, 1, 8, 8, seed=1)
    expected, a, b = torch.zeros(3), x, y
    for layer in network.body:
        a, b = layer(a), layer(b)
        for i in range(a.shape[2]):
            for j in range(a.shape[3]):
                u, v = (h[:, :, i, j] / (h[:, :, i, j].norm(dim=1, keepdim=True) ** 2 + 1e-8).sqrt() for h in (a, b))
                expected += (u - v).square().sum(1) / a.shape[2] / a.shape[3]
    assert (feature_distance(network, x, y) - expected).abs().max() < 1e-3
    assert feature_distance(network, x, x).abs().max() == 0


def test_the_hinge_is_zero_where_the_discriminator_is_sure_enough():
    assert hinge_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, -3.0]])) == 0
    assert hinge_loss(torch.zeros(3), torch.zeros(5)) == 1
    assert hinge_loss(torch.tensor([-1.0, 3.0]), torch.tensor([0.5, -2.0])) == 0.5 * 1 + 0.5 * 0.75


def test_the_adaptive_weight_is_the_ratio_of_two_gradients():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    one, other = (last * torch.tensor([1.0, 2.0])).sum(), (last.square() / 10).sum()
    found = adaptive_weight(one, other, last, 0.5)
    assert abs(found - math.sqrt(5) / (1 + 0.5)) < 1e-6 and not found.requires_grad
    assert adaptive_weight(one, last.sum() * 0, last) == 1e4  # nothing to pull: bounded
    assert adaptive_weight(one, other, last, 0.0) == adaptive_weight(10 * one, 10 * other, last, 0.0)


def small(**settings) -> Compression:
    network = made(Autoencoder, 16, width=8)
    discriminator = made(PatchDiscriminator, width=8, seed=1)
    judge = made(Classifier, 16, width=4, seed=2).eval().requires_grad_(False)
    given = {"discriminator": discriminator, "distance": lambda x, y: feature_distance(judge, x, y)}
    return Compression(network, seeded(3), 20, **(given | {"lr": 1e-3, "warmup": 1} | settings))


def batches(n: int):
    for i in range(n):
        yield (randn(8, 1, 16, 16, seed=i).clamp(-1, 1),)


def test_the_discriminator_starts_late_and_only_then_counts():
    update, other = small(start=3), small(discriminator=None)
    before = [weight.clone() for weight in update.discriminator.parameters()]
    for i, batch in enumerate(batches(3)):
        losses, same = update(batch), other(batch)
        assert losses.keys() == {"pixels", "penalty", "features"} and losses == same, i
    assert all(torch.equal(a, b) for a, b in zip(before, update.discriminator.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(update.network.parameters(), other.network.parameters(), strict=True))
    losses = update((randn(8, 1, 16, 16),))
    other((randn(8, 1, 16, 16),))
    assert losses.keys() == {"pixels", "penalty", "features", "adversarial", "lambda", "discriminator"}
    assert losses["lambda"] > 0
    assert not torch.equal(before[0], update.discriminator.body[0].weight)
    assert not torch.equal(update.network.last, other.network.last)


def test_a_discriminator_with_a_head_start_learns_before_it_counts():
    update, other = small(start=1, head_start=2), small(discriminator=None)
    first = update.discriminator.body[0].weight.clone()
    for batch in batches(3):
        losses = update(batch)
        other(batch)
    assert "discriminator" in losses and "lambda" not in losses
    assert not torch.equal(first, update.discriminator.body[0].weight)
    assert torch.equal(update.network.last, other.network.last)
    assert "lambda" in update((randn(8, 1, 16, 16),))
    with pytest.raises(ValueError, match="head_start: must not be negative, got -2"):
        small(head_start=-2)


def test_a_step_follows_the_gradient_of_the_stated_loss():
    """The first step, by hand: autograd on the sum of the terms, then Adam."""
    update = small(penalty=0.01, weight=0.5)
    network, (x,) = update.network, next(batches(1))
    decoded, penalty = network(x, seeded(3))
    rec = (x - decoded).abs().mean() + update.distance(x, decoded).mean()
    adv = -update.discriminator(decoded).mean()
    of_rec, of_adv = (torch.autograd.grad(loss, network.last, retain_graph=True)[0].norm() for loss in (rec, adv))
    loss = rec + 0.01 * penalty + 0.5 * of_rec / (of_adv + 1e-4) * adv
    loss = loss.detach() + (rec + 0.01 * penalty + (0.5 * of_rec / (of_adv + 1e-4)).detach() * adv) - loss.detach()
    weight = network.encoder.body[1].weight
    (gradient,) = torch.autograd.grad(loss, weight)
    before = weight.detach().clone()
    losses = update((x,))
    assert abs(losses["lambda"] - of_rec / (of_adv + 1e-4)) < 1e-3 * losses["lambda"]
    moved = weight.detach() - before
    clear = gradient.abs() > 1e-3 * gradient.abs().max()  # Adam's first step is the learning rate times the sign
    assert (moved + 1e-3 * gradient.sign())[clear].abs().max() < 1e-4


def test_reconstruction_gets_better_and_the_average_follows():
    network = made(VQAutoencoder, 16, width=8, codes=16)
    update = Compression(network, seeded(), 60, lr=3e-3, ema=(ema := average(network, 0.5)), penalty=1.0)
    x = torch.zeros(16, 1, 16, 16)
    x[:, :, 4:12, 4:12] = randn(16, 1, 1, 1).clamp(-1, 1)
    losses = [update((x,))["pixels"].item() for _ in range(60)]
    assert losses[-1] < 0.4 * losses[0]
    assert (ema.module.book - network.book).abs().max() < 0.1 and ema.module.begun


def test_interrupted_and_gone_on_with_is_the_same():
    whole = small(start=1)
    for batch in batches(6):
        whole(batch)
    part, rest = small(start=1), small(start=1)
    for i, batch in enumerate(batches(6)):
        if i == 3:
            rest.load_state_dict(part.state_dict())
            rest.noise.set_state(part.noise.get_state())
        (part if i < 3 else rest)(batch)
    for a, b in (whole.network, rest.network), (whole.discriminator, rest.discriminator):
        assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="start: must not be negative, got -1"):
        small(start=-1)


def test_lpips_asks_for_its_library():
    try:
        import lpips  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="lpips"):
            compression.lpips_distance()


def test_the_rate_of_a_latent_is_a_divergence_of_gaussians():
    mean, var = randn(5, 2, 3, 3).double(), randn(5, 2, 3, 3, seed=1).double().exp()
    fitted = mean.mean(0, True), mean.var(0, keepdim=True) + var.mean(0, True)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, var.sqrt()), normal(fitted[0], fitted[1].sqrt()))
    assert (latent_rate(mean, var, fitted) - expected.sum((1, 2, 3))).abs().max() < 1e-9
    wrong = fitted[0], torch.ones_like(fitted[1])
    assert latent_rate(mean, var, wrong).mean() > latent_rate(mean, var, fitted).mean()


class Shrink(nn.Module):
    """An imperfect denoiser."""

    def forward(self, x_t, t):
        return 0.7 * x_t


def test_progressive_rates_sum_to_the_bound():
    chain = schedules.few_step(6)
    x_0 = torch.randint(0, 17, (5, 1, 4, 4), generator=seeded()).double() / 8 - 1
    found = progressive(Shrink(), x_0, chain, seeded(1), levels=17)
    terms = objectives.bound_terms(Shrink(), x_0, chain, seeded(1), levels=17)
    assert found.rate.shape == found.distortion.shape == (7, 5)
    assert (found.rate[0] - terms.sum(0)).abs().max() < 1e-9
    for t in range(7):
        assert (found.rate[t] - terms[t:].sum(0)).abs().max() < 1e-9
    assert found.distortion[0].abs().max() == 0 and (found.distortion[1:] > 0).all()


def test_progressive_coding_of_a_gaussian_is_as_good_as_any():
    r"""With many steps, rate and distortion come to Shannon's R(D) = 1/2 log(variance / D) a dimension."""
    variance, alpha_bar = 0.5, torch.linspace(1, 0.001, 4001, dtype=torch.float64)
    chain = schedules.Schedule.from_alpha_bar(alpha_bar)
    one = GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.0] * 8], [variance])))
    denoise = process.ideal_denoiser(one, chain)
    x_0 = math.sqrt(variance) * torch.randn(64, 8, generator=seeded(2), dtype=torch.float64)
    found = progressive(denoise, x_0, chain, seeded(3))
    for t in 3000, 2000, 1000, 400:
        a = alpha_bar[t].item()
        distortion = variance * (1 - a) / (a * variance + 1 - a)
        rate = 8 * 0.5 * math.log(variance / distortion)
        assert abs(found.distortion[t].mean() - distortion) < 0.12 * distortion
        assert abs(found.rate[t].mean() - rate) < 0.05 * rate + 0.01
