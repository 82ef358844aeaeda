"""What is to be modelled: densities known in closed form, toy point sets, and images in [-1, 1]."""

import gzip
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    r"""A mixture of isotropic Gaussians, whose forward and reverse diffusion are known exactly.

    .. math:: q(x) = \sum_{k=1}^K w_k\, \mathcal N(x;\, m_k,\, v_k I).

    A component with :math:`v_k = 0` is a point, so a finite data set is a mixture too (:meth:`of_points`).

    Args:
        weight: ``(..., K)``, non-negative, summing to 1.
        mean: ``(..., K, D)``.
        variance: ``(..., K)``, not negative. Leading dimensions make a batch of mixtures.

    Raises:
        ValueError: if the shapes disagree, a variance is negative, or the weights are no probabilities.

    Source: chapters 1 and 2.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def __post_init__(self):
        shapes = tuple(self.weight.shape), tuple(self.mean.shape), tuple(self.variance.shape)
        if self.mean.ndim < 2 or shapes[0] != shapes[1][:-1] or shapes[2] != shapes[0]:
            raise ValueError(f"weight, mean, variance: need shapes (..., K), (..., K, D), (..., K), got {shapes}")
        if (self.weight < 0).any() or not torch.allclose(self.weight.sum(-1), torch.ones_like(self.weight[..., 0])):
            raise ValueError(f"weight: must be non-negative and sum to 1, got sums from {self.weight.sum(-1).min():g}")
        if (self.variance < 0).any():
            raise ValueError(f"variance: must not be negative, got {self.variance.min():g}")

    @classmethod
    def of_points(cls, x_0: Tensor) -> "GaussianMixture":
        """The empirical distribution of the rows of ``x_0``, ``(N, *D)``: N points of weight 1/N."""
        mean = x_0.flatten(1)
        zero = mean.new_zeros(len(mean))
        return cls(zero + 1 / len(mean), mean, zero)

    def to(self, target: torch.dtype | torch.device | str) -> "GaussianMixture":
        """The same mixture in another dtype or on another device; the toy mixtures of this file are float64."""
        return GaussianMixture(self.weight.to(target), self.mean.to(target), self.variance.to(target))

    @property
    def dims(self) -> int:
        """D, the dimension of the space."""
        return self.mean.shape[-1]

    def log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log q(x)` in nats; ``(..., D)`` to ``(...)``. Raises ``ValueError`` if a component is a point."""
        self._check_density()
        return torch.logsumexp(self._log_joint(x), -1)

    def _check_density(self) -> None:
        if (self.variance == 0).any():
            raise ValueError("variance: a mixture with point components has no density; diffuse it first")

    def _log_joint(self, x: Tensor) -> Tensor:
        """log w_k + log N(x; m_k, v_k I), ``(..., K)``, for all components at once."""
        log_z = 0.5 * self.dims * torch.log(2 * math.pi * self.variance)
        return self.weight.log() - _sq_dist(x, self.mean) / (2 * self.variance) - log_z

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """``n`` draws, ``(n, D)``. For a batch of mixtures, one draw of each, and ``n`` must be the batch's size."""
        weight, mean, variance = self.weight, self.mean, self.variance
        if weight.ndim == 1:
            weight, mean, variance = weight.expand(n, -1), mean.expand(n, -1, -1), variance.expand(n, -1)
        if len(weight) != n:
            raise ValueError(f"n: must be {len(weight)}, the number of mixtures in the batch, got {n}")
        k = torch.multinomial(weight, 1, generator=generator)
        z = torch.randn(n, self.dims, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean.gather(1, k[..., None].expand(-1, 1, self.dims))[:, 0] + variance.gather(1, k).sqrt() * z

    def score(self, x: Tensor) -> Tensor:
        r""":math:`\nabla_x \log q(x) = \sum_k p(k \mid x)\, (m_k - x) / v_k`; ``(..., D)`` to ``(..., D)``. Raises
        ``ValueError`` if a component is a point.
        """
        self._check_density()
        p = self._log_joint(x).softmax(-1) / self.variance
        return (p[..., None, :] @ self.mean)[..., 0, :] - p.sum(-1, keepdim=True) * x

    def diffuse(self, alpha_bar: float) -> "GaussianMixture":
        r"""The distribution of :math:`x_t`, again a mixture.

        .. math::
            q(x_t) = \sum_k w_k\, \mathcal N(\sqrt{\bar\alpha_t}\, m_k,\; (\bar\alpha_t v_k + 1 - \bar\alpha_t) I).

        Source: chapter 1.
        """
        return GaussianMixture(self.weight, math.sqrt(alpha_bar) * self.mean, alpha_bar * self.variance + 1 - alpha_bar)

    def reverse(self, x_t: Tensor, alpha_bar_t: float, alpha_bar_s: float = 1.0) -> "GaussianMixture":
        r"""The exact reverse step :math:`q(x_s \mid x_t)`, s < t, by Bayes' rule: a mixture of K components again.

        With :math:`a = \bar\alpha_t / \bar\alpha_s` and :math:`M_k, V_k` the mean and variance of component k of
        :math:`q(x_s)`,

        .. math::
            q(x_s \mid x_t) = \sum_k w_k'\, \mathcal N\Bigl(\frac{(1 - a) M_k + \sqrt a\, V_k x_t}{a V_k + 1 - a},\;
            \frac{(1 - a) V_k}{a V_k + 1 - a} I\Bigr), \quad
            w_k' \propto w_k\, \mathcal N(x_t;\, \sqrt a M_k,\, (a V_k + 1 - a) I).

        ``x_t`` is ``(..., D)``; the result is a batch of that leading shape. Its cost is one pass over all K
        components. Raises ``ValueError`` unless ``0 < alpha_bar_t < alpha_bar_s <= 1``. Source: chapter 2.
        """
        if not 0 < alpha_bar_t < alpha_bar_s <= 1:
            raise ValueError(f"alpha_bar: needs 0 < alpha_bar_t < alpha_bar_s <= 1, got {alpha_bar_t}, {alpha_bar_s}")
        at_s, a = self.diffuse(alpha_bar_s), alpha_bar_t / alpha_bar_s  # x_s to x_t is a diffusion again, by a
        spread = a * at_s.variance + 1 - a
        weight = at_s.diffuse(a)._log_joint(x_t).softmax(-1)
        pull = (math.sqrt(a) * at_s.variance / spread)[..., None] * x_t[..., None, :]
        mean = ((1 - a) / spread)[..., None] * at_s.mean + pull
        return GaussianMixture(weight, mean, ((1 - a) * at_s.variance / spread).expand(weight.shape))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(..., D)`` and covariance ``(..., D, D)`` of the mixture: the best Gaussian's parameters."""
        mean = (self.weight[..., None, :] @ self.mean)[..., 0, :]
        centred = self.mean - mean[..., None, :]
        between = (self.weight[..., None] * centred).transpose(-1, -2) @ centred
        within = (self.weight * self.variance).sum(-1)[..., None, None] * torch.eye(self.dims).to(between)
        return mean, within + between

    def posterior_mean(self, x_t: Tensor, alpha_bar_t: float) -> Tensor:
        r""":math:`E[x_0 \mid x_t]`, ``(..., D)`` to ``(..., D)``: the mean of ``reverse(x_t, alpha_bar_t, 1.0)`` at
        the cost of two matrix products.

        Source: chapter 2 (Tweedie's formula: Efron, 2011).
        """
        at_t = self.diffuse(alpha_bar_t)
        p = at_t._log_joint(x_t).softmax(-1)
        gain = math.sqrt(alpha_bar_t) * self.variance / at_t.variance
        # E[x_0 | x_t] = sum_k p_k (m_k + gain_k (x_t - sqrt(alpha_bar_t) m_k))
        means = ((p * (1 - math.sqrt(alpha_bar_t) * gain))[..., None, :] @ self.mean)[..., 0, :]
        return means + (p * gain).sum(-1, keepdim=True) * x_t


def _sq_dist(x: Tensor, mean: Tensor) -> Tensor:
    """|x - m_k|^2, ``(..., D)`` and ``(..., K, D)`` to ``(..., K)``."""
    if mean.ndim == 2:  # cdist's faster mode, by matrix product, loses the digits that small variances need
        rows = x.reshape(-1, x.shape[-1])
        distance = torch.cdist(rows, mean, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square().reshape(*x.shape[:-1], len(mean))
    return (x[..., None, :] - mean).square().sum(-1)


def bumps() -> GaussianMixture:
    """The book's one-dimensional example: three bumps of unequal weight and width, mean 0, variance close to 1."""
    return GaussianMixture(
        torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
        torch.tensor([[-1.3], [0.1], [1.7]], dtype=torch.float64),
        torch.tensor([0.2, 0.15, 0.1], dtype=torch.float64) ** 2,
    )


def twenty_five_gaussians(spacing: float = 0.7, std: float = 0.02) -> GaussianMixture:
    """25 narrow Gaussians on a 5 x 5 grid, of variance close to 1: the usual test of whether a model drops modes."""
    line = spacing * torch.arange(-2, 3, dtype=torch.float64)
    return GaussianMixture(
        torch.full((25,), 1 / 25, dtype=torch.float64),
        torch.cartesian_prod(line, line),
        torch.full((25,), std**2, dtype=torch.float64),
    )


def swiss_roll(n: int, generator: Generator | None = None, noise: float = 0.02) -> Tensor:
    """``n`` points ``(n, 2)`` of a noisy spiral of one and a half turns, of variance close to 1."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    spiral = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 6.6
    return spiral + noise * torch.randn(n, 2, generator=generator)


class Images(NamedTuple):
    """A labelled image set."""

    x: Tensor
    """Images ``(N, C, H, W)``, float32 in [-1, 1]."""
    y: Tensor
    """Class of each image ``(N,)``, int64."""


def tensors(x: Tensor, y: Tensor | None = None) -> Images:
    """Your own images as tensors: ``x`` is ``(N, C, H, H)`` in [-1, 1], ``y`` the classes (all 0 if there are none).

    Every image set of this file goes through here. Raises ``ValueError`` if ``x`` is no batch of square images with
    values in [-1, 1], or if ``y`` has not one class an image.
    """
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(f"x: needs a batch of square images (N, C, H, H), got shape {tuple(x.shape)}")
    if not ((x >= -1) & (x <= 1)).all():
        raise ValueError(f"x: images must lie in [-1, 1], got values from {x.min():g} to {x.max():g}")
    y = torch.zeros(len(x)) if y is None else y
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: needs one class for each of the {len(x)} images, got shape {tuple(y.shape)}")
    return Images(x.float(), y.long())


def images(name: str = "digits", train: bool = True, root: str | Path | None = None) -> Images:
    """The image set called ``name``: ``digits`` (needs no download), ``mnist``, ``fashion``, ``cifar10``.

    ``digits`` are the 1,797 grey 8 x 8 digits that come with scikit-learn: 1,437 to train on, 360 to test on, split
    with a fixed seed. The other sets are looked for in ``root`` (default: the environment variable
    ``DIFFUTILS_DATA``, else the folder ``data``) and downloaded there once; MNIST and Fashion-MNIST are padded from
    28 to 32 pixels.

    Raises:
        ValueError: if there is no set of that name, or its file is damaged.
        FileNotFoundError: if the set is neither in ``root`` nor to be downloaded.
    """
    sets = {"digits": _digits, "mnist": _mnist, "fashion": _mnist, "cifar10": _cifar10}
    if name not in sets:
        raise ValueError(f"name: must be one of {', '.join(sets)} (or use data.folder), got {name!r}")
    if name == "digits":
        return _digits(train)
    root = Path(root or os.environ.get("DIFFUTILS_DATA") or "data").expanduser()
    try:
        return sets[name](root, train, name)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name}: not found in {root.resolve()} and not to be downloaded ({error}). Connect to a network once, or "
            f"put torchvision's files there, or set DIFFUTILS_DATA to the folder that holds them."
        ) from error


def _digits(train: bool) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    order = torch.randperm(len(x), generator=Generator().manual_seed(0))
    keep = order[:1437] if train else order[1437:]
    return tensors(x[keep], torch.from_numpy(digits.target)[keep])


def _mnist(root: Path, train: bool, name: str) -> Images:
    from torchvision import datasets

    dataset = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[name]
    raw = root / dataset.__name__ / "raw"
    stem = "train" if train else "t10k"
    paths = [_either(raw / f"{stem}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")]
    if None in paths:
        dataset(root, train, download=True)
        paths = [raw / f"{stem}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    x, y = (torch.from_numpy(_read_idx(path)) for path in paths)
    return tensors(F.pad(x[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0), y)


def _either(path: Path) -> Path | None:
    """The file itself or its compressed copy, whichever is there."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.exists()), None)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: a magic number whose last byte is the rank, the shape in big-endian int32, the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rank = content[3]
        shape = struct.unpack(f">{rank}i", content[4 : 4 + 4 * rank])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (EOFError, IndexError, ValueError, gzip.BadGzipFile, struct.error) as error:
        raise ValueError(f"{path}: not a whole IDX file of bytes ({error}); delete it and fetch it again") from error


def _cifar10(root: Path, train: bool, name: str) -> Images:
    from torchvision import datasets

    dataset = datasets.CIFAR10(root, train, download=True)
    x = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensors(x, torch.tensor(dataset.targets))


def folder(path: str | Path, size: int, channels: int = 3) -> Images:
    """Your own images: one sub-folder a class, each image resized and cropped at the centre to ``size`` x ``size``.

    Raises ``FileNotFoundError`` if ``path`` has no such sub-folders or no readable image, ``ValueError`` if
    ``channels`` is not 1 or 3 or ``size < 1``.
    """
    from torchvision import datasets, transforms

    if channels not in (1, 3):
        raise ValueError(f"channels: must be 1 or 3, got {channels}")
    if size < 1:
        raise ValueError(f"size: must be at least 1, got {size}")
    prepare = transforms.Compose(
        [
            transforms.Grayscale(channels) if channels == 1 else transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
    )
    try:
        x, y = zip(*datasets.ImageFolder(str(path), prepare), strict=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"path: needs a folder with one sub-folder of images per class, got {path} ({error})"
        ) from error
    return tensors(torch.stack(x) * 2 - 1, torch.tensor(y))
