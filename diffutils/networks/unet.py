"""A network for images: the U-Net of DDPM, at any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import attend
from .embedding import LatentEmbedding, TimeEmbedding


def norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups of at least 4 channels each."""
    return nn.GroupNorm(math.gcd(channels // 4, 32), channels)


def zero(layer: nn.Module) -> nn.Module:
    """The layer with its parameters at zero, so that a residual branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """Two convolutions round a shift and a scale that come from the embedding, with a residual connection.

    ``(B, C_in, H, W)`` and ``(B, E)`` to ``(B, C_out, H, W)``. Source: Ho et al. (2020), appendix B; the scale and
    shift after Perez et al. (2018) and Dhariwal & Nichol (2021).
    """

    def __init__(self, c_in: int, c_out: int, embedding: int, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * c_out))
        self.norm = norm(c_out)
        self.leave = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(c_out, c_out, 3, padding=1)))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` and ``(B, E)`` to ``(B, C_out, H, W)``."""
        h = self.norm(self.enter(x))
        scale, shift = self.modulate(embedding)[..., None, None].chunk(2, 1)
        return self.skip(x) + self.leave(h * (1 + scale) + shift)


class Attention(nn.Module):
    """Self-attention among the pixels of a feature map, with a residual connection: ``(B, C, H, W)`` to the same."""

    def __init__(self, channels: int, head_width: int = 32):
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // head_width))
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        B, C, H, W = x.shape
        # (B, 3C, H, W) -> three of (B, heads, HW, C / heads)
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, C // self.heads, H * W)
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)  # the fast kernels want the last dimension dense
        h = attend(q, k, v)
        return x + self.leave(h.transpose(-1, -2).reshape(B, C, H, W))


class CrossAttention(nn.Module):
    r"""Each pixel of a feature map asks, the words answer, with a residual connection: ``(B, C, H, W)`` and words
    ``(B, L, context)`` to ``(B, C, H, W)``.

    .. math:: x_i + W_o \sum_{j} \operatorname{softmax}_j\Bigl(\frac{q_i^\top k_j}{\sqrt d}\Bigr)\, v_j, \qquad
        q_i = W_q\, \text{norm}(x)_i, \quad k_j = W_k h_j, \quad v_j = W_v h_j

    in each of several heads of width d. Source: chapter 12; Rombach et al. (2022), section 3.3.
    """

    def __init__(self, channels: int, context: int, head_width: int = 32):
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // head_width))
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.kv = nn.Linear(context, 2 * channels)
        self.leave = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """``(B, C, H, W)`` and words ``(B, L, context)`` to ``(B, C, H, W)``."""
        h = attend(*self.asked(x, words))
        return x + self.leave(h.transpose(-1, -2).reshape(x.shape))

    def asked(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pixels ask, ``(B, heads, H W, d)``, and what words answer to and with, ``(B, heads, L, d)`` each."""
        B, C, H, W = x.shape
        q = self.q(self.norm(x)).reshape(B, self.heads, C // self.heads, H * W).transpose(-1, -2).contiguous()
        k, v = self.kv(words).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def weights(self, x: Tensor, words: Tensor) -> Tensor:
        """How much each pixel listens to each word, ``(B, heads, L, H, W)``, summing to 1 over the words."""
        q, k, _ = self.asked(x, words)
        weight = (k @ q.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-2)
        return weight.reshape(*weight.shape[:-1], *x.shape[2:])


class UNet(nn.Module):
    """The U-Net of DDPM: down through sizes, each half of the last, and up again, with skip connections.

    Args:
        size: height and width of the images, a power of two from 8 to 256.
        channels: 1 or 3 (any number at least 1 works: latents have more).
        width: channels of the first size; size i has ``width * multipliers[i]``.
        multipliers: one a size. By default two for 8 pixels, three for 16 and 32, four for 64, one more each doubling.
        blocks: residual blocks a size.
        attention: apply self-attention where the feature map is at most this many pixels wide, and in the middle.
        classes: number of labels, or ``None`` for an unconditional network. Label ``classes`` (one past the last) means
            "no label": it is what ``y=None`` stands for.
        dropout: probability inside the residual blocks.
        patch: work on patches of ``patch x patch`` pixels, each unfolded into channels, and fold them back at the end:
            1 as in the paper, or 2 or 4 for a network 4 or 16 times cheaper of the same width.
        latent: numbers in a latent ``z``, which enters where the time does; 0 for none.
        text: a :class:`diffutils.networks.text.TextEncoder`, in place of classes: ``y`` is then tokens ``(B, L)``, and
            wherever there is self-attention pixels ask the words too. ``y=None`` stands for the empty prompt.

    Raises:
        ValueError: for a size that is no power of two from 8 to 256 or that cannot be halved so often, another patch,
            a width that is no multiple of 8, fewer than 1 channels or classes, or classes beside text; from
            ``forward``, for images of another shape, labels out of range, or labels for an unconditional network, or
            without the ``z`` that a network with a latent needs.

    Source: chapter 2; Ho et al. (2020), appendix B; Ronneberger et al. (2015).
    """

    def __init__(
        self,
        size: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] | None = None,
        blocks: int = 2,
        attention: int = 8,
        classes: int | None = None,
        dropout: float = 0.0,
        patch: int = 1,
        latent: int = 0,
        text: nn.Module | None = None,
    ):
        super().__init__()
        if size not in (8, 16, 32, 64, 128, 256):
            raise ValueError(f"size: must be a power of two from 8 to 256, got {size}")
        if classes is not None and classes < 1:
            raise ValueError(f"classes: must be at least 1, or None for no labels, got {classes}")
        if classes is not None and text is not None:
            raise ValueError(
                f"classes, text: a network takes labels or words, got {classes} classes and a text encoder"
            )
        if channels < 1:
            raise ValueError(f"channels: must be at least 1, got {channels}")
        if width < 8 or width % 8:
            raise ValueError(f"width: must be a multiple of 8, got {width}")
        if patch not in (1, 2, 4) or size // patch < 4:
            raise ValueError(f"patch: must be 1, 2 or 4 and leave at least 4 x 4 patches of {size} pixels, got {patch}")
        if multipliers is None:
            multipliers = (1, 2) if size == 8 else (1, 2, 2) + (4,) * (size.bit_length() - 6)
        grid = size // patch
        if grid >> (len(multipliers) - 1) < 2:
            raise ValueError(f"multipliers: {tuple(multipliers)} would halve {grid} pixels to fewer than 2")
        self.size, self.channels, self.classes, self.latent = size, channels, classes, latent
        E = 4 * width
        self.time = TimeEmbedding(E)
        self.label = None if classes is None else nn.Embedding(classes + 1, E)
        self.noise = LatentEmbedding(latent, E) if latent else None
        self.text = text
        self.nothing = classes if text is None else 0
        """What stands for no label: one past the last class, or no word."""
        self.enter = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(channels * patch**2, width, 3, padding=1))

        def stage(c_in: int, c_out: int, attend: bool) -> nn.ModuleList:
            layers = [ResBlock(c_in, c_out, E, dropout)] + [Attention(c_out)] * attend
            if attend and text is not None:
                layers.append(CrossAttention(c_out, text.width))
            return nn.ModuleList(layers)

        c, skips = width, [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(c, width * multiplier, grid >> level <= attention))
                skips.append(c := width * multiplier)
            if level < len(multipliers) - 1:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)

        self.middle = stage(c, c, attend=True)
        self.middle_out = ResBlock(c, c, E, dropout)

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage(c + skips.pop(), width * multiplier, grid >> level <= attention))
                c = width * multiplier
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))

        leave = zero(nn.Conv2d(c, channels * patch**2, 3, padding=1))
        self.leave = nn.Sequential(norm(c), nn.SiLU(), leave, nn.PixelShuffle(patch))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to the same, told t, ``(B,)`` int64 in 1..T, and what the network takes of y, ``(B,)``
        labels or ``(B, L)`` tokens, and z, ``(B, latent)``.
        """
        if x_t.shape[1:] != (self.channels, self.size, self.size):
            expected = f"(B, {self.channels}, {self.size}, {self.size})"
            raise ValueError(f"x_t: this network takes {expected}, got {tuple(x_t.shape)}")
        h, skips = self.enter(x_t), []
        embedding = self._embed(t, y)
        words = None if self.text is None else self.text(self._prompt(t, y))
        if (z is None) == bool(self.latent):
            raise ValueError(f"z: this network {f'needs (B, {self.latent})' if self.latent else 'takes none'}")
        if z is not None:
            embedding = embedding + self.noise(z)
        skips.append(h)
        for layer in self.down:
            h = _apply(layer, h, embedding, words)
            skips.append(h)
        h = self.middle_out(_apply(self.middle, h, embedding, words), embedding)
        for layer in self.up:
            if isinstance(layer, nn.ModuleList):
                h = torch.cat([h, skips.pop()], 1)
            h = _apply(layer, h, embedding, words)
        return self.leave(h)

    def _embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        embedding = self.time(t)
        if self.label is None:
            if y is not None and self.text is None:
                raise ValueError("y: this network was built without classes and takes no labels")
            return embedding
        y = torch.full_like(t, self.classes) if y is None else y
        if y.device.type == "cpu" and ((y < 0) | (y > self.classes)).any():
            raise ValueError(f"y: labels must lie in 0..{self.classes} (the last is none), got {y.min()} to {y.max()}")
        return embedding + self.label(y)

    def _prompt(self, t: Tensor, y: Tensor | None) -> Tensor:
        return t.new_zeros(len(t), self.text.length) if y is None else y


def _apply(layer: nn.Module, h: Tensor, embedding: Tensor, words: Tensor | None) -> Tensor:
    """Only residual blocks see the embedding, and cross-attention the words; the layers that change the size see
    neither.
    """
    if not isinstance(layer, nn.ModuleList):
        return layer(h)
    h = layer[0](h, embedding)
    for attention in layer[1:]:
        h = attention(h, words) if isinstance(attention, CrossAttention) else attention(h)
    return h
