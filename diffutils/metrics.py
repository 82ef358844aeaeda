"""How well: distances between samples, and bits per dimension."""

import math

import torch
from torch import Generator, Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""The energy distance between two samples, ``(n, *D)`` and ``(m, *D)``, in the unit of the data.

    .. math:: \mathcal E^2 = 2\, E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|, \qquad \mathcal E \ge 0,

    zero only for equal distributions. Pairs within a sample exclude an element with itself, so the estimate of
    :math:`\mathcal E^2` is unbiased (and may fall below zero: then 0 is returned). Raises ``ValueError`` for samples
    that are smaller than 2, of unequal dimension or not finite. Source: chapter 1; Székely & Rizzo (2013).
    """
    x, y = _as_samples(x, y)
    return _energy(x, y).clamp(min=0).sqrt()


def _energy(x: Tensor, y: Tensor) -> Tensor:
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return 2 * torch.cdist(x, y).mean() - within


def _as_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, value in ("x", x), ("y", y):
        if value.ndim < 2 or len(value) < 2:
            raise ValueError(f"{name}: needs at least 2 samples of shape (n, *D), got shape {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name}: has entries that are not finite")
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x, y: need equal dimensions, got {x.shape[1]} and {y.shape[1]}")
    return x, y.to(x)


def two_sample_test(x: Tensor, y: Tensor, generator: Generator, permutations: int = 999) -> float:
    r"""The p-value of "x and y come from one distribution", by a permutation test of the energy distance.

    The labels of the pooled sample are shuffled ``permutations`` times;
    :math:`p = (1 + \#\{\mathcal E^2_\pi \ge \mathcal E^2\}) / (1 + \text{permutations})`. Under the hypothesis p is
    uniform. Raises as :func:`energy_distance` does. Source: chapter 1; Székely & Rizzo (2013).
    """
    x, y = _as_samples(x, y)
    n, m = len(x), len(y)
    distance = torch.cdist(pool := torch.cat([x, y]), pool)

    # Each column of in_x marks with 1 the points that count as x: first as observed, then shuffled.
    in_x = torch.cat([x.new_ones(n), x.new_zeros(m)])
    shuffled = [in_x[torch.randperm(n + m, generator=generator)] for _ in range(permutations)]
    in_x = torch.stack([in_x, *shuffled], 1)
    to_x = distance @ in_x  # sum of the distances from each point to the points of x
    to_y = distance.sum(1, keepdim=True) - to_x
    energy = 2 * (to_x * (1 - in_x)).sum(0) / (n * m)
    energy -= (to_x * in_x).sum(0) / (n * (n - 1)) + (to_y * (1 - in_x)).sum(0) / (m * (m - 1))
    return (1 + (energy[1:] >= energy[0]).sum().item()) / (1 + permutations)


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    r"""The 1-Wasserstein distance between equally many numbers, ``(n,)`` and ``(n,)``, in the unit of the data.

    .. math:: W_1 = \frac1n \sum_i |x_{(i)} - y_{(i)}| \quad\text{(both sorted)}.

    Raises ``ValueError`` for unequal shapes. Source: chapter 1.
    """
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x, y: need equal shapes (n,), got {tuple(x.shape)} and {tuple(y.shape)}")
    return (x.sort().values - y.sort().values).abs().mean()


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""The Fréchet distance between the Gaussians fitted to two samples of features, ``(n, D)`` and ``(m, D)``.

    .. math:: d^2 = \|m_x - m_y\|^2 + \operatorname{tr}\bigl(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2}\bigr),

    in float64, in the square of the features' unit (as the literature has it, d squared is called the distance). Two
    samples of one distribution are not at distance 0: compare with that floor, at the same n. Raises ``ValueError``
    for samples of no more than D rows, of unequal dimension or not finite. Source: Heusel et al. (2017), section 4.
    """
    x, y = _as_samples(x, y)
    for name, value in ("x", x), ("y", y):
        if len(value) <= value.shape[1]:
            raise ValueError(f"{name}: {len(value)} samples are too few for features of {value.shape[1]} dimensions")
    x, y = x.double(), y.double()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    # |m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x^1/2 C_y C_x^1/2)^1/2
    distance = (x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return distance.clamp(min=0)


def bits_per_dim(nats: Tensor | float, dims: int) -> Tensor | float:
    r"""A negative log-likelihood or bound of a whole sample, in bits for each of its D = ``dims`` numbers.

    .. math:: \text{bits/dim} = \text{nats} / (D \ln 2)

    Raises ``ValueError`` if ``dims < 1``. Source: chapter 3.
    """
    if dims < 1:
        raise ValueError(f"dims: must be at least 1, got {dims}")
    return nats / (dims * math.log(2))


def interval(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of repeated measurements ``(n,)``, n >= 2. Raises ``ValueError`` for fewer."""
    if len(values) < 2:
        raise ValueError(f"values: needs at least 2 measurements, got {len(values)}")
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
