"""Schedules against direct evaluation in float64, quadrature, and their invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from diffutils.schedules import Schedule, cosine, few_step, linear, subsequence

prove = settings(max_examples=60, deadline=None, derandomize=True)
betas = st.lists(st.floats(1e-5, 0.999), min_size=1, max_size=50)
every_schedule = pytest.mark.parametrize("make", [linear, cosine, few_step])
every_length = pytest.mark.parametrize("T", [1, 2, 7, 1000])


def schedule_of(beta: list[float]) -> Schedule:
    return Schedule(torch.tensor([0.0, *beta], dtype=torch.float64))


def max_diff(a: torch.Tensor, b) -> float:
    return (a - torch.as_tensor(b, dtype=torch.float64)).abs().max().item()


@every_schedule
@every_length
def test_tables_are_float64_of_length_T_plus_1_and_start_at_clean_data(make, T):
    schedule = make(T)
    assert schedule.T == T
    for name in ("beta", "alpha", "alpha_bar", "snr", "beta_tilde"):
        table = getattr(schedule, name)
        assert table.shape == (T + 1,) and table.dtype == torch.float64, name
    assert schedule.beta[0] == 0 and schedule.alpha[0] == 1 and schedule.alpha_bar[0] == 1
    assert schedule.snr[0] == math.inf and schedule.beta_tilde[0] == 0


def test_linear_1000_is_the_schedule_of_the_paper():
    schedule = linear(1000)
    assert max_diff(schedule.beta[1:], [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]) < 1e-16
    assert schedule.beta[1] == 1e-4 and schedule.beta[1000] == 0.02
    assert abs(schedule.alpha_bar[-1].item() - 4.0358e-05) < 5e-10  # the five digits quoted everywhere


def test_linear_takes_its_two_ends():
    assert max_diff(linear(3, 0.1, 0.5).beta, [0, 0.1, 0.3, 0.5]) < 1e-16


@every_schedule
def test_every_table_follows_from_beta_by_a_plain_loop(make):
    schedule = make(20)
    alpha_bar = [1.0]
    for t in range(1, 21):
        beta = schedule.beta[t].item()
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
        assert abs(schedule.alpha[t].item() - (1 - beta)) < 1e-15
        assert abs(schedule.alpha_bar[t].item() - alpha_bar[t]) < 1e-14
        snr = alpha_bar[t] / (1 - alpha_bar[t])
        assert abs(schedule.snr[t].item() / snr - 1) < 1e-12
        # 1 / beta_tilde_t = alpha_t / beta_t + 1 / (1 - alpha_bar_{t-1}): precisions of likelihood and prior add
        if t > 1:
            precision = (1 - beta) / beta + 1 / (1 - alpha_bar[t - 1])
            assert abs(schedule.beta_tilde[t].item() * precision - 1) < 1e-10


@pytest.mark.parametrize("T", [2, 10, 1000])
def test_cosine_alpha_bar_is_the_formula_wherever_beta_is_not_capped(T):
    schedule, s = cosine(T), 0.008
    f = [math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)]
    free = [t for t in range(T + 1) if schedule.beta[t] < 0.999]
    assert len(free) == T and max(free) == T - 1  # only the last step is capped
    assert max_diff(schedule.alpha_bar[free], [f[t] / f[0] for t in free]) < 1e-14
    assert schedule.beta[T] == 0.999


@pytest.mark.parametrize("T", [1, 4, 33])
@pytest.mark.parametrize("rates", [(0.1, 20.0), (0.5, 3.0)])
def test_few_step_is_the_exponential_of_minus_the_integrated_rate(T, rates):
    low, high = rates
    alpha_bar = few_step(T, low, high).alpha_bar
    exact = [math.exp(-quad(lambda u: low + (high - low) * u, 0, t / T)[0]) for t in range(T + 1)]
    assert max_diff(alpha_bar, exact) < 1e-14


def test_few_step_schedules_of_different_T_visit_the_same_curve():
    assert max_diff(few_step(12).alpha_bar[::3], few_step(4).alpha_bar) < 1e-14


@prove
@given(betas)
def test_alpha_bar_and_snr_fall_strictly(beta):
    schedule = schedule_of(beta)
    assert (schedule.alpha_bar.diff() < 0).all() and schedule.alpha_bar[-1] > 0
    assert (schedule.snr.diff() < 0).all() and schedule.snr[-1] > 0


@prove
@given(betas)
def test_beta_tilde_lies_between_zero_and_beta_and_vanishes_at_the_last_reverse_step(beta):
    schedule = schedule_of(beta)
    assert schedule.beta_tilde[1] == 0
    assert (schedule.beta_tilde[2:] > 0).all() and (schedule.beta_tilde <= schedule.beta).all()


@prove
@given(betas)
def test_from_alpha_bar_recovers_beta(beta):
    schedule = schedule_of(beta)
    assert max_diff(Schedule.from_alpha_bar(schedule.alpha_bar).beta, schedule.beta) < 1e-14


def test_from_alpha_bar_refuses_a_curve_that_does_not_start_at_clean_data():
    with pytest.raises(ValueError, match="alpha_bar"):
        Schedule.from_alpha_bar(linear(10).alpha_bar[1:])


@prove
@given(st.data(), st.integers(1, 3000))
def test_subsequence_falls_strictly_from_T_to_0_in_even_jumps(data, T):
    steps = data.draw(st.integers(1, T))
    times = subsequence(T, steps)
    jumps = [t - s for t, s in zip(times, times[1:], strict=False)]
    assert times[0] == T and times[-1] == 0 and len(times) == steps + 1
    assert min(jumps) >= 1 and max(jumps) - min(jumps) <= 1


def test_subsequence_of_all_steps_is_the_chain():
    assert subsequence(5, 5) == [5, 4, 3, 2, 1, 0] and subsequence(1000, 4) == [1000, 750, 500, 250, 0]


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 1.5, 2.0, 8.0])
def test_a_spaced_subsequence_falls_strictly_from_T_to_0(power):
    for T, steps in (1000, 50), (1000, 999), (1000, 1000), (1000, 1), (7, 5), (1, 1):
        times = subsequence(T, steps, power)
        assert len(times) == steps + 1 and times[0] == T and times[-1] == 0
        assert all(t > s for t, s in zip(times, times[1:], strict=False))


def test_the_power_says_where_the_steps_are_dense():
    assert subsequence(1000, 10, 2.0) == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]
    assert subsequence(900, 3, 0.5) == [900, 735, 520, 0]
    assert subsequence(10, 4, 3.0) == [10, 4, 2, 1, 0]  # 10/64 and 10/8 rounded, but each a step of its own


@pytest.mark.parametrize("power", [0.0, -1.0, math.inf, math.nan])
def test_a_power_that_is_not_above_0_is_refused(power):
    with pytest.raises(ValueError, match=f"power: must be above 0, got {power}"):
        subsequence(10, 3, power)


def test_betas_become_float64_and_schedules_can_be_compared():
    schedule = Schedule(torch.tensor([0.0, 0.5]))
    assert schedule.alpha_bar.dtype == torch.float64
    assert schedule == schedule and schedule != Schedule(schedule.beta)  # by what they are, not by what they hold


def test_to_keeps_the_numbers():
    assert torch.equal(linear(5).to("cpu").alpha_bar, linear(5).alpha_bar)


@every_schedule
@pytest.mark.parametrize("T", [0, -3, 2.5, "10"])
def test_a_T_that_is_no_positive_whole_number_is_refused_with_its_value(make, T):
    with pytest.raises(ValueError, match=f"T: .*{T}"):
        make(T)


@pytest.mark.parametrize(
    "build",
    [
        lambda: linear(10, beta_1=0.0),
        lambda: linear(10, beta_T=1.0),
        lambda: linear(10, beta_1=-0.1),
        lambda: cosine(10, beta_max=1.0),
        lambda: few_step(4, beta_min=0.0, beta_max=0.0),
        lambda: few_step(4, beta_min=-5.0, beta_max=1.0),
        lambda: schedule_of([0.1, math.nan]),
        lambda: schedule_of([]),
        lambda: Schedule(torch.tensor([0.1, 0.2])),
        lambda: Schedule(torch.zeros(2, 2)),
        lambda: Schedule(torch.zeros(0)),
        lambda: Schedule(torch.tensor(0.0)),
    ],
)
def test_betas_outside_the_open_unit_interval_or_of_the_wrong_shape_are_refused(build):
    with pytest.raises(ValueError, match="beta: "):
        build()


@pytest.mark.parametrize(("T", "steps", "name"), [(10, 0, "steps"), (10, 11, "steps"), (10, -1, "steps"), (0, 1, "T")])
def test_subsequence_refuses_more_steps_than_T_and_fewer_than_one(T, steps, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        subsequence(T, steps)
