"""Image-to-image and inpainting: the same loop with another start, or with a part put back, where all is known."""

import math

import pytest
import torch

from diffutils import data, process, samplers, schedules

CHAIN = schedules.cosine(100)
STEPS = schedules.subsequence(100, 10)
NORMAL = data.GaussianMixture(*(torch.tensor(of, dtype=torch.float64) for of in ([1.0], [[0.0]], [0.5])))
N = 40_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(mixture: data.GaussianMixture) -> samplers.Kernel:
    """A reverse step without error, however long: a draw of x_0 given x_t, and the posterior given both."""
    return samplers.ddg(process.ideal_drawer(mixture, CHAIN), CHAIN)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_a_redrawn_point_is_from_the_data_and_as_like_the_old_as_the_level_says(strength):
    """For N(0, v) the correlation is a v / (a v + 1 - a), a being alpha_bar at the level."""
    x = NORMAL.sample(N, seeded(1))
    again = samplers.image_to_image(exact(NORMAL), x, STEPS, strength, CHAIN, seeded(2))
    a = CHAIN.alpha_bar[round(100 * strength)].item()
    correlation = torch.corrcoef(torch.cat([x, again], 1).T)[0, 1]
    assert abs(correlation - 0.5 * a / (0.5 * a + 1 - a)) < 0.02  # 4 standard errors at 0
    assert abs(again.var() - 0.5) < 0.015 and abs(again.mean()) < 0.015


def test_without_new_noise_the_correlation_is_the_root_of_that():
    chain, x = schedules.cosine(1000), NORMAL.sample(N, seeded(1))
    kernel = samplers.ddim(process.ideal_denoiser(NORMAL, chain), chain)
    again = samplers.image_to_image(kernel, x, schedules.subsequence(1000, 200), 0.6, chain, seeded(2))
    a = chain.alpha_bar[600].item()
    root = math.sqrt(0.5 * a / (0.5 * a + 1 - a))
    assert abs(torch.corrcoef(torch.cat([x, again], 1).T)[0, 1] - root) < 0.02 and abs(again.var() - 0.5) < 0.02


def test_three_bumps_stay_three_bumps():
    x = data.bumps().sample(N, seeded(1))
    again = samplers.image_to_image(exact(data.bumps()), x, STEPS, 0.5, CHAIN, seeded(2))
    for low, high, share in (-3, -0.6, 0.3), (-0.6, 0.9, 0.5), (0.9, 3, 0.2):
        assert abs(((again > low) & (again < high)).double().mean() - share) < 0.01
    from_elsewhere = samplers.image_to_image(exact(data.bumps()), x * 0 + 1.7, STEPS, 0.5, CHAIN, seeded(2))
    assert ((from_elsewhere > 0.9).double().mean() - 0.2) > 0.1  # it stays near where it came from: no draw of the data


def test_the_walk_starts_at_the_last_step_within_the_strength():
    asked = []

    def kernel(x_t, t, s, generator):
        asked.append(t)
        return x_t

    samplers.image_to_image(kernel, torch.zeros(2, 3), [100, 70, 40, 10, 0], 0.69, CHAIN, seeded())
    assert asked == [40, 10]
    for strength, complaint in (
        (0.0, "must lie in"),
        (1.1, "must lie in"),
        (0.05, "is below the first of the steps, 10"),
    ):
        with pytest.raises(ValueError, match=f"strength: .*{complaint}"):
            samplers.image_to_image(kernel, torch.zeros(1), [100, 10, 0], strength, CHAIN)


KEEP = torch.tensor([True, False])


def test_what_is_kept_is_kept_and_an_independent_rest_is_drawn_exactly():
    mixture = data.GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[0.5, -1.0], [0.5, 1.0]], dtype=torch.float64),
        torch.tensor([0.04, 0.04], dtype=torch.float64),
    )
    x_0 = torch.full((N, 2), 0.6, dtype=torch.float64)
    kernel = samplers.inpaint(exact(mixture), x_0, KEEP, CHAIN)
    x = samplers.sample(kernel, torch.randn(N, 2, generator=seeded(1), dtype=torch.float64), STEPS, seeded(2))
    assert torch.equal(x[:, 0], x_0[:, 0])
    low = x[:, 1] < 0
    assert abs(low.double().mean() - 0.3) < 0.01 and abs(x[~low, 1].var() - 0.04) < 0.002
    with pytest.raises(ValueError, match="again: must be at least 1, got 0"):
        samplers.inpaint(kernel, x_0, KEEP, CHAIN, 0)


CORRELATION = 0.9
COVARIANCE = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)


def reverse_step(a_t: float, a_s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """q(x_s | x_t) of N(0, COVARIANCE): x_s = A x_t + noise of covariance S."""
    one = torch.eye(2, dtype=torch.float64)
    at_s, at_t, share = a_s * COVARIANCE + (1 - a_s) * one, a_t * COVARIANCE + (1 - a_t) * one, a_t / a_s
    A = share**0.5 * at_s @ at_t.inverse()
    return A, at_s - share**0.5 * A @ at_s


def correlated(x_t, t, s, generator):
    A, S = reverse_step(CHAIN.alpha_bar[t].item(), CHAIN.alpha_bar[s].item())
    z = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
    return x_t @ A.T + z @ torch.linalg.cholesky(S + 1e-12 * torch.eye(2, dtype=torch.float64)).T


def predicted(kept: float, again: int) -> tuple[float, float]:
    """Mean and variance of the rest, by the recursion that putting the kept part back amounts to."""
    mean, var, cov = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 0.0
    for t, s in zip(STEPS, STEPS[1:], strict=False):
        a_t, a_s = CHAIN.alpha_bar[t].item(), CHAIN.alpha_bar[s].item()
        A, S = reverse_step(a_t, a_s)
        for turn in range(again):
            if turn:
                mean, var = (a_t / a_s) ** 0.5 * mean, a_t / a_s * var + 1 - a_t / a_s
            mean, var = A @ mean, (A @ torch.diag(var) @ A.T + S).diag()
            mean[0], var[0] = a_s**0.5 * kept, 1 - a_s  # independent of the rest
    assert cov == 0
    return mean[1].item(), var[1].item()


@pytest.mark.parametrize("again", [1, 4])
def test_a_dependent_rest_is_what_the_recursion_says_and_not_the_conditional(again):
    """The truth is N(0.9 k, 0.19). Mean and variance of the chain are linear recursions, whatever the correlation."""
    x_0 = torch.full((N, 2), 1.5, dtype=torch.float64)
    kernel = samplers.inpaint(correlated, x_0, KEEP, CHAIN, again)
    x = samplers.sample(kernel, torch.randn(N, 2, generator=seeded(1), dtype=torch.float64), STEPS, seeded(2))[:, 1]
    mean, var = predicted(1.5, again)
    assert abs(x.mean() - mean) < 0.015 and abs(x.var() - var) < 0.01
    assert abs(mean - CORRELATION * 1.5) > 0.02 or abs(var - (1 - CORRELATION**2)) > 0.02


def test_going_over_each_step_again_brings_the_rest_nearer():
    gaps = [abs(predicted(1.5, again)[0] - CORRELATION * 1.5) for again in (1, 2, 5, 20)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < gaps[0] / 2
