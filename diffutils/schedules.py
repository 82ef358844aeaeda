"""Noise schedules: how much of the data is left after t steps.

A schedule of T steps is stored as tensors of length T + 1, so that the index in the code is the index in the
equation: ``alpha_bar[0] == 1`` (clean data) and ``alpha_bar[T]`` is what little survives. Everything is built in
float64.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    r"""The fixed numbers of a variance-preserving forward process.

    With :math:`\alpha_t = 1 - \beta_t` and :math:`\bar\alpha_t = \prod_{s \le t} \alpha_s`,

    .. math:: q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{\alpha_t}\, x_{t-1},\; \beta_t I).

    Args:
        beta: ``(T + 1,)``, the variance added by each step; ``beta[0] = 0`` because there is no step 0.

    Raises:
        ValueError: if ``beta`` is no vector of at least two entries, ``beta[0] != 0``, or another entry is outside
            (0, 1).

    Source: chapter 1; Ho et al. (2020), equations 2 and 4.
    """

    beta: Tensor

    def __post_init__(self):
        object.__setattr__(self, "beta", self.beta.double())
        if self.beta.ndim != 1 or len(self.beta) < 2 or self.beta[0] != 0:
            raise ValueError(
                f"beta: needs shape (T + 1,) with T >= 1 and beta[0] = 0, got shape {tuple(self.beta.shape)}"
                + (f" and beta[0] = {self.beta[0]:g}" if self.beta.ndim == 1 and len(self.beta) else "")
            )
        wrong = self.beta[1:][~((self.beta[1:] > 0) & (self.beta[1:] < 1))]
        if len(wrong):
            raise ValueError(f"beta: every entry must lie strictly between 0 and 1, got {wrong[0]:g}")

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Tensor) -> "Schedule":
        r"""The schedule whose :math:`\bar\alpha_0 \dots \bar\alpha_T` are given:
        :math:`\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}`.
        """
        alpha_bar = alpha_bar.double()
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1:
            raise ValueError(
                f"alpha_bar: needs T + 1 >= 2 values, the first of them 1, got {alpha_bar[:2].tolist()}..."
            )
        return cls(torch.cat([alpha_bar.new_zeros(1), 1 - alpha_bar[1:] / alpha_bar[:-1]]))

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    @cached_property
    def alpha(self) -> Tensor:
        r""":math:`\alpha_t = 1 - \beta_t`, ``(T + 1,)``."""
        return 1 - self.beta

    @cached_property
    def alpha_bar(self) -> Tensor:
        r""":math:`\bar\alpha_t = \prod_{s \le t} \alpha_s`, ``(T + 1,)``: the share of the data's variance left at
        step t.
        """
        return self.alpha.cumprod(0)

    @cached_property
    def snr(self) -> Tensor:
        r"""Signal-to-noise ratio :math:`\bar\alpha_t / (1 - \bar\alpha_t)`, ``(T + 1,)``, infinite at t = 0."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def beta_tilde(self) -> Tensor:
        r"""Posterior variance :math:`\tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t`,
        ``(T + 1,)``; zero at t = 0 and 1.

        Source: chapter 2; Ho et al. (2020), equation 7.
        """
        alpha_bar = self.alpha_bar
        return torch.cat([self.beta[:1], (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * self.beta[1:]])

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule with its tensors on ``device``."""
        return Schedule(self.beta.to(device))


def _check_T(T: int) -> None:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T: needs a whole number of steps, at least 1, got {T!r}")


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    r"""The DDPM schedule: :math:`\beta_t` rises linearly from ``beta_1`` to ``beta_T``.

    Raises ``ValueError`` if ``T < 1`` or a beta lies outside (0, 1). Source: chapter 1; Ho et al. (2020), section 4.
    """
    _check_T(T)
    beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64)
    return Schedule(torch.cat([beta.new_zeros(1), beta]))


def cosine(T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Schedule:
    r"""The cosine schedule: :math:`\bar\alpha_t = f(t)/f(0)`,
    :math:`f(t) = \cos^2\bigl(\frac{t/T + s}{1 + s} \frac{\pi}{2}\bigr)`.

    Each :math:`\beta_t` is capped at ``beta_max``, since :math:`f(T) = 0` would ask for :math:`\beta_T = 1`. Raises
    ``ValueError`` if ``T < 1``. Source: chapter 1; Nichol & Dhariwal (2021), equation 17.
    """
    _check_T(T)
    angle = (torch.linspace(0, 1, T + 1, dtype=torch.float64) + s) / (1 + s) * math.pi / 2
    f = angle.cos() ** 2
    beta = torch.cat([f.new_zeros(1), 1 - f[1:] / f[:-1]])
    return Schedule(beta.clamp(max=beta_max))


def few_step(T: int = 4, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    r"""A schedule for very few steps: the variance-preserving SDE with linear rate, cut into T equal times.

    .. math::
        \bar\alpha_t = \exp\Bigl(-\beta_{\min} u - \tfrac12 (\beta_{\max} - \beta_{\min}) u^2\Bigr), \qquad u = t / T.

    Unlike ``linear(4)``, it ends at almost pure noise whatever T is. Raises ``ValueError`` if ``T < 1`` or the rates
    give a beta outside (0, 1). Source: chapter 1; Song et al. (2021), appendix C; Xiao et al. (2022),
    whose published code begins at u = 0.001 instead of 0.
    """
    _check_T(T)
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    return Schedule.from_alpha_bar(torch.exp(-beta_min * u - (beta_max - beta_min) * u**2 / 2))


def subsequence(T: int, steps: int, power: float = 1.0) -> list[int]:
    r"""``steps`` jumps from T down to 0, as close to

    .. math:: t_k = T\, (k / n)^p, \qquad k = n, \dots, 0,

    as distinct whole numbers allow: ``[T, ..., 0]``, length ``steps + 1``. ``power`` 1 spaces them evenly; 2, which the
    DDIM paper calls quadratic, and more make the steps small near the data; below 1 they are small near the noise.

    ``subsequence(T, T)`` is the full chain, for any power. Raises ``ValueError`` unless ``1 <= steps <= T`` and
    ``power > 0``. Source: chapter 9; Song et al. (2021, DDIM), section 4.2 and appendix D.2.
    """
    _check_T(T)
    if not 1 <= steps <= T:
        raise ValueError(f"steps: needs 1 <= steps <= T = {T}, got {steps}")
    if not 0 < power < math.inf:
        raise ValueError(f"power: must be above 0, got {power}")
    times = [0]
    for k in range(1, steps + 1):  # at least one above the last, and leaving one each for those to come
        near = round(T * k / steps if power == 1 else T * (k / steps) ** power)
        times.append(min(max(near, times[-1] + 1), T - steps + k))
    return times[::-1]
