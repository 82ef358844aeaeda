"""Generative adversarial networks: what draws, and what tells drawn from real."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from .autoencoder import Decoder, Encoder
from .embedding import TimeEmbedding
from .mlp import MLP
from .unet import UNet


class Discriminator(nn.Module):
    """Images ``(B, channels, size, size)`` to one number each, ``(B,)``: the log-odds of being real.

    With ``paired`` it judges a step back from x_t: ``(x_s, x_t, t)``, two images and the time ``(B,)`` of the second,
    to the log-odds of x_s being what x_t came from.

    One more feature map holds how much the images of a batch differ (the mean over features of their standard
    deviation in groups of ``group``), so that a generator which draws the same thing again and again is seen through.
    The other arguments are those of :class:`diffutils.networks.autoencoder.Encoder`. Source: Goodfellow et al. (2014);
    the feature of the batch: Karras et al. (2018), section 3; pairs: chapter 10, Xiao et al. (2022), section 3.2.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
        group: int = 4,
        paired: bool = False,
    ):
        super().__init__()
        top, told = width * multipliers[-1], 4 * width if paired else 0
        self.group = group
        self.time = TimeEmbedding(told) if paired else None
        channels = 2 * channels if paired else channels
        self.encoder = Encoder(size, channels, width, multipliers, blocks, top, patch, False, told)
        self.head = nn.Sequential(
            nn.Conv2d(top + 1, top, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(top * self.encoder.grid**2, 1)
        )
        for layer in self.modules():  # without normalisation, the size of the signal is for the first weights to keep
            if isinstance(layer, nn.Conv2d) and layer.weight.any():
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Log-odds ``(B,)``: of ``x``, ``(B, channels, size, size)``, or, if ``paired``, of ``x`` before ``x_t`` at t
        ``(B,)``.
        """
        h = self.encoder(x) if self.time is None else self.encoder(torch.cat([x, x_t], 1), self.time(t))
        B, C, H, W = h.shape
        among = self.group if B % self.group == 0 else B
        groups = h.float().reshape(among, -1, C, H, W)  # images i, i + B / among, ... are one group
        differ = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        return self.head(torch.cat([h, differ.repeat(among)[:, None, None, None].expand(B, 1, H, W).to(h)], 1))[:, 0]


class GAN(nn.Module):
    r"""A generator :math:`x = G(z)`, :math:`z \sim \mathcal N(0, I)` of ``latent`` numbers, and its discriminator.

    ``width`` is the generator's, ``against`` the discriminator's; the other arguments are those of
    :class:`diffutils.networks.autoencoder.Encoder`. Source: chapter 7; Goodfellow et al. (2014).
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        latent: int = 64,
        width: int = 32,
        against: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
    ):
        super().__init__()
        self.size, self.channels, self.latent = size, channels, latent
        top = width * multipliers[-1]
        decoder = Decoder(size, channels, width, multipliers, blocks, top, patch)
        shape = top, decoder.grid, decoder.grid
        self.generator = nn.Sequential(
            nn.Linear(latent, top * decoder.grid**2), nn.Unflatten(1, shape), decoder, nn.Tanh()
        )
        self.discriminator = Discriminator(size, channels, against, multipliers, blocks, patch)

    def sample(self, n: int, generator: Generator) -> Tensor:
        """``n`` images in [-1, 1]: one call of the generator."""
        z = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.generator(z).float()


class Generator(UNet):
    """A U-Net told z as it is told t, whose answers lie in [-1, 1] unless it is ``direct``: ``(x_t, t, z=z)`` to x_0.

    Its last layer does not start at zero, so that the discriminator has something to tell apart from the first step on.
    Source: chapter 10; Xiao et al. (2022), in the appendix on experiments.
    """

    def __init__(self, *arguments, direct: bool = False, **settings):
        super().__init__(*arguments, **settings)
        self.direct = direct
        nn.init.xavier_normal_(self.leave[2].weight)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """An x_0, or x_{t-1} if ``direct``: arguments and result are shaped as those of
        :meth:`diffutils.networks.unet.UNet.forward`.
        """
        answer = super().forward(x_t, t, y, z)
        return answer if self.direct else answer.tanh()


class DDG(nn.Module):
    r"""A denoising diffusion GAN for images: a generator :math:`\hat x_0 = G(x_t, z, t)`, with z of ``latent`` normal
    numbers, and the discriminator :math:`D(x_s, x_t, t)` of its steps.

    ``latent = 0`` leaves z out, and then the generator draws nothing. With ``direct`` its answer is not an x_0 but x_s
    itself, with no posterior between (see :class:`diffutils.adversarial.DiffusionDuel`). ``width`` and ``multipliers``
    are the generator's, ``against`` and ``opposed`` the discriminator's (by default those of the generator); the others
    are those of :class:`diffutils.networks.unet.UNet`. Source: chapter 10; Xiao et al. (2022), section 3.2.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        latent: int = 32,
        width: int = 32,
        against: int = 32,
        multipliers: Sequence[int] = (1, 2),
        opposed: Sequence[int] | None = None,
        blocks: int = 1,
        attention: int = 4,
        patch: int = 1,
        direct: bool = False,
    ):
        super().__init__()
        self.size, self.channels, self.latent, self.direct = size, channels, latent, direct
        shape = size, channels, width, multipliers, blocks, attention
        self.generator = Generator(*shape, patch=patch, latent=latent, direct=direct)
        self.discriminator = Discriminator(size, channels, against, opposed or multipliers, blocks, patch, paired=True)


class PointGAN(nn.Module):
    """A GAN for points ``(B, dims)``: two MLPs of ``depth`` layers of ``width`` units; z has ``latent`` numbers.

    Source: chapter 10.
    """

    def __init__(self, dims: int = 2, latent: int = 4, width: int = 64, depth: int = 3, highest: int = 8):
        super().__init__()
        self.latent = latent
        self.generator = MLP(latent, width, depth, out=dims, highest=highest)
        nn.init.xavier_normal_(self.generator.leave[1].weight)
        self.discriminator = PointDiscriminator(dims, width, depth, highest, paired=False)

    def sample(self, n: int, generator: Generator) -> Tensor:
        """``n`` points: one call of the generator."""
        z = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.generator(z, torch.zeros(n, device=z.device))


class PointDDG(nn.Module):
    r"""The same for points ``(B, dims)``: two MLPs of ``depth`` layers of ``width`` units.

    The generator's answer is :math:`x_t + \text{MLP}(x_t, z, t)`, so that it begins near x_t. Source: chapter 10.
    """

    def __init__(
        self, dims: int = 2, latent: int = 4, width: int = 64, depth: int = 3, highest: int = 8, direct: bool = False
    ):
        super().__init__()
        self.latent, self.direct = latent, direct
        self.generator = PointGenerator(dims, width, depth, latent, highest=highest)
        self.discriminator = PointDiscriminator(dims, width, depth, highest)


class PointGenerator(MLP):
    r"""The generator of :class:`PointDDG`: ``(x_t, t, z)`` to an x_0 ``(B, dims)``. Source: chapter 10."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        nn.init.xavier_normal_(self.leave[1].weight)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, dims)``, t ``(B,)`` and z ``(B, latent)`` to ``(B, dims)``."""
        return x_t + super().forward(x_t, t, z)


class PointDiscriminator(nn.Module):
    """Points ``(B, dims)`` to log-odds ``(B,)``, or with ``paired`` steps: ``(x_s, x_t, t)``. Source: chapter 10."""

    def __init__(self, dims: int = 2, width: int = 64, depth: int = 3, highest: int = 8, paired: bool = True):
        super().__init__()
        self.body = MLP((1 + paired) * dims, width, depth, out=1, highest=highest)
        nn.init.xavier_normal_(self.body.leave[1].weight)  # at zero, the penalty would keep it there

    def forward(self, x: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Log-odds ``(B,)``: of ``x``, ``(B, dims)``, or, if ``paired``, of ``x`` before ``x_t`` at t ``(B,)``."""
        if x_t is None:
            return self.body(x, x.new_zeros(len(x)))[:, 0]
        return self.body(torch.cat([x, x_t], 1), t)[:, 0]
