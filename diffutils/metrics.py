"""How well: distances between samples, their precision and recall, and bits per dimension."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .data import GaussianMixture


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


def kernel_distance(x: Tensor, y: Tensor, size: int = 2000) -> Tensor:
    r"""The kernel distance (known as KID) of two samples of features, ``(n, D)`` and ``(m, D)``: the squared maximum
    mean discrepancy in a cubic kernel,

    .. math:: E\,k(X, X') + E\,k(Y, Y') - 2\,E\,k(X, Y), \qquad k(a, b) = \Bigl(\frac{a \cdot b}{D} + 1\Bigr)^3.

    Pairs within a sample exclude an element with itself, so it is unbiased at every n: its floor is 0, and it may fall
    below. In float64, ``size`` rows at a time. Raises ``ValueError`` for samples of fewer than 2 rows, of unequal
    dimension or not finite. Source: Bińkowski et al. (2018), section 3.
    """
    x, y = (features.double() for features in _as_samples(x, y))

    def total(a: Tensor, b: Tensor) -> Tensor:
        products = (part @ b.T / b.shape[1] + 1 for part in a.split(size))
        return sum((k * k * k).sum() for k in products)

    def itself(a: Tensor) -> Tensor:
        return ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum()

    n, m = len(x), len(y)
    within = (total(x, x) - itself(x)) / (n * (n - 1)) + (total(y, y) - itself(y)) / (m * (m - 1))
    return within - 2 * total(x, y) / (n * m)


def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    r"""Precision: the share of the samples x, ``(n, D)``, that lie among the real y, ``(m, D)``. Recall: the share of y
    that lies among x.

    .. math:: \text{precision} = \frac1n \sum_{i} 1\bigl[\exists j: \|x_i - y_j\| \le r_k(y_j)\bigr], \qquad
        \text{recall} = \frac1m \sum_{j} 1\bigl[\exists i: \|x_i - y_j\| \le r_k(x_i)\bigr],

    where :math:`r_k` is the distance of a point to its k-th neighbour in its own sample. Give samples of equal size:
    both depend on n. Raises ``ValueError`` as :func:`energy_distance` does, and for samples of no more than k rows.
    Source: Kynkäänniemi et al. (2019), equations 1 and 2.
    """
    x, y = _with_neighbours(x, y, k)
    distance = torch.cdist(x, y)
    precision = (distance <= _radius(y, k)).any(1).double().mean()
    return precision, (distance <= _radius(x, k)[:, None]).any(0).double().mean()


def density_coverage(x: Tensor, y: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    r"""Density: how many real neighbourhoods a sample of x, ``(n, D)``, lies in, over k. Coverage: the share of the
    neighbourhoods of y, ``(m, D)``, that hold a sample.

    .. math:: \text{density} = \frac{1}{kn} \sum_{i, j} 1\bigl[\|x_i - y_j\| \le r_k(y_j)\bigr], \qquad
        \text{coverage} = \frac1m \sum_{j} 1\bigl[\exists i: \|x_i - y_j\| \le r_k(y_j)\bigr],

    with :math:`r_k` as in :func:`precision_recall`. Only the neighbourhoods of real points count, so stray samples
    cannot raise either; density may exceed 1. Raises as :func:`precision_recall` does. Source: Naeem et al. (2020),
    equations 3 and 4.
    """
    x, y = _with_neighbours(x, y, k)
    inside = torch.cdist(x, y) <= _radius(y, k)
    return inside.double().sum(1).mean() / k, inside.any(0).double().mean()


def _with_neighbours(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x, y = _as_samples(x, y)
    if k < 1:
        raise ValueError(f"k: must be at least 1, got {k}")
    for name, value in ("x", x), ("y", y):
        if len(value) <= k:
            raise ValueError(f"{name}: {len(value)} samples have no {k}-th neighbour")
    return x.double(), y.double()


def _radius(x: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th neighbour, itself not counted."""
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    return distance.topk(k, largest=False).values[:, -1]


def mode_coverage(x: Tensor, mixture: GaussianMixture, within: float = 4.0, least: float = 0.1) -> dict[str, float]:
    """How a sample ``(n, D)`` lies on a mixture of well separated Gaussians.

    ``good``: the share of points within so many standard deviations of the mean nearest to them; ``found``: components
    with at least ``least`` times their share of good points; ``uneven``: the total variation between the shares of the
    components among good points and their weights, 0 to 1. Raises ``ValueError`` for a batch of mixtures. Source:
    chapter 10.
    """
    if mixture.weight.ndim != 1:
        raise ValueError(f"mixture: needs a single one, got a batch of shape {tuple(mixture.weight.shape[:-1])}")
    distance, nearest = torch.cdist(x.to(mixture.mean), mixture.mean).min(1)
    good = distance < within * mixture.variance.sqrt()[nearest]
    count = nearest[good].bincount(minlength=len(mixture.weight))
    share = count / count.sum().clamp(min=1)
    return {
        "found": int((count >= least * mixture.weight * len(x)).sum()),
        "good": good.double().mean().item(),
        "uneven": (share - mixture.weight).abs().sum().item() / 2,
    }


def half_sample_error(metric: Callable[[Tensor], Tensor], x: Tensor, generator: Generator, times: int = 40) -> Tensor:
    r"""The standard error of ``metric(x)`` that comes from the choice of the samples x, ``(n, *D)``: the standard
    deviation of ``metric`` over ``times`` random halves of x.

    For a mean this is exact: a half drawn without replacement has variance
    :math:`\frac{\sigma^2}{n/2}(1 - \frac12) = \sigma^2 / n`, that of the whole. It is a bootstrap that draws no element
    twice, since doubles would shrink the neighbourhoods of :func:`precision_recall` and raise a Fréchet distance.
    ``metric`` may answer with several numbers. Raises ``ValueError`` if ``times < 2``. Source: Shao & Wu (1989).
    """
    if times < 2:
        raise ValueError(f"times: must be at least 2, got {times}")
    where = generator.device
    halves = (torch.randperm(len(x), generator=generator, device=where)[: len(x) // 2] for _ in range(times))
    return torch.stack([metric(x[half.to(x.device)]) for half in halves]).std(0)


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


def psnr(x: Tensor, y: Tensor) -> Tensor:
    r"""The peak signal-to-noise ratio of pairs of images in [-1, 1], ``(B, C, H, W)`` twice to ``(B,)``, in decibels.

    .. math:: 10 \log_{10} \frac{2^2}{\|x - y\|^2 / D},

    2 being the distance from black to white. Twice the error is 6 dB less. Raises ``ValueError`` for unequal shapes.
    Source: chapter 11.
    """
    if x.shape != y.shape:
        raise ValueError(f"x, y: need equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1).clamp(min=1e-12))


def sharpness(x: Tensor) -> Tensor:
    r"""The mean squared difference of neighbouring pixels, ``(B, C, H, W)`` to ``(B,)``.

    An edge of height h that is spread over w pixels counts :math:`h^2 / w` instead of :math:`h^2`: blurring lowers it,
    noise raises it. To be compared with that of the real images. Source: chapter 11.
    """
    return x.diff(dim=-1).square().flatten(1).mean(1) + x.diff(dim=-2).square().flatten(1).mean(1)
