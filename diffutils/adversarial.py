"""How two networks learn against each other: the losses of a GAN, and its update."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from .runtime import autocast, place
from .training import Budget, Descent


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


class Duel(Descent):
    r"""One step of a discriminator, then one of a generator.

    .. math::
        \min_D\; -E \log D(x) - E \log(1 - D(G(z))) + \tfrac\gamma2 E \|\nabla_x D(x)\|^2, \qquad
        \min_G\; -E \log D(G(z)).

    The penalty is lazy: it is added at every ``lazy``-th step, ``lazy`` times as strong, and only then among the losses
    that a call returns. Both learning rates rise for ``warmup`` steps and stay; Adam has no momentum
    (:math:`\beta_1 = 0`). With several processes the gradients are averaged over them.

    Args:
        network: holds ``generator`` and ``discriminator``, and draws by ``sample(n, noise)``: see
            :class:`diffutils.networks.discriminator.GAN`.
        noise: for z.
        gamma: weight of the penalty.

    The others are those of :class:`diffutils.training.Descent`. Raises ``ValueError`` if ``lazy < 1`` or ``gamma < 0``.
    Source: chapter 7; Goodfellow et al. (2014); Mescheder et al. (2018); lazy: Karras et al. (2020), appendix B.
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
    ):
        if lazy < 1:
            raise ValueError(f"lazy: must be at least 1, got {lazy}")
        if gamma < 0:
            raise ValueError(f"gamma: must not be negative, got {gamma}")
        super().__init__(network, generator_loss, steps, lr, ema, warmup=warmup, bf16=bf16)
        self.noise, self.gamma, self.lazy = noise, gamma, lazy
        self.optimisers = [
            torch.optim.Adam(part.parameters(), lr, (0.0, 0.99), fused=True)
            for part in (network.discriminator, network.generator)
        ]

    def __call__(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        network, x = self.network.train(), batch[0]
        rate = self.lr * min((self.index + 1) / self.warmup, 1)
        losses = {}

        network.discriminator.requires_grad_(True)
        with torch.no_grad(), autocast(x.device, self.bf16):
            drawn = network.sample(len(x), self.noise)
        with autocast(x.device, self.bf16):
            loss = discriminator_loss(network.discriminator(x).float(), network.discriminator(drawn).float())
        losses["discriminator"] = loss.detach()
        if (
            self.gamma and self.index % self.lazy == 0
        ):  # in float32: bfloat16 has too few digits for a second derivative
            penalty = r1_penalty(network.discriminator, x)
            losses["r1"] = penalty.detach()
            loss = loss + self.lazy * self.gamma / 2 * penalty
        self._descend(0, loss, rate)

        network.discriminator.requires_grad_(False)
        with autocast(x.device, self.bf16):
            loss = generator_loss(network.discriminator(network.sample(len(x), self.noise)).float())
        losses["generator"] = loss.detach()
        self._descend(1, loss, rate)
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
            if (world := place()[1]) > 1:
                for weight in group["params"]:
                    torch.distributed.all_reduce(weight.grad)
                    weight.grad /= world
        optimiser.step()
