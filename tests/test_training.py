"""Batches, the loop, the average and the learning rate."""

import math
from itertools import islice

import pytest
import torch
from torch import nn

from diffutils import training
from diffutils.checkpoints import Checkpoints
from diffutils.data import bumps
from diffutils.networks.mlp import MLP
from diffutils.objectives import simple_loss
from diffutils.process import convert
from diffutils.runtime import Randomness, has_bf16
from diffutils.schedules import few_step
from diffutils.training import Batches, Budget, Descent, average, fit


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Weight(nn.Module):
    """One vector of parameters."""

    def __init__(self, *values: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_every_row_comes_once_an_epoch_in_a_new_order_with_its_label():
    x = torch.arange(12)
    stream = Batches(x, x * 10, size=4, generator=seeded())
    epochs = []
    for _ in range(3):
        rows = list(islice(stream, 3))
        assert all(len(a) == 4 and torch.equal(a * 10, b) for a, b in rows)
        epochs.append(torch.cat([a for a, _ in rows]).tolist())
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(12))


def test_the_rest_of_an_epoch_is_left_out_and_comes_up_in_others():
    stream = Batches(torch.arange(10), size=4, generator=seeded())
    epochs = [torch.cat([a for (a,) in islice(stream, 2)]).tolist() for _ in range(20)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert set().union(*epochs) == set(range(10))


def test_batches_are_those_of_the_generator():
    first, again, other = (next(Batches(torch.arange(50), size=50, generator=seeded(s)))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("tensors", "size", "name"),
    [((5,), 6, "size"), ((5,), 0, "size"), ((5,), -1, "size"), ((0,), 1, "size"), ((5, 4), 2, "tensors")],
)
def test_batches_that_cannot_be_filled_are_refused_at_once(tensors, size, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        Batches(*(torch.zeros(n) for n in tensors), size=size)


def test_fit_yields_after_each_update_and_takes_no_batch_too_many():
    done, source = [], iter([("a",), ("b",), ("c",), ("d",)])

    def update(batch):
        done.append(batch)
        return {"loss": torch.tensor(len(done) / 2), "other": torch.tensor(1.0)}

    walk = fit(update, source, 3)
    assert done == []
    first = next(walk)
    assert done == [("a",)] and first.index == 1 and first.losses == {"loss": 0.5, "other": 1.0}
    rest = list(walk)
    assert [step.index for step in rest] == [2, 3] and rest[-1].losses["loss"] == 1.5
    assert 0 <= first.seconds <= rest[0].seconds <= rest[1].seconds
    assert done == [("a",), ("b",), ("c",)] and next(source) == ("d",)


def test_fit_says_when_the_batches_run_out():
    walk = fit(lambda batch: {"loss": torch.tensor(0.0)}, [(1,), (2,)], 5)
    assert [next(walk).index, next(walk).index] == [1, 2]
    with pytest.raises(ValueError, match="batches: ran out after 2 of 5"):
        next(walk)
    with pytest.raises(ValueError, match="batches: ran out after 0 of 1"):
        list(fit(lambda batch: {}, [], 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fit_stops_at_the_first_loss_that_is_not_finite_and_names_it(bad):
    losses = iter([0.5, bad, 0.5])
    walk = fit(lambda batch: {"first": torch.tensor(1.0), "second": torch.tensor(next(losses))}, [()] * 3, 3)
    next(walk)
    with pytest.raises(FloatingPointError, match=f"step 2: second is {bad}"):
        next(walk)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps: must be at least 1, got {steps}"):
        list(fit(lambda batch: {}, [()], steps))
    with pytest.raises(ValueError, match=f"steps: must be at least 1, got {steps}"):
        Descent(Weight(1.0), lambda: None, steps)


def test_average_is_the_exponential_moving_average_started_at_the_first_weights():
    network, expected = Weight(1.0, -2.0), None
    ema = average(network, 0.9)
    for value in ([3.0, 1.0], [5.0, 0.0], [-1.0, 4.0]):
        with torch.no_grad():
            network.w.copy_(torch.tensor(value))
        ema.update_parameters(network)
        new = torch.tensor(value, dtype=torch.float64)
        expected = new if expected is None else 0.9 * expected + 0.1 * new
        assert (ema.module.w - expected).abs().max() < 1e-14


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay: .*got {decay}"):
        average(Weight(1.0), decay)


def test_the_learning_rate_rises_for_the_warm_up_and_falls_as_a_half_cosine_to_zero():
    network, steps, warmup, lr = Weight(0.0), 40, 10, 0.01
    update = Descent(network, lambda: network.w.sum(), steps, lr, warmup=warmup)
    w = [0.0]
    for _ in range(steps + 2):
        update(())
        w.append(network.w.item())
    # a constant gradient: Adam's step is then the learning rate itself
    rate = [a - b for a, b in zip(w, w[1:], strict=False)]
    expected = [lr * min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / steps))) for i in range(steps)] + [0, 0]
    assert max(abs(a - b) for a, b in zip(rate, expected, strict=True)) < 1e-8
    assert abs(rate[0] - lr / 10) < 1e-8 and rate[-3] < 1e-4 and max(rate) > 0.85 * lr


def test_large_gradients_are_clipped_to_the_given_norm_and_small_ones_are_not():
    network = Weight(0.0, 0.0)
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    update = Descent(network, lambda scale: (scale * slope * network.w).sum(), 10, clip=2.0)
    update((100.0,))
    assert (network.w.grad - torch.tensor([1.2, 1.6])).abs().max() < 1e-5
    update((0.1,))
    assert (network.w.grad - torch.tensor([0.3, 0.4])).abs().max() < 1e-6


def test_the_average_follows_the_weights_after_each_step():
    network = Weight(1.0)
    ema = average(network, 0.5)
    update = Descent(network, lambda: network.w.square().sum(), 5, lr=0.1, ema=ema, warmup=1)
    expected = None
    for _ in range(5):
        update(())
        now = network.w.detach().clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now
        assert (ema.module.w - expected).abs().max() < 1e-14
    assert ema.n_averaged == 5 and ema.module.w != network.w


def test_descend_trains_in_training_mode_and_returns_the_loss_before_the_step():
    network = nn.Linear(1, 1).eval()
    modes = []

    def loss(x):
        modes.append(network.training)
        return (network(x) - 1).square().mean()

    x = torch.ones(4, 1)
    before = loss(x).item()
    losses = Descent(network, loss, 3)((x,))
    assert modes == [False, True] and list(losses) == ["loss", "gradient"] and not losses["loss"].requires_grad
    assert losses["loss"].item() == before


def test_the_norm_of_the_gradient_is_told_before_clipping():
    network = Weight(0.0, 0.0)
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    losses = Descent(network, lambda: (slope * network.w).sum(), 10, clip=2.0)(())
    assert abs(losses["gradient"].item() - 5) < 1e-12


def test_micro_batches_take_the_step_of_the_whole_batch_and_call_the_loss_once_each():
    x = torch.randn(12, 3, generator=seeded(), dtype=torch.float64)
    weights, losses = [], []
    for micro in 1, 3, 12:
        network, sizes = Weight(1.0, -1.0, 0.5), []

        def loss(x, network=network, sizes=sizes):
            sizes.append(len(x))
            return (x @ network.w).square().mean()

        update = Descent(network, loss, 5, 0.1, micro=micro)
        losses.append([update((x,))["loss"].item() for _ in range(5)])
        weights.append(network.w.detach())
        assert sizes == [12 // micro] * 5 * micro
    for other, told in zip(weights[1:], losses[1:], strict=True):
        assert (other - weights[0]).abs().max() < 1e-12
        assert max(abs(a - b) for a, b in zip(told, losses[0], strict=True)) < 1e-12


def test_a_batch_that_cannot_be_divided_is_refused():
    network = Weight(1.0)
    with pytest.raises(ValueError, match="micro: a batch of 5 rows cannot be divided in 2"):
        Descent(network, lambda x: network.w.sum(), 5, micro=2)((torch.zeros(5),))
    with pytest.raises(ValueError, match="micro: must be at least 1, got 0"):
        Descent(network, lambda x: network.w.sum(), 5, micro=0)


def test_bfloat16_reaches_the_loss_and_not_the_weights():
    network, seen = nn.Linear(4, 4), []

    def loss(x):
        seen.append(network(x).dtype)
        return network(x).float().square().mean()

    for bf16 in False, True:
        Descent(network, loss, 5, bf16=bf16)((torch.ones(2, 4),))
    assert seen == [torch.float32, torch.bfloat16 if has_bf16("cpu") else torch.float32]
    assert network.weight.dtype == network.weight.grad.dtype == torch.float32


def test_a_time_budget_lets_the_rate_fall_with_the_time_and_ends_the_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    budget, network, rates = Budget(seconds=10), Weight(0.0), []
    update = Descent(network, lambda: network.w.sum(), budget, 0.01, warmup=1)

    def slow(batch):
        now[0] += 2.5
        losses = update(batch)
        rates.append(update.optimisers[0].param_groups[0]["lr"])
        return losses

    walk = list(fit(slow, [()] * 99, budget))
    assert [step.seconds for step in walk] == [2.5, 5.0, 7.5, 10.0]
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * spent / 10)) for spent in (2.5, 5, 7.5, 10)]
    assert max(abs(a - b) for a, b in zip(rates, expected, strict=True)) < 1e-12


def test_a_budget_counts_the_time_of_the_runs_before():
    budget = Budget(seconds=100)
    budget.load_state_dict({"spent": 40.0})
    assert 0.4 <= budget.fraction(0) < 0.41 and 40 <= budget.state_dict()["spent"] < 41


@pytest.mark.parametrize("settings", [{}, {"steps": 1, "seconds": 1}, {"steps": 0}, {"seconds": 0}])
def test_a_budget_is_steps_or_seconds_and_positive(settings):
    with pytest.raises(ValueError, match="steps|seconds"):
        Budget(**settings)


def test_fit_yields_the_mean_of_the_losses_since_the_last_time():
    values = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    walk = list(fit(lambda batch: {"loss": torch.tensor(next(values))}, [()] * 5, 5, every=2))
    assert [step.index for step in walk] == [2, 4, 5]
    assert [step.losses["loss"] for step in walk] == [1.5, 3.5, 5.0]
    with pytest.raises(ValueError, match="every: must be at least 1, got 0"):
        list(fit(lambda batch: {}, [()], 1, every=0))


def test_the_step_of_a_bad_loss_is_named_even_when_losses_are_read_later():
    values = iter([1.0, 2.0, 3.0, math.nan, 5.0, 6.0])
    with pytest.raises(FloatingPointError, match="step 4: loss is nan"):
        list(fit(lambda batch: {"loss": torch.tensor(next(values))}, [()] * 6, 6, every=6))


def test_no_bar_is_drawn_unless_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    list(fit(lambda batch: {"loss": torch.tensor(1.0)}, [()] * 3, 3))
    assert capsys.readouterr().err == ""
    list(fit(lambda batch: {"loss": torch.tensor(1.0)}, [()] * 3, 3, progress=True))
    assert "3/3 steps" in capsys.readouterr().err


def test_batches_go_on_from_a_saved_place():
    x = torch.arange(10)
    stream = Batches(x, size=3, generator=seeded())
    list(islice(stream, 4))
    state = {name: value.clone() if hasattr(value, "clone") else value for name, value in stream.state_dict().items()}
    rest = [rows.tolist() for (rows,) in islice(stream, 8)]
    other = Batches(x, size=3, generator=seeded(7))
    other.load_state_dict(state)
    assert [rows.tolist() for (rows,) in islice(other, 8)] == rest


def test_randomness_comes_back_dropout_included():
    generators = seeded(1), seeded(2)
    randomness = Randomness(*generators, seed=3)

    def draw():
        with randomness.inside():
            dropped = torch.nn.Dropout(0.5)(torch.ones(50))
        return [torch.randn(3, generator=generator) for generator in generators] + [dropped]

    before = torch.get_rng_state()
    draw()
    state = randomness.state_dict()
    first, second = draw(), draw()
    assert torch.equal(torch.get_rng_state(), before)  # the world outside is left alone
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    randomness.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))
    with pytest.raises(ValueError, match="a run with other generators"):
        Randomness(seeded(1)).load_state_dict(state)


class TwoPlayers:
    """The update of a GAN in miniature: two networks, two optimisers, and a penalty every third step only."""

    def __init__(self):
        self.networks = Weight(1.0, 2.0), Weight(-1.0)
        self.steps = 0
        first, second = self.networks
        self.descents = (
            Descent(first, lambda x: (first.w * x).square().mean(), 20, 0.1),
            Descent(second, lambda x: (second.w.sum() - first.w.detach().sum()).square(), 20, 0.1, optimiser="muon"),
        )

    def __call__(self, batch):
        self.steps += 1
        losses = {name: d(batch)["loss"] for name, d in zip(("generator", "discriminator"), self.descents, strict=True)}
        return losses | ({"penalty": torch.tensor(float(self.steps))} if self.steps % 3 == 0 else {})

    def state_dict(self):
        return {"steps": self.steps, "descents": [descent.state_dict() for descent in self.descents]}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        for descent, own in zip(self.descents, state["descents"], strict=True):
            descent.load_state_dict(own)


def test_an_update_may_own_two_optimisers_and_lazy_losses_and_goes_on_from_a_checkpoint(tmp_path):
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)

    def train(folder, stop):
        players, stream = TwoPlayers(), Batches(x, size=2, generator=seeded(1))
        saved = Checkpoints(folder, {}, every=0, players=players, stream=stream)
        return players, list(islice(fit(players, stream, 20, every=2, checkpoints=saved), stop))

    whole, walk = train(tmp_path / "whole", None)
    assert [step.losses.get("penalty") for step in walk[:4]] == [None, 3.0, 6.0, None]
    assert set(walk[0].losses) == {"generator", "discriminator"}
    train(tmp_path / "parts", 4)
    parts, rest = train(tmp_path / "parts", None)
    assert [step.index for step in rest] == [step.index for step in walk[4:]] and rest == [
        step._replace(seconds=other.seconds) for step, other in zip(walk[4:], rest, strict=True)
    ]
    for one, two in zip(whole.networks, parts.networks, strict=True):
        assert torch.equal(one.w, two.w)


def test_fit_yields_after_the_updates_it_is_told_to():
    walk = fit(lambda batch: {"loss": torch.tensor(1.0)}, [()] * 9, 9, every=4, at={3, 5})
    assert [step.index for step in walk] == [3, 5, 9]


def test_a_state_saved_before_the_first_step_changes_nothing():
    weights = []
    for look in False, True:
        network = Weight(1.0, -2.0)
        update = Descent(network, lambda: (network.w**2).sum(), 9, 0.1, warmup=1)  # noqa: B023
        if look:
            state = update.state_dict()
            update.load_state_dict(state)
        for _ in range(3):
            update(())
        weights.append(network.w.detach())
    assert torch.equal(*weights)


def regress(seed: int) -> tuple[nn.Module, list[float]]:
    """Fit y = A x + b by gradient descent."""
    x = torch.randn(256, 3, generator=seeded())
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    network = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    update = Descent(network, lambda x, y: (network(x) - y).square().mean(), 400, lr=0.05)
    walk = fit(update, Batches(x, y, size=64, generator=seeded(seed)), 400)
    return network, [step.losses["loss"] for step in walk]


def test_descend_fits_a_regression():
    network, losses = regress(1)
    assert losses[0] > 1 and losses[-1] < 1e-6
    assert (network.weight - torch.tensor([[1.0, -2.0, 0.5]])).abs().max() < 1e-3
    assert abs(network.bias.item() - 0.3) < 1e-3


def test_the_same_seed_trains_the_same_weights():
    (one, losses), (two, same), (other, _) = regress(1), regress(1), regress(2)
    assert losses == same and torch.equal(one.weight, two.weight) and not torch.equal(one.weight, other.weight)


def test_a_trained_network_comes_close_to_the_ideal_loss_and_not_below_it():
    schedule, mixture = few_step(20), bumps()
    x_0 = mixture.sample(4096, seeded()).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(1, width=32, depth=2)
    generator = seeded(1)
    update = Descent(network, lambda x: simple_loss(network, x, schedule, generator), 400, lr=5e-3)
    for _ in fit(update, Batches(x_0, size=256, generator=generator), 400):
        pass

    def ideal(x_t, t):
        eps = torch.empty_like(x_t)
        for step in t.unique().tolist():
            rows = t == step
            guess = mixture.posterior_mean(x_t[rows].double(), schedule.alpha_bar[step].item()).float()
            eps[rows] = convert(guess, x_t[rows], step, schedule, "x_0", "eps")
        return eps

    fresh = mixture.sample(20_000, seeded(2)).float()
    network.eval()
    with torch.no_grad():
        learned, best = (simple_loss(net, fresh, schedule, seeded(3)).item() for net in (network, ideal))
    assert 0.2 < best < learned < best + 0.05
