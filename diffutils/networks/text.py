"""What a network makes of a sentence: a vector for each word, which knows of the words round it."""

import math

import torch
from torch import Tensor, nn

from .attention import attend
from .unet import zero


class Block(nn.Module):
    """Every word looks at every word, then thinks by itself, both with a residual connection: ``(B, L, W)`` to the
    same.

    Source: chapter 12; Vaswani et al. (2017), section 3.2, normalised first as in Radford et al. (2019), section 2.3.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zero(nn.Linear(width, width))
        self.norm_2 = nn.LayerNorm(width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), zero(nn.Linear(4 * width, width)))

    def forward(self, h: Tensor) -> Tensor:
        """``(B, L, W)`` to the same."""
        B, L, W = h.shape
        # (B, L, 3W) -> three of (B, heads, L, W / heads)
        q, k, v = self.qkv(self.norm(h)).reshape(B, L, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v)
        h = h + self.out(seen.transpose(1, 2).reshape(B, L, W))
        return h + self.think(self.norm_2(h))


class TextEncoder(nn.Module):
    r"""Tokens ``(B, length)`` to vectors ``(B, length, width)``, by a small transformer.

    .. math:: h_i = \text{word}[y_i] + \text{place}[i], \qquad \text{then blocks of attention and thought, and a norm.}

    Token 0 stands for no word. It fills up short prompts, and takes part like any other: nothing is masked, so the
    empty prompt is all zeros. Every word sees all the others.

    Args:
        words: how many tokens there are, with the 0.
        length: tokens of a prompt.
        width: numbers in the vector of a word; a multiple of ``heads``.
        blocks: how many times words look at each other.

    Raises:
        ValueError: for a width that is no multiple of ``heads``; from ``forward``, for another length or tokens outside
            0..words - 1.

    Source: chapter 12; Vaswani et al. (2017).
    """

    def __init__(self, words: int, length: int, width: int = 64, blocks: int = 2, heads: int = 4):
        super().__init__()
        if width % heads:
            raise ValueError(f"width: must be a multiple of heads, {heads}, got {width}")
        self.words, self.length, self.width = words, length, width
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(length, width)
        for table in self.word, self.place:
            nn.init.normal_(table.weight, std=1 / math.sqrt(2))  # their sum has variance 1
        self.body = nn.Sequential(*(Block(width, heads) for _ in range(blocks)), nn.LayerNorm(width))

    def forward(self, y: Tensor) -> Tensor:
        """``(B, length)`` int64 to ``(B, length, width)``."""
        if y.shape[1:] != (self.length,):
            raise ValueError(f"y: this network takes tokens (B, {self.length}), got {tuple(y.shape)}")
        if y.device.type == "cpu" and ((y < 0) | (y >= self.words)).any():
            raise ValueError(f"y: tokens must lie in 0..{self.words - 1}, got {y.min()} to {y.max()}")
        return self.body(self.word(y) + self.place(torch.arange(self.length, device=y.device)))
