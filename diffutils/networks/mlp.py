"""A network for points: residual layers, each told the time."""

import torch
from torch import Tensor, nn

from .embedding import LatentEmbedding, TimeEmbedding


class MLP(nn.Module):
    r"""``(B, D)`` and t ``(B,)`` to ``(B, D)``, through ``depth`` residual layers of ``width`` units.

    With ``latent`` it also takes a z ``(B, latent)``, which enters where the time does; with ``out`` it answers with
    ``(B, out)``.

    Each coordinate enters as :math:`x, \sin x, \cos x, \sin 2x, \cos 2x, \sin 4x, \cos 4x`, with doubled frequencies
    up to ``highest``: with them, a small network can draw thin curves (Tancik et al., 2020). The last layer starts at
    zero, so that an untrained network predicts zero: for noise, the best constant guess. Raises ``ValueError`` from
    ``forward`` for x_t of another shape. Source: chapter 2.
    """

    def __init__(
        self, dims: int, width: int = 128, depth: int = 4, latent: int = 0, out: int | None = None, highest: int = 4
    ):
        super().__init__()
        self.dims, self.latent = dims, latent
        self.time = TimeEmbedding(width)
        self.noise = LatentEmbedding(latent, width) if latent else None
        self.waves = [2**i for i in range(highest.bit_length())]
        self.enter = nn.Linear((1 + 2 * len(self.waves)) * dims, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(depth))
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, dims if out is None else out))
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """``(B, D)``, t ``(B,)`` and, if it takes one, z ``(B, latent)`` to ``(B, D)``, or ``(B, out)``."""
        if x_t.ndim != 2 or x_t.shape[1] != self.dims:
            raise ValueError(f"x_t: this network takes (B, {self.dims}), got {tuple(x_t.shape)}")
        waves = [wave(k * x_t) for k in self.waves for wave in (torch.sin, torch.cos)]
        h, time = self.enter(torch.cat([x_t, *waves], 1)), self.time(t)
        if self.noise is not None:
            time = time + self.noise(z)
        for block in self.blocks:
            h = h + block(h + time)
        return self.leave(h)
