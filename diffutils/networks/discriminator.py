"""A generative adversarial network: what draws, and what tells drawn from real."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from .autoencoder import Decoder, Encoder


class Discriminator(nn.Module):
    """Images ``(B, channels, size, size)`` to one number each, ``(B,)``: the log-odds of being real.

    One more feature map holds how much the images of a batch differ (the mean over features of their standard
    deviation in groups of ``group``), so that a generator which draws the same thing again and again is seen through.
    The other arguments are those of :class:`diffutils.networks.autoencoder.Encoder`. Source: Goodfellow et al. (2014);
    the feature of the batch: Karras et al. (2018), section 3.
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
    ):
        super().__init__()
        top = width * multipliers[-1]
        self.group = group
        self.encoder = Encoder(size, channels, width, multipliers, blocks, top, patch, norm=False)
        self.head = nn.Sequential(
            nn.Conv2d(top + 1, top, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(top * self.encoder.grid**2, 1)
        )
        for layer in self.modules():  # without normalisation, the size of the signal is for the first weights to keep
            if isinstance(layer, nn.Conv2d) and layer.weight.any():
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
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
