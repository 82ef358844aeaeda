"""Autoencoders with spatial latents, the patch discriminator, and a U-Net that works in latents."""

import math

import pytest
import torch
from torch import nn

from diffutils.networks.latent import Autoencoder, LatentUNet, PatchDiscriminator, VQAutoencoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, those that start at zero included."""
    generator = seeded(seed)
    for weight in network.parameters():
        nn.init.normal_(weight, 0, 1 / math.sqrt(max(weight[0].numel(), 9)), generator=generator)
    return network


@pytest.mark.parametrize("kind", [Autoencoder, VQAutoencoder])
@pytest.mark.parametrize(
    ("size", "multipliers", "patch", "factor"),
    [(16, (1,), 2, 2), (32, (1, 2), 2, 4), (64, (1, 2, 2), 2, 8), (16, (1, 1), 1, 2)],
)
def test_latents_are_smaller_by_the_factor_and_images_come_back_whole(kind, size, multipliers, patch, factor):
    network = kind(size, channels=3, latent=5, width=8, multipliers=multipliers, patch=patch)
    x = randn(2, 3, size, size)
    mean, var = network.encode(x)
    assert network.factor == factor and mean.shape == var.shape == (2, 5, size // factor, size // factor)
    assert network.decode(mean).shape == x.shape and network(x, seeded())[0].shape == x.shape
    with pytest.raises(ValueError, match=rf"x: this network takes \(B, 3, {size}, {size}\)"):
        network.encode(x[:, :1])
    with pytest.raises(ValueError, match="z: this network takes"):
        network.decode(mean[:, :4])


def test_the_penalty_is_the_divergence_from_the_normal_distribution():
    network = awake(Autoencoder(16, latent=3, width=8))
    x = randn(4, 1, 16, 16)
    mean, var = network.encode(x)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, var.sqrt()), normal(0.0, 1.0)).sum() / x.numel()
    decoded, penalty = network(x, seeded(5))
    assert abs(penalty - kl) < 1e-5 * kl.abs()
    z = mean + var.sqrt() * torch.randn(mean.shape, generator=seeded(5))
    assert torch.equal(decoded, network.decode(z))


def test_the_last_layer_is_the_one_that_makes_the_picture():
    network = awake(Autoencoder(16, channels=3, latent=3, width=8))
    before = network.decode(z := randn(1, 3, 4, 4))
    with torch.no_grad():
        network.last.mul_(0)
    assert network.last.shape[0] == 3 * 4 and not torch.equal(network.decode(z), before)
    assert network.decode(z).var((2, 3)).max() < 0.5  # what is left is a bias for each pixel of a patch


def test_the_nearest_code_is_the_nearest_by_brute_force():
    network = awake(VQAutoencoder(16, latent=3, width=8, codes=20))
    z = randn(2, 3, 4, 4, seed=1)
    found, quantised = network.nearest(z), network.quantise(z)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                distance = [(z[b, :, i, j] - code).square().sum() for code in network.book]
                k = min(range(20), key=lambda k: distance[k])
                assert found[b, i, j] == k and torch.equal(quantised[b, :, i, j], network.book[k])
    assert torch.equal(network.decode(z), network.decode(quantised))


def test_gradients_pass_straight_through_the_codes():
    network = awake(VQAutoencoder(16, latent=3, width=8, codes=20)).eval()
    x = randn(2, 1, 16, 16)
    z = []
    network.encoder.register_forward_hook(lambda module, into, out: z.append(out))
    decoded, penalty = network(x)
    z_q = network.quantise(network.encode(x)[0]).detach().requires_grad_()
    expected = torch.autograd.grad(Autoencoder.decode(network, z_q).square().sum(), z_q)[0]
    of_z, of_book = torch.autograd.grad(
        decoded.square().sum(), [z[0], network.book], retain_graph=True, materialize_grads=True
    )
    assert (of_z - expected).abs().max() < 1e-4 * expected.abs().max()
    assert of_book.abs().max() == 0  # the reconstruction moves no code
    codes = network.quantise(z[0])
    assert abs(penalty - (1 + network.beta) * (z[0] - codes).square().mean()) < 1e-5
    of_book, of_z = torch.autograd.grad(penalty, [network.book, network.encoder.body[1].weight])
    assert of_book.abs().max() > 0 and of_z.abs().max() > 0


def test_the_code_book_starts_with_encodings_of_the_first_batch_only():
    network = awake(VQAutoencoder(16, latent=3, width=8, codes=6))
    x = randn(4, 1, 16, 16)
    rows = network.encode(x)[0].permute(0, 2, 3, 1).reshape(-1, 3)
    network.eval()(x, seeded())
    assert not network.begun
    network.train()(x, seeded())
    assert network.begun and torch.cdist(network.book, rows).amin(1).max() < 1e-3
    before = network.book.clone()
    network(randn(4, 1, 16, 16, seed=9), seeded())
    assert torch.equal(network.book, before)


def test_the_nearest_code_is_the_same_under_autocast():
    network = VQAutoencoder(16, latent=3, width=8, codes=256)
    nn.init.normal_(network.book, generator=seeded())
    z = randn(8, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.nearest(z)
    assert torch.equal(found, network.nearest(z))


@pytest.mark.parametrize(("halvings", "patch"), [(1, 8), (2, 18), (3, 38)])
def test_a_number_of_the_discriminator_sees_a_patch_of_the_stated_width(halvings, patch):
    network = PatchDiscriminator(width=8, halvings=halvings)
    x = randn(1, 1, 96, 96).requires_grad_()
    scores = network(x)
    assert scores.shape == (1, 96 >> halvings, 96 >> halvings)
    middle = scores.shape[1] // 2
    (seen,) = torch.autograd.grad(scores[0, middle, middle], x)
    rows = seen[0, 0].abs().sum(1).nonzero()
    assert rows.max() - rows.min() + 1 == patch


def latent_network(**settings) -> LatentUNet:
    autoencoder = awake(Autoencoder(32, latent=3, width=8), 1)
    return LatentUNet(autoencoder, **({"width": 8, "multipliers": (1, 2), "blocks": 1} | settings))


def test_latents_have_variance_1_after_scaling():
    network, x = latent_network(), randn(200, 1, 32, 32)
    moments = network.fit_scale(x)
    mean, std = moments.chunk(2, 1)
    assert moments.shape == (200, 6, 8, 8) and network.scale != 1
    z = network.draw(mean, std, seeded(3))
    assert abs(z.var() - 1) < 0.01
    network.fit_scale(x, 0.1)
    assert abs(network.draw(mean, std, seeded(3)).var() - 0.01) < 1e-4
    network.fit_scale(x, 0)
    assert network.scale == 1 and torch.equal(
        network.draw(mean, std, seeded(3)), mean + std * randn(*mean.shape, seed=3)
    )


def test_the_scale_is_applied_by_encode_and_undone_by_decode():
    network, x = latent_network(), randn(4, 1, 32, 32)
    network.fit_scale(x)
    mean, var = network.autoencoder.encode(x)
    z = mean + var.sqrt() * randn(*mean.shape, seed=7)
    assert torch.equal(network.encode(x, seeded(7)), network.scale * z)
    assert (network.decode(network.scale * z) - network.autoencoder.decode(z)).abs().max() < 1e-4
    assert network.scale == network.scale.half().float()  # so that shipping loses nothing


def test_the_autoencoder_is_held_and_frozen():
    network = latent_network(classes=10)
    assert network.size == 8 and network.channels == 3 and network.classes == 10
    assert not any(weight.requires_grad for weight in network.autoencoder.parameters())
    assert "autoencoder.encoder.body.1.weight" in network.state_dict() and "scale" in network.state_dict()
    assert network(randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 10])).shape == (2, 3, 8, 8)
