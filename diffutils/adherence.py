"""Whether a picture shows what was asked for: the attributes of a prompt, measured again on what was drawn."""

import functools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import canvas, captions, evaluation, metrics, recipes, runtime, zoo
from .latents import SEEDS, Cell
from .networks.classifier import Classifier
from .networks.latent import Autoencoder

HEIGHTS = {"digits-32": 0.75, "mnist": 0.65}
"""How high a digit cut out of a canvas must be for a judge of that data to see the digits that it knows."""

Words = dict[str, Tensor]
"""For each attribute, positions in ``captions.WORDS``, ``(N, K)``, and -1 for nothing, as from
:func:`diffutils.captions.said`.
"""


class Judge:
    """Looks at canvases: the attributes by :func:`diffutils.canvas.measure`, which digit it is by a classifier."""

    def __init__(self, network: Classifier, height: float, limits: tuple[float, float]):
        self.network, self.height, self.limits = network, height, limits

    @torch.no_grad()
    def __call__(self, x: Tensor, digits: Tensor) -> tuple[Words, Tensor]:
        """What is to be said of canvases ``(N, 3, H, H)`` that should hold ``digits`` digits each, ``(N,)``, and the
        classifier's features of all these digits, cut out, ``(digits.sum(), D)``.
        """
        of = canvas.measure(x, digits)
        there = of.size > 0
        features = evaluation.features(self.network, canvas.crops(x, of, self.network.size, self.height)[there])
        label = torch.full_like(of.digit, -1)
        label[there] = self.network.head(features).argmax(1)
        return captions.said(of._replace(digit=label), self.limits), features


def judge(recipe: recipes.Recipe) -> Judge:
    """The judge of a text model's recipe. Raises as :func:`diffutils.recipes.weights` does."""
    network, header = recipes.weights(recipe["judge"])
    return Judge(network, HEIGHTS[header["recipe"]["data"]], captions.strokes(recipe["data"]))


@functools.lru_cache(4)
def real(data: str, pairs: str, n: int, train: bool = False) -> tuple[Tensor, Words]:
    """``n`` canvases like those called ``data`` and what is said of them, with the ``pairs`` of digit and colour that
    are ``seen`` in training, or ``unseen``.
    """
    x, of = canvas.described(f"{data.removesuffix('-seen')}-{pairs}", train, n)
    return x, captions.said(of, captions.strokes(data))


def scores(asked: Words, found: Words) -> dict[str, dict[str, float]]:
    r"""For each attribute the share of what was asked for that was found, ``right``, its standard ``error``, and what
    ``chance`` gives:

    .. math:: \text{right} = \frac1n \sum_i [a_i = f_i] , \qquad \text{chance} = \frac1{n^2} \sum_{i, j} [a_i = f_j]
        = \sum_c p_a(c)\, p_f(c) ,

    the share for prompts held against each other's pictures. Only what was asked for counts, ``n`` times. ``all`` is
    the share of prompts of which nothing was missed; its chance is over i different from j. Source: chapter 12.
    """
    result = {}
    for name, phrases in captions.WORDS.items():
        rows = asked[name] >= 0
        if not rows.any():
            continue
        a, f = asked[name][rows], found[name][rows]
        shares = [of[of >= 0].bincount(minlength=len(phrases)).double() / len(a) for of in (a, f)]
        result[name] = _share((a == f).double(), (shares[0] * shares[1]).sum().item())
    a, f = (torch.cat([of[name] for name in captions.WORDS], 1) for of in (asked, found))
    whole = ((a[:, None] < 0) | (a[:, None] == f[None])).all(-1).double()  # prompt i, picture j
    n = len(whole)
    return result | {"all": _share(whole.diag(), ((whole.sum() - whole.trace()) / max(n * (n - 1), 1)).item())}


def _share(right: Tensor, chance: float) -> dict[str, float]:
    p, n = right.mean().item(), len(right)
    return {"right": round(p, 4), "error": round((p * (1 - p) / n) ** 0.5, 4), "chance": round(chance, 4), "n": n}


def adherence(
    model: zoo.Model,
    n: int = 200,
    pairs: str = "seen",
    weight: float = 3.0,
    sampler: str = "dpm-solver",
    steps: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask a text model for what is on ``n`` test canvases, ``seen`` or ``unseen``, all of it said, and :func:`scores`;
    beside them the Fréchet distance of the digits drawn, in the judge's features, from those on as many training
    canvases.
    """
    recipe = model.header["recipe"]
    _, asked = real(recipe["data"], pairs, n)
    prompts = captions.sentences(asked)
    x = zoo.draw(model, n, sampler, steps, seed=seed, weight=weight, prompts=prompts)
    settings = {"pairs": pairs, "weight": weight, "sampler": sampler, "steps": steps, "seed": seed}
    return settings | compare(recipe, x, pairs)


def compare(recipe: recipes.Recipe, x: Tensor, pairs: str) -> dict[str, Any]:
    """Canvases ``(n, 3, H, H)`` against what is said of the n test canvases of :func:`real`."""
    by, n = judge(recipe), len(x)
    _, asked = real(recipe["data"], pairs, n)
    found, features = by(x, (asked["digit"] >= 0).sum(1))
    other, said = real(recipe["data"], pairs, n, train=True)
    _, reference = by(other, (said["digit"] >= 0).sum(1))
    distance = metrics.frechet_distance(features, reference).item()
    return {"n": n, "frechet": round(distance, 4)} | scores(asked, found)


@torch.no_grad()
def reconstruction(network: Autoencoder, recipe: recipes.Recipe, n: int = 500) -> dict[str, Any]:
    """How an autoencoder of canvases restores n of the test set: ``psnr`` in decibels, and what the judge sees on the
    reconstructions.
    """
    x, _ = real(recipe["data"], "seen", n)
    decoded = torch.cat([network.decode(network.encode(part)[0]) for part in x.split(100)]).clamp(-1, 1)
    return {"psnr": round(metrics.psnr(x, decoded).mean().item(), 2)} | compare(recipe, decoded, "seen")


WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


def cells(name: str, n: int = 200) -> Iterator[Cell]:
    """Adherence of a shipped text model: of real canvases and of their reconstructions, which no model can be expected
    to surpass; over the weight of guidance, for pairs of digit and colour seen and unseen; over samplers and steps.
    """
    for pairs in "seen", "unseen":
        for what in "real", "reconstructed":
            yield {"recipe": name, "pictures": what, "pairs": pairs}, partial(_ceiling, name, what, pairs, n)
    hows = [(pairs, weight, "dpm-solver", 20) for weight in WEIGHTS for pairs in ("seen", "unseen")]
    hows += [("seen", 3.0, sampler, steps) for steps in (3, 5, 10, 50) for sampler in ("ddim", "dpm-solver")]
    hows += [("seen", 3.0, "ddim", 20)]
    for seed in SEEDS:
        for pairs, weight, sampler, steps in hows:
            how = {"pairs": pairs, "weight": weight, "sampler": sampler, "steps": steps, "seed": seed}
            yield {"recipe": name, "pictures": "drawn"} | how, partial(_drawn, name, n, how)


def _ceiling(name: str, what: str, pairs: str, n: int) -> dict[str, Any]:
    network, header = recipes.weights(name)
    x, _ = real(header["recipe"]["data"], pairs, n)
    if what == "reconstructed":
        noise = runtime.generator(0)
        x = torch.cat([network.decode(network.encode(part, noise)) for part in x.split(50)]).clamp(-1, 1)
    return compare(header["recipe"], x, pairs)


def _drawn(name: str, n: int, how: dict[str, Any]) -> dict[str, Any]:
    return adherence(zoo.load(name), n, **how)
