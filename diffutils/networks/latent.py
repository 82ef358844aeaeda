"""Autoencoders whose latents are small pictures, the discriminator that sharpens them, and a U-Net for the latents."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..runtime import place
from .autoencoder import Decoder, Encoder
from .unet import UNet


class Autoencoder(nn.Module):
    r"""Images to a small picture of ``latent`` channels and back, with a little noise on the way.

    .. math:: z = m(x) + s(x)\, \epsilon, \qquad \hat x = \text{decode}(z), \qquad
        \text{penalty} = KL\bigl(\mathcal N(m, \operatorname{diag} s^2) \,\|\, \mathcal N(0, I)\bigr) / D,

    with :math:`D` the number of pixel values: ``(B, channels, size, size)`` to ``(B, latent, size / f, size / f)`` with
    ``f = patch * 2 ** (len(multipliers) - 1)``, which is :attr:`factor`. The penalty is there to keep the latents in
    bounds, and has a small weight in the loss. The other arguments are those of
    :class:`diffutils.networks.autoencoder.Encoder`. Raises ``ValueError`` as that does, and from :meth:`encode` and
    :meth:`decode` for another shape. Source: chapter 11; Rombach et al. (2022), section 3.1 and appendix G.
    """

    moments = 2
    """Numbers that the encoder gives for each one of the latent: a mean and a log-variance."""

    def __init__(
        self,
        size: int,
        channels: int = 1,
        latent: int = 4,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 2,
    ):
        super().__init__()
        self.size, self.channels, self.latent = size, channels, latent
        self.factor = patch * 2 ** (len(multipliers) - 1)
        self.encoder = Encoder(size, channels, width, multipliers, blocks, self.moments * latent, patch)
        self.decoder = Decoder(size, channels, width, multipliers, blocks, latent, patch)
        self.grid = self.encoder.grid

    @property
    def last(self) -> Tensor:
        """The weight of the decoder's last layer, where the gradients of losses are compared."""
        return [layer for layer in self.decoder.modules() if isinstance(layer, nn.Conv2d)][-1].weight

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and variance of :math:`q(z \mid x)`: ``(B, C, H, W)`` to two of ``(B, latent, H / f, W / f)``."""
        mean, log_var = self._encoded(x).chunk(2, 1)
        return mean, log_var.clamp(-30, 20).exp()

    def _encoded(self, x: Tensor) -> Tensor:
        _check("x", x, self.channels, self.size)
        return self.encoder(x).float()

    def decode(self, z: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` from latents; they may leave [-1, 1] a little."""
        _check("z", z, self.latent, self.grid)
        return self.decoder(z).float()

    def forward(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """The reconstruction of ``x`` from a draw of z, and the penalty, a scalar."""
        mean, var = self.encode(x)
        eps = torch.randn(mean.shape, generator=generator, device=x.device)
        # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - ln s^2) / 2
        penalty = 0.5 * (mean.square() + var - 1 - var.log()).sum() / x.numel()
        return self.decode(mean + var.sqrt() * eps), penalty


class VQAutoencoder(Autoencoder):
    r"""The same with a code book in place of noise: each position of the latent is replaced by the nearest of ``codes``
    vectors.

    .. math:: z_q = e_{k}, \quad k = \arg\min_j \|z - e_j\|, \qquad
        \text{penalty} = \|\operatorname{sg}[z] - z_q\|^2 + \beta\, \|z - \operatorname{sg}[z_q]\|^2

    (means over all numbers), where sg stops the gradient; that of the reconstruction passes from :math:`z_q` to
    :math:`z` as if they were equal. :meth:`decode` quantises first, so what a diffusion model learns is z. The book
    starts with encodings from the first batch (from the first process's part of it, if there are several). Source:
    chapter 11; van den Oord et al. (2017), equation 3.
    """

    moments = 1

    def __init__(self, *args, codes: int = 256, beta: float = 0.25, **settings):
        super().__init__(*args, **settings)
        self.beta = beta
        self.book = nn.Parameter(torch.zeros(codes, self.latent))
        self.register_buffer("begun", torch.tensor(False))
        self._asked = False

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, and a variance of zero."""
        z = self._encoded(x)
        return z, torch.zeros_like(z)

    def nearest(self, z: Tensor) -> Tensor:
        """Which code is nearest: ``(B, latent, h, w)`` to ``(B, h, w)`` int64."""
        rows = z.permute(0, 2, 3, 1)
        # |z - e|^2 = |z|^2 - 2 z e + |e|^2, of which the first is the same for all codes; in bfloat16 others would win
        with torch.autocast(z.device.type, enabled=False):
            return (self.book.square().sum(1) - 2 * rows @ self.book.T).argmin(-1)

    def quantise(self, z: Tensor) -> Tensor:
        """The nearest codes themselves, ``(B, latent, h, w)`` to the same."""
        return F.embedding(self.nearest(z.detach()), self.book).permute(0, 3, 1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Images from latents, which are quantised first."""
        _check("z", z, self.latent, self.grid)
        return super().decode(self.quantise(z))

    def forward(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """The reconstruction of ``x`` from the nearest codes, and the penalty, a scalar. The first call in training
        fills the book.
        """
        z, _ = self.encode(x)
        if self.training and not self._asked and not self.begun:  # asked once, since a GPU makes one wait for it
            rows = z.detach().permute(0, 2, 3, 1).reshape(-1, self.latent)
            some = torch.randint(len(rows), (len(self.book),), generator=generator, device=z.device)
            self.book.data.copy_(rows[some])
            if place()[1] > 1:
                torch.distributed.broadcast(self.book.data, 0)
            self.begun.fill_(True)
        self._asked |= self.training
        z_q = self.quantise(z)
        penalty = F.mse_loss(z_q, z.detach()) + self.beta * F.mse_loss(z, z_q.detach())
        return super().decode(z + (z_q - z).detach()), penalty


def _check(name: str, value: Tensor, channels: int, size: int) -> None:
    if value.shape[1:] != (channels, size, size):
        raise ValueError(f"{name}: this network takes (B, {channels}, {size}, {size}), got {tuple(value.shape)}")


class PatchDiscriminator(nn.Module):
    """Images ``(B, channels, H, W)`` to a map ``(B, H / 2 ** halvings, W / 2 ** halvings)``: how real each patch looks.

    Each number sees a patch of the image only: of 8, 18 or 38 pixels for 1, 2 or 3 ``halvings``. So it judges texture
    and edges, not what the picture is of. There is no normalisation, which would let it see beyond its patch.
    Source: chapter 11; Isola et al. (2017), section 3.2.2.
    """

    def __init__(self, channels: int = 1, width: int = 32, halvings: int = 2):
        super().__init__()
        layers: list[nn.Module] = []
        c = channels
        for level in range(halvings):
            layers += [nn.Conv2d(c, c := width * 2 ** min(level, 3), 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(c, 2 * c, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(2 * c, 1, 1)]
        self.body = nn.Sequential(*layers)
        for layer in self.body:  # without normalisation, the size of the signal is for the first weights to keep
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, H / 2 ** halvings, W / 2 ** halvings)``."""
        return self.body(x)[:, 0]


class LatentUNet(UNet):
    r"""A U-Net for the latents of a trained autoencoder, which it holds, and which stays as it is.

    .. math:: \text{encode}(x) = \lambda\, z, \quad z \sim q(z \mid x), \qquad
        \text{decode}(\lambda z) = \text{decoder}(z),

    with one number :math:`\lambda`, the buffer :attr:`scale`, that makes the variance of latents 1 (:meth:`fit_scale`).
    Size and channels of what diffuses are the autoencoder's; ``settings`` are the other arguments of
    :class:`diffutils.networks.unet.UNet`. Source: chapter 11; Rombach et al. (2022), section 3.3 and appendix G.
    """

    def __init__(self, autoencoder: Autoencoder, **settings):
        super().__init__(autoencoder.grid, autoencoder.latent, **settings)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def moments(self, x: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images ``(N, C, H, W)``, before scaling, in batches."""
        parts = [self.autoencoder.encode(part) for part in x.split(batch)]
        return torch.cat([mean for mean, _ in parts]), torch.cat([var for _, var in parts]).sqrt()

    def fit_scale(self, x: Tensor, times: float | None = 1.0) -> Tensor:
        r"""Set :math:`\lambda = 1 / \sqrt{\operatorname{Var} m + E\, s^2}`, one over the standard deviation of all the
        latents' numbers of the training images ``x``, rounded to float16, as weights are shipped; the :meth:`moments`
        are returned side by side, ``(N, 2 c, h, w)``.

        To see what goes wrong, ``times`` makes it so many times as large, and 0 leaves the latents as they are.
        """
        mean, std = self.moments(x)
        scale = times / (mean.double().var() + std.double().square().mean()).sqrt() if times else torch.ones(())
        self.scale.copy_(scale.half())
        return torch.cat([mean, std], 1)

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Scaled latents: one draw for each image."""
        return self.draw(*self.moments(x), generator)

    def draw(self, mean: Tensor, std: Tensor, generator: Generator | None = None) -> Tensor:
        """Scaled latents from their :meth:`moments`."""
        eps = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self.scale * (mean + std * eps)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """Images from scaled latents: the scale is undone, then the decoder."""
        return self.autoencoder.decode(x_0 / self.scale)
