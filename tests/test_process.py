"""The forward process against the chain itself and against Bayes' rule by quadrature."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffutils.data import GaussianMixture, bumps
from diffutils.process import at, check_t, convert, denoiser, guided, ideal_denoiser, q_posterior, q_sample
from diffutils.schedules import cosine, few_step, linear

KINDS = "eps", "x_0", "v", "mean"
PAIRS = list(permutations(KINDS, 2))
SCHEDULES = {"linear": linear(1000), "short": linear(30), "cosine": cosine(50), "few": few_step(4)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_schedule
def test_q_sample_has_the_mean_and_variance_of_the_chain_walked_step_by_step(schedule):
    x_0 = torch.full((schedule.T, 1), 1.7, dtype=torch.float64)
    mean, variance = [torch.tensor(1.7, dtype=torch.float64)], [torch.tensor(0.0, dtype=torch.float64)]
    for t in range(1, schedule.T + 1):  # x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z
        mean.append((1 - schedule.beta[t]).sqrt() * mean[-1])
        variance.append((1 - schedule.beta[t]) * variance[-1] + schedule.beta[t])
    t = torch.arange(1, schedule.T + 1)
    centre = q_sample(x_0, t, torch.zeros_like(x_0), schedule)
    spread = q_sample(x_0, t, torch.ones_like(x_0), schedule) - centre
    assert (centre[:, 0] - torch.stack(mean[1:])).abs().max() < 1e-13
    assert (spread[:, 0] ** 2 - torch.stack(variance[1:])).abs().max() < 1e-13
    assert (spread > 0).all()


def test_q_sample_takes_one_t_a_row_or_one_t_for_all_and_keeps_the_dtype():
    schedule, x_0, eps = linear(10), randn(3, 2, 4, 4).float(), randn(3, 2, 4, 4, seed=1).float()
    rows = q_sample(x_0, torch.tensor([1, 5, 10]), eps, schedule)
    assert rows.dtype == torch.float32 and rows.shape == x_0.shape
    for row, t in enumerate((1, 5, 10)):
        assert torch.equal(q_sample(x_0, t, eps, schedule)[row], rows[row])


def posterior_by_quadrature(x_t, x_0, alpha_bar_t, alpha_bar_s):
    """Mean and variance of q(x_s | x_t, x_0) from the product of the two Gaussians on a grid."""
    a = alpha_bar_t / alpha_bar_s
    centre, width = alpha_bar_s**0.5 * x_0, (1 - alpha_bar_s) ** 0.5
    grid = centre + width * torch.linspace(-14, 14, 400_001, dtype=torch.float64)
    log_p = -((grid - centre) ** 2) / (2 * (1 - alpha_bar_s)) - (x_t - a**0.5 * grid) ** 2 / (2 * (1 - a))
    p = (log_p - log_p.max()).exp()
    mean = (p * grid).sum() / p.sum()
    return mean.item(), ((p * (grid - mean) ** 2).sum() / p.sum()).item()


@pytest.mark.parametrize(
    ("name", "t", "s"),
    [("linear", 2, 1), ("linear", 500, 499), ("linear", 1000, 999), ("linear", 600, 150), ("linear", 1000, 1)]
    + [("cosine", 2, 1), ("cosine", 50, 49), ("cosine", 50, 10), ("few", 4, 3), ("few", 3, 1)],
)
def test_q_posterior_is_bayes_rule_for_neighbours_and_for_skipped_steps(name, t, s):
    schedule, x_0 = SCHEDULES[name], -1.1
    alpha_bar = schedule.alpha_bar.tolist()
    x_t = alpha_bar[t] ** 0.5 * x_0 + 1.5 * (1 - alpha_bar[t]) ** 0.5
    exact = posterior_by_quadrature(x_t, x_0, alpha_bar[t], alpha_bar[s])
    mean, variance = q_posterior(*(torch.tensor([[v]], dtype=torch.float64) for v in (x_t, x_0)), t, schedule, s)
    assert abs(mean.item() - exact[0]) < 1e-9
    assert abs(variance.item() - exact[1]) < 1e-9
    if s == t - 1:
        assert abs(schedule.beta_tilde[t].item() - exact[1]) < 1e-9


@every_schedule
def test_q_posterior_into_step_0_is_x_0_itself(schedule):
    x_t, x_0 = randn(3, 2), randn(3, 2, seed=1)
    for t in (1, 2, schedule.T):
        mean, variance = q_posterior(x_t, x_0, t, schedule, 0)
        assert (mean - x_0).abs().max() < 1e-13 and variance.abs().max() == 0


def test_q_posterior_steps_by_one_unless_told_and_takes_one_t_a_row():
    schedule, x_t, x_0 = linear(10), randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    t = torch.tensor([1, 5, 10])
    mean, variance = q_posterior(x_t, x_0, t, schedule)
    assert mean.shape == x_t.shape and variance.shape == (3, 1, 1, 1)
    for row in range(3):
        one_mean, one_variance = q_posterior(x_t, x_0, int(t[row]), schedule, int(t[row]) - 1)
        assert torch.equal(one_mean[row], mean[row]) and torch.equal(one_variance[0], variance[row])


def four_views(x_0: torch.Tensor, t: torch.Tensor, schedule) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x_t, and one prediction written in the four ways, each from its definition."""
    eps = randn(*x_0.shape, seed=7)
    x_t = q_sample(x_0, t, eps, schedule)
    alpha_bar = schedule.alpha_bar[t].reshape(-1, *[1] * (x_0.ndim - 1))
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    return x_t, {"eps": eps, "x_0": x_0, "v": v, "mean": q_posterior(x_t, x_0, t, schedule)[0]}


@every_schedule
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_agrees_with_the_definition_of_each_kind(schedule, source, target):
    t = torch.tensor([1, 2, schedule.T // 2, schedule.T])
    x_t, views = four_views(randn(4, 3, 2), t, schedule)
    # float64, values of order 1; the smallest weight divided by is about 1e-4, and rounding grows by its inverse
    assert (convert(views[source], x_t, t, schedule, source, target) - views[target]).abs().max() < 1e-10


@settings(max_examples=25, deadline=None, derandomize=True)
@given(name=st.sampled_from(list(SCHEDULES)), data=st.data(), value=st.floats(-10, 10), x_t=st.floats(-10, 10))
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_there_and_back_changes_nothing(source, target, name, data, value, x_t):
    schedule = SCHEDULES[name]
    t = data.draw(st.integers(1, schedule.T))
    value, x_t = torch.tensor([[value]], dtype=torch.float64), torch.tensor([[x_t]], dtype=torch.float64)
    there = convert(value, x_t, t, schedule, source, target)
    back = convert(there, x_t, t, schedule, target, source)
    assert (back - value).abs().max() < 1e-8  # values to 10, weights down to 1e-4, float64


@pytest.mark.parametrize("kind", KINDS)
def test_convert_to_the_same_kind_returns_the_value(kind):
    value = randn(2, 1)
    assert convert(value, randn(2, 1, seed=1), 3, linear(5), kind, kind) is value


class Constant(nn.Module):
    """Predicts ``value`` and remembers what it was asked."""

    def __init__(self, value: float):
        super().__init__()
        self.value, self.asked = nn.Parameter(torch.tensor(value)), None

    def forward(self, x_t, t, **condition):
        self.asked = t, condition, self.training
        return self.value + torch.zeros_like(x_t)


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_turns_a_prediction_into_x_0_without_gradient_in_evaluation_mode(kind):
    network, schedule, x_t, t = Constant(0.3), linear(10), randn(3, 2).float(), torch.tensor([1, 4, 10])
    labels = torch.tensor([1, 2, 3])
    x_0 = denoiser(network, schedule, kind, y=labels)(x_t, t)
    expected = convert(torch.full_like(x_t, 0.3), x_t, t, schedule, kind, "x_0")
    assert torch.equal(x_0, expected) and not x_0.requires_grad
    asked_t, condition, training = network.asked
    assert torch.equal(asked_t, t) and torch.equal(condition["y"], labels) and not training


def test_denoiser_clips_to_where_images_live_only_when_asked():
    schedule, x_t, t = linear(10), torch.zeros(1, 2), torch.tensor([5])
    assert denoiser(Constant(-3.0), schedule, "x_0")(x_t, t).unique().tolist() == [-3]
    assert denoiser(Constant(-3.0), schedule, "x_0", clip=True)(x_t, t).unique().tolist() == [-1]


@pytest.mark.parametrize("t", [1, 6, 20])
def test_ideal_denoiser_is_the_posterior_mean_by_quadrature(t):
    mixture, schedule = bumps(), linear(20, 1e-3, 0.4)
    a = schedule.alpha_bar[t].item()
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    p = mixture.log_prob(grid[:, None]) - (x_t - a**0.5 * grid) ** 2 / (2 * (1 - a))
    p = p.softmax(1)
    exact = (p * grid).sum(1, keepdim=True)
    assert (ideal_denoiser(mixture, schedule)(x_t, torch.full((9,), t)) - exact).abs().max() < 1e-10


def test_ideal_denoiser_refuses_a_batch_at_several_times():
    with pytest.raises(ValueError, match="t: "):
        ideal_denoiser(bumps(), linear(5))(randn(2, 1), torch.tensor([1, 2]))


@pytest.mark.parametrize("t", [0, -1, 11, torch.tensor([1, 0]), torch.tensor([3, 11]), torch.tensor([-1, 2])])
def test_t_outside_the_chain_is_refused_everywhere(t):
    schedule, x = linear(10), randn(2, 1)
    for call in (
        lambda: check_t(t, 10),
        lambda: q_sample(x, t, x, schedule),
        lambda: q_posterior(x, x, t, schedule),
        lambda: q_posterior(x, x, t, schedule, 0),
        lambda: convert(x, x, t, schedule, "eps", "x_0"),
    ):
        with pytest.raises(ValueError, match=r"t: .*1\.\.T = 1\.\.10"):
            call()


def test_at_reads_0_to_T_and_nothing_else():
    schedule, x = linear(10), randn(2, 3, 4, 4).float()
    assert at(schedule.alpha_bar, torch.tensor([0, 10]), x).shape == (2, 1, 1, 1)
    assert at(schedule.alpha_bar, 0, x).item() == 1 and at(schedule.alpha_bar, 0, x).dtype == torch.float32
    for t in (-1, 11):
        with pytest.raises(ValueError, match="t: "):
            at(schedule.alpha_bar, t, x)


@pytest.mark.parametrize("s", [5, 6, -1, torch.tensor([4, 5])])
def test_s_must_come_before_t(s):
    with pytest.raises(ValueError, match="s: "):
        q_posterior(randn(2, 1), randn(2, 1), 5, linear(10), s)


@pytest.mark.parametrize(("source", "target", "name"), [("noise", "x_0", "source"), ("eps", "score", "target")])
def test_an_unknown_kind_is_refused_by_name(source, target, name):
    with pytest.raises(ValueError, match=f"{name}: .*'eps', 'x_0', 'v', 'mean'"):
        convert(randn(2, 1), randn(2, 1), 1, linear(10), source, target)


class Labelled(nn.Module):
    """Answers with a different linear function of x_t for every label; label 2 stands for none."""

    nothing = 2

    def forward(self, x_t, t, y=None):
        return x_t * torch.tensor([0.5, -1.0, 0.1], dtype=x_t.dtype)[y][:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_guidance_goes_from_the_estimate_without_the_label_past_the_one_with_it(kind, weight):
    """In the papers' form, for eps: (1 - w) eps(x_t) + w eps(x_t, y); the same in every parameterisation."""
    schedule, x_t, t, y = linear(50), randn(4, 3), torch.full((4,), 30), torch.tensor([0, 1, 1, 0])
    network = Labelled()
    value = {name: network(x_t, t, label) for name, label in (("told", y), ("not", torch.full_like(y, 2)))}
    eps = {name: convert(of, x_t, t, schedule, kind, "eps") for name, of in value.items()}
    expected = convert((1 - weight) * eps["not"] + weight * eps["told"], x_t, t, schedule, "eps", "x_0")
    assert (guided(network, schedule, y, weight, kind)(x_t, t) - expected).abs().max() < 1e-9
    assert guided(network, schedule, y, weight, kind, clip=True)(10 * x_t, t).abs().max() <= 1


def test_more_guidance_moves_samples_of_a_known_mixture_towards_their_class():
    """Exact conditional and unconditional denoisers of two bumps at -1 and +1: the sign of guidance, measured."""
    at_one = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    both = GaussianMixture(torch.full((2,), 0.5).double(), at_one, torch.full((2,), 0.09).double())
    right = GaussianMixture(torch.ones(1).double(), at_one[1:], torch.full((1,), 0.09).double())
    schedule = cosine(100)

    class Exact(nn.Module):
        nothing = 1

        def forward(self, x_t, t, y):
            alone = ideal_denoiser(right, schedule)(x_t, t)
            return torch.where(y[:, None] == 0, alone, ideal_denoiser(both, schedule)(x_t, t))

    x_T, means = randn(2000, 1), []
    for weight in (0.0, 1.0, 3.0):
        denoise = guided(Exact(), schedule, torch.zeros(2000, dtype=torch.int64), weight, "x_0")
        x = x_T
        for t in range(100, 0, -1):  # DDIM, written out
            x_0 = denoise(x, torch.full((2000,), t))
            signal, noise = schedule.alpha_bar[t].sqrt(), (1 - schedule.alpha_bar[t]).sqrt()
            eps = (x - signal * x_0) / noise
            x = schedule.alpha_bar[t - 1].sqrt() * x_0 + (1 - schedule.alpha_bar[t - 1]).sqrt() * eps
        means.append(x.mean().item())
    assert abs(means[0]) < 0.1 and abs(means[1] - 1) < 0.05 and means[2] > 1.05
