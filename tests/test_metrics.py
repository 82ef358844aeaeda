"""Distances between samples against plain loops, quadrature and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

from diffutils.metrics import (
    bits_per_dim,
    density_coverage,
    energy_distance,
    frechet_distance,
    half_sample_error,
    interval,
    kernel_distance,
    precision_recall,
    two_sample_test,
    wasserstein_1d,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def squared_energy_by_loops(x, y) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs of different elements."""

    def mean(a, b, skip):
        return np.mean(
            [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        )

    x, y = (v.reshape(len(v), -1).numpy() for v in (x, y))
    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


@pytest.mark.parametrize(("n", "m", "shape"), [(8, 8, (1,)), (30, 41, (2,)), (7, 5, (1, 3, 3))])
def test_energy_distance_is_that_of_a_plain_loop(n, m, shape):
    x, y = randn(n, *shape), randn(m, *shape, seed=1) * 2 + 1
    exact = math.sqrt(squared_energy_by_loops(x, y))
    assert abs(energy_distance(x, y).item() - exact) < 1e-6
    assert abs(energy_distance(y, x).item() - exact) < 1e-6
    assert abs(energy_distance(x.float(), y.float()).item() - exact) < 1e-3


def test_energy_distance_of_two_gaussians_is_its_closed_form_within_sampling_error():
    p, q = stats.norm(0, 1), stats.norm(0.5, 2)
    exact = 2 * integrate.quad(lambda z: (p.cdf(z) - q.cdf(z)) ** 2, -15, 15)[0]  # in one dimension
    estimates = torch.stack(
        [energy_distance(randn(1000, 1, seed=i), randn(1000, 1, seed=50 + i) * 2 + 0.5) for i in range(8)]
    )
    mean, error = interval(estimates**2)
    assert error < 0.1 * exact and abs(mean - exact) < 4 * error


def test_energy_distance_is_never_negative_and_zero_for_a_sample_with_itself():
    x = randn(20, 2)
    assert energy_distance(x, x) == 0
    assert all(energy_distance(randn(10, 1, seed=i), randn(10, 1, seed=99 + i)) >= 0 for i in range(10))


def test_two_sample_test_is_the_rank_of_the_energy_among_its_permutations():
    x, y = randn(6, 2), randn(9, 2, seed=1) + 0.6
    pool, observed, generator = torch.cat([x, y]), squared_energy_by_loops(x, y), seeded(7)
    in_x, reached = torch.arange(15) < 6, 0
    for _ in range(50):
        chosen = in_x[torch.randperm(15, generator=generator)]
        reached += squared_energy_by_loops(pool[chosen], pool[~chosen]) >= observed
    assert 0 < reached < 50
    assert abs(two_sample_test(x, y, seeded(7), 50) - (1 + reached) / 51) < 1e-12


def test_p_is_uniform_when_both_samples_come_from_one_distribution():
    p = [two_sample_test(randn(15, 2, seed=i), randn(20, 2, seed=500 + i), seeded(i), 39) for i in range(80)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0 < np.mean(np.array(p) <= 0.1) < 0.22


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: 3 * x], ids=["shift", "scale"])
def test_p_is_as_small_as_it_can_be_when_the_distributions_differ(change):
    assert two_sample_test(randn(100, 1), change(randn(80, 1, seed=1)), seeded()) == 1 / 1000
    assert two_sample_test(randn(100, 1), change(randn(80, 1, seed=1)), seeded(), permutations=9) == 1 / 10


def test_p_is_one_when_nothing_can_be_told_apart():
    assert two_sample_test(torch.ones(5, 2), torch.ones(4, 2), seeded()) == 1


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        (torch.zeros(1, 2), torch.zeros(5, 2), r"x: needs at least 2 samples .*\(1, 2\)"),
        (torch.zeros(5, 2), torch.zeros(5), r"y: needs at least 2 samples .*\(5,\)"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "x, y: need equal dimensions, got 2 and 3"),
        (torch.zeros(5, 2), torch.full((5, 2), math.nan), "y: .*not finite"),
        (torch.full((5, 2), math.inf), torch.zeros(5, 2), "x: .*not finite"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(x, y, complaint):
    with pytest.raises(ValueError, match=complaint):
        energy_distance(x, y)
    with pytest.raises(ValueError, match=complaint):
        two_sample_test(x, y, seeded())


def test_wasserstein_is_that_of_scipy():
    x, y = randn(200), randn(200, seed=1).exp()
    exact = stats.wasserstein_distance(x.numpy(), y.numpy())
    assert abs(wasserstein_1d(x, y).item() - exact) < 1e-12
    assert abs(wasserstein_1d(x, x.flip(0) + 0.25).item() - 0.25) < 1e-12


@pytest.mark.parametrize(("x", "y"), [((3,), (4,)), ((3, 1), (3, 1)), ((), ())])
def test_wasserstein_needs_equally_many_numbers(x, y):
    with pytest.raises(ValueError, match="x, y: need equal shapes"):
        wasserstein_1d(torch.zeros(x), torch.zeros(y))


def test_bits_per_dim_of_a_uniform_byte_is_eight():
    assert abs(bits_per_dim(3 * math.log(256), 3) - 8) < 1e-12
    assert (bits_per_dim(torch.tensor([0.0, math.log(2)]), 1) - torch.tensor([0.0, 1.0])).abs().max() < 1e-6
    with pytest.raises(ValueError, match="dims: must be at least 1, got 0"):
        bits_per_dim(1.0, 0)


def test_interval_is_the_mean_and_its_standard_error():
    mean, error = interval(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3 and abs(error - stats.sem([1, 2, 3, 6])) < 1e-6
    with pytest.raises(ValueError, match="values: needs at least 2 measurements, got 1"):
        interval(torch.tensor([1.0]))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Samples are whitened and coloured, so that their mean and covariance are exactly the chosen ones."""

    def exact_sample(mean, root, seed):
        z = randn(50, 3, seed=seed)
        z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T
        return mean + z @ root.T

    m, n = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([0.5, 1.0, 0.0]).double()
    a, b = randn(3, 3, seed=1), randn(3, 3, seed=2)
    x, y = exact_sample(m, a, 3), exact_sample(n, b, 4)
    cross = linalg.sqrtm((a @ a.T @ b @ b.T).numpy()).real.trace()
    exact = (m - n).square().sum() + (a @ a.T).trace() + (b @ b.T).trace() - 2 * cross
    assert abs(frechet_distance(x, y) - exact) < 1e-9 and abs(frechet_distance(y, x) - exact) < 1e-9
    assert frechet_distance(x, x) < 1e-9
    assert abs(frechet_distance(x, x + torch.tensor([3.0, 0, 4.0])) - 25) < 1e-9


def test_frechet_distance_of_equal_distributions_falls_with_the_sample():
    distances = [frechet_distance(randn(n, 8, seed=1), randn(n, 8, seed=2)).item() for n in (100, 1000, 10_000)]
    assert distances[0] > 5 * distances[1] > 25 * distances[2] > 0


def test_frechet_distance_refuses_what_it_cannot_judge():
    good = randn(20, 4)
    for bad, complaint in [
        (randn(4, 4), "y: 4 samples are too few for features of 4"),
        (randn(20, 5), "x, y: need equal dimensions, got 4 and 5"),
        (good.masked_fill(good == good.max(), math.nan), "y: has entries that are not finite"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            frechet_distance(good, bad)


def test_kernel_distance_is_the_sum_over_pairs_and_unbiased():
    x, y = randn(7, 3), randn(5, 3, seed=1) + 0.5

    def k(a, b):
        return (a @ b / 3 + 1).item() ** 3

    within_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    within_y = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(a, b) for a in x for b in y) / 35
    assert abs(kernel_distance(x, y).item() - (within_x + within_y - 2 * across)) < 1e-12
    assert abs(kernel_distance(x, y, size=2) - kernel_distance(x, y)) < 1e-12
    same = torch.stack([kernel_distance(randn(50, 4, seed=2 * i), randn(50, 4, seed=2 * i + 1)) for i in range(200)])
    assert same.mean().abs() < 3 * same.std() / 200**0.5 and (same < 0).any()


def brute_neighbours(x, y, k):
    """Which x lie in which neighbourhoods of y, by definition, one pair at a time."""
    radius = [sorted((a - b).norm().item() for j, b in enumerate(y) if j != i)[k - 1] for i, a in enumerate(y)]
    return torch.tensor([[(a - b).norm().item() <= r for b, r in zip(y, radius, strict=True)] for a in x])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_are_their_definitions(k):
    x, y = 1.5 * randn(30, 2), randn(40, 2, seed=1)
    among_real, among_drawn = brute_neighbours(x, y, k), brute_neighbours(y, x, k)
    precision, recall = precision_recall(x, y, k)
    assert precision == among_real.any(1).double().mean() and recall == among_drawn.any(1).double().mean()
    density, coverage = density_coverage(x, y, k)
    assert abs(density - among_real.sum().item() / (k * 30)) < 1e-12 and coverage == among_real.any(0).double().mean()


def test_precision_sees_bad_samples_recall_and_coverage_see_dropped_modes():
    real = torch.cat([randn(500, 2), randn(500, 2, seed=1) + 20])
    half = randn(1000, 2, seed=2)
    precision, recall = precision_recall(half, real)
    density, coverage = density_coverage(half, real)
    assert precision > 0.9 and recall < 0.55 and density > 0.8 and coverage < 0.55
    noisy = torch.cat([randn(500, 2, seed=3), randn(500, 2, seed=4) + 20, randn(1000, 2, seed=5) * 100])
    precision, recall = precision_recall(noisy[torch.arange(0, 2000, 2)], real)
    assert precision < 0.6 and recall > 0.9
    density, coverage = density_coverage(randn(1000, 2, seed=6) * 100, real)
    assert precision_recall(randn(1000, 2, seed=6) * 100, real)[1] > 0.5 and density < 0.05 and coverage < 0.1


def test_half_samples_give_the_standard_error_of_a_mean_and_of_a_frechet_distance():
    x = randn(400, 3)
    error = half_sample_error(lambda part: part.mean(0), x, seeded(), 2000)
    assert (error / (x.std(0) / 20) - 1).abs().max() < 0.06
    y = randn(4000, 3, seed=1)

    def distance(part):
        return frechet_distance(part + 0.5, y)

    spread = torch.stack([distance(randn(400, 3, seed=10 + i)) for i in range(200)]).std()
    errors = [half_sample_error(distance, randn(400, 3, seed=300 + i), seeded(i)) for i in range(20)]
    assert abs(torch.stack(errors).mean() / spread - 1) < 0.2
    with pytest.raises(ValueError, match="times: must be at least 2"):
        half_sample_error(distance, x, seeded(), 1)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_neighbourhoods_need_neighbours(measure):
    with pytest.raises(ValueError, match="x: 3 samples have no 3-th neighbour"):
        measure(randn(3, 2), randn(9, 2), 3)
    with pytest.raises(ValueError, match="k: must be at least 1, got 0"):
        measure(randn(9, 2), randn(9, 2), 0)
    with pytest.raises(ValueError, match="need equal dimensions"):
        measure(randn(9, 2), randn(9, 3))
