"""The forward process and what follows from it alone: noisy samples, the posterior of a step, and changes of
parameterisation.

Nothing in this file is learned. ``t`` is a Python int or an int64 tensor ``(B,)`` with entries in 1..T.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from .data import GaussianMixture
from .runtime import autocast
from .schedules import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""x_t of shape ``(B, *D)``, t of shape ``(B,)`` -> the estimate of x_0, of shape ``(B, *D)``."""

Drawer = Callable[[Tensor, Tensor, Generator | None], Tensor]
"""x_t of shape ``(B, *D)``, t of shape ``(B,)``, generator -> a draw of x_0 given x_t, of shape ``(B, *D)``."""

Kind = Literal["eps", "x_0", "v", "mean"]
"""What a network is asked to predict."""


def at(values: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """``values[t]`` in ``like``'s dtype and device, shaped ``(B, 1, ..., 1)`` to multiply a batch ``(B, *D)``.

    Raises ``ValueError`` if an entry of ``t`` is outside 0..T (tensors on a GPU are not read back to be checked).
    """
    t = torch.as_tensor(t, device=like.device)
    if t.device.type == "cpu" and (t.min() < 0 or t.max() >= len(values)):
        raise ValueError(f"t: every entry must lie in 0..T = 0..{len(values) - 1}, got {t.min()} to {t.max()}")
    return values.to(like.device)[t].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def check_t(t: int | Tensor, T: int) -> None:
    """Raise ``ValueError`` if an entry of ``t`` is outside 1..T, the steps that the chain has."""
    t = torch.as_tensor(t)
    if t.device.type == "cpu" and (t.min() < 1 or t.max() > T):
        raise ValueError(f"t: every entry must lie in 1..T = 1..{T}, got {t.min()} to {t.max()}")


def q_sample(x_0: Tensor, t: int | Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    r"""Jump from clean data to step t at once.

    .. math::
        x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I).

    ``x_0``, ``eps`` and the result are ``(B, *D)``. Raises ``ValueError`` if t is outside 1..T.
    Source: chapter 1; Ho et al. (2020), equation 4.
    """
    check_t(t, schedule.T)
    alpha_bar = schedule.alpha_bar
    # x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    return at(alpha_bar.sqrt(), t, x_0) * x_0 + at((1 - alpha_bar).sqrt(), t, x_0) * eps


def q_posterior(
    x_t: Tensor, x_0: Tensor, t: int | Tensor, schedule: Schedule, s: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Mean ``(B, *D)`` and variance ``(B, 1, ..., 1)`` (``(1, 1, ..., 1)`` for an int t) of
    :math:`q(x_s \mid x_t, x_0)`, for s < t (by default s = t - 1).

    With :math:`\alpha_{t|s} = \bar\alpha_t / \bar\alpha_s` and :math:`\beta_{t|s} = 1 - \alpha_{t|s}`,

    .. math::
        \tilde\mu = \frac{\sqrt{\bar\alpha_s}\, \beta_{t|s}}{1 - \bar\alpha_t} x_0
                  + \frac{\sqrt{\alpha_{t|s}}\, (1 - \bar\alpha_s)}{1 - \bar\alpha_t} x_t,
        \qquad \tilde\beta = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \beta_{t|s}.

    Raises ``ValueError`` if t is outside 1..T or s outside 0..t-1. Source: chapter 2; Ho et al. (2020), equations 6
    and 7.
    """
    check_t(t, schedule.T)
    t = torch.as_tensor(t, device=x_t.device)
    s = t - 1 if s is None else torch.as_tensor(s, device=x_t.device)
    if t.device.type == "cpu" and ((s < 0) | (s >= t)).any():
        raise ValueError(f"s: needs 0 <= s < t, got s = {s.tolist()} with t = {t.tolist()}")
    x_0_weight, x_t_weight, variance = posterior_weights(t, s, schedule)
    # mu = w_0 x_0 + w_t x_t
    mean = _column(x_0_weight, x_t) * x_0 + _column(x_t_weight, x_t) * x_t
    return mean, _column(variance, x_t)


def posterior_weights(t: Tensor, s: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    r"""The three numbers of :math:`q(x_s \mid x_t, x_0)`: the weight of x_0, the weight of x_t, and the variance, in
    float64.
    """
    alpha_bar = schedule.alpha_bar.to(t.device)
    alpha_bar_t, alpha_bar_s = alpha_bar[t], alpha_bar[s]
    alpha_ts = alpha_bar_t / alpha_bar_s
    beta_ts = 1 - alpha_ts
    x_0_weight = alpha_bar_s.sqrt() * beta_ts / (1 - alpha_bar_t)
    x_t_weight = alpha_ts.sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    return x_0_weight, x_t_weight, (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta_ts


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def convert(value: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, source: Kind, target: Kind) -> Tensor:
    r"""Re-express a prediction at x_t as another one. All four carry the same information, since each fixes x_0:

    .. math::
        x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
        v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0, \qquad
        \tilde\mu_t = w_0 x_0 + w_t x_t.

    ``value``, ``x_t`` and the result are ``(B, *D)``; ``mean`` is that of :math:`q(x_{t-1} \mid x_t, x_0)`. Raises
    ``ValueError`` for an unknown kind or t outside 1..T. Source: chapter 2; Ho et al. (2020), section 3.2;
    Salimans & Ho (2022), appendix D.
    """
    check_t(t, schedule.T)
    for name, kind in ("source", source), ("target", target):
        if kind not in ("eps", "x_0", "v", "mean"):
            raise ValueError(f"{name}: must be one of 'eps', 'x_0', 'v', 'mean', got {kind!r}")
    if source == target:
        return value
    signal = at(schedule.alpha_bar.sqrt(), t, x_t)
    noise = at((1 - schedule.alpha_bar).sqrt(), t, x_t)
    t = torch.as_tensor(t, device=x_t.device)
    if "mean" in (source, target):
        x_0_weight, x_t_weight, _ = (_column(weight, x_t) for weight in posterior_weights(t, t - 1, schedule))
    match source:
        case "x_0":
            x_0 = value
        case "eps":  # x_0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)
            x_0 = (x_t - noise * value) / signal
        case "v":  # x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v
            x_0 = signal * x_t - noise * value
        case "mean":  # x_0 = (mu - w_t x_t) / w_0
            x_0 = (value - x_t_weight * x_t) / x_0_weight
    match target:
        case "x_0":
            return x_0
        case "eps":  # eps = (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)
            return (x_t - signal * x_0) / noise
        case "v":  # v = (sqrt(alpha_bar) x_t - x_0) / sqrt(1 - alpha_bar)
            return (signal * x_t - x_0) / noise
        case "mean":  # mu = w_0 x_0 + w_t x_t
            return x_0_weight * x_0 + x_t_weight * x_t


def denoiser(
    network: nn.Module,
    schedule: Schedule,
    kind: Kind = "eps",
    clip: bool = False,
    bf16: bool = False,
    **condition: Tensor,
) -> Denoiser:
    """A network that predicts ``kind``, wrapped as a function (x_t, t) -> estimate of x_0.

    ``clip`` keeps the estimate in [-1, 1], where images live (Ho et al. (2020) sample so). ``bf16`` multiplies in
    bfloat16 where the hardware can. ``condition`` (labels, say) is passed on to the network. The network is put in
    evaluation mode and no gradient is kept. Source: chapter 2.
    """
    network.eval()

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with autocast(x_t.device, bf16):
            value = network(x_t, t, **condition).to(x_t.dtype)
        x_0 = convert(value, x_t, t, schedule, kind, "x_0")
        return x_0.clamp(-1, 1) if clip else x_0

    return denoise


def guided(
    network: nn.Module,
    schedule: Schedule,
    y: Tensor,
    weight: float,
    kind: Kind = "eps",
    clip: bool = False,
    bf16: bool = False,
) -> Denoiser:
    r"""Classifier-free guidance: the estimate without the label ``y``, and on past the one with it.

    .. math:: \hat x_0 = \hat x_0(x_t) + w\, \bigl[\hat x_0(x_t, y) - \hat x_0(x_t)\bigr],

    which is the same for eps and v, since each is x_0 times a number plus x_t times another. ``weight`` w = 0 takes no
    notice of the label, 1 is the conditional model, and above 1 the label counts for more than it should; Ho &
    Salimans write w - 1. The network must have learned without labels too: label ``network.nothing`` stands for none.
    Labels are ``(B,)``, those of a network with a text encoder tokens ``(B, L)``, among which the empty prompt is all
    ``network.nothing``; the rest is as for :func:`denoiser`. It costs one call of twice the batch (of once the batch at
    w = 0 and 1). Source: chapter 8; Ho & Salimans (2022), equation 6.
    """
    nothing = torch.full_like(y, network.nothing)
    if weight in (0, 1):
        return denoiser(network, schedule, kind, clip, bf16, y=y if weight else nothing)
    both = denoiser(network, schedule, kind, bf16=bf16, y=torch.cat([nothing, y]))

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        without, told = both(torch.cat([x_t, x_t]), torch.cat([t, t])).chunk(2)
        x_0 = without + weight * (told - without)
        return x_0.clamp(-1, 1) if clip else x_0

    return denoise


def ideal_denoiser(mixture: GaussianMixture, schedule: Schedule) -> Denoiser:
    r"""The best denoiser there is, :math:`E[x_0 \mid x_t]`, exact because the data is a known Gaussian mixture
    ``(B, D)``.

    All of a batch must be at the same t: ``ValueError`` if not. Source: chapter 2.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return mixture.posterior_mean(x_t, float(schedule.alpha_bar[_same(t)]))

    return denoise


def drawer(network: nn.Module, clip: bool = False, bf16: bool = False) -> Drawer:
    r"""The generator of a denoising diffusion GAN, wrapped as a function (x_t, t, generator) -> a draw of x_0.

    .. math:: \hat x_0 = G(x_t, z, t), \qquad z \sim \mathcal N(0, I),

    z being of ``network.latent`` numbers. The rest is as for :func:`denoiser`. Source: chapter 10; Xiao et al. (2022),
    section 3.2.
    """
    network.eval()

    @torch.no_grad()
    def draw(x_t: Tensor, t: Tensor, generator: Generator | None) -> Tensor:
        with autocast(x_t.device, bf16):
            x_0 = generate(network, x_t, t, generator).to(x_t.dtype)
        return x_0.clamp(-1, 1) if clip else x_0

    return draw


def generate(network: nn.Module, x_t: Tensor, t: Tensor, generator: Generator | None) -> Tensor:
    """The network's answer to x_t, t and a fresh z, if it takes one: as :func:`drawer`, and it can be learned from."""
    if not network.latent:
        return network(x_t, t)
    return network(x_t, t, z=torch.randn(len(x_t), network.latent, generator=generator, device=x_t.device))


def ideal_drawer(mixture: GaussianMixture, schedule: Schedule) -> Drawer:
    r"""The best generator there is: a draw from the exact :math:`q(x_0 \mid x_t)` of a Gaussian mixture, ``(B, D)``.

    All of a batch must be at the same t: ``ValueError`` if not. Source: chapter 10.
    """

    def draw(x_t: Tensor, t: Tensor, generator: Generator | None) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[_same(t)])
        return mixture.reverse(x_t, alpha_bar).sample(len(x_t), generator)

    return draw


def _same(t: Tensor) -> int:
    """The one time of a batch."""
    if (t != t.reshape(-1)[0]).any():
        raise ValueError(f"t: must be the same for all of the batch, got {t.min()} to {t.max()}")
    return int(t.reshape(-1)[0])
