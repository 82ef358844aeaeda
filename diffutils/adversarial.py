"""How two networks learn against each other: the losses of a GAN, its update, the update of a denoising diffusion GAN,
and what tells that the game is lost.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from .process import at, check_t, generate, q_posterior
from .runtime import autocast, average_over_processes
from .schedules import Schedule
from .training import Budget, Descent, Step


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    r""":math:`-E \log D(x) - E \log(1 - D(G(z)))`, from the discriminator's log-odds of real and of drawn images.

    Source: chapter 7; Goodfellow et al. (2014), equation 1.
    """
    return F.softplus(-real).mean() + F.softplus(drawn).mean()


def generator_loss(drawn: Tensor) -> Tensor:
    r"""The non-saturating loss :math:`-E \log D(G(z))`, from the log-odds of drawn images.

    Source: chapter 7; Goodfellow et al. (2014), section 3.
    """
    return F.softplus(-drawn).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    r"""The squared gradient of the log-odds at real images, :math:`E \|\nabla_x D(x)\|^2`, ``(B, *D)`` to a scalar.

    It can be differentiated. Times gamma / 2, and added to the discriminator's loss, it keeps the game near its
    solution from turning in circles. Source: Mescheder et al. (2018), equation 9.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


class Deal(NamedTuple):
    """What the players of one step get."""

    real: Tensor
    """What the discriminator should take for real."""
    judge: Callable[[Tensor], Tensor]
    """Log-odds of being real, ``(B, *D)`` to ``(B,)``."""
    draw: Callable[[], Tensor]
    """What the generator offers in its place, another at each call."""
    t: Tensor
    """Where in the chain each row is, ``(B,)``; all the same for a plain GAN."""
    levels: int
    """t lies in 0..levels - 1."""


class Duel(Descent):
    r"""One step of a discriminator, then one of a generator.

    .. math::
        \min_D\; -E \log D(x) - E \log(1 - D(G(z))) + \tfrac\gamma2 E \|\nabla_x D(x)\|^2, \qquad
        \min_G\; -E \log D(G(z)).

    The penalty is lazy: it is added at every ``lazy``-th step, ``lazy`` times as strong, and only then among the losses
    that a call returns. Beside the losses of both players there are, for :class:`Watch`, the share of the
    discriminator's answers that are ``right``, and the :func:`spread` of what is drawn. Both learning rates rise for
    ``warmup`` steps and stay, or with ``fall`` sink as a half cosine to zero at the end of the budget; the generator's
    is ``ratio`` times the discriminator's, ``lr``. Adam has no momentum (:math:`\beta_1 = 0`). With several processes
    the gradients are averaged over them.

    Args:
        network: holds ``generator`` and ``discriminator``, and draws by ``sample(n, noise)``: see
            :class:`diffutils.networks.discriminator.GAN`.
        noise: for z.
        gamma: weight of the penalty.

    The others are those of :class:`diffutils.training.Descent`. Raises ``ValueError`` if ``lazy < 1``, ``gamma < 0`` or
    ``ratio <= 0``. Source: chapter 7; Goodfellow et al. (2014); Mescheder et al. (2018); lazy: Karras et al. (2020),
    appendix B; two rates: Heusel et al. (2017), section 2.
    """

    def __init__(
        self,
        network: nn.Module,
        noise: Generator,
        steps: int | Budget,
        lr: float = 1e-3,
        ema: AveragedModel | None = None,
        gamma: float = 1.0,
        lazy: int = 4,
        warmup: int = 50,
        bf16: bool = False,
        fall: bool = False,
        ratio: float = 1.0,
    ):
        if lazy < 1:
            raise ValueError(f"lazy: must be at least 1, got {lazy}")
        if gamma < 0:
            raise ValueError(f"gamma: must not be negative, got {gamma}")
        if not ratio > 0:
            raise ValueError(f"ratio: must be positive, got {ratio}")
        super().__init__(network, generator_loss, steps, lr, ema, warmup=warmup, bf16=bf16)
        self.noise, self.gamma, self.lazy, self.fall, self.ratio = noise, gamma, lazy, fall, ratio
        self.optimisers = [
            torch.optim.Adam(part.parameters(), lr, (0.0, 0.99), fused=True)
            for part in (network.discriminator, network.generator)
        ]

    def deal(self, x: Tensor) -> Deal:
        """This step's game, from a batch of data."""
        everywhere = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return Deal(x, self.network.discriminator, lambda: self.network.sample(len(x), self.noise), everywhere, 1)

    def __call__(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        network, x = self.network.train(), batch[0]
        highest = 0.5 + 0.5 * math.cos(math.pi * min(self._fraction(), 1)) if self.fall else 1
        rate = self.lr * min((self.index + 1) / self.warmup, highest)
        losses = {}
        real, judge, draw, t, levels = self.deal(x)

        network.discriminator.requires_grad_(True)
        with torch.no_grad(), autocast(x.device, self.bf16):
            drawn = draw()
        with autocast(x.device, self.bf16):
            odds = judge(real).float(), judge(drawn).float()
            loss = discriminator_loss(*odds)
        losses["discriminator"] = loss.detach()
        losses["right"] = torch.cat([odds[0] > 0, odds[1] < 0]).float().mean()
        losses["spread"] = spread(drawn.float(), real, t, levels)
        if self.gamma and self.index % self.lazy == 0:
            # in float32: bfloat16 has too few digits for a second derivative
            penalty = r1_penalty(judge, real)
            losses["r1"] = penalty.detach()
            loss = loss + self.lazy * self.gamma / 2 * penalty
        self._descend(0, loss, rate)

        network.discriminator.requires_grad_(False)
        with autocast(x.device, self.bf16):
            loss = generator_loss(judge(draw()).float())
        losses["generator"] = loss.detach()
        self._descend(1, loss, self.ratio * rate)
        network.discriminator.requires_grad_(True)

        self.index += 1
        if self.ema is not None:
            self.ema.update_parameters(network)
        return losses

    def _descend(self, player: int, loss: Tensor, rate: float) -> None:
        optimiser = self.optimisers[player]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = rate
        average_over_processes([weight.grad for group in optimiser.param_groups for weight in group["params"]])
        optimiser.step()


class DiffusionDuel(Duel):
    r"""The same game about one step of a diffusion process, t being any of 1..T with equal chance.

    .. math::
        \text{real: } x_{t-1} \sim q(x_{t-1} \mid x_0),\; x_t \sim q(x_t \mid x_{t-1}); \qquad
        \text{drawn: } x_{t-1}' \sim q(x_{t-1} \mid x_t,\, x_0 = G(x_t, z, t)),

    both shown to the discriminator with the same x_t and t. Against the best discriminator there is, the generator does
    best to draw from :math:`q(x_{t-1} \mid x_t)`, whatever its shape. If the network says ``direct``, its answer is
    :math:`x_{t-1}'` itself.

    Args:
        network: holds ``generator`` (x_t, t, z), ``discriminator`` (x_s, x_t, t), and ``direct``: see
            :class:`diffutils.networks.discriminator.DDG`.
        schedule: of T steps.

    The others are those of :class:`Duel`. With T = 1 it is a plain GAN: x_1 is noise, and the posterior of x_0 is the
    drawn x_0. Source: chapter 10; Xiao et al. (2022), section 3.2.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, noise: Generator, *arguments, **settings):
        super().__init__(network, noise, *arguments, **settings)
        self.schedule = schedule.to(next(network.parameters()).device)

    def deal(self, x: Tensor) -> Deal:
        """A step of the chain for each row of the data."""
        t = torch.randint(1, self.schedule.T + 1, (len(x),), generator=self.noise, device=x.device)
        x_s, x_t = step_pair(x, t, self.schedule, self.noise)

        def draw() -> Tensor:
            answer = generate(self.network.generator, x_t, t, self.noise).float()
            return answer if self.network.direct else posterior_draw(x_t, answer, t, self.schedule, self.noise)

        return Deal(x_s, lambda of: self.network.discriminator(of, x_t, t), draw, t, self.schedule.T + 1)


def step_pair(x_0: Tensor, t: Tensor, schedule: Schedule, generator: Generator | None) -> tuple[Tensor, Tensor]:
    r"""Neighbours of one chain, :math:`x_{t-1} \sim q(x_{t-1} \mid x_0)` and :math:`x_t \sim q(x_t \mid x_{t-1})`.

    ``x_0`` and both results are ``(B, *D)``, t is ``(B,)``. At t = 1 the first is x_0. Raises ``ValueError`` if t is
    outside 1..T. Source: chapter 10; Ho et al. (2020), equations 2 and 4.
    """
    check_t(t, schedule.T)
    eps = torch.randn((2, *x_0.shape), generator=generator, dtype=x_0.dtype, device=x_0.device)
    alpha_bar, beta = schedule.alpha_bar, schedule.beta
    # x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1}) eps
    x_s = at(alpha_bar.sqrt(), t - 1, x_0) * x_0 + at((1 - alpha_bar).sqrt(), t - 1, x_0) * eps[0]
    # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps'
    return x_s, at((1 - beta).sqrt(), t, x_0) * x_s + at(beta.sqrt(), t, x_0) * eps[1]


def posterior_draw(x_t: Tensor, x_0: Tensor, t: Tensor, schedule: Schedule, generator: Generator | None) -> Tensor:
    r"""A draw of :math:`q(x_{t-1} \mid x_t, x_0)`, ``(B, *D)``, through which a gradient flows to x_0.

    At t = 1 it is x_0. Source: chapter 10; Xiao et al. (2022), section 3.2.
    """
    mean, variance = q_posterior(x_t, x_0, t, schedule)
    noise = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype, device=x_t.device)
    return mean + variance.sqrt() * noise


def spread(drawn: Tensor, real: Tensor, t: Tensor, levels: int) -> Tensor:
    """How much what is drawn differs among itself, in units of how much real data does: the ratio of the standard
    deviations of two batches ``(B, *D)``.

    It is taken among rows of the same t ``(B,)``, which lies in 0..levels - 1, and the least ratio is given: near 1 for
    a good generator, near 0 for one that draws the same again and again at one of the t. Source: chapter 10.
    """
    rows = F.one_hot(t, levels).to(real.dtype)
    n = rows.sum(0)

    def variance(x: Tensor) -> Tensor:
        x = x.flatten(1)
        mean = rows.T @ x / n.clamp(min=1)[:, None]
        return rows.T @ (x - rows @ mean).square().sum(1)

    ratio = (variance(drawn) / variance(real).clamp(min=1e-12)).sqrt()
    return torch.where(n > 1, ratio, 1).amin()


class Watch:
    """Looks on while a :class:`Duel` is trained, and says in words when the game is lost.

    Call it with what :func:`diffutils.training.fit` yields. It looks at the means of the last ``window`` steps, and
    returns a message the first time that

    - the :func:`spread` is below ``narrow``: the generator has collapsed to a few images, or to one;
    - more than ``sure`` of the discriminator's answers are right: whatever the generator tries is seen through, so it
      does not learn where to go;

    and ``None`` otherwise. :attr:`said` keeps the messages. A discriminator that is right half of the time is no
    symptom: it may be beaten, or asleep, and only the samples tell. Raises ``ValueError`` for a window below 1. Source:
    chapter 10.
    """

    def __init__(self, window: int = 100, narrow: float = 0.3, sure: float = 0.98):
        if window < 1:
            raise ValueError(f"window: must be at least 1, got {window}")
        self.window, self.narrow, self.sure = window, narrow, sure
        self.said: list[str] = []
        self._recent: list[tuple[int, float, float]] = []
        self._told: set[str] = set()

    def __call__(self, step: Step) -> str | None:
        """The message, if there is one to be said at this step."""
        self._recent.append((step.index, step.losses["right"], step.losses["spread"]))
        self._recent = [one for one in self._recent if one[0] > step.index - self.window]
        if step.index < self.window:
            return None
        _, right, wide = (sum(column) / len(column) for column in zip(*self._recent, strict=True))
        messages = {}
        if wide < self.narrow:
            messages["narrow"] = (
                f"the generator has collapsed: what it draws differs only {wide:.2f} times as much as the data does. "
                f"Try a larger gamma, a lower learning rate, or larger batches"
            )
        if right > self.sure:
            messages["sure"] = (
                f"the discriminator has won: {right:.1%} of its answers are right, and the generator cannot learn from "
                f"it. Try a larger gamma, a lower learning rate, or a smaller discriminator"
            )
        new = [messages[name] for name in messages if name not in self._told]
        self._told |= messages.keys()
        if not new:
            return None
        self.said.append(f"by step {step.index}, " + "; ".join(new))
        return self.said[-1]
