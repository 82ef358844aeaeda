"""The reverse process: one loop, and a kernel per method that says how x_s is drawn from x_t."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from .process import Denoiser, Drawer, q_posterior, q_sample
from .schedules import Schedule

Kernel = Callable[[Tensor, int, int, Generator | None], Tensor]
"""(x_t, t, s, generator) -> x_s, with s < t."""


def reverse(kernel: Kernel, x_T: Tensor, steps: Sequence[int], generator: Generator | None = None) -> Iterator[Tensor]:
    """Walk from noise to data, ``steps = [T, ..., 0]``, yielding x after every step; the last one yielded is the
    sample.

    ``x_T`` is ``(B, *D)``. Raises ``ValueError`` if the steps do not fall strictly to 0. Source: chapter 2; Ho et al.
    (2020), algorithm 2.
    """
    _check_steps(steps)
    x = x_T
    for t, s in pairwise(steps):
        x = kernel(x, t, s, generator)
        yield x


def _check_steps(steps: Sequence[int]) -> None:
    if len(steps) < 2 or steps[-1] != 0 or any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"steps: must fall strictly and end at 0, such as [3, 2, 1, 0], got {list(steps)[:8]}")


def sample(kernel: Kernel, x_T: Tensor, steps: Sequence[int], generator: Generator | None = None) -> Tensor:
    """The end of :func:`reverse`: samples ``(B, *D)`` at step 0. Raises as ``reverse`` does."""
    return deque(reverse(kernel, x_T, steps, generator), maxlen=1)[0]  # keeps the last x only


def ddpm(denoise: Denoiser, schedule: Schedule, variance: Literal["beta", "beta_tilde"] = "beta_tilde") -> Kernel:
    r"""The Gaussian reverse step of DDPM: the posterior of the step with x_0 replaced by its estimate.

    .. math:: x_s = \tilde\mu(x_t, \hat x_0(x_t, t)) + \sigma z, \qquad z \sim \mathcal N(0, I),

    with :math:`\sigma^2 = \beta_{t|s}` or :math:`\tilde\beta_{t|s}` as ``variance`` says. The step into s = 0 adds no
    noise. Works for any s < t, in the terms of :func:`diffutils.process.q_posterior`. Raises ``ValueError`` for
    another ``variance``. Source: chapter 2; Ho et al. (2020), section 3.2 and algorithm 2.
    """
    if variance not in ("beta", "beta_tilde"):
        raise ValueError(f"variance: must be 'beta' or 'beta_tilde', got {variance!r}")

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        x_0 = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
        mean, sigma2 = q_posterior(x_t, x_0, t, schedule, s)
        if s == 0:
            return mean
        if variance == "beta":  # beta_{t|s} = 1 - alpha_bar_t / alpha_bar_s
            sigma2 = (1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]).to(x_t)
        # x_s = mu + sigma z
        return mean + sigma2.sqrt() * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)

    return kernel


def ddim(denoise: Denoiser, schedule: Schedule, eta: float = 0.0) -> Kernel:
    r"""The step of denoising diffusion implicit models: towards x_0, along the noise already there, with as much new
    noise as ``eta`` says.

    .. math::
        x_s = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\, \hat\epsilon + \sigma z, \qquad
        \sigma^2 = \eta^2\, \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \Bigl(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\Bigr),

    with :math:`\hat\epsilon = (x_t - \sqrt{\bar\alpha_t}\, \hat x_0) / \sqrt{1 - \bar\alpha_t}`. ``eta = 0`` draws
    nothing; ``eta = 1`` is :func:`ddpm` with ``beta_tilde``. Raises ``ValueError`` unless ``0 <= eta <= 1``.
    Source: Song et al. (2021, DDIM), equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: must lie in [0, 1], got {eta}")

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        x_0 = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
        alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
        sigma2 = eta**2 * (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
        eps = (x_t - alpha_bar_t**0.5 * x_0) / (1 - alpha_bar_t) ** 0.5
        # x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma z
        x_s = alpha_bar_s**0.5 * x_0 + max(1 - alpha_bar_s - sigma2, 0.0) ** 0.5 * eps
        if sigma2 == 0:
            return x_s
        z = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)
        return x_s + sigma2**0.5 * z

    return kernel


def dpm_solver(denoise: Denoiser, schedule: Schedule) -> Kernel:
    r"""The step of DPM-Solver++(2M): DDIM's without noise, towards where the estimate of x_0 is heading. Second order,
    for one call a step.

    .. math::
        x_s = \frac{\sqrt{1 - \bar\alpha_s}}{\sqrt{1 - \bar\alpha_t}}\, x_t + \sqrt{\bar\alpha_s}\, (1 - e^{-h})
              \Bigl[\hat x_0 + \frac{h}{2 h'} (\hat x_0 - \hat x_0')\Bigr],
        \qquad \lambda = \tfrac12 \ln \frac{\bar\alpha}{1 - \bar\alpha},

    where :math:`h = \lambda_s - \lambda_t`, and :math:`\hat x_0'`, :math:`h'` are the estimate and the length of the
    step before. A walk's first step has none and is DDIM's, and so is the step into s = 0, where h is infinite. The
    kernel remembers its last step; it forgets it when it is not called with the very x_s that it gave, at that s. So
    one kernel may serve walk after walk, but not two in turns. Source: chapter 9; Lu et al. (2022), algorithm 2.
    """
    last: tuple[Tensor, int, Tensor, float] | None = None  # x_s, s, the estimate and h of the last step

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        nonlocal last
        x_0 = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
        target, h = x_0, _log_snr_rise(schedule, t, s)
        if last and last[0] is x_t and last[1] == t and s > 0:
            # x_0 + h / 2h' (x_0 - x_0')
            target = x_0 + h / (2 * last[3]) * (x_0 - last[2])
        x_s = _towards(x_t, target, t, s, schedule)
        last = (x_s, s, x_0, h) if s > 0 else None
        return x_s

    return kernel


def heun(denoise: Denoiser, schedule: Schedule) -> Kernel:
    r"""The step of Heun's method: DDIM's without noise, tried, then taken with the mean of the estimates of x_0 before
    and after. Second order, for two calls a step (one for the step into s = 0, which is DDIM's).

    .. math::
        x_s = \frac{\sqrt{1 - \bar\alpha_s}}{\sqrt{1 - \bar\alpha_t}}\, x_t + \sqrt{\bar\alpha_s}\, (1 - e^{-h})\,
              \tfrac12 \bigl[\hat x_0(x_t, t) + \hat x_0(x_s^{\text{DDIM}}, s)\bigr],

    with h as in :func:`dpm_solver`: Heun's rule for :math:`x / \sqrt{1 - \bar\alpha}` as a function of
    :math:`e^\lambda`, known as DPM-Solver++(2S) with :math:`r_1 = 1`. Karras et al. (2022), algorithm 1, apply the rule
    to :math:`x / \sqrt{\bar\alpha}` as a function of :math:`e^{-\lambda}`, which is another step. Source: chapter 9; Lu
    et al. (2022), algorithm 1.
    """

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        x_0 = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
        x_s = _towards(x_t, x_0, t, s, schedule)
        if s == 0:
            return x_s
        after = denoise(x_s, torch.full((len(x_t),), s, device=x_t.device))
        return _towards(x_t, (x_0 + after) / 2, t, s, schedule)

    return kernel


def ddg(draw: Drawer, schedule: Schedule) -> Kernel:
    r"""The reverse step of a denoising diffusion GAN: a *drawn* x_0, then the posterior of the step given it.

    .. math::
        x_0' \sim p(x_0 \mid x_t), \qquad
        x_s = \tilde\mu(x_t, x_0') + \sqrt{\tilde\beta_{t|s}}\, z, \qquad z \sim \mathcal N(0, I).

    As a mixture of Gaussians over all :math:`x_0'` the step can have any shape, and if draw is exact, so is the step,
    for every s < t. With an x_0 that is no draw but the mean it is :func:`ddpm` with ``beta_tilde``. The step into
    s = 0 adds no noise. Source: chapter 10; Xiao et al. (2022), section 3.2.
    """

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        x_0 = draw(x_t, torch.full((len(x_t),), t, device=x_t.device), generator)
        mean, sigma2 = q_posterior(x_t, x_0, t, schedule, s)
        if s == 0:
            return mean
        # x_s = mu + sigma z
        return mean + sigma2.sqrt() * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)

    return kernel


def direct(draw: Drawer) -> Kernel:
    """The step of a generator that answers with x_{t-1} itself: nothing is added to its draw.

    Raises ``ValueError`` from the kernel for a step to another s than t - 1, which it has not learned. Source:
    chapter 10; Xiao et al. (2022), section 5.2.
    """

    def kernel(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        if s != t - 1:
            raise ValueError(f"s: a direct generator steps from t to t - 1, got t = {t}, s = {s}")
        return draw(x_t, torch.full((len(x_t),), t, device=x_t.device), generator)

    return kernel


def _towards(x_t: Tensor, x_0: Tensor, t: int, s: int, schedule: Schedule) -> Tensor:
    """From level t to s on the straight line through x_0: the step of DDIM with eta = 0."""
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
    shrink = ((1 - alpha_bar_s) / (1 - alpha_bar_t)) ** 0.5
    # x_s = sqrt(1 - alpha_bar_s) / sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_s) (1 - exp(-h)) x_0
    return shrink * x_t + (alpha_bar_s**0.5 - shrink * alpha_bar_t**0.5) * x_0


def _log_snr_rise(schedule: Schedule, t: int, s: int) -> float:
    """h = lambda_s - lambda_t > 0, half the rise of the log signal-to-noise ratio; infinite for s = 0."""
    return math.inf if s == 0 else 0.5 * (schedule.snr[s].log() - schedule.snr[t].log()).item()


def invert(denoise: Denoiser, schedule: Schedule, x_0: Tensor, steps: Sequence[int]) -> Tensor:
    r"""The noise ``(B, *D)`` from which :func:`ddim` with ``eta = 0`` would walk ``steps`` to ``x_0``: the same steps
    taken upwards, from s to t > s,

    .. math:: x_t = \sqrt{\bar\alpha_t}\, \hat x_0(x_s, s) + \sqrt{1 - \bar\alpha_t}\, \hat\epsilon(x_s, s).

    The way down asks the denoiser at (x_t, t), which is not known yet on the way up. So the round trip does not close
    exactly: its error falls as one over the number of steps. The denoiser is told the level that x has, not the place
    of that level among ``steps``; for clean data, which has no level that a network learned, that is 1. Raises
    ``ValueError`` as :func:`reverse` does. Source: chapter 9; Song et al. (2021, DDIM), section 4.3.
    """
    _check_steps(steps)
    x, s = x_0, 1
    for t in reversed(steps[:-1]):
        if t > s:
            x = _towards(x, denoise(x, torch.full((len(x),), s, device=x.device)), s, t, schedule)
        s = t
    return x


def interpolate(x: Tensor, y: Tensor, share: Sequence[float]) -> Tensor:
    r"""Points on the arcs from ``x`` to ``y``, both ``(B, *D)``, at the given shares K of the way: ``(K, B, *D)``.

    .. math::
        \frac{\sin((1 - c)\, \theta)}{\sin \theta}\, x + \frac{\sin(c\, \theta)}{\sin \theta}\, y, \qquad
        \cos \theta = \frac{\langle x, y \rangle}{\lVert x \rVert\, \lVert y \rVert}.

    For two draws of noise the points on the way are as long as they are; on a straight line they would be too short to
    be noise. Raises ``ValueError`` if the shapes differ, or rows are parallel, where the arc is not defined. Source:
    chapter 9; Song et al. (2021, DDIM), appendix D.5.
    """
    if x.shape != y.shape:
        raise ValueError(f"x, y: need the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = x.flatten(1), y.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    if not (cosine.abs() < 1 - 1e-6).all():
        raise ValueError(f"x, y: rows must not be parallel, got cosines from {cosine.min():g} to {cosine.max():g}")
    theta = cosine.arccos().reshape(-1, *[1] * (x.ndim - 1))
    # sin((1 - c) theta) / sin(theta) x + sin(c theta) / sin(theta) y
    return torch.stack([((1 - c) * theta).sin() / theta.sin() * x + (c * theta).sin() / theta.sin() * y for c in share])


def image_to_image(
    kernel: Kernel,
    x_0: Tensor,
    steps: Sequence[int],
    strength: float,
    schedule: Schedule,
    generator: Generator | None = None,
) -> Tensor:
    r"""The loop with another start: from the image ``x_0``, ``(B, *D)``, with the noise of step ``strength`` T (or of
    the last before it among ``steps``) rather than from noise alone.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \quad t \le \text{strength} \cdot T,
        \qquad \text{then } x_t \to \dots \to x_0'.

    If ``x_0`` comes from the data and the kernel is exact, so does the result, at every strength: the smaller, the more
    it is like ``x_0``. For an ``x_0`` from elsewhere, or another condition, it is a compromise of no known
    distribution. Raises ``ValueError`` unless ``0 < strength <= 1`` and a step is left, and as :func:`reverse` does.
    Source: chapter 12; Meng et al. (2022), algorithm 1.
    """
    _check_steps(steps)
    if not 0 < strength <= 1:
        raise ValueError(f"strength: must lie in (0, 1], got {strength}")
    left = [t for t in steps if t <= strength * schedule.T]
    if len(left) < 2:
        raise ValueError(f"strength: {strength} of T = {schedule.T} is below the first of the steps, {steps[-2]}")
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    return sample(kernel, q_sample(x_0, left[0], eps, schedule), left, generator)


def inpaint(kernel: Kernel, x_0: Tensor, keep: Tensor, schedule: Schedule, again: int = 1) -> Kernel:
    r"""The kernel with a part of the image put back after every step: what is to be kept of ``x_0`` (True in ``keep``,
    which broadcasts to ``(B, *D)``), with the noise of the level that has been reached.

    .. math:: x_s \leftarrow \text{keep} \odot \bigl(\sqrt{\bar\alpha_s}\, x_0 + \sqrt{1 - \bar\alpha_s}\,
        \epsilon\bigr) + (1 - \text{keep}) \odot x_s .

    It is exact if the two parts are independent, and else no draw from :math:`q(\text{rest} \mid \text{kept})`: the
    step never sees the kept part itself, only a noisy copy of it. ``again`` takes each step so many times, with the
    noise of the step added in between, which gives the rest more time to fit. A kernel that remembers its last step
    (:func:`dpm_solver`) forgets it here. Raises ``ValueError`` if ``again < 1``. Source: chapter 12; Song et al. (2021,
    SDE), appendix I.2; Lugmayr et al. (2022), algorithm 1.
    """
    if again < 1:
        raise ValueError(f"again: must be at least 1, got {again}")

    def noise(generator: Generator | None) -> Tensor:
        return torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)

    def step(x_t: Tensor, t: int, s: int, generator: Generator | None) -> Tensor:
        x_s = x_t
        for turn in range(again):
            if turn:  # back up: x_t = sqrt(alpha_{t|s}) x_s + sqrt(1 - alpha_{t|s}) eps
                share = (schedule.alpha_bar[t] / schedule.alpha_bar[s]).item()
                x_t = share**0.5 * x_s + (1 - share) ** 0.5 * noise(generator)
            x_s = kernel(x_t, t, s, generator)
            x_s = torch.where(keep, q_sample(x_0, s, noise(generator), schedule) if s else x_0, x_s)
        return x_s

    return step
