"""The simple loss and the terms of the bound, against torch.distributions, scipy and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence

from diffutils.data import bumps
from diffutils.metrics import interval
from diffutils.networks.autoencoder import VAE
from diffutils.objectives import (
    bound_terms,
    bound_weight,
    classification_loss,
    decoder_term,
    discrete_log_prob,
    gaussian_kl,
    prior_term,
    simple_loss,
    step_term,
    vae_terms,
)
from diffutils.process import convert, ideal_denoiser, q_posterior, q_sample
from diffutils.schedules import cosine, few_step, linear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


class Spy:
    """Stands in for a network: remembers what it was asked, and answers with ``answer(x_t, t)`` (by default zero)."""

    def __init__(self, answer=None):
        self.answer, self.t, self.x_t, self.condition = (
            answer or (lambda x_t, t: torch.zeros_like(x_t)),
            None,
            None,
            None,
        )

    def __call__(self, x_t, t, **condition):
        self.x_t, self.t, self.condition = x_t, t, condition
        return self.answer(x_t, t)


def test_simple_loss_trains_every_step_of_1_to_T_equally_often():
    spy, T, n = Spy(), 10, 20_000
    simple_loss(spy, torch.zeros(n, 1), linear(T), seeded())
    count = torch.bincount(spy.t, minlength=T + 1)
    assert spy.t.dtype == torch.int64 and len(count) == T + 1 and count[0] == 0
    assert stats.chisquare(count[1:].numpy()).pvalue > 0.001  # the first and the last step included


@pytest.mark.parametrize("kind", ["eps", "x_0", "v", "mean"])
def test_simple_loss_of_the_right_answer_is_zero_and_of_a_wrong_one_its_mean_square(kind):
    schedule, x_0 = cosine(20), randn(500, 2)

    def right(x_t, t):
        return convert(x_0, x_t, t, schedule, "x_0", kind)

    assert simple_loss(Spy(right), x_0, schedule, seeded(), kind) < 1e-20
    loss = simple_loss(Spy(lambda x_t, t: right(x_t, t) + torch.tensor([1.0, 3.0])), x_0, schedule, seeded(), kind)
    assert abs(loss - (1 + 9) / 2) < 1e-10


def test_simple_loss_of_a_network_that_predicts_no_noise_is_one_in_any_dimension():
    for shape in (5000, 1), (500, 3, 4, 4):
        assert abs(simple_loss(Spy(), torch.zeros(shape), linear(10), seeded()) - 1) < 0.06


def test_simple_loss_shows_the_network_x_t_of_the_right_step():
    spy, schedule = Spy(), linear(10, 0.05, 0.3)
    simple_loss(spy, torch.full((60_000, 1), 2.0), schedule, seeded())
    for t in (1, 5, 10):
        x_t = spy.x_t[spy.t == t]
        assert abs(x_t.mean() - 2 * schedule.alpha_bar[t].sqrt()) < 0.05
        assert abs(x_t.var() - (1 - schedule.alpha_bar[t])) < 0.05


def test_simple_loss_passes_conditions_on_and_is_the_same_for_the_same_generator():
    spy, labels = Spy(), torch.arange(8)
    losses = [simple_loss(spy, torch.zeros(8, 2), linear(10), seeded(seed), y=labels) for seed in (1, 1, 2)]
    assert spy.condition["y"] is labels
    assert losses[0] == losses[1] != losses[2] and losses[0].shape == ()


def test_gaussian_kl_is_that_of_torch_distributions_summed_over_dimensions():
    mean_q, mean_p = randn(5, 3, 2), randn(5, 3, 2, seed=1)
    var_q, var_p = randn(5, 3, 2, seed=2).exp(), randn(5, 3, 2, seed=3).exp()
    exact = kl_divergence(Normal(mean_q, var_q.sqrt()), Normal(mean_p, var_p.sqrt())).sum((1, 2))
    assert (gaussian_kl(mean_q, var_q, mean_p, var_p) - exact).abs().max() < 1e-12
    one, two = torch.tensor(0.3, dtype=torch.float64), torch.tensor([[[0.4]]], dtype=torch.float64)
    exact = kl_divergence(Normal(mean_q, one.sqrt()), Normal(mean_p, two.sqrt().expand_as(mean_p))).sum((1, 2))
    assert (gaussian_kl(mean_q, one, mean_p, two) - exact).abs().max() < 1e-12


def test_gaussian_kl_of_a_distribution_with_itself_is_zero():
    assert (gaussian_kl(randn(4, 2), randn(4, 2).exp(), randn(4, 2), randn(4, 2).exp()) == 0).all()


@pytest.mark.parametrize("bad", [0.0, -1.0])
@pytest.mark.parametrize("name", ["var_q", "var_p"])
def test_gaussian_kl_refuses_a_variance_that_is_not_positive(name, bad):
    variances = {"var_q": torch.ones(2, 1), "var_p": torch.ones(2, 1)} | {name: torch.tensor([[1.0], [bad]])}
    with pytest.raises(ValueError, match=f"{name}: must be positive, got {bad:g}"):
        gaussian_kl(torch.zeros(2, 1), variances["var_q"], torch.zeros(2, 1), variances["var_p"])


@pytest.mark.parametrize("schedule", [linear(1000), linear(5), cosine(100), few_step(4)])
def test_prior_term_is_the_divergence_of_x_T_from_a_standard_normal(schedule):
    x_0, alpha_bar = randn(5, 2, 3), schedule.alpha_bar[-1]
    q = Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt())
    exact = kl_divergence(q, Normal(torch.zeros_like(x_0), 1.0)).sum((1, 2))
    assert (prior_term(x_0, schedule) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 20.0])
def test_discrete_probabilities_sum_to_one(levels, std):
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    means = torch.tensor([-50.0, -1.0, -0.9, -0.123, 0.0, 0.5, 1.0, 1.004, 7.0], dtype=torch.float64)[:, None]
    log_p = discrete_log_prob(values.expand(9, -1), means, torch.tensor(std, dtype=torch.float64), levels)
    assert log_p.shape == (9, levels) and (log_p <= 0).all()
    assert (log_p.exp().sum(1) - 1).abs().max() < 1e-10


@pytest.mark.parametrize(("x_0", "mean", "std"), [(-1, 1, 0.01), (1, -1, 0.01), (0.5, -3, 0.05), (-0.5, 0.9, 0.02)])
def test_discrete_log_prob_of_a_far_tail_is_exact(x_0, mean, std):
    levels = 17
    delta = 2 / (levels - 1)
    low = -math.inf if x_0 == -1 else x_0 - delta / 2
    high = math.inf if x_0 == 1 else x_0 + delta / 2
    edge = high if mean > x_0 else low  # where the density of the bin is highest
    far = edge - 60 * std**2 / abs(edge - mean) * np.sign(mean - edge)
    inside = (max(low, far), edge) if mean > x_0 else (edge, min(high, far))
    peak = stats.norm.logpdf(edge, mean, std)
    exact = peak + math.log(integrate.quad(lambda z: math.exp(stats.norm.logpdf(z, mean, std) - peak), *inside)[0])
    arguments = (torch.tensor([[v]], dtype=torch.float64) for v in (x_0, mean, std))
    ours = discrete_log_prob(*arguments, levels).item()
    assert exact < -300 and abs(ours / exact - 1) < 1e-9
    in_float32 = discrete_log_prob(*(torch.tensor([[float(v)]]) for v in (x_0, mean, std)), levels).item()
    assert abs(in_float32 / exact - 1) < 1e-3


def test_discrete_log_prob_is_that_of_scipy_near_the_mean():
    levels, std = 9, 0.2
    values, means = np.linspace(-1, 1, levels), np.array([-1.1, -0.3, 0.0, 0.77])[:, None]
    delta = 2 / (levels - 1)
    low = np.where(np.arange(levels) == 0, -np.inf, values - delta / 2)
    high = np.where(np.arange(levels) == levels - 1, np.inf, values + delta / 2)
    exact = stats.norm.cdf(high, means, std) - stats.norm.cdf(low, means, std)
    x_0, mean = torch.tensor(values).expand(4, -1), torch.tensor(means)
    ours = discrete_log_prob(x_0, mean, torch.tensor(std, dtype=torch.float64), levels).exp().numpy()
    assert np.abs(ours - exact).max() < 1e-13


@pytest.mark.parametrize(
    ("value", "levels", "name"), [(0.1, 3, "x_0"), (1.5, 5, "x_0"), (-2.0, 3, "x_0"), (0.0, 1, "levels")]
)
def test_discrete_log_prob_refuses_data_off_its_grid(value, levels, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        discrete_log_prob(torch.full((1, 1), value), torch.zeros(1, 1), torch.tensor(0.1), levels)


SCHEDULES = {"linear": linear(50, 1e-3, 0.2), "cosine": cosine(10), "few": few_step(4)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def guess(x_t, t):
    """A denoiser that is wrong, and differently so at each time."""
    return 0.7 * x_t - 0.2 + 0.01 * t.reshape(-1, *[1] * (x_t.ndim - 1))


def drawn(x_0, t, schedule, seed):
    """The x_t that a term of the bound draws from this seed."""
    return q_sample(x_0, t, torch.randn(x_0.shape, generator=seeded(seed), dtype=x_0.dtype), schedule)


@every_schedule
def test_step_term_with_beta_tilde_is_the_fall_in_snr_times_the_squared_error(schedule):
    x_0 = randn(6, 2, 3)
    for t in (2, 3, schedule.T):
        x_t = drawn(x_0, t, schedule, seed=4)
        error = (x_0 - guess(x_t, torch.full((6,), t))).square().sum((1, 2))
        exact = 0.5 * (schedule.snr[t - 1] - schedule.snr[t]) * error
        ours = step_term(guess, x_0, t, schedule, seeded(4))
        assert ours.shape == (6,) and (ours / exact - 1).abs().max() < 1e-10


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("t", [2, 4, 10])
def test_step_term_is_the_divergence_of_the_two_densities_by_quadrature(variance, t):
    schedule, x_0 = cosine(10), torch.tensor([[0.4]], dtype=torch.float64)
    x_t = drawn(x_0, t, schedule, seed=5)
    mean_q, var_q = (v.item() for v in q_posterior(x_t, x_0, t, schedule))
    mean_p = q_posterior(x_t, guess(x_t, torch.tensor([t])), t, schedule)[0].item()
    var_p = {"beta": schedule.beta[t], "beta_tilde": schedule.beta_tilde[t]}[variance].item()
    x = mean_q + math.sqrt(var_q) * np.linspace(-12, 12, 100_001)
    log_q, log_p = stats.norm.logpdf(x, mean_q, var_q**0.5), stats.norm.logpdf(x, mean_p, var_p**0.5)
    exact = integrate.trapezoid(np.exp(log_q) * (log_q - log_p), x)
    ours = step_term(guess, x_0, t, schedule, seeded(5), variance).item()
    assert abs(ours - exact) < 1e-9 * max(1, abs(exact))


@every_schedule
def test_with_equal_variances_the_divergence_is_the_squared_error_of_the_posterior_mean_or_of_the_noise(schedule):
    x_0 = randn(6, 2)
    for t in (2, schedule.T):
        x_t = drawn(x_0, t, schedule, seed=6)
        x_0_hat = guess(x_t, torch.full((6,), t))
        ours = step_term(guess, x_0, t, schedule, seeded(6))
        beta, alpha, sigma2 = schedule.beta[t], schedule.alpha[t], schedule.beta_tilde[t]
        for kind, weight in ("mean", 1.0), ("eps", beta**2 / (alpha * (1 - schedule.alpha_bar[t]))):
            wanted, got = (convert(x, x_t, t, schedule, "x_0", kind) for x in (x_0, x_0_hat))
            exact = weight * (wanted - got).square().sum(1) / (2 * sigma2)  # Ho et al. (2020), equations 8 and 12
            assert (ours / exact - 1).abs().max() < 1e-9


def test_decoder_term_is_minus_the_log_density_of_a_gaussian_of_variance_beta_1():
    schedule, x_0 = linear(20, 0.01, 0.2), randn(5, 2, 3)
    x_0_hat = guess(drawn(x_0, 1, schedule, seed=3), torch.ones(5))
    exact = -stats.norm.logpdf(x_0.numpy(), x_0_hat.numpy(), 0.1).sum((1, 2))
    ours = decoder_term(guess, x_0, schedule, seeded(3))
    assert ours.shape == (5,) and np.abs(ours.numpy() - exact).max() < 1e-9


def test_decoder_term_of_discrete_data_is_minus_its_log_probability():
    schedule, levels = linear(20, 0.01, 0.2), 17
    x_0 = torch.randint(0, levels, (5, 2, 3), generator=seeded()).double() * 2 / (levels - 1) - 1
    x_0_hat = guess(drawn(x_0, 1, schedule, seed=3), torch.ones(5))
    x, mean, half = x_0.numpy(), x_0_hat.numpy(), 1 / (levels - 1)
    high = np.where(x == 1, np.inf, x + half)
    low = np.where(x == -1, -np.inf, x - half)
    exact = -np.log(stats.norm.cdf(high, mean, 0.1) - stats.norm.cdf(low, mean, 0.1)).sum((1, 2))
    assert np.abs(decoder_term(guess, x_0, schedule, seeded(3), levels).numpy() - exact).max() < 1e-6


def test_bound_terms_are_the_decoder_the_steps_and_the_prior_in_the_order_of_their_index():
    schedule, x_0, seen = linear(5), randn(4, 2), []

    def spy(x_t, t):
        seen.append(t.unique().tolist())
        return guess(x_t, t)

    terms = bound_terms(spy, x_0, schedule, seeded())
    assert terms.shape == (6, 4) and sorted(seen) == [[1], [2], [3], [4], [5]]
    assert torch.equal(terms[5], prior_term(x_0, schedule))
    perfect = bound_terms(lambda x_t, t: x_0, x_0, schedule, seeded())
    assert (perfect[1:5] == 0).all()
    assert (perfect[0] - math.log(2 * math.pi * 1e-4)).abs().max() < 1e-9  # two dimensions at half of that each
    only_at_3 = bound_terms(lambda x_t, t: x_0 + (t == 3)[:, None], x_0, schedule, seeded())
    assert (only_at_3[2] > 0).all() and (only_at_3[[1, 3, 4]] == 0).all()  # the error at t = 3 is in L_2


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_bound_lies_above_minus_log_p(variance):
    mixture = bumps()
    x_0 = mixture.sample(2000, seeded())
    for T in (2, 4, 16):
        terms = bound_terms(ideal_denoiser(mixture, few_step(T)), x_0, few_step(T), seeded(1), variance)
        gap, error = interval(terms.sum(0) + mixture.log_prob(x_0))
        assert gap > 3 * error  # so few Gaussian steps cannot be exact


def test_the_gap_of_the_bound_closes_as_T_grows():
    mixture, gaps = bumps(), []
    x_0 = mixture.sample(2000, seeded())
    for T in (4, 16, 64, 256):
        terms = bound_terms(ideal_denoiser(mixture, few_step(T)), x_0, few_step(T), seeded(1), "beta")
        gap, error = interval(terms.sum(0) + mixture.log_prob(x_0))
        assert gap > -3 * error
        gaps.append(gap)
    assert all(later < 0.7 * gap for gap, later in zip(gaps, gaps[1:], strict=False)) and gaps[-1] < 0.1, gaps


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_each_term_of_the_bound_has_its_closed_form_when_the_data_is_standard_normal(variance):
    schedule, T = linear(20, 0.01, 0.3), 20
    a, snr, beta, beta_tilde = (getattr(schedule, name).tolist() for name in ("alpha_bar", "snr", "beta", "beta_tilde"))

    def denoise(x_t, t):  # E[x_0 | x_t], with E |x_0 - E[x_0 | x_t]|^2 = 1 - alpha_bar_t
        return math.sqrt(a[t[0]]) * x_t

    exact = [0.5 * math.log(2 * math.pi * beta[1]) + 0.5]
    for t in range(2, T + 1):
        ratio = beta_tilde[t] / (beta[t] if variance == "beta" else beta_tilde[t])
        exact.append(0.5 * (ratio - 1 - math.log(ratio) + ratio * (snr[t - 1] - snr[t]) * (1 - a[t])))
    exact.append(-0.5 * math.log(1 - a[T]))
    terms = bound_terms(denoise, randn(40_000, 1), schedule, seeded(1), variance)
    for i, term in enumerate(terms):
        mean, error = interval(term)
        assert abs(mean - exact[i]) < 4 * error + 1e-12, i
    # every reverse step of this data is Gaussian, of variance beta: with it the bound is the entropy itself
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert abs(sum(exact) - entropy) < 1e-12 if variance == "beta" else sum(exact) > entropy + 0.1


@pytest.mark.parametrize("t", [-1, 0, 1, 11])
def test_step_term_is_for_steps_2_to_T(t):
    with pytest.raises(ValueError, match=f"t: .*2..T = 2..10, got {t}"):
        step_term(guess, randn(2, 1), t, linear(10))


def test_an_unknown_variance_is_refused():
    for term in (
        lambda: step_term(guess, randn(2, 1), 2, linear(10), None, "learned"),
        lambda: bound_terms(guess, randn(2, 1), linear(10), None, "learned"),
    ):
        with pytest.raises(ValueError, match="variance: must be 'beta' or 'beta_tilde', got 'learned'"):
            term()


def test_classification_loss_is_the_cross_entropy():
    x, y = randn(4, 1, 6, 6), torch.tensor([0, 2, 1, 2])
    logits = randn(4, 3, seed=1)
    expected = -torch.stack([logits[i].log_softmax(0)[y[i]] for i in range(4)]).mean()
    assert abs(classification_loss(lambda _: logits, x, y) - expected) < 1e-6


def test_a_shift_moves_each_image_whole_by_its_own_random_amount():
    seen, x = [], torch.arange(36.0).reshape(1, 1, 6, 6).expand(200, 2, 6, 6)
    classification_loss(lambda z: seen.append(z) or z.flatten(1)[:, :2], x, torch.zeros(200).long(), seeded(0), shift=2)
    (moved,) = seen
    found = set()
    for image in moved:
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                rows, columns = ((torch.arange(6) + d).clamp(0, 5) for d in (dy, dx))
                if torch.equal(image, x[0][:, rows][:, :, columns]):
                    found.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            raise AssertionError("an image that is no shifted copy")
    assert len(found) == 25  # each of the 5 x 5 moves comes up


@pytest.mark.parametrize("kind", ["eps", "x_0", "v", "mean"])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_weighted_error_of_any_prediction_is_the_term_of_the_bound(kind, variance):
    """At every t: lambda_t |k - k'|^2, summed, is the KL divergence of two posteriors of the same variance."""
    schedule, x_0, guess = linear(20), randn(6, 3), randn(6, 3, seed=1)
    weight = bound_weight(schedule, kind, variance)
    for t in range(2, 21):
        seen = q_sample(x_0, t, randn(6, 3, seed=t), schedule)
        mean_q, var_q = q_posterior(seen, x_0, t, schedule)
        mean_p, _ = q_posterior(seen, guess, t, schedule)
        var = var_q if variance == "beta_tilde" else schedule.beta[t].expand_as(var_q)
        exact = gaussian_kl(mean_q, var, mean_p, var)
        right, wrong = (convert(x, seen, t, schedule, "x_0", kind) for x in (x_0, guess))
        assert ((weight[t] * (right - wrong).square().sum(1)) / exact - 1).abs().max() < 1e-9
    assert weight[0] == 0 and abs(bound_weight(schedule, "x_0", variance)[1] * 2 * schedule.beta[1] - 1) < 1e-9
    with pytest.raises(ValueError, match="variance: must be"):
        bound_weight(schedule, kind, "learned")


def test_the_weight_of_eps_is_the_formula_of_the_paper():
    s = linear(1000)
    formula = s.beta[1:] ** 2 / (2 * s.beta[1:] * s.alpha[1:] * (1 - s.alpha_bar[1:]))
    assert (bound_weight(s)[1:] / formula - 1).abs().max() < 1e-10


def test_a_weight_counts_each_step_as_often_as_it_says():
    schedule = linear(4)
    weight = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0])
    spy, x_0 = Spy(), randn(4000, 2)
    loss = simple_loss(spy, x_0, schedule, seeded(1), weight=weight)
    eps = convert(x_0, spy.x_t, spy.t, schedule, "x_0", "eps")
    at_two = (spy.t == 2)[:, None]
    assert abs(loss - 3 * (at_two * eps.square()).mean()) < 1e-6
    even = simple_loss(Spy(), x_0, schedule, seeded(1), weight=torch.ones(5))
    assert abs(even - simple_loss(Spy(), x_0, schedule, seeded(1))) < 1e-6


def test_steps_drawn_by_chance_change_the_spread_of_the_loss_but_not_its_mean():
    schedule = linear(4)
    weight = torch.tensor([0.0, 8.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    spy, x_0 = Spy(), torch.zeros(40_000, 2)  # the error of its answer, 0, is 1 on average at every step
    loss = simple_loss(spy, x_0, schedule, seeded(1), weight=weight, chance=weight / weight.sum())
    assert abs(loss - weight.sum() / 4) < 0.03
    assert (spy.t.bincount(minlength=5) / 40_000 - weight / weight.sum()).abs().max() < 0.01

    def spread(chance):
        draws = [simple_loss(Spy(), x_0[:64], schedule, seeded(i), weight=weight, chance=chance) for i in range(200)]
        return torch.stack(draws).std()

    # the mean of two squares of a standard normal number has mean 1 and variance 1
    assert abs(spread(weight / weight.sum()) / (2.5 / 64**0.5) - 1) < 0.2
    assert abs(spread(None) / ((2 * weight.square().sum() / 4 - 2.5**2) / 64).sqrt() - 1) < 0.2
    uniform = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25])
    loss = simple_loss(Spy(), x_0, schedule, seeded(2), chance=uniform)
    assert abs(loss - 1) < 0.02


class LinearVAE(VAE):
    """p(x | z) = N(W z, sigma^2 I) with q(z | x) its exact posterior, so that the bound is the likelihood itself."""

    def __init__(self, weight: torch.Tensor, sigma: float):
        super().__init__(8, latent=weight.shape[1], width=8)
        self.weight, self.s2 = weight, sigma**2
        self.log_sigma.data = torch.tensor(math.log(sigma), dtype=torch.float64)

    def forward(self, x, generator=None):
        precision = torch.eye(self.latent, dtype=torch.float64) + self.weight.T @ self.weight / self.s2
        cov = torch.linalg.inv(precision)  # diagonal, as the columns of W are orthogonal
        mean = x.flatten(1) @ self.weight @ cov / self.s2
        var = cov.diagonal().expand_as(mean)
        z = mean + var.sqrt() * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        return (z @ self.weight.T).reshape(x.shape), self.log_sigma.exp(), mean, var


def test_the_bound_of_a_vae_with_the_exact_posterior_is_the_likelihood():
    weight, _ = torch.linalg.qr(randn(64, 3))
    weight, sigma = weight * torch.tensor([2.0, 1.0, 0.5]).double(), 0.4
    x = randn(5, 1, 8, 8, seed=3)
    cov = weight @ weight.T + sigma**2 * torch.eye(64).double()
    exact = -torch.distributions.MultivariateNormal(torch.zeros(64).double(), cov).log_prob(x.flatten(1))
    network = LinearVAE(weight, sigma)
    draws = torch.stack([vae_terms(network, x, seeded(i)).sum(0) for i in range(2000)])
    error = draws.std(0) / 2000**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * error).all() and (error < 0.1).all()


def test_the_terms_of_a_vae_on_discrete_data_are_the_probability_and_the_divergence():
    torch.manual_seed(0)
    network = VAE(8, latent=3, width=8)
    x = torch.randint(17, (6, 1, 8, 8), generator=seeded()).double() / 8 - 1
    distortion, rate = vae_terms(network, x.float(), seeded(1), levels=17)
    decoded, sigma, mean, var = network(x.float(), seeded(1))
    q = Normal(mean.double(), var.double().sqrt())
    assert ((kl_divergence(q, Normal(0.0, 1.0)).sum(1) - rate).abs() < 1e-3).all()
    p = discrete_log_prob(x, decoded.double(), sigma.double(), 17).flatten(1).sum(1)
    assert ((distortion + p).abs() < 1e-2).all() and (distortion > 0).all()
