"""What is minimised: the simple loss of DDPM, the terms of the variational bounds, a classifier's loss."""

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from .process import Denoiser, Kind, at, convert, posterior_weights, q_posterior, q_sample
from .schedules import Schedule


def simple_loss(
    network: nn.Module,
    x_0: Tensor,
    schedule: Schedule,
    generator: Generator | None = None,
    kind: Kind = "eps",
    weight: Tensor | None = None,
    chance: Tensor | None = None,
    **condition: Tensor,
) -> Tensor:
    r"""The mean squared error of a prediction at a random step, every step of 1..T being equally likely.

    .. math:: L_{\text{simple}} = E_{t, x_0, \epsilon} \bigl\|\epsilon - \epsilon_\theta(\sqrt{\bar\alpha_t} x_0 +
        \sqrt{1 - \bar\alpha_t} \epsilon,\, t)\bigr\|^2 / D

    (and the same for the other kinds). ``x_0`` is ``(B, *D)``, ``network(x_t, t, **condition)`` answers with the same
    shape; the result is a scalar. With ``weight``, ``(T + 1,)``, the error at step t counts ``weight[t]`` times, as in
    :func:`bound_weight`. With ``chance``, ``(T + 1,)``, step t is drawn with probability ``chance[t]`` and its error
    divided by ``T chance[t]``, which changes the variance but not the mean (importance sampling). Source: chapters 2
    and 6; Ho et al. (2020), equation 14 and algorithm 1; Nichol and Dhariwal (2021), section 3.3.
    """
    if chance is None:
        t = torch.randint(1, schedule.T + 1, (len(x_0),), generator=generator, device=x_0.device)
    else:
        t = torch.multinomial(chance, len(x_0), replacement=True, generator=generator)
        even = torch.ones_like(chance) if weight is None else weight
        weight = even / (schedule.T * chance)
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    x_t = q_sample(x_0, t, eps, schedule)
    target = eps if kind == "eps" else convert(x_0, x_t, t, schedule, "x_0", kind)
    answer = network(x_t, t, **condition).to(target.dtype)
    if weight is None:
        return F.mse_loss(answer, target)
    return (at(weight, t, target) * (answer - target).square()).mean()


def bound_weight(schedule: Schedule, kind: Kind = "eps", variance: Literal["beta", "beta_tilde"] = "beta") -> Tensor:
    r"""What the squared error of a prediction counts for in the variational bound at each step: ``(T + 1,)``, float64.

    .. math:: L_{t-1} = \frac{1}{2\sigma_t^2} E \|\tilde\mu_t - \mu_\theta\|^2 + \text{const} =
        \lambda_t\, E \|k - k_\theta\|^2 + \text{const},
        \qquad \lambda_t = \frac{1}{2\sigma_t^2} \Bigl(\frac{\partial \tilde\mu_t}{\partial k}\Bigr)^2,

    in nats, for a prediction k of ``kind``. For eps it is
    :math:`\lambda_t = \beta_t^2 / (2 \sigma_t^2 \alpha_t (1 - \bar\alpha_t))`, which the simple loss sets to 1. The
    variance is that of ``variance``; at t = 1, where :math:`\tilde\beta_1 = 0`, it is :math:`\beta_1`, as in
    :func:`decoder_term`, and lambda_1 is what a continuous Gaussian in place of that term would count for. Entry 0 is
    0. Raises ``ValueError`` for an unknown kind or variance. Source: chapter 6;
    Ho et al. (2020), equation 12.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f"variance: must be 'beta' or 'beta_tilde', got {variance!r}")
    t = torch.arange(1, schedule.T + 1)
    zero, one = (torch.full((schedule.T, 1), value, dtype=torch.float64) for value in (0.0, 1.0))
    slope = convert(one, zero, t, schedule, kind, "mean")[:, 0]  # at x_t = 0 the mean is a multiple of k
    _, _, sigma2 = posterior_weights(t, t - 1, schedule)
    if variance == "beta":
        sigma2 = schedule.beta[1:]
    sigma2 = torch.cat([schedule.beta[1:2], sigma2[1:]])
    return torch.cat([torch.zeros(1, dtype=torch.float64), slope.square() / (2 * sigma2)])


def gaussian_kl(mean_q: Tensor, var_q: Tensor, mean_p: Tensor, var_p: Tensor) -> Tensor:
    r"""KL divergence between diagonal Gaussians in nats, summed over each sample: ``(B, *D)`` to ``(B,)``.

    .. math::
        KL(q \,\|\, p) =
            \tfrac12 \sum_i \Bigl[\frac{v_q}{v_p} - 1 - \ln\frac{v_q}{v_p} + \frac{(m_q - m_p)^2}{v_p}\Bigr]_i

    The variances may be anything that broadcasts. Raises ``ValueError`` if one on the CPU is not positive.
    Source: chapter 3; Kingma & Welling (2014), appendix B.
    """
    for name, var in ("var_q", var_q), ("var_p", var_p):
        if var.device.type == "cpu" and (var <= 0).any():
            raise ValueError(f"{name}: must be positive, got {var.min():g}")
    ratio = var_q / var_p
    # (1/2) [r - 1 - ln r + (m_q - m_p)^2 / v_p]
    kl = 0.5 * (ratio - 1 - ratio.log() + (mean_q - mean_p) ** 2 / var_p)
    return kl.flatten(1).sum(1)


def prior_term(x_0: Tensor, schedule: Schedule) -> Tensor:
    r""":math:`L_T = KL(q(x_T \mid x_0) \,\|\, \mathcal N(0, I))` in nats a sample, ``(B, *D)`` to ``(B,)``.

    Source: chapter 3; Ho et al. (2020), equation 5.
    """
    alpha_bar = schedule.alpha_bar[-1].to(x_0)
    one = torch.ones_like(alpha_bar)
    return gaussian_kl(alpha_bar.sqrt() * x_0, 1 - alpha_bar, torch.zeros_like(x_0), one)


def step_term(
    denoise: Denoiser,
    x_0: Tensor,
    t: int,
    schedule: Schedule,
    generator: Generator | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta_tilde",
) -> Tensor:
    r"""One draw of :math:`L_{t-1} = KL(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t))` in nats, t in 2..T.

    ``x_0`` is ``(B, *D)``, the result ``(B,)``; its mean over :math:`x_t \sim q(x_t \mid x_0)` is the term of the
    bound. Raises ``ValueError`` if t is outside 2..T or for another ``variance``. Source: chapter 3; Ho et al.
    (2020), equation 5.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f"variance: must be 'beta' or 'beta_tilde', got {variance!r}")
    if not 2 <= t <= schedule.T:
        raise ValueError(f"t: L_(t-1) is a KL divergence for t in 2..T = 2..{schedule.T}, got {t}")
    x_t, x_0_hat = _noise_and_guess(denoise, x_0, t, schedule, generator)
    mean_q, var_q = q_posterior(x_t, x_0, t, schedule)
    mean_p, var_p = q_posterior(x_t, x_0_hat, t, schedule)
    if variance == "beta":
        var_p = schedule.beta[t].to(x_0).expand_as(var_p)
    return gaussian_kl(mean_q, var_q, mean_p, var_p)


def decoder_term(
    denoise: Denoiser, x_0: Tensor, schedule: Schedule, generator: Generator | None = None, levels: int | None = None
) -> Tensor:
    r"""One draw of :math:`L_0 = -\log p_\theta(x_0 \mid x_1)` in nats a sample, ``(B, *D)`` to ``(B,)``.

    The variance of the last step is :math:`\beta_1` (:math:`\tilde\beta_1 = 0` would have no density). With
    ``levels`` the data is discrete, on that many equally spaced values of [-1, 1], and :math:`L_0` is that of
    :func:`discrete_log_prob`; without, it is a density's. Source: chapter 3; Ho et al. (2020), equation 13.
    """
    _, mean = _noise_and_guess(denoise, x_0, 1, schedule, generator)  # at t = 1 the posterior mean is x_0 itself
    var = schedule.beta[1].to(x_0)
    if levels is None:
        log_p = -0.5 * ((x_0 - mean) ** 2 / var + torch.log(2 * math.pi * var))
    else:
        log_p = discrete_log_prob(x_0, mean, var.sqrt(), levels)
    return -log_p.flatten(1).sum(1)


def discrete_log_prob(x_0: Tensor, mean: Tensor, std: Tensor, levels: int) -> Tensor:
    r"""Log-probability of each entry of ``x_0``, ``(B, *D)``, under a Gaussian cut into ``levels`` bins of [-1, 1].

    Bin centres are :math:`-1, -1 + \delta, \dots, 1` with :math:`\delta = 2 / (\text{levels} - 1)`; the first and the
    last bin reach to infinity, so that the probabilities sum to 1. Raises ``ValueError`` if ``levels < 2``,
    and on the CPU if an entry of ``x_0`` is not one of the values. Source: chapter 3; Ho et al. (2020), equation 13.
    """
    if levels < 2:
        raise ValueError(f"levels: must be at least 2, got {levels}")
    delta = 2 / (levels - 1)
    index = (x_0 + 1) / delta
    if x_0.device.type == "cpu":  # elsewhere the answer would have to be waited for
        if (index - index.round()).abs().max() > 1e-3 or index.min() < -0.5 or index.max() > levels - 0.5:
            raise ValueError(f"x_0: every entry must be one of {levels} equally spaced values of [-1, 1]")
    upper = torch.where(index > levels - 1.5, torch.inf, (x_0 - mean + delta / 2) / std)
    lower = torch.where(index < 0.5, -torch.inf, (x_0 - mean - delta / 2) / std)
    # P(lower < z < upper) from the tail where the two values are small, so that their difference keeps its digits
    flip = lower > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))


def bound_terms(
    denoise: Denoiser,
    x_0: Tensor,
    schedule: Schedule,
    generator: Generator | None = None,
    variance: Literal["beta", "beta_tilde"] = "beta_tilde",
    levels: int | None = None,
) -> Tensor:
    r"""All terms of the variational bound, in nats a sample: ``(B, *D)`` to ``(T + 1, B)``, row i being a draw of
    :math:`L_i`.

    .. math:: -\log p_\theta(x_0) \le L_T + \sum_{t=2}^T L_{t-1} + L_0

    so the sum over rows is an unbiased estimate of the bound. It costs T calls of ``denoise``.
    Source: chapter 3; Ho et al. (2020), equation 5.
    """
    steps = [step_term(denoise, x_0, t, schedule, generator, variance) for t in range(2, schedule.T + 1)]
    return torch.stack([decoder_term(denoise, x_0, schedule, generator, levels), *steps, prior_term(x_0, schedule)])


def _noise_and_guess(
    denoise: Denoiser, x_0: Tensor, t: int, schedule: Schedule, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """x_t drawn from q(x_t | x_0), and the denoiser's estimate of x_0 from it."""
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    x_t = q_sample(x_0, t, eps, schedule)
    return x_t, denoise(x_t, torch.full((len(x_0),), t, device=x_0.device))


def classification_loss(
    network: nn.Module, x: Tensor, y: Tensor, generator: Generator | None = None, shift: int = 0
) -> Tensor:
    r"""The cross-entropy :math:`-E \log p(y \mid x)` of a classifier, in nats, each image moved by up to ``shift``
    pixels.

    ``x`` is ``(B, C, H, W)``, ``y`` ``(B,)``; the result is a scalar. The move is random for each image and both
    directions; pixels that come into view are those of the edge.
    """
    if shift:
        B, C, H, W = x.shape
        by = torch.randint(2 * shift + 1, (2, B, 1), generator=generator, device=x.device)
        rows, columns = (torch.arange(n, device=x.device) + d for n, d in zip((H, W), by, strict=True))
        padded = F.pad(x, (shift,) * 4, mode="replicate")
        x = padded[torch.arange(B, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        x = x.permute(0, 3, 1, 2)
    return F.cross_entropy(network(x).float(), y)


def vae_terms(network: nn.Module, x_0: Tensor, generator: Generator | None = None, levels: int | None = None) -> Tensor:
    r"""One draw of the two terms of a VAE's bound, in nats a sample: ``(B, *D)`` to ``(2, B)``.

    .. math:: -\log p_\theta(x_0) \le \underbrace{-E_{q(z \mid x_0)} \log p_\theta(x_0 \mid z)}_{\text{distortion}}
        + \underbrace{KL(q(z \mid x_0) \,\|\, \mathcal N(0, I))}_{\text{rate}}.

    ``network`` is a :class:`diffutils.networks.autoencoder.VAE`. With ``levels`` the data is discrete, as in
    :func:`decoder_term`. Source: chapter 4; Kingma & Welling (2014), equation 3.
    """
    decoded, sigma, mean, var = network(x_0, generator)
    if levels is None:
        log_p = -0.5 * ((x_0 - decoded) / sigma).square() - sigma.log() - 0.5 * math.log(2 * math.pi)
    else:
        log_p = discrete_log_prob(x_0, decoded, sigma, levels)
    zero, one = torch.zeros_like(mean), torch.ones_like(var)
    return torch.stack([-log_p.flatten(1).sum(1), gaussian_kl(mean, var, zero, one)])
