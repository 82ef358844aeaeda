"""The reverse process against the diffusers library, and against the data it should return."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffutils.data import bumps
from diffutils.metrics import two_sample_test
from diffutils.process import convert, ideal_denoiser, q_posterior, q_sample
from diffutils.samplers import ddim, ddpm, dpm_solver, heun, interpolate, invert, reverse, sample
from diffutils.schedules import cosine, few_step, linear, subsequence

SCHEDULES = {
    "linear 1": linear(1),
    "linear 4": linear(4, 0.1, 0.7),
    "linear 1000": linear(1000),
    "cosine 20": cosine(20),
    "cosine 250": cosine(250),
    "few-step 4": few_step(4),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
VARIANCES = {"beta_tilde": "fixed_small", "beta": "fixed_large"}
every_variance = pytest.mark.parametrize("variance", VARIANCES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def noise_of(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A made-up prediction of the noise, one of its own for every time."""
    return 0.8 * torch.sin(2 * x_t) + 0.1 * torch.cos(t.double()).reshape(-1, *[1] * (x_t.ndim - 1))


def denoiser_of(schedule):
    return lambda x_t, t: convert(noise_of(x_t, t), x_t, t, schedule, "eps", "x_0")


def their(schedule, variance: str = "beta_tilde", **changes):
    """The library's scheduler with these betas, its float32 table redone in float64. Its timestep is our t - 1."""
    diffusers = pytest.importorskip("diffusers")
    betas = schedule.beta[1:].numpy()
    settings = {"trained_betas": betas, "variance_type": VARIANCES[variance], "clip_sample": False}
    scheduler = diffusers.DDPMScheduler(len(betas), **settings | changes)
    assert np.abs(scheduler.alphas_cumprod.numpy() - np.cumprod(1 - betas)).max() < 1e-6
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    return scheduler


def test_our_schedules_are_the_librarys():
    diffusers = pytest.importorskip("diffusers")
    for ours, name in (linear(1000), "linear"), (cosine(1000), "squaredcos_cap_v2"):
        theirs = diffusers.DDPMScheduler(1000, beta_schedule=name)
        assert (ours.beta[1:] - theirs.betas).abs().max() < 1e-6
        assert (ours.alpha_bar[1:] - theirs.alphas_cumprod).abs().max() < 1e-5


@every_schedule
def test_q_sample_is_the_librarys_add_noise(schedule):
    t = torch.tensor([1, (schedule.T + 1) // 2, schedule.T])
    x_0, eps = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    theirs = their(schedule).add_noise(x_0, eps, t - 1)
    assert (q_sample(x_0, t, eps, schedule) - theirs).abs().max() < 1e-12


@every_schedule
def test_q_posterior_has_the_librarys_mean_and_variance(schedule):
    scheduler = their(schedule, prediction_type="sample")
    x_t, x_0 = randn(3, 2), randn(3, 2, seed=1)
    for t in {1, 2, schedule.T // 2, schedule.T} & set(range(1, schedule.T + 1)):
        mean, variance = q_posterior(x_t, x_0, t, schedule)
        noise = variance.sqrt() * torch.randn(3, 2, generator=seeded(5), dtype=torch.float64)
        theirs = scheduler.step(x_0, t - 1, x_t, generator=seeded(5)).prev_sample
        assert (mean + noise - theirs).abs().max() < 1e-10
        assert abs(variance.item() - scheduler._get_variance(t - 1).item()) < 1e-12  # theirs is at least 1e-20


@every_schedule
@every_variance
def test_ddpm_takes_the_librarys_step_at_every_t_the_last_included(schedule, variance):
    scheduler, kernel = their(schedule, variance), ddpm(denoiser_of(schedule), schedule, variance)
    x_t, ours, theirs = randn(4, 3), seeded(1), seeded(1)
    for t in range(schedule.T, 0, -1):
        eps = noise_of(x_t, torch.full((4,), t))
        expected = scheduler.step(eps, t - 1, x_t, generator=theirs).prev_sample
        x_t = kernel(x_t, t, t - 1, ours)
        # cosine and few-step divide by a tiny sqrt(alpha_bar_T), hence relative to the size of the result
        assert (x_t - expected).abs().max() < 1e-10 * max(1, expected.abs().max()), t


@pytest.mark.parametrize("make", [linear, cosine])
@every_variance
def test_ddpm_in_skipping_steps_is_the_librarys_until_the_last(make, variance):
    schedule, steps = make(100), subsequence(100, 7)
    scheduler, kernel = their(schedule, variance), ddpm(denoiser_of(schedule), schedule, variance)
    scheduler.set_timesteps(timesteps=[t - 1 for t in steps[:-1]])
    x_t, ours, theirs = randn(4, 3), seeded(1), seeded(1)
    for t, s in zip(steps, steps[1:], strict=False):
        expected = scheduler.step(noise_of(x_t, torch.full((4,), t)), t - 1, x_t, generator=theirs).prev_sample
        x_t = kernel(x_t, t, s, ours)
        if (
            s > 0 or variance == "beta_tilde"
        ):  # into 0 the library draws noise of variance 1e-20, or else beta: we draw none
            assert (x_t - expected).abs().max() < 1e-9 * max(1, expected.abs().max()), t


def test_in_float32_ddpm_and_the_library_as_it_comes_end_in_the_same_place():
    diffusers = pytest.importorskip("diffusers")
    schedule, scheduler = linear(1000), diffusers.DDPMScheduler(clip_sample=False)
    theirs = start = randn(4, 3).float()
    generator = seeded(1)
    for t in range(1000, 0, -1):
        eps = noise_of(theirs, torch.full((4,), t)).float()
        theirs = scheduler.step(eps, t - 1, theirs, generator=generator).prev_sample
    denoise = denoiser_of(schedule)
    ours = sample(ddpm(lambda x_t, t: denoise(x_t, t).float(), schedule), start, subsequence(1000, 1000), seeded(1))
    assert ours.dtype == torch.float32 and (ours - theirs).abs().max() < 1e-2 * theirs.abs().max()


@every_variance
@pytest.mark.parametrize("t", [1, 2, 10])
def test_no_noise_is_added_into_step_0(variance, t):
    schedule, x_t = linear(10), randn(4, 3)
    denoise = denoiser_of(schedule)
    kernel = ddpm(denoise, schedule, variance)
    ends = [kernel(x_t, t, 0, generator) for generator in (seeded(1), seeded(2), None)]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    assert (ends[0] - denoise(x_t, torch.full((4,), t))).abs().max() < 1e-12


@every_variance
@pytest.mark.parametrize(("t", "s"), [(2, 1), (10, 9), (10, 3)])
def test_other_steps_add_noise_of_the_stated_variance(variance, t, s):
    schedule, x_t = linear(10, 0.05, 0.4), randn(20_000, 1)
    denoise = denoiser_of(schedule)
    mean, beta_tilde = q_posterior(x_t, denoise(x_t, torch.full((20_000,), t)), t, schedule, s)
    noise = ddpm(denoise, schedule, variance)(x_t, t, s, seeded(1)) - mean
    beta = 1 - (1 - schedule.beta[s + 1 : t + 1]).prod()  # several steps at once
    sigma2 = {"beta": beta.item(), "beta_tilde": beta_tilde.item()}[variance]
    assert beta_tilde.item() < 0.95 * beta.item()  # so that the two can be told apart
    assert abs(noise.var().item() / sigma2 - 1) < 0.04 and abs(noise.mean().item()) < 0.04 * sigma2**0.5


def test_the_denoiser_is_told_the_time_it_is_at_one_a_row():
    seen = []

    def denoise(x_t, t):
        seen.append(t)
        return x_t

    sample(ddpm(denoise, linear(10)), randn(3, 2), [10, 4, 1, 0], seeded())
    assert [t.tolist() for t in seen] == [[10] * 3, [4] * 3, [1] * 3] and seen[0].dtype == torch.int64


def test_reverse_walks_the_steps_in_order_and_yields_after_each():
    asked = []

    def kernel(x, t, s, generator):
        asked.append((t, s, generator))
        return x + 1

    generator = seeded()
    walk = reverse(kernel, torch.zeros(2), [9, 5, 1, 0], generator)
    assert [x.tolist() for x in walk] == [[1, 1], [2, 2], [3, 3]]
    assert asked == [(9, 5, generator), (5, 1, generator), (1, 0, generator)]
    assert sample(kernel, torch.zeros(2), [9, 5, 1, 0], generator).tolist() == [3, 3]


@pytest.mark.parametrize("steps", [[], [0], [5], [3, 2, 1], [1, 2, 0], [2, 2, 0], [2, 0, 0], [1, 0, -1], [0, 1, 2]])
@pytest.mark.parametrize("walk", [sample, lambda *arguments: list(reverse(*arguments))])
def test_steps_that_do_not_fall_strictly_to_0_are_refused(steps, walk):
    with pytest.raises(ValueError, match="steps: must fall strictly and end at 0"):
        walk(lambda x, t, s, generator: x, torch.zeros(1), steps)


def test_steps_beyond_the_schedule_are_refused():
    with pytest.raises(ValueError, match=r"t: .*1\.\.T = 1\.\.10, got 11"):
        sample(ddpm(lambda x_t, t: x_t, linear(10)), randn(2, 1), [11, 5, 0], seeded())


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="variance: must be 'beta' or 'beta_tilde', got 'learned'"):
        ddpm(lambda x_t, t: x_t, linear(10), "learned")


def test_samples_are_those_of_the_generator():
    schedule = linear(10)
    kernel, x_T = ddpm(denoiser_of(schedule), schedule), randn(4, 3)
    ends = [sample(kernel, x_T, subsequence(10, 10), seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def p_value_of_samples(schedule, variance: str, n: int = 800) -> float:
    kernel = ddpm(ideal_denoiser(bumps(), schedule), schedule, variance)
    x = sample(kernel, randn(n, 1, seed=3), subsequence(schedule.T, schedule.T), seeded(4))
    return two_sample_test(x, bumps().sample(n, seeded(5)), seeded(6))


@every_variance
@pytest.mark.parametrize("make", [linear, few_step])
def test_the_ideal_denoiser_and_many_steps_give_back_the_data(make, variance):
    assert p_value_of_samples(make(1000 if make is linear else 300), variance) > 0.02


@every_variance
def test_the_ideal_denoiser_and_four_steps_do_not(variance):
    assert p_value_of_samples(few_step(4), variance) == 1 / 1000


def their_ddim(schedule, steps: list[int]):
    """The library's DDIM scheduler with our betas in float64, made to visit our steps."""
    diffusers = pytest.importorskip("diffusers")
    betas = schedule.beta[1:].numpy()
    scheduler = diffusers.DDIMScheduler(len(betas), trained_betas=betas, clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.timesteps = torch.tensor(steps[:-1]) - 1
    return scheduler


@pytest.mark.parametrize("steps", [1000, 50, 7, 1])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_librarys(steps, eta):
    """The library spaces its steps by T // steps, so it is asked for numbers that this division gives exactly."""
    schedule = linear(1000) if steps != 7 else linear(7 * 30)
    times = subsequence(schedule.T, steps)
    scheduler = their_ddim(schedule, times)
    scheduler.num_inference_steps = steps
    theirs = start = randn(4, 3)
    generator = seeded(1)
    for t in times[:-1]:
        eps = noise_of(theirs, torch.full((4,), t))
        noise = torch.randn(theirs.shape, generator=generator, dtype=torch.float64) if eta and t > times[-2] else None
        theirs = scheduler.step(
            eps, t - 1, theirs, eta=eta if noise is not None else 0.0, variance_noise=noise
        ).prev_sample
    ours = sample(ddim(denoiser_of(schedule), schedule, eta), start, times, seeded(1))
    assert (ours - theirs).abs().max() < 1e-9


def test_ddim_with_eta_one_is_ddpm():
    schedule = cosine(40)
    denoise = denoiser_of(schedule)
    for times in (subsequence(40, 40), subsequence(40, 7)):
        one = list(reverse(ddpm(denoise, schedule), randn(5, 2), times, seeded(3)))
        two = list(reverse(ddim(denoise, schedule, 1.0), randn(5, 2), times, seeded(3)))
        assert max((a - b).abs().max() for a, b in zip(one, two, strict=True)) < 1e-10


def test_ddim_with_eta_zero_draws_nothing():
    schedule, generator = linear(20), seeded(0)
    before = generator.get_state()
    sample(ddim(denoiser_of(schedule), schedule), randn(5, 2), subsequence(20, 5), generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_outside_zero_to_one_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta: must lie in .0, 1., got {eta}"):
        ddim(denoiser_of(linear(5)), linear(5), eta)


def test_ddim_with_the_ideal_denoiser_draws_from_the_data():
    schedule, mixture = cosine(500), bumps()
    x_T = torch.randn(3000, 1, generator=seeded(1), dtype=torch.float64)
    for eta in 0.0, 0.5:
        found = sample(ddim(ideal_denoiser(mixture, schedule), schedule, eta), x_T, subsequence(500, 250), seeded(2))
        assert two_sample_test(found, mixture.sample(3000, seeded(3)), seeded(4), 199) > 0.01


def by_jumps(jump, schedule, times):
    """Walks the library's DDIM by jumps that its own division of T by the number of steps would not give."""
    scheduler = their_ddim(schedule, times)
    x = randn(4, 3)
    for t, s in pairwise(times):
        scheduler.num_inference_steps = Fraction(schedule.T, t - s)  # so that T // this is t - s
        x = jump(scheduler, x, t, s)
    return x


@pytest.mark.parametrize(("T", "steps"), [(1000, 7), (1000, 33), (250, 11), (97, 13)])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_ddim_is_the_librarys_where_T_does_not_divide_into_the_steps(T, steps, power, eta):
    schedule, times, generator = linear(T), subsequence(T, steps, power), seeded(1)

    def jump(scheduler, x, t, s):
        eps = noise_of(x, torch.full((4,), t))
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64) if eta and s else torch.zeros_like(x)
        return scheduler.step(eps, t - 1, x, eta=eta, variance_noise=z).prev_sample

    theirs = by_jumps(jump, schedule, times)
    ours = sample(ddim(denoiser_of(schedule), schedule, eta), randn(4, 3), times, seeded(1))
    assert (ours - theirs).abs().max() < 1e-9


class InFloat64:
    """The torch that the library's solver sees: what it rounds to float32 stays in float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def their_solver(schedule, times, monkeypatch):
    module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    betas = schedule.beta[1:].numpy()
    scheduler = module.DPMSolverMultistepScheduler(len(betas), trained_betas=betas, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    sigmas = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()[times]
    assert (scheduler.sigmas / sigmas)[:-1].sub(1).abs().max() < 1e-2 and scheduler.sigmas[-1] == sigmas[-1] == 0
    scheduler.sigmas = sigmas
    monkeypatch.setattr(module, "torch", InFloat64())
    return scheduler


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize(("T", "steps"), [(1000, 50), (1000, 33), (1000, 7), (97, 13), (97, 97), (10, 2), (10, 1)])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_dpm_solver_is_the_librarys(make, T, steps, power, monkeypatch):
    schedule, times = make(T), subsequence(T, steps, power)
    scheduler = their_solver(schedule, times, monkeypatch)
    theirs = start = randn(4, 3)
    x_0_of = lambda x_t, t: torch.tanh(denoiser_of(linear(T))(x_t, t))  # noqa: E731
    ours = reverse(dpm_solver(x_0_of, schedule), start, times)
    scheduler.register_to_config(prediction_type="sample")
    for t, x in zip(times[:-1], ours, strict=True):
        theirs = scheduler.step(x_0_of(theirs, torch.full((4,), t)), t - 1, theirs).prev_sample
        assert theirs.dtype == torch.float64 and (x - theirs).abs().max() < 1e-9, t


def test_dpm_solver_forgets_its_last_step_when_the_walk_does_not_go_on_from_there():
    schedule, times, denoise = linear(100), subsequence(100, 9), denoiser_of(linear(100))
    kernel, fresh = dpm_solver(denoise, schedule), dpm_solver(denoise, schedule)
    first, second = randn(4, 3), randn(4, 3, seed=1)
    alone = sample(fresh, first, times)
    walk = reverse(kernel, second, times)
    next(walk), next(walk)  # left in the middle
    assert torch.equal(sample(kernel, first, times), alone)
    assert torch.equal(sample(kernel, first, times), alone)
    one = ddim(denoise, schedule)
    x = kernel(first, 100, 80, None)
    assert (kernel(x.clone(), 80, 60, None) - one(x, 80, 60, None)).abs().max() < 1e-12  # another x
    x = kernel(first, 100, 80, None)
    assert (kernel(x, 79, 60, None) - one(x, 79, 60, None)).abs().max() < 1e-12  # another level
    x = kernel(first, 100, 80, None)
    assert (kernel(x, 80, 60, None) - one(x, 80, 60, None)).abs().max() > 1e-3  # goes on


@pytest.mark.parametrize("make", [dpm_solver, heun])
def test_a_single_step_and_the_one_into_0_are_those_of_ddim(make):
    schedule, x = linear(100), randn(4, 3)
    denoise = denoiser_of(schedule)
    for t in (100, 17, 1):
        expected = ddim(denoise, schedule)(x, t, 0, None)
        assert (make(denoise, schedule)(x, t, 0, None) - expected).abs().max() < 1e-12
        assert (expected - denoise(x, torch.full((4,), t))).abs().max() < 1e-12


def test_heun_is_dpm_solver_2s_as_published():
    """Lu et al. (2022), algorithm 1, with r = 1, where its intermediate point is the step's own end."""
    schedule, x = few_step(100), randn(50, 1)
    denoise, r = ideal_denoiser(bumps(), schedule), 1
    kernel = heun(denoise, schedule)
    alpha, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    for t, s in pairwise([100, 80, 60, 35, 20, 7, 1]):
        h = torch.log(alpha[s] / sigma[s]) - torch.log(alpha[t] / sigma[t])
        x_0 = denoise(x, torch.full((50,), t))
        u = sigma[s] / sigma[t] * x - alpha[s] * torch.expm1(-r * h) * x_0
        D = (1 - 1 / (2 * r)) * x_0 + 1 / (2 * r) * denoise(u, torch.full((50,), s))
        expected = sigma[s] / sigma[t] * x - alpha[s] * torch.expm1(-h) * D
        x = kernel(x, t, s, None)
        assert (x - expected).abs().max() < 1e-12


def test_the_solvers_ask_once_and_twice_a_step():
    asked = []

    def denoise(x_t, t):
        asked.append(int(t[0]))
        return x_t / 2

    sample(dpm_solver(denoise, linear(10)), randn(3, 2), [10, 4, 1, 0])
    assert asked == [10, 4, 1]
    asked.clear()
    sample(heun(denoise, linear(10)), randn(3, 2), [10, 4, 1, 0])
    assert asked == [10, 4, 4, 1, 1]


def carried(n: int, T: int):
    """Quantiles of q(x_T) on the bumps, and where the flow of equal probability carries them: quantiles of the data."""
    mixture, schedule = bumps(), few_step(T)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def quantiles(of):
        low, high = torch.full_like(u, -9.0), torch.full_like(u, 9.0)
        for _ in range(60):
            x = (low + high) / 2
            below = (of.weight * torch.special.ndtr((x[:, None] - of.mean[:, 0]) / of.variance.sqrt())).sum(1) < u
            low, high = torch.where(below, x, low), torch.where(below, high, x)
        return low[:, None]

    start = quantiles(mixture.diffuse(schedule.alpha_bar[T].item()))
    return ideal_denoiser(mixture, schedule), schedule, start, quantiles(mixture)


@pytest.mark.parametrize(("make", "order"), [(ddim, 1), (dpm_solver, 2), (heun, 2)])
def test_the_error_of_a_solver_falls_with_the_power_of_its_order(make, order):
    """In one dimension the exact solution is known: quantiles go to quantiles."""
    denoise, schedule, x_T, x_0 = carried(200, 8000)
    errors = [
        (sample(make(denoise, schedule), x_T, subsequence(8000, n, 3.0)) - x_0).abs().mean().item() for n in (40, 160)
    ]
    slope = np.log(errors[0] / errors[1]) / np.log(4)
    assert abs(slope - order) < 0.25, errors


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_with_the_true_x_0_every_eta_has_the_marginals_of_q_sample(eta):
    """From x_t ~ q(x_t | x_0) the kernel leads to q(x_s | x_0), mean and variance, over jumps of any length."""
    schedule, n = linear(1000), 200_000
    x_0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    generator, times = seeded(1), [1000, 700, 300, 299, 50, 0]
    walk = reverse(
        ddim(lambda x_t, t: x_0, schedule, eta), q_sample(x_0, 1000, randn(n, 1), schedule), times, generator
    )
    for s, x in zip(times[1:], walk, strict=True):
        alpha_bar = schedule.alpha_bar[s].item()
        assert abs(x.mean().item() - alpha_bar**0.5 * 0.7) < 0.01 * (1 - alpha_bar) ** 0.5 + 1e-12, s
        assert abs(x.var().item() - (1 - alpha_bar)) < 0.012 * (1 - alpha_bar) + 1e-12, s


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_the_ideal_denoiser_every_eta_has_the_marginals_of_q_sample(eta):
    schedule, mixture, n = cosine(500), bumps(), 2000
    times = subsequence(500, 250)
    kernel = ddim(ideal_denoiser(mixture, schedule), schedule, eta)
    for s, x in zip(times[1:], reverse(kernel, randn(n, 1, seed=1), times, seeded(2)), strict=True):
        if s in (300, 100, 20):
            noisy = q_sample(mixture.sample(n, seeded(3)), s, randn(n, 1, seed=4), schedule)
            assert two_sample_test(x, noisy, seeded(5), 199) > 0.01, s


def test_the_larger_variance_does_not_have_them():
    """sigma-hat: the mean of eta = 1 with the noise of the forward jump."""
    schedule, n = linear(1000), 50_000
    x_0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    x_t = q_sample(x_0, 1000, randn(n, 1), schedule)
    var = ddpm(lambda x_t, t: x_0, schedule, "beta")(x_t, 1000, 500, seeded(1)).var().item()
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[1000].item(), schedule.alpha_bar[500].item()
    beta = 1 - alpha_bar_t / alpha_bar_s
    extra = beta * (alpha_bar_s - alpha_bar_t) / (1 - alpha_bar_t)  # beta - beta_tilde
    assert extra > 0.05 and abs(var - (1 - alpha_bar_s) - extra) < 0.02


@pytest.mark.parametrize("make", [ddim, dpm_solver, heun])
def test_without_noise_a_sample_is_the_same_to_the_bit(make):
    schedule = linear(50)
    ends = [
        sample(make(denoiser_of(schedule), schedule), randn(5, 2), subsequence(50, 7), generator)
        for generator in (seeded(1), seeded(2), None)
    ]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_inversion_and_sampling_return_to_the_start_with_an_error_of_first_order():
    denoise, schedule, _, x_0 = carried(50, 4000)
    errors = []
    for n in (100, 200, 400):
        times = subsequence(4000, n, 2.0)
        x_T = invert(denoise, schedule, x_0, times)
        errors.append((sample(ddim(denoise, schedule), x_T, times) - x_0).abs().mean().item())
    assert errors[-1] < 0.01 and all(1.7 < a / b < 2.3 for a, b in pairwise(errors)), errors


def test_inversion_finds_the_quantiles_of_the_noise():
    denoise, schedule, x_T, x_0 = carried(50, 4000)
    found = invert(denoise, schedule, x_0, subsequence(4000, 2000, 2.0))
    assert (found - x_T).abs().mean() < 0.01


def test_inversion_asks_at_the_level_that_x_has():
    """Not at its place in the sub-sequence, nor at the level that it is going to; clean data are asked at level 1."""
    asked, levels = [], []

    def denoise(x_t, t):
        asked.append(t.tolist())
        levels.append(x_t.clone())
        return torch.zeros_like(x_t)

    schedule, x_0 = linear(100), randn(3, 2)
    x_T = invert(denoise, schedule, x_0, [100, 60, 7, 0])
    assert asked == [[1] * 3, [7] * 3, [60] * 3] and torch.equal(levels[0], x_0)
    ratio = ((1 - schedule.alpha_bar[100]) / (1 - schedule.alpha_bar[1])) ** 0.5  # all of it is noise
    assert (x_T - ratio * x_0).abs().max() < 1e-12
    asked.clear()
    invert(denoise, schedule, x_0, [100, 1, 0])  # level 1 is where clean data are taken to be
    assert asked == [[1] * 3]


def test_inversion_of_an_upward_step_undoes_the_same_step_downwards():
    """Where the estimate of x_0 does not depend on x_t, the way up is the way down."""
    schedule, fixed, x = linear(100), randn(3, 2), randn(3, 2, seed=1)
    times = [100, 60, 7, 1]
    kernel = ddim(lambda x_t, t: fixed, schedule)
    down = x
    for t, s in pairwise(times):
        down = kernel(down, t, s, None)
    assert (invert(lambda x_t, t: fixed, schedule, down, [*times, 0]) - x).abs().max() < 1e-9


@pytest.mark.parametrize("steps", [[3, 2, 1], [1, 2, 0], [0]])
def test_inversion_refuses_steps_that_do_not_fall_to_0(steps):
    with pytest.raises(ValueError, match="steps: must fall strictly and end at 0"):
        invert(lambda x_t, t: x_t, linear(10), randn(2, 1), steps)


def test_interpolation_keeps_to_the_arc():
    x, y = randn(5, 2, 8), randn(5, 2, 8, seed=1)
    y = y * (x.flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).reshape(-1, 1, 1)
    arc = interpolate(x, y, [0, 0.25, 0.5, 1])
    assert arc.shape == (4, 5, 2, 8) and (arc[0] - x).abs().max() < 1e-12 and (arc[3] - y).abs().max() < 1e-12
    length = arc.flatten(2).norm(dim=2)
    assert (length - length[0]).abs().max() < 1e-12  # a straight line would dip by about 0.3
    one, quarter, half = (arc[i].flatten(1) / length[0][:, None] for i in (0, 1, 2))
    angle = ((one * quarter).sum(1).arccos(), (one * half).sum(1).arccos())
    assert (2 * angle[0] - angle[1]).abs().max() < 1e-12


def test_interpolation_of_noise_is_noise():
    arc = interpolate(randn(400, 64), randn(400, 64, seed=1), [0.5])[0]
    assert abs(arc.var().item() - 1) < 0.05 and (randn(400, 64) + randn(400, 64, seed=1)).div(2).var() < 0.55


def test_interpolation_refuses_other_shapes_and_parallel_rows():
    with pytest.raises(ValueError, match="x, y: need the same shape"):
        interpolate(randn(2, 3), randn(3, 3), [0.5])
    with pytest.raises(ValueError, match="x, y: rows must not be parallel"):
        interpolate(randn(2, 3), -2 * randn(2, 3), [0.5])
