"""Latent diffusion from end to end, and the counts behind its cost."""

import pytest
import torch
from torch import nn

from diffutils import canvas, latents, metrics, recipes, runtime, samplers, schedules, zoo
from diffutils.checkpoints import read
from diffutils.process import denoiser, guided


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(recipe, folder, **settings):
    for _ in recipes.Run(recipe, folder, **settings):
        pass
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An autoencoder and a latent diffusion model after a few steps, trained as a reader trains them."""
    folder = tmp_path_factory.mktemp("runs")
    game = {"penalty": 1e-4, "weight": 0.5, "start": 2}
    first = recipes.recipe("digits-autoencoder", steps=4, batch=16, features="", game=game)
    first = run(first, folder / "autoencoder")
    second = recipes.recipe("digits-ldm", steps=4, batch=16, autoencoder=str(first))
    return first, run(second, folder / "ldm"), second


def test_what_is_drawn_is_decoded_from_what_the_same_loop_arrives_at(trained):
    model = zoo.load(trained[1], "cpu")
    network, chain = model.network, model.schedule
    x = zoo.draw(model, 5, "ddim", 4, seed=3)
    assert x.shape == (5, 1, 32, 32) and x.abs().max() <= 1
    generator = runtime.generator(3)
    z_T = torch.randn(5, 4, 8, 8, generator=generator)
    times = schedules.subsequence(chain.T, 4)
    z_0 = samplers.sample(samplers.ddim(denoiser(network, chain, "v"), chain), z_T, times, generator)
    assert torch.equal(x, network.decode(z_0).clamp(-1, 1))
    assert torch.equal(x, network.autoencoder.decode(z_0 / network.scale).clamp(-1, 1))


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_other_samplers_and_guidance_work_unchanged(trained, sampler, eta):
    model, y = zoo.load(trained[1], "cpu"), torch.tensor([1, 2, 3])
    network, chain = model.network, model.schedule
    x = zoo.draw(model, 3, sampler, 4, eta, seed=3, y=y, weight=2.0)
    generator = runtime.generator(3)
    z_T = torch.randn(3, 4, 8, 8, generator=generator)
    denoise = guided(network, chain, y, 2.0, "v")
    kernel = samplers.ddpm(denoise, chain) if sampler == "ddpm" else samplers.ddim(denoise, chain, eta)
    z_0 = samplers.sample(kernel, z_T, schedules.subsequence(chain.T, 4), generator)
    assert torch.equal(x, network.decode(z_0).clamp(-1, 1))


def test_estimates_of_latents_are_not_clipped(trained):
    model = zoo.load(trained[1], "cpu")
    far = model.denoise(torch.full((1, 4, 8, 8), 30.0), torch.tensor([1]))
    assert far.abs().max() > 1.5


def test_the_file_holds_all_and_says_from_where(trained):
    tensors, header = read(trained[1])
    assert header["recipe"] == trained[2] and header["autoencoder"]["name"] == "digits-autoencoder"
    assert header["trained"]["scale"] == tensors["scale"].item() == zoo.load(trained[1]).network.scale.item()
    first, _ = read(trained[0])
    assert all(torch.equal(tensors[f"autoencoder.{name}"], value) for name, value in first.items())
    assert not any(name.startswith("discriminator") for name in first)
    trained[0].rename(trained[0].with_name("away"))
    try:
        assert zoo.draw(zoo.load(trained[1], "cpu"), 1, steps=1).shape == (1, 1, 32, 32)
    finally:
        trained[0].with_name("away").rename(trained[0])


def test_latents_of_the_training_images_have_variance_1(trained):
    network = zoo.load(trained[1], "cpu").network
    z = network.encode(canvas.images("digits-32").x, seeded())
    assert abs(z.var() - 1) < 0.02


def test_an_interrupted_run_in_latents_ends_with_the_same_weights(trained, tmp_path):
    for step in recipes.Run(trained[2], tmp_path, checkpoint=0):
        if step.index == 2:
            break
    again = read(run(trained[2], tmp_path))[0]
    whole = read(trained[1])[0]
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    other = recipes.recipe("digits-ldm", steps=4, batch=16, autoencoder=str(trained[0]), scale=0.1)
    with pytest.raises(ValueError, match="a checkpoint of another recipe, with measured scale = .*scale = 1.0"):
        run(other, tmp_path)


def test_an_interrupted_autoencoder_ends_with_the_same_weights(trained, tmp_path):
    recipe = read(trained[0])[1]["recipe"]
    for step in recipes.Run(recipe, tmp_path, checkpoint=0):
        if step.index == 3:  # the discriminator has begun
            break
    again, whole = read(run(recipe, tmp_path))[0], read(trained[0])[0]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    with pytest.raises(ValueError, match="micro, shard: an autoencoder is trained whole"):
        recipes.Run(recipe, tmp_path, micro=2)


def test_an_autoencoder_is_measured_and_not_sampled(trained):
    with pytest.raises(ValueError, match="digits-autoencoder is an autoencoder, and cannot be sampled"):
        zoo.load(trained[0])
    with pytest.raises(FileNotFoundError, match="cifar10-classifier: its weights are not shipped"):
        recipes.Run(recipes.recipe("digits-autoencoder", features="cifar10-classifier"), trained[0].parent / "x")


class Perfect(nn.Module):
    """An autoencoder that loses nothing: pixels in another order."""

    def encode(self, x):
        return nn.functional.pixel_unshuffle(x, 4), torch.full((len(x), 16, 8, 8), 1e-4)

    def decode(self, z):
        return nn.functional.pixel_shuffle(z, 4)


def test_a_perfect_reconstruction_has_perfect_scores(tmp_path):
    recipe = recipes.recipe("digits-32-classifier", steps=2)
    judge = run(recipe, tmp_path)
    found = latents.reconstruction(Perfect(), {"data": "digits-32", "judge": str(judge)})
    assert found["psnr"] > 100 and found["frechet"] < 1e-6 and found["class kept"] == found["sharpness"] == 1
    x = canvas.images("digits-32").x
    assert abs(found["std"] - x.std()) < 0.01 and found["rate"] > 1


def test_psnr_and_sharpness_are_what_they_say():
    x = torch.rand(3, 1, 8, 8, generator=seeded())
    assert torch.allclose(metrics.psnr(x, x + 0.02), torch.tensor(40.0), atol=1e-3)  # (2 / 0.02)^2 = 10^4
    assert torch.allclose(metrics.psnr(x, x + 0.01) - metrics.psnr(x, x + 0.02), torch.tensor(6.02), atol=1e-2)
    step, ramp = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    step[..., 4:], ramp[..., 4:] = 1, 1
    ramp[..., 3], ramp[..., 2] = 2 / 3, 1 / 3
    assert torch.allclose(metrics.sharpness(step), 3 * metrics.sharpness(ramp))  # spread over three pixels
    with pytest.raises(ValueError, match="x, y: need equal shapes"):
        metrics.psnr(x, x[:2])


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_the_counter_agrees_with_a_count_by_hand(stride, kernel):
    layer = nn.Conv2d(3, 5, kernel, stride, kernel // 2, device="meta")
    x = torch.zeros(2, 3, 16, 16, device="meta")
    flops, _ = latents.counted(lambda: layer(x))
    assert flops == 2 * 5 * 3 * kernel**2 * 2 * (16 // stride) ** 2  # a multiply and an add
    x.requires_grad_()
    flops, _ = latents.counted(lambda: layer(x).sum().backward())
    assert flops == 3 * 2 * 5 * 3 * kernel**2 * 2 * (16 // stride) ** 2  # and twice as much on the way back


def test_the_peak_of_memory_is_what_lives_at_one_time():
    x = torch.zeros(1000, device="meta")

    def chain():
        y = x
        for _ in range(5):
            y = y + 1
        return y

    def kept():
        return [x + i for i in range(5)]

    assert latents.counted(chain)[1] == 2 * 4000 and latents.counted(kept)[1] == 5 * 4000
    assert latents.counted(lambda: (x + 1).view(10, 100).T)[1] == 4000  # a view is no memory


def test_latents_are_at_least_four_times_cheaper_at_64_pixels():
    pixel, latent = latents.counts(64, 1, batch=1), latents.counts(64, 4, batch=1)
    for what in "training GFLOP", "image GFLOP":
        assert pixel[what] > 4 * (latent[what] + latent["encoding GFLOP"]), what
    assert latent["parameters"] > pixel["parameters"]  # it is not cheaper for being a smaller network
    with pytest.raises(ValueError, match="size: must be a power of two from 8 to 256, got 4"):
        latents.counts(32, 8)
