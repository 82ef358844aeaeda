"""How an autoencoder learns to leave out what nobody sees: its losses, its update, and what rate and distortion are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .networks.classifier import Classifier
from .objectives import decoder_term, gaussian_kl, prior_term, step_term
from .process import Denoiser
from .runtime import autocast, average_over_processes
from .schedules import Schedule
from .training import Budget, Descent

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images -> how far they are apart, one number a pair."""


def feature_distance(network: Classifier, x: Tensor, y: Tensor) -> Tensor:
    r"""How far images ``(B, C, H, W)`` are apart for a classifier, layer by layer: ``(B,)``.

    .. math:: \sum_l \frac{1}{H_l W_l} \sum_{i, j} \|\hat\phi_l(x)_{ij} - \hat\phi_l(y)_{ij}\|^2,

    where :math:`\hat\phi_l` is the l-th feature map with the vector at each position scaled to length 1. This is LPIPS
    with all its learned weights at 1, and with a network of the book's own. The network should be in evaluation mode.
    Source: chapter 11; Zhang et al. (2018), equation 1.
    """
    total = torch.zeros(len(x), device=x.device)
    for layer in network.body:
        x, y = layer(x), layer(y)
        unit_x, unit_y = (h / (h.square().sum(1, keepdim=True) + 1e-8).sqrt() for h in (x, y))
        total = total + (unit_x - unit_y).square().sum(1).mean((1, 2))
    return total


def lpips_distance(network: str = "vgg", device: torch.device | str = "cpu") -> Distance:
    """LPIPS itself, as a function of two batches of images, by the library ``lpips`` on an ImageNet network (``vgg``,
    ``alex`` or ``squeeze``), whose weights torchvision downloads once.

    Raises ``ImportError`` without the library. Source: Zhang et al. (2018).
    """
    import lpips

    model = lpips.LPIPS(net=network, verbose=False).to(device).eval().requires_grad_(False)
    return lambda x, y: model(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten()


def hinge_loss(real: Tensor, decoded: Tensor) -> Tensor:
    r""":math:`\tfrac12 E \max(0, 1 - D(x)) + \tfrac12 E \max(0, 1 + D(\hat x))`, of a patch discriminator's answers to
    real images and to reconstructions, any shape. Source: chapter 11; Lim & Ye (2017); Esser et al. (2021).
    """
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + decoded).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, delta: float = 1e-4) -> Tensor:
    r"""By how much to multiply the adversarial loss, so that it pulls as hard as the reconstruction loss does at the
    decoder's last layer: a scalar without gradient.

    .. math:: \lambda = \min\Bigl(\frac{\|\nabla_{\text{last}} L_{\text{rec}}\|}{\|\nabla_{\text{last}} L_{\text{adv}}\|
        + \delta},\; 10^4\Bigr).

    Source: chapter 11; Esser et al. (2021), equation 7, with :math:`\delta = 10^{-6}` and without the bound; the
    default and the bound are those of their published code.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (of_reconstruction.norm() / (of_adversarial.norm() + delta)).clamp(max=1e4).detach()


class Compression(Descent):
    r"""One step of an autoencoder, and from step ``start`` on one of a patch discriminator too, whose answers begin to
    count after another ``head_start`` steps.

    .. math:: \min_{E, \text{Dec}}\; \underbrace{E|x - \hat x| + w_f\, d_\phi(x, \hat x)}_{L_{\text{rec}}}
        + w_p \cdot \text{penalty} + \underbrace{w_a \lambda}_{0 \text{ at first}} \cdot\, E[-D(\hat x)], \qquad
        \min_D\; \text{hinge}.

    Without a head start the first answers are those of random weights, and :math:`\lambda` makes them pull as hard as
    any.

    The learning rate rises for ``warmup`` steps and falls as a half cosine; the discriminator's rises likewise when it
    starts, and stays. With several processes the gradients are averaged over them.

    Args:
        network: an :class:`diffutils.networks.latent.Autoencoder`.
        noise: for z.
        discriminator: ``None`` for a loss without the adversarial term.
        distance: :math:`d_\phi`, such as :func:`feature_distance` by a classifier; ``None`` for a loss without it.
        penalty: :math:`w_p`.
        feature_weight: :math:`w_f`.
        weight: :math:`w_a`.
        start: the step, counted from 0, at which the discriminator begins to learn.
        head_start: for so many steps it learns alone.

    The others are those of :class:`diffutils.training.Descent`. A call returns the losses, and once the discriminator
    counts the adaptive weight :math:`\lambda`. Raises ``ValueError`` if ``start`` or ``head_start`` is negative.
    Source: chapter 11; Rombach et al. (2022), equation 25; Esser et al. (2021), equation 6.
    """

    def __init__(
        self,
        network: nn.Module,
        noise: Generator,
        steps: int | Budget,
        discriminator: nn.Module | None = None,
        distance: Distance | None = None,
        lr: float = 1e-3,
        ema: AveragedModel | None = None,
        penalty: float = 1e-4,
        feature_weight: float = 1.0,
        weight: float = 0.5,
        start: int = 0,
        head_start: int = 0,
        warmup: int = 50,
        optimiser: str = "adam",
        bf16: bool = False,
    ):
        for name, value in ("start", start), ("head_start", head_start):
            if value < 0:
                raise ValueError(f"{name}: must not be negative, got {value}")
        super().__init__(network, hinge_loss, steps, lr, ema, warmup=warmup, optimiser=optimiser, bf16=bf16)
        self.noise, self.discriminator, self.distance = noise, discriminator, distance
        self.penalty, self.feature_weight, self.weight = penalty, feature_weight, weight
        self.start, self.head_start = start, head_start
        self.against = None
        if discriminator is not None:
            self.against = torch.optim.Adam(discriminator.parameters(), lr, (0.5, 0.9), fused=True)

    def __call__(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        network, x = self.network.train(), batch[0]
        rate = self.lr * self._rate()
        playing = self.discriminator is not None and self.index >= self.start
        with autocast(x.device, self.bf16):
            decoded, penalty = network(x, self.noise)
        decoded = decoded.float()
        pixels = (x - decoded).abs().mean()
        losses = {"pixels": pixels, "penalty": penalty}
        reconstruction = pixels
        if self.distance is not None:
            losses["features"] = self.distance(x, decoded).mean()
            reconstruction = pixels + self.feature_weight * losses["features"]
        loss = reconstruction + self.penalty * penalty
        if playing and self.index >= self.start + self.head_start:
            self.discriminator.requires_grad_(False)
            losses["adversarial"] = -self.discriminator(decoded).mean()
            losses["lambda"] = adaptive_weight(reconstruction, losses["adversarial"], network.last)
            loss = loss + self.weight * losses["lambda"] * losses["adversarial"]
        _descend(self.optimisers, loss, rate, self.clip)
        if playing:
            self.discriminator.requires_grad_(True)
            losses["discriminator"] = hinge_loss(self.discriminator(x), self.discriminator(decoded.detach()))
            rate = self.lr * min((self.index - self.start + 1) / self.warmup, 1)
            _descend([self.against], losses["discriminator"], rate, self.clip)
        self.index += 1
        if self.ema is not None:
            self.ema.update_parameters(network)
        return {name: value.detach() for name, value in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """That of a :class:`diffutils.training.Descent`, and the discriminator's."""
        against = None
        if self.discriminator is not None:
            against = {"network": self.discriminator.state_dict(), "optimiser": self.against.state_dict()}
        return super().state_dict() | {"against": against}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state)
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["against"]["network"])
            self.against.load_state_dict(state["against"]["optimiser"])


def _descend(players: list[torch.optim.Optimizer], loss: Tensor, rate: float, clip: float) -> None:
    groups = [group for optimiser in players for group in optimiser.param_groups]
    weights = [weight for group in groups for weight in group["params"]]
    for weight in weights:
        weight.grad = None
    loss.backward()
    average_over_processes([weight.grad for weight in weights])
    nn.utils.clip_grad_norm_(weights, clip)
    for group in groups:
        group["lr"] = rate
    for optimiser in players:
        optimiser.step()


def latent_rate(mean: Tensor, var: Tensor, fitted: tuple[Tensor, Tensor]) -> Tensor:
    r"""Nats to send a latent ``(B, c, h, w)`` of ``mean`` and variance ``var``: ``(B,)``.

    .. math:: KL\bigl(\mathcal N(m, \operatorname{diag} s^2) \,\|\, \mathcal N(\mu, \operatorname{diag} \tau^2)\bigr)

    for a Gaussian that sender and receiver agreed on: ``fitted`` is mean and variance of each number of the latent,
    ``(1, c, h, w)``, over the training images. Source: chapter 11.
    """
    mean_p, var_p = (value.expand_as(mean) for value in fitted)
    return gaussian_kl(mean, var, mean_p, var_p)


class Progressive(NamedTuple):
    """What has been sent, and what can be seen, when the reverse process has come down to step t = 0, ..., T."""

    rate: Tensor
    r""":math:`L_T + \dots + L_t` in nats, ``(T + 1, B)``: what it took to send :math:`x_t`; at t = 0, the bound."""
    distortion: Tensor
    r"""Mean squared error of :math:`\hat x_0(x_t, t)`, ``(T + 1, B)``; 0 at t = 0."""


def progressive(
    denoise: Denoiser,
    x_0: Tensor,
    schedule: Schedule,
    generator: Generator | None = None,
    levels: int | None = None,
) -> Progressive:
    r"""Rate and distortion of a diffusion model that sends :math:`x_T`, then :math:`x_{T-1}`, ... and is stopped at t.

    ``x_0`` is ``(B, *D)``; variances are :math:`\tilde\beta_t`, and ``levels`` is as for
    :func:`diffutils.objectives.decoder_term`. It costs T calls. Source: chapter 11; Ho et al. (2020), section 4.3.
    """
    estimates: list[Tensor] = []

    def watched(x_t: Tensor, t: Tensor) -> Tensor:
        estimates.append(denoise(x_t, t))
        return estimates[-1]

    def error() -> Tensor:
        return (estimates.pop() - x_0).square().flatten(1).mean(1)

    steps, errors = [], []
    for t in range(2, schedule.T + 1):
        steps.append(step_term(watched, x_0, t, schedule, generator))
        errors.append(error())
    terms = [decoder_term(watched, x_0, schedule, generator, levels), *steps, prior_term(x_0, schedule)]
    errors = [torch.zeros_like(error_1 := error()), error_1, *errors]
    return Progressive(torch.stack(terms).flip(0).cumsum(0).flip(0), torch.stack(errors))
