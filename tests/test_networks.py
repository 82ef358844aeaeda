"""The networks: shapes at every size, what they start as, and what each output depends on."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffutils import recipes
from diffutils.networks.attention import FEW, attend
from diffutils.networks.autoencoder import VAE, Decoder, Encoder
from diffutils.networks.classifier import Classifier
from diffutils.networks.discriminator import GAN
from diffutils.networks.embedding import TimeEmbedding, sinusoids
from diffutils.networks.mlp import MLP
from diffutils.networks.unet import Attention, ResBlock, UNet


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(network: nn.Module) -> nn.Module:
    """The network with a little noise on every parameter, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def small_unet(**changes) -> UNet:
    return UNet(8, **{"width": 8, "blocks": 1} | changes)


NETWORKS = {
    "mlp": (lambda: MLP(2, width=16, depth=2), (2,)),
    "unet": (small_unet, (1, 8, 8)),
}
every_network = pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS)


def test_sinusoids_are_the_formula():
    t, width = torch.tensor([1, 2, 10, 500, 1000]), 16
    omega = [10_000 ** (-2 * i / width) for i in range(width // 2)]
    rows = [[f(w * float(n)) for f in (math.sin, math.cos) for w in omega] for n in t]
    assert sinusoids(t, width).shape == (5, 16)
    assert (sinusoids(t, width) - torch.tensor(rows)).abs().max() < 2e-4  # float32 angles up to 1000
    slow = [[math.sin(3), math.sin(3 / 10), math.cos(3), math.cos(3 / 10)]]
    assert (sinusoids(torch.tensor([3]), 4, longest=100.0) - torch.tensor(slow)).abs().max() < 1e-6


def test_sinusoids_tell_all_thousand_times_apart():
    distance = torch.cdist(*[sinusoids(torch.arange(1, 1001), 32)] * 2) + torch.eye(1000)
    assert distance.min() > 0.1


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width: must be even, got 7"):
        sinusoids(torch.tensor([1]), 7)


def test_time_embedding_is_a_function_of_each_t_alone():
    embed = TimeEmbedding(8)
    both = embed(torch.tensor([1, 1000]))
    assert both.shape == (2, 8) and (both[0] - both[1]).abs().max() > 1e-3
    assert (embed(torch.tensor([1000]))[0] - both[1]).abs().max() < 1e-6


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_unet_answers_in_the_shape_of_its_input_at_every_size(size, channels):
    network = UNet(size, channels, width=8, blocks=1, classes=4)
    x_t = randn(2, channels, size, size)
    with torch.no_grad():
        out = network(x_t, torch.tensor([1, 1000]), torch.tensor([0, 3]))
    assert out.shape == x_t.shape and out.dtype == x_t.dtype


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multipliers": (1,)},
        {"multipliers": (1, 2, 3)},
        {"multipliers": (2, 1)},
        {"blocks": 3},
        {"attention": 0},
        {"width": 56},
        {"channels": 4},
        {"dropout": 0.1},
    ],
)
def test_unet_takes_other_widths_depths_and_channels(changes):
    network = awake(small_unet(**changes))
    x_t = randn(2, changes.get("channels", 1), 8, 8)
    out = network(x_t, torch.tensor([1, 5]))
    assert out.shape == x_t.shape and out.isfinite().all() and out.abs().max() > 0


def test_unet_halves_its_images_once_per_further_multiplier():
    seen = []
    network = small_unet(multipliers=(1, 2, 4))
    network.middle_out.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    network(randn(2, 1, 8, 8), torch.tensor([1, 1]))
    assert seen == [(2, 32, 2, 2)]


def test_unet_attends_where_it_is_told_to_and_always_in_the_middle():
    def attentions(**changes):
        return sum(isinstance(m, Attention) for m in small_unet(multipliers=(1, 2), **changes).modules())

    assert attentions(attention=0) == 1  # 1 block on the way down and 2 on the way up, at each of the sizes 8 and 4
    assert attentions(attention=4) == 1 + 3
    assert attentions(attention=8) == 1 + 6


@every_network
def test_an_untrained_network_predicts_zero(build, shape):
    assert (build()(randn(3, *shape), torch.tensor([1, 5, 9])) == 0).all()


@pytest.mark.parametrize(
    ("network", "shape", "labels"),
    [
        (MLP(2, width=16, depth=2), (2,), None),
        (small_unet(), (1, 8, 8), None),
        (small_unet(classes=3, attention=8), (1, 8, 8), torch.arange(16) % 3),
    ],
    ids=["mlp", "unet", "unet with classes"],
)
def test_gradient_reaches_every_parameter_once_the_zeros_have_moved(network, shape, labels):
    x_t, t, target = randn(16, *shape), torch.arange(1, 17), randn(16, *shape, seed=1)
    inputs = (x_t, t) if labels is None else (x_t, t, labels)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(3):  # first the last layer leaves zero, then the last layer of each block, then all get a gradient
        optimiser.zero_grad()
        (network(*inputs) - target).square().mean().backward()
        optimiser.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


@every_network
def test_each_row_of_the_output_depends_on_its_own_row_and_time_alone(build, shape):
    network, t = awake(build()), torch.tensor([3, 700, 20])
    x_t = randn(3, *shape).requires_grad_()
    together = network(x_t, t)
    (gradient,) = torch.autograd.grad(together[1].square().sum(), x_t, retain_graph=True)
    assert (gradient[[0, 2]] == 0).all() and gradient[1].abs().max() > 0
    alone = network(x_t[1:2], t[1:2])
    assert (alone[0] - together[1]).abs().max() < 1e-4 * together.abs().max()
    later = network(x_t, torch.tensor([3, 701, 20]))
    assert (later[1] - together[1]).abs().max() > 1e-4
    assert (later[[0, 2]] - together[[0, 2]]).abs().max() < 1e-4 * together.abs().max()


def test_no_label_is_the_label_one_past_the_last():
    network, x_t, t = awake(small_unet(classes=3)), randn(2, 1, 8, 8), torch.tensor([4, 5])
    outputs = [network(x_t, t, torch.full((2,), y)) for y in range(4)]
    assert torch.equal(network(x_t, t), outputs[3])
    for y in range(3):
        assert (outputs[y] - outputs[3]).abs().max() > 1e-3


def test_a_label_changes_its_own_row_alone():
    network, x_t, t = awake(small_unet(classes=3)), randn(2, 1, 8, 8), torch.tensor([4, 4])
    change = network(x_t, t, torch.tensor([0, 1])) - network(x_t, t, torch.tensor([0, 2]))
    assert change[0].abs().max() < 1e-5 and change[1].abs().max() > 1e-3


def test_residual_blocks_and_attention_start_as_the_identity():
    x, embedding = randn(2, 16, 4, 4), randn(2, 12)
    assert torch.equal(ResBlock(16, 16, 12)(x, embedding), x)
    assert torch.equal(Attention(16)(x), x)
    widen = ResBlock(16, 24, 12)
    assert torch.equal(widen(x, embedding), widen.skip(x))


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (64, 2)])
def test_attention_is_the_softmax_average_over_all_pixels(channels, heads):
    layer, x = awake(Attention(channels)), randn(2, channels, 2, 3)
    assert layer.heads == heads
    width = channels // heads
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)  # each (B, C, HW)
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weight = (torch.einsum("bcp,bcq->bpq", q[:, part], k[:, part]) / math.sqrt(width)).softmax(2)
        out[:, part] = torch.einsum("bpq,bcq->bcp", weight, v[:, part])
    assert (layer(x) - x - layer.leave(out.reshape(x.shape))).abs().max() < 1e-5


@pytest.mark.parametrize("size", [0, 4, 7, 12, 28, 512])
def test_a_size_that_is_no_power_of_two_from_8_to_256_is_refused(size):
    with pytest.raises(ValueError, match=f"size: must be a power of two from 8 to 256, got {size}"):
        UNet(size)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"channels": 0}, "channels"),
        ({"width": 12}, "width"),
        ({"width": 0}, "width"),
        ({"multipliers": (1, 1, 1, 1)}, "multipliers"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused_by_argument(changes, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        small_unet(**changes)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (2, 1, 8, 16), (2, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x_t: this network takes \(B, 1, 8, 8\)"):
        small_unet()(torch.zeros(shape), torch.tensor([1, 1]))


def test_labels_for_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match="y: .*without classes"):
        small_unet()(torch.zeros(1, 1, 8, 8), torch.tensor([1]), torch.tensor([0]))


def test_labels_must_be_classes_of_the_network():
    unet, x, t = UNet(8, width=8, blocks=1, classes=3), torch.zeros(1, 1, 8, 8), torch.ones(1, dtype=torch.int64)
    unet(x, t, torch.tensor([3]))  # one past the last: no label
    for y in -1, 4:
        with pytest.raises(ValueError, match=r"y: labels must lie in 0..3 \(the last is none\), got"):
            unet(x, t, torch.tensor([y]))
    with pytest.raises(ValueError, match="classes: must be at least 1, or None for no labels, got 0"):
        UNet(8, classes=0)


def test_a_network_in_float64_answers_in_float64():
    x, t = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    assert MLP(3).double()(x, t).dtype == torch.float64


def test_mlp_refuses_points_of_another_dimension():
    with pytest.raises(ValueError, match=r"x_t: this network takes \(B, 3\), got \(2, 2\)"):
        MLP(3)(torch.zeros(2, 2), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_unet_of_patches_sees_and_answers_each_patch_as_channels(patch):
    """The same inner network as one that is given the unfolded image: unfolding by hand changes nothing."""
    size, grid = 16, 16 // patch
    network = awake(UNet(size, 1, width=8, multipliers=(1, 2), blocks=1, attention=4, patch=patch))
    x_t, t = randn(2, 1, size, size), torch.tensor([3, 700])
    seen = []
    network.enter[1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network.leave[2].register_forward_hook(lambda _, __, output: seen.append(output))
    out = network(x_t, t)
    for values, image in ((seen[0], x_t), (seen[1], out)):
        assert values.shape == (2, patch**2, grid, grid)
        for i in range(patch):
            for j in range(patch):
                assert torch.equal(values[:, i * patch + j], image[:, 0, i::patch, j::patch])


@pytest.mark.parametrize(("size", "patch"), [(8, 4), (8, 3), (32, 0), (32, 8)])
def test_a_patch_that_leaves_too_little_is_refused(size, patch):
    with pytest.raises(ValueError, match=f"patch: must be 1, 2 or 4 .*got {patch}"):
        UNet(size, width=8, patch=patch)


def test_attention_hands_the_fast_kernels_what_they_ask_for(monkeypatch):
    seen = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: seen.extend([q, k, v]) or v)
    Attention(64)(randn(2, 64, 16, 16))
    assert all(tensor.shape == (2, 2, 256, 32) and tensor.stride(-1) == 1 for tensor in seen)


@pytest.mark.parametrize(("L", "M"), [(1, 1), (16, 16), (64, 7), (FEW, 3), (FEW + 1, 3), (3, FEW + 1)])
def test_attention_written_out_equals_the_fused_kernel(L, M, monkeypatch):
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *of: calls.append(of) or fused(*of))
    shapes = enumerate((L, M, M))
    q, k, v = (randn(2, 3, n, 32, seed=i).bfloat16().requires_grad_() for i, n in shapes)
    exact = [of.detach().double().requires_grad_() for of in (q, k, v)]
    ours, theirs = attend(q, k, v), attend(*exact)
    assert len(calls) == 1 + (max(L, M) > FEW)  # float64 always, bfloat16 where tokens are many
    gradient = randn(*ours.shape, seed=3).bfloat16()
    mine = [ours, *torch.autograd.grad(ours, (q, k, v), gradient)]
    right = [theirs, *torch.autograd.grad(theirs, exact, gradient.double())]
    for a, b in zip(mine, right, strict=True):  # bfloat16 rounds by up to 0.4 % of a number
        assert (a - b).square().mean().sqrt() <= 0.01 * b.square().mean().sqrt()


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_answers_with_logits_of_its_features(size, channels):
    network = Classifier(size, channels, width=8, classes=7).eval()
    x = randn(3, channels, size, size)
    features = network.features(x)
    assert features.shape == (3, 32) and (features >= 0).all()
    assert torch.equal(network(x), network.head(features)) and network(x).shape == (3, 7)
    with pytest.raises(ValueError, match=r"x: this network takes \(B, "):
        network(x[:, :, :4])


def test_a_classifier_of_another_size_is_refused():
    with pytest.raises(ValueError, match="size: must be a power of two from 8 to 256, got 28"):
        Classifier(28)


@pytest.mark.parametrize(
    ("size", "patch", "multipliers", "grid"), [(8, 1, (1, 2), 4), (32, 2, (1, 2, 4), 4), (64, 1, (1, 1, 1, 1), 8)]
)
def test_encoder_and_decoder_are_each_others_shapes(size, patch, multipliers, grid):
    there = Encoder(size, 3, 8, multipliers, out=5, patch=patch)
    back = Decoder(size, 3, 8, multipliers, into=5, patch=patch)
    assert there.grid == back.grid == grid
    h = there(randn(2, 3, size, size))
    assert h.shape == (2, 5, grid, grid) and back(h).shape == (2, 3, size, size)


@pytest.mark.parametrize("build", [Encoder, Decoder])
def test_a_size_that_cannot_be_halved_so_often_is_refused(build):
    with pytest.raises(ValueError, match="size: 12 pixels cannot be divided by 8"):
        build(12, multipliers=(1, 1, 1, 1))


def test_a_vae_draws_by_its_decoder_and_encodes_each_image_by_itself():
    network = awake(VAE(8, latent=5, width=8))
    drawn = network.sample(3, torch.Generator().manual_seed(1))
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, network.decode(z).clamp(-1, 1)) and drawn.shape == (3, 1, 8, 8)
    x = randn(4, 1, 8, 8)
    mean, var = network.encode(x)
    one, _ = network.encode(x[2:3])
    assert (mean[2:3] - one).abs().max() < 1e-5 and (var > 0).all() and mean.shape == (4, 5)
    with pytest.raises(ValueError, match=r"x: this network takes \(B, 1, 8, 8\)"):
        network.encode(randn(4, 1, 16, 16))


def test_the_three_families_of_a_recipe_set_are_of_equal_size():
    """Within 10 % of the diffusion model's number of parameters, all that is trained counted."""
    for data in "digits", "mnist":
        count = {
            name: sum(p.numel() for p in recipes.build(recipes.recipe(f"{data}-{name}")).parameters())
            for name in ("ddpm", "vae", "gan")
        }
        assert all(abs(value / count["ddpm"] - 1) < 0.1 for value in count.values()), count


def test_a_gan_draws_images():
    drawn = GAN(16, 3, latent=4, width=8, against=8).sample(3, torch.Generator().manual_seed(1))
    assert drawn.shape == (3, 3, 16, 16) and drawn.abs().max() <= 1
