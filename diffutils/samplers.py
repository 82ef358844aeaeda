"""The reverse process: one loop, and a kernel per method that says how x_s is drawn from x_t."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator, Tensor

from .process import Denoiser, Drawer, q_posterior
from .schedules import Schedule

Kernel = Callable[[Tensor, int, int, Generator | None], Tensor]
"""(x_t, t, s, generator) -> x_s, with s < t."""


def reverse(kernel: Kernel, x_T: Tensor, steps: Sequence[int], generator: Generator | None = None) -> Iterator[Tensor]:
    """Walk from noise to data, ``steps = [T, ..., 0]``, yielding x after every step; the last one yielded is the
    sample.

    ``x_T`` is ``(B, *D)``. Raises ``ValueError`` if the steps do not fall strictly to 0. Source: chapter 2; Ho et al.
    (2020), algorithm 2.
    """
    if len(steps) < 2 or steps[-1] != 0 or any(t <= s for t, s in pairwise(steps)):
        raise ValueError(f"steps: must fall strictly and end at 0, such as [3, 2, 1, 0], got {list(steps)[:8]}")
    x = x_T
    for t, s in pairwise(steps):
        x = kernel(x, t, s, generator)
        yield x


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


def ddg(draw: Drawer, schedule: Schedule) -> Kernel:
    r"""The reverse step of a denoising diffusion GAN: a *drawn* x_0, then the posterior of the step given it.

    .. math::
        x_0' \sim p(x_0 \mid x_t), \qquad
        x_s = \tilde\mu(x_t, x_0') + \sqrt{\tilde\beta_{t|s}}\, z, \qquad z \sim \mathcal N(0, I).

    As a mixture of Gaussians over all :math:`x_0'` the step can have any shape, and if draw is exact, so is the step,
    for every s < t. With an x_0 that is no draw but the mean it is :func:`ddpm` with ``beta_tilde``. The step into
    s = 0 adds no noise. Source: chapter 10; Xiao et al. (2022), equation 4.
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
