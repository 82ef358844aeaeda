"""How a network is told the time."""

import math

import torch
from torch import Tensor, nn


def sinusoids(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    r"""Each time as sines and cosines of geometrically falling frequencies: ``(B,)`` to ``(B, width)``.

    .. math:: \bigl[\sin(\omega_i t),\, \cos(\omega_i t)\bigr]_{i < \text{width}/2}, \qquad
        \omega_i = \text{longest}^{-2 i / \text{width}}.

    Raises ``ValueError`` for an odd ``width``. Source: chapter 2; Vaswani et al. (2017), section 3.5.
    """
    if width % 2:
        raise ValueError(f"width: must be even, got {width}")
    frequency = torch.exp(-math.log(longest) * torch.arange(width // 2, device=t.device) * 2 / width)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


class TimeEmbedding(nn.Module):
    """Sinusoids of t, then a small network that makes of them what the rest needs: ``(B,)`` to ``(B, width)``."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """``(B,)`` to ``(B, width)``."""
        return self.layers(sinusoids(t, self.width).to(self.layers[0].weight.dtype))


class LatentEmbedding(nn.Sequential):
    r"""A latent z, scaled to length :math:`\sqrt{\text{latent}}`, to what is added to the embedding of the time:
    ``(B, latent)`` to ``(B, width)``.

    Source: chapter 10; Xiao et al. (2022), in the appendix on experiments, after Karras et al. (2019).
    """

    def __init__(self, latent: int, width: int):
        super().__init__(nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, z: Tensor) -> Tensor:
        """``(B, latent)`` to ``(B, width)``."""
        return super().forward(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())
