"""A network for points: residual layers, each told the time."""

from torch import Tensor, nn

from .embedding import TimeEmbedding


class MLP(nn.Module):
    """``(B, D)`` and t ``(B,)`` to ``(B, D)``, through ``depth`` residual layers of ``width`` units.

    The last layer starts at zero, so that an untrained network predicts zero: for noise, the best constant guess.
    Source: chapter 2.
    """

    def __init__(self, dims: int, width: int = 128, depth: int = 4):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.enter = nn.Linear(dims, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, dims))
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h, time = self.enter(x_t), self.time(t)
        for block in self.blocks:
            h = h + block(h + time)
        return self.leave(h)
