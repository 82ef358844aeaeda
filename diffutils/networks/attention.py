"""The one product that every attention of the book takes."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 256
"""Tokens up to which attention in bfloat16 is written out on the CPU."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""What each query hears: values ``(..., M, d)`` averaged by how well their keys ``(..., M, d)`` answer the queries
    ``(..., L, d)``; ``(..., L, d)``.

    .. math:: \operatorname{softmax}\Bigl(\frac{q k^\top}{\sqrt d}\Bigr) v

    PyTorch's fused kernel computes it without storing the weights, which pays where tokens are many. On a CPU its
    backward pass in bfloat16 is several times slower than the formula written out (seen with PyTorch 2.15), so that is
    what is done there up to :data:`FEW` tokens. Source: chapter 2; Vaswani et al. (2017), equation 1.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and max(q.shape[-2], k.shape[-2]) <= FEW:
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
