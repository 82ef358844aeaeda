"""What working in latents costs and what it loses: the measurements behind chapter 11, cell by cell."""

import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from . import canvas, evaluation, metrics, recipes, runtime, samplers, schedules, training, zoo
from .compression import latent_rate, progressive
from .metrics import bits_per_dim
from .networks.latent import Autoencoder, VQAutoencoder
from .networks.unet import UNet
from .objectives import simple_loss
from .process import q_sample

Cell = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
SEEDS = (0, 1, 2)


class Peak(TorchDispatchMode):
    """The most bytes that the tensors made inside this context held at one time (:attr:`most`).

    It counts what torch gives out as tensors, on any device, ``meta`` included, where nothing is computed; not what a
    kernel uses for itself.
    """

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.live: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.live:
                self.live.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """The floating-point operations of a call (torch's counter: two for each multiply-add of a convolution, a matrix
    product or attention, nothing for the rest), and the :class:`Peak` of its memory in bytes.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    with Peak() as peak:
        call()
    return counter.get_total_flops(), peak.most


def networks(pixels: int, factor: int, width: int = 32, channels: int = 3) -> tuple[UNet, Autoencoder | None]:
    """The U-Net for images of ``pixels``, in pixel space (``factor`` 1) or in latents ``factor`` times smaller, and in
    that case the autoencoder.

    Both U-Nets have the same levels, widths and blocks, those of the larger one: what differs is the size of what they
    look at. Raises ``ValueError`` if the latents are smaller than 8.
    """
    multipliers = (1, 2, 2) + (4,) * (pixels.bit_length() - 6)
    if factor == 1:
        return UNet(pixels, channels, width, multipliers), None
    autoencoder = Autoencoder(pixels, channels, 4, width, (1, 2, 4, 4)[: factor.bit_length() - 1], patch=2)
    return UNet(pixels // factor, 4, width, multipliers), autoencoder


def cost() -> Iterator[Cell]:
    """A training step and an image, 32 to 256 pixels, in pixel space and in latents: operations, memory, time."""
    for pixels in 32, 64, 128, 256:
        for factor in 1, 2, 4:
            yield {"pixels": pixels, "factor": factor, "steps an image": 50}, partial(_cost, pixels, factor)


def counts(pixels: int, factor: int, steps: int = 50, batch: int = 16) -> dict[str, Any]:
    """What can be counted without computing anything: GFLOP an image of a training step, of encoding the image for it,
    and of drawing one in ``steps`` steps, decoding included; MiB at the peak of a training step with Adam on a batch of
    ``batch`` and of drawing one image, weights included; parameters.
    """
    with torch.device("meta"):
        unet, autoencoder = networks(pixels, factor)
    step, _, encode, _ = _calls(unet, autoencoder, batch, None)
    _, call, _, decode = _calls(unet, autoencoder, 1, None)
    trained, drawn = counted(step), counted(call)
    encoded, decoded = (counted(one) if autoencoder else (0, 0) for one in (encode, decode))
    weights = 4 * sum(w.numel() for w in unet.parameters())  # float32, and as much again for each of Adam's two moments
    first = 4 * sum(w.numel() for w in autoencoder.parameters()) if autoencoder else 0
    return {
        "parameters": weights // 4,
        "autoencoder's parameters": first // 4,
        "training GFLOP": round(trained[0] / batch / 1e9, 4),
        "encoding GFLOP": round(encoded[0] / batch / 1e9, 4),
        "image GFLOP": round((steps * drawn[0] + decoded[0]) / 1e9, 4),
        "training MiB": round((trained[1] + 3 * weights) / 2**20, 2),
        "image MiB": round((max(drawn[1], decoded[1]) + weights + first) / 2**20, 2),
    }


def _cost(pixels: int, factor: int, batch: int = 4, times: int = 5) -> dict[str, Any]:
    where = runtime.device()
    with runtime.seeded(0):
        unet, autoencoder = (one and one.to(where) for one in networks(pixels, factor))
    calls = _calls(unet, autoencoder, batch, runtime.generator(0, where))
    step, call, encode, decode = (_seconds(one, where, times) / batch if one else 0.0 for one in calls)
    return counts(pixels, factor) | {
        "batch": batch,
        "training seconds": float(f"{step:.3g}"),
        "encoding seconds": float(f"{encode:.3g}"),
        "image seconds": float(f"{50 * call + decode:.3g}"),
    }


def _calls(unet: UNet, autoencoder: Autoencoder | None, batch: int, generator: torch.Generator | None) -> tuple:
    """A training step, a call of the network, encoding and decoding: functions of no arguments."""
    weight = next(unet.parameters())
    x = torch.zeros(batch, unet.channels, unet.size, unet.size, device=weight.device)
    t = torch.ones(batch, dtype=torch.int64, device=weight.device)
    if weight.is_meta:  # nothing is drawn there; the same network, a squared error

        def step() -> None:
            unet.zero_grad(set_to_none=True)
            (unet(x, t) - x).square().mean().backward()
    else:
        chain = schedules.cosine().to(weight.device)
        update = training.Descent(unet, lambda x: simple_loss(unet, x, chain, generator, "v"), 1000)
        step = partial(update, (x,))

    call = torch.no_grad()(lambda: unet(x, t))
    if autoencoder is None:
        return step, call, None, None
    image = torch.zeros(batch, autoencoder.channels, autoencoder.size, autoencoder.size, device=weight.device)
    encode, decode = torch.no_grad()(autoencoder.encode), torch.no_grad()(autoencoder.decode)
    return step, call, partial(encode, image), partial(decode, x)


def _seconds(call: Callable[[], Any], where: torch.device, times: int) -> float:
    """The median of ``times`` after one to warm up."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        call()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@torch.no_grad()
def reconstruction(network: Autoencoder, recipe: recipes.Recipe, n: int = 5000) -> dict[str, Any]:
    """How an autoencoder restores the test images of its recipe's data, and what its latents cost.

    ``psnr`` in decibels; ``frechet``: the distance of the judge's features of the reconstructions from those of the
    images themselves (0 if nothing is lost); ``class kept``: how often the judge sees the same digit; ``sharpness``
    relative to the images'; ``rate``: bits/dim to send the latent, by a Gaussian (or, of codes, a table) fitted to the
    training images; ``std`` of the latents, and ``codes`` in use (:math:`2^H`).
    """
    train, test = (canvas.images(recipe["data"], part).x[:n] for part in (True, False))
    judge = recipes.weights(recipe["judge"])[0]
    encoded = [torch.cat(parts) for parts in zip(*(network.encode(x) for x in train.split(250)), strict=True)]
    mean, var = (torch.cat(parts) for parts in zip(*(network.encode(x) for x in test.split(250)), strict=True))
    decoded = torch.cat([network.decode(z) for z in mean.split(250)]).clamp(-1, 1)
    seen, kept = (evaluation.features(judge, x) for x in (test, decoded))
    codes = None
    if isinstance(network, VQAutoencoder):
        used = torch.cat([network.nearest(z) for z in encoded[0].split(250)]).flatten()
        share = (used.bincount(minlength=len(network.book)) + 1).double()
        share = share / share.sum()
        codes = round((-(share * share.log()).sum()).exp().item(), 1)
        nats = -share.log()[network.nearest(mean)].flatten(1).sum(1)
    else:
        fitted = encoded[0].mean(0, True), encoded[0].var(0, keepdim=True) + encoded[1].mean(0, True)
        nats = latent_rate(mean, var, fitted)
    spread = (encoded[0].double().var() + encoded[1].double().mean()).sqrt()
    values = {
        "psnr": metrics.psnr(test, decoded).mean(),
        "rmse": (test - decoded).square().mean().sqrt(),
        "frechet": metrics.frechet_distance(kept, seen),
        "class kept": (judge.head(seen).argmax(1) == judge.head(kept).argmax(1)).double().mean(),
        "sharpness": metrics.sharpness(decoded).mean() / metrics.sharpness(test).mean(),
        "rate": bits_per_dim(nats.double().mean(), test[0].numel()),
        "std": spread,
    }
    return {name: float(f"{value.item():.5g}") for name, value in values.items()} | ({"codes": codes} if codes else {})


def _fit(recipe: recipes.Recipe) -> tuple[nn.Module, dict[str, Any]]:
    """The network trained by a recipe, and its file's header."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in recipes.Run(recipe, folder, checkpoint=float("inf"), every=50):
            pass
        return recipes.weights(Path(folder) / "weights.safetensors")


def autoencoders() -> Iterator[Cell]:
    """Autoencoders of the digits at 32 pixels: f = 4 with and without the adversarial term, and one with codes, from
    three seeds; f = 2 and 8 from one; f = 8 with a single channel, where little is kept, with and without, from three.
    """
    levels = {2: [1], 4: [1, 2], 8: [1, 2, 2]}
    both = (("digits-autoencoder", 4, 16), ("digits-autoencoder", 4, 0))
    cells = [(seed, *how, 4) for seed in SEEDS for how in both]
    cells += [(0, "digits-autoencoder", factor, against, 4) for factor in (2, 8) for against in (16, 0)]
    cells += [(seed, "digits-vq", 4, 16, 4) for seed in SEEDS]
    cells += [(seed, "digits-autoencoder", 8, against, 1) for seed in SEEDS for against in (16, 0)]
    for seed, name, factor, against, channels in cells:
        recipe = recipes.recipe(name, seed=seed, against=against)
        recipe["network"] = recipe["network"] | {"multipliers": levels[factor], "latent": channels}
        settings = {"recipe": name, "factor": factor, "channels": channels, "adversarial": against > 0, "seed": seed}
        yield settings, partial(_autoencoder, recipe)


def _autoencoder(recipe: recipes.Recipe) -> dict[str, Any]:
    network, header = _fit(recipe)
    size = sum(w.numel() for w in network.parameters())
    return {"parameters": size, "seconds": header["trained"]["seconds"]} | reconstruction(network, recipe)


def scales() -> Iterator[Cell]:
    """Latent diffusion whose latents are as they come (scale 0), or scaled to other standard deviations than 1, all
    else equal; at 1 it is the ``digits-ldm`` of ``latent-pixel``.
    """
    cells = [(0.0, 0), (10.0, 0), (0.1, 0), (0.0, 1), (0.0, 2), (3.0, 0), (0.3, 0), (10.0, 1), (0.1, 1)]
    for times, seed in cells:
        recipe = recipes.recipe("digits-ldm", seed=seed, scale=times)
        yield {"recipe": "digits-ldm", "scale": times, "seed": seed}, partial(_samples, recipe, {"ddim": 50})


def spaces() -> Iterator[Cell]:
    """Diffusion in pixels and in latents, with equally many steps of equally many images."""
    for seed in SEEDS:
        for name in "digits-ldm", "digits-32-ddpm":
            recipe = recipes.recipe(name, seed=seed)
            yield {"recipe": name, "seed": seed}, partial(_samples, recipe, {"ddim": 50})


def _samples(recipe: recipes.Recipe, samplings: dict[str, int]) -> dict[str, Any]:
    """Train, then every score of 360 samples, for two sampling seeds."""
    network, header = _fit(recipe)
    model = zoo.model(network.to(runtime.device()), header)
    found: dict[str, Any] = {"seconds": header["trained"]["seconds"]}
    if "scale" in header["trained"]:
        found["lambda"] = header["trained"]["scale"]
    for sampler, steps in samplings.items():
        scored = [evaluation.evaluate(model, None, sampler, steps, seed=seed) for seed in (0, 1)]
        names = ("frechet", "precision", "recall")
        found[f"{sampler}, {steps} steps"] = {name: [one[name]["value"] for one in scored] for name in names} | {
            "sure": [one["sure"] for one in scored],
            "seconds an image": [one["seconds an image"] for one in scored],
        }
    return found


TIMES = (1, 2, 3, 5, 10, 20, 35, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000)
"""Steps t at which the study ``rate-distortion`` says what can be seen."""


def rates(name: str = "digits-32-ddpm", images: int = 30) -> Iterator[Cell]:
    """Progressive decoding by a diffusion model in pixel space: bits, error, and whether the class is still there."""
    for start in range(0, 4 * images, images):
        yield {"recipe": name, "first": start, "images": images}, partial(_rates, name, start, images)


@torch.no_grad()
def _rates(name: str, start: int, images: int) -> dict[str, Any]:
    model = zoo.load(name)
    recipe, chain, where = model.header["recipe"], model.schedule, next(model.network.parameters()).device
    x_0 = canvas.images(recipe["data"], train=False).x[start : start + images].to(where)
    judge = recipes.weights(recipe["judge"])[0].to(where)
    generator = runtime.generator(start, where)
    sent = progressive(model.denoise, x_0, chain, generator, 256)
    found: dict[str, Any] = {"t": list(TIMES)}
    at = torch.tensor([0, *TIMES])
    found["rate"] = [round(v, 5) for v in bits_per_dim(sent.rate[at].double().mean(1), x_0[0].numel()).tolist()]
    found["mse"] = [float(f"{v:.4g}") for v in sent.distortion[at].double().mean(1).tolist()]
    label = judge(x_0).argmax(1)
    step = samplers.ddim(model.denoise, chain, eta=1.0)
    for t in TIMES:
        x_t = q_sample(x_0, t, torch.randn(x_0.shape, generator=generator, device=where), chain)
        guess = model.denoise(x_t, torch.full((len(x_0),), t, device=where))
        steps = sorted({round(t * i / 20) for i in range(21)}, reverse=True)
        drawn = samplers.sample(step, x_t, steps, generator).clamp(-1, 1)
        for what, x in ("guess", guess), ("completed", drawn):
            same = (judge(x).argmax(1) == label).double().mean().item()
            found.setdefault(f"class kept, {what}", []).append(round(same, 4))
            found.setdefault(f"sharpness, {what}", []).append(
                round((metrics.sharpness(x).mean() / metrics.sharpness(x_0).mean()).item(), 4)
            )
    return found
