"""Networks from images to something smaller and back, and the variational autoencoder made of the two."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from . import unet


class Residual(nn.Module):
    """Two convolutions with a residual connection: ``(B, C_in, H, W)`` to ``(B, C_out, H, W)``.

    ``norm=False`` leaves the normalisation out, as a discriminator wants it: how bright one image is compared with
    another is something that it should see. With ``embedding`` it takes a ``(B, embedding)`` too, which shifts the
    features between the two.
    """

    def __init__(self, c_in: int, c_out: int, norm: bool = True, embedding: int = 0):
        super().__init__()
        layers = [unet.norm(c_in) if norm else nn.Identity(), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)]
        layers += [
            unet.norm(c_out) if norm else nn.Identity(),
            nn.SiLU(),
            unet.zero(nn.Conv2d(c_out, c_out, 3, padding=1)),
        ]
        self.body = nn.Sequential(*layers)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.shift = nn.Linear(embedding, c_out) if embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """``(B, C_in, H, W)`` and, if it takes one, ``(B, embedding)`` to ``(B, C_out, H, W)``."""
        if self.shift is None:
            return self.skip(x) + self.body(x)
        h = self.body[:3](x) + self.shift(embedding)[..., None, None]
        return self.skip(x) + self.body[3:](h)


class Encoder(nn.Module):
    """Images ``(B, channels, size, size)`` to a map ``(B, out, grid, grid)`` with
    ``grid = size / patch / 2 ** (len(multipliers) - 1)``.

    The arguments are those of :class:`diffutils.networks.unet.UNet`; with ``embedding``, each residual block is told a
    ``(B, embedding)``. Raises ``ValueError`` if ``size`` cannot be divided so often.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        out: int = 8,
        patch: int = 1,
        norm: bool = True,
        embedding: int = 0,
    ):
        super().__init__()
        self.grid = grid(size, patch, multipliers)
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(channels * patch**2, width, 3, padding=1)]
        c = width
        for level, multiplier in enumerate(multipliers):
            if level:
                layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            for _ in range(blocks):
                layers.append(Residual(c, width * multiplier, norm, embedding))
                c = width * multiplier
        layers += [unet.norm(c) if norm else nn.Identity(), nn.SiLU(), nn.Conv2d(c, out, 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """``(B, channels, size, size)`` and, if it takes one, ``(B, embedding)`` to ``(B, out, grid, grid)``."""
        for layer in self.body:
            x = layer(x, embedding) if isinstance(layer, Residual) else layer(x)
        return x


class Decoder(nn.Module):
    """The way back: a map ``(B, into, grid, grid)`` to images ``(B, channels, size, size)``; arguments as for
    :class:`Encoder`.
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        into: int = 8,
        patch: int = 1,
    ):
        super().__init__()
        self.grid = grid(size, patch, multipliers)
        c = width * multipliers[-1]
        layers: list[nn.Module] = [nn.Conv2d(into, c, 3, padding=1)]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks):
                layers.append(Residual(c, width * multiplier))
                c = width * multiplier
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, width * multipliers[level - 1], 3, padding=1)]
                c = width * multipliers[level - 1]
        layers += [unet.norm(c), nn.SiLU(), nn.Conv2d(c, channels * patch**2, 3, padding=1), nn.PixelShuffle(patch)]
        self.body = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, into, grid, grid)`` to ``(B, channels, size, size)``."""
        return self.body(h)


def grid(size: int, patch: int, multipliers: Sequence[int]) -> int:
    """The width of the smallest feature map. Raises ``ValueError`` if ``size`` cannot be divided so often."""
    factor = patch * 2 ** (len(multipliers) - 1)
    if size % factor or size < factor:
        raise ValueError(f"size: {size} pixels cannot be divided by {factor}, patches and halvings together")
    return size // factor


class VAE(nn.Module):
    r"""A variational autoencoder with a latent vector of ``latent`` numbers.

    .. math:: z \sim \mathcal N(0, I), \qquad x \mid z \sim \mathcal N(\text{decode}(z), \sigma^2 I), \qquad
        q(z \mid x) = \mathcal N(m(x), \operatorname{diag} s^2(x)),

    with one learned :math:`\sigma` for all pixels, :attr:`log_sigma`. The other arguments are those of
    :class:`Encoder`. Raises ``ValueError`` as that does, and from :meth:`encode` for images of another shape.
    Source: chapter 4; Kingma & Welling (2014); the learned sigma: Rybkin et al. (2021).
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        latent: int = 16,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 1,
    ):
        super().__init__()
        self.size, self.channels, self.latent = size, channels, latent
        top = width * multipliers[-1]
        self.encoder = Encoder(size, channels, width, multipliers, blocks, top, patch)
        self.decoder = Decoder(size, channels, width, multipliers, blocks, top, patch)
        flat = top * self.encoder.grid**2
        self.leave = nn.Linear(flat, 2 * latent)
        self.enter = nn.Sequential(
            nn.Linear(latent, flat), nn.Unflatten(1, (top, self.encoder.grid, self.encoder.grid))
        )
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of :math:`q(z \mid x)`: ``(B, C, H, W)`` to two of ``(B, latent)``."""
        if x.shape[1:] != (self.channels, self.size, self.size):
            expected = f"(B, {self.channels}, {self.size}, {self.size})"
            raise ValueError(f"x: this network takes {expected}, got {tuple(x.shape)}")
        mean, log_var = self.leave(self.encoder(x).flatten(1)).float().chunk(2, 1)
        return mean, log_var.clamp(-12, 6).exp()

    def decode(self, z: Tensor) -> Tensor:
        r"""The mean of :math:`p(x \mid z)`: ``(B, latent)`` to ``(B, C, H, W)``."""
        return self.decoder(self.enter(z)).float()

    def forward(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""A draw z = m(x) + s(x) eps, and what follows: the mean and sigma of :math:`p(x \mid z)`, the mean and
        variance of :math:`q(z \mid x)`.
        """
        mean, var = self.encode(x)
        eps = torch.randn(mean.shape, generator=generator, device=x.device)
        return self.decode(mean + var.sqrt() * eps), self.log_sigma.exp(), mean, var

    def sample(self, n: int, generator: Generator) -> Tensor:
        r"""``n`` means of :math:`p(x \mid z)` for z from the prior, in [-1, 1]: one call of the decoder."""
        z = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.decode(z).clamp(-1, 1)
