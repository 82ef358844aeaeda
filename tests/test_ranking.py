"""Intervals, who is surely better, places and fronts: against scipy, simulation, and cases that can be seen."""

import math

import pytest
import torch
from scipy import stats

from diffutils import ranking
from diffutils.ranking import Estimate, estimate


@pytest.mark.parametrize("dof", [1, 1.3, 2, 2.5, 5, 39, 700, math.inf])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.95, 0.99])
def test_quantiles_are_those_of_scipy(dof, level):
    expected = stats.norm.ppf(0.5 + level / 2) if dof == math.inf else stats.t.ppf(0.5 + level / 2, dof)
    assert abs(ranking.quantile(dof, level) - expected) < 1e-4 * max(expected, 1)


def test_what_has_no_quantile_is_refused():
    for wrong in (0.5, 0.95), (math.nan, 0.95), (3, 1.0):
        with pytest.raises(ValueError, match="dof, level: need dof >= 1 and 0 < level < 1"):
            ranking.quantile(*wrong)


def test_of_several_trainings_their_means_are_the_units():
    values = [[1.0, 3.0], [4.0, 6.0], [7.0, 9.0]]
    found = estimate(values)
    assert found.units == (2.0, 5.0, 8.0) and found.kind == "trainings" and found.mean == 5 and found.dof == 2
    low, high = stats.t.interval(0.95, 2, 5.0, stats.sem([2, 5, 8]))
    assert abs(found.half - (high - low) / 2) < 1e-3
    alone = estimate(values[:1])
    assert alone.units == (1.0, 3.0) and alone.kind == "draws" and alone.error == 1.0


def test_of_a_single_training_the_errors_of_the_images_count():
    errors = [[0.3], [0.3], [0.3]]
    assert estimate([[0.0], [1.0], [2.0]], errors).error == pytest.approx(1 / math.sqrt(3))
    once = estimate([[2.0]], [[0.3]])
    assert once.error == 0.3 and once.half == pytest.approx(stats.t.ppf(0.975, 39) * 0.3, abs=1e-5)
    twice = estimate([[2.0, 9.0]], [[0.3, 0.4]])
    assert twice.error == pytest.approx(0.5 / 2) and twice.dof == 78 and twice.kind == "draws"
    assert math.isnan(estimate([[2.0]]).half)
    with pytest.raises(ValueError, match="values: needs at least one value of each training"):
        estimate([[1.0], []])


def test_the_interval_of_three_trainings_holds_the_truth_as_often_as_it_says():
    """And one that took the normal distribution's 1.96 would not."""
    g = torch.Generator().manual_seed(0)
    draws = (torch.randn(2000, 3, 1, generator=g) + torch.randn(2000, 3, 2, generator=g)).double()
    found = [estimate(one.tolist()) for one in draws]
    share = sum(abs(one.mean) <= one.half for one in found) / len(found)
    narrow = sum(abs(one.mean) <= 1.96 * one.error for one in found) / len(found)
    assert abs(share - 0.95) < 0.015 and narrow < 0.85


def test_differences_are_judged_as_by_welch():
    g = torch.Generator().manual_seed(1)
    for shift in (0.0, 1.0, 2.0, 4.0, 8.0):
        for _ in range(20):
            x, y = torch.randn(3, generator=g).double() + shift, 3 * torch.randn(4, generator=g).double()
            found = ranking.surely(estimate([[v] for v in x.tolist()]), estimate([[v] for v in y.tolist()]))
            p = stats.ttest_ind(x.numpy(), y.numpy(), equal_var=False)
            assert found == (0 if p.pvalue > 0.05 else math.copysign(1, p.statistic))


def test_what_is_counted_has_no_error_and_what_is_not_known_decides_nothing():
    assert ranking.surely(ranking.counted(4), ranking.counted(1)) == 1
    assert ranking.surely(ranking.counted(1), ranking.counted(1)) == 0 and ranking.counted(7).half == 0
    assert ranking.surely(ranking.counted(4), estimate([[1.0]])) == 0


def known(mean: float, error: float = 0.0) -> Estimate:
    return Estimate(mean, error, math.inf, (mean,), "draws")


def test_places_leave_open_what_the_intervals_do():
    found = {"a": {"recall": known(0.9, 0.01)}, "b": {"recall": known(0.89, 0.01)}, "c": {"recall": known(0.5, 0.01)}}
    assert ranking.places(found | {"d": {}}, "recall") == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    less = {name: {"frechet": of["recall"]} for name, of in found.items()}
    assert ranking.places(less, "frechet") == {"c": (1, 1), "b": (2, 3), "a": (2, 3)}


def test_a_model_is_on_the_front_unless_another_is_as_good_and_better():
    rows = {"fast": (0.5, 1.0), "good": (0.9, 9.0), "worse": (0.8, 9.0), "both": (0.9, 9.0), "lacks": (0.99,)}
    found = {name: dict(zip(("recall", "calls"), map(known, row), strict=False)) for name, row in rows.items()}
    front = ranking.front(found, ("recall", "calls"), torch.Generator().manual_seed(0), 10)
    assert front == {"fast": 1, "good": 1, "worse": 0, "both": 1}


def test_the_front_is_as_unsure_as_the_intervals():
    """Of two models at equal cost the one on the front is the one drawn higher: P(N(d, 2 e^2) > 0)."""
    found = {"a": {"recall": known(0.9, 0.05)}, "b": {"recall": known(0.85, 0.05)}}
    front = ranking.front(found, ["recall"], torch.Generator().manual_seed(0))
    expected = stats.norm.cdf(0.05 / (0.05 * 2**0.5))
    assert abs(front["a"] - expected) < 0.025 and abs(front["a"] + front["b"] - 1) < 1e-9
    few = {name: {"recall": Estimate(of["recall"].mean, 0.05, 2, (), "trainings")} for name, of in found.items()}
    assert ranking.front(few, ["recall"], torch.Generator().manual_seed(0))["a"] < front["a"]


SHARE = [0.5, 0.3, 0.2]


def test_classes_covered_and_uneven():
    assert ranking.uneven([50, 30, 20], SHARE) == 0 and ranking.uneven([0, 60, 40], SHARE) == pytest.approx(0.5)
    assert ranking.covered([50, 30, 20], SHARE) == 3 and ranking.covered([98, 2, 0], SHARE) == 1
    assert ranking.covered([94, 3, 3], SHARE) == 3  # a tenth of its share is enough


def results(**draws) -> dict:
    """A file in small: name -> {(training, draw): Fréchet distance}; errors of 0.1."""
    rows = []
    for name, values in draws.items():
        recipe = f"digits-{name}"
        rows.append({"kind": "cost", "name": name, "recipe": recipe, "calls": 4, "parameters in use": 7})
        rows[-1] |= {"seconds, batch of 1": [1.0, 2.0], "MiB, batch of 64": 0.5}
        for training in {key[0] for key in values}:
            rows.append({"kind": "training", "recipe": recipe, "training": training, "parameters": 9000})
            rows[-1] |= {"training seconds": 60.0 + training, "bits/dim": 2.0 if name == "vae" else None}
        for (training, draw), value in values.items():
            of = {score: [value if score == "frechet" else 0.5, 0.1] for score in ranking.SCORES}
            of |= {"sure": 0.9, "classes": [50, 30, 20]}
            seen = {"large": of} if name == "ldm" else {"small": of, "large": of}
            rows.append({"kind": "draw", "name": name, "recipe": recipe, "training": training, "draw": draw})
            rows[-1] |= {"n": 100, "seconds an image": 0.1, "seen by": seen}
    floor = {score: 0.3 for score in ranking.SCORES} | {"share": SHARE}
    return {"judges": ["small", "large"], "floor": {"small": floor, "large": floor}, "rows": rows}


def test_a_table_has_every_model_that_a_judge_has_seen():
    file = results(vae={(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (1, 1): 4.0}, ldm={(0, 0): 7.0})
    table = ranking.table(file)
    assert list(table) == ["vae", "ldm"] and list(ranking.table(file, "small")) == ["vae"]
    vae, ldm = table["vae"], table["ldm"]
    assert vae["frechet"].units == (2.0, 4.0) and vae["frechet"].mean == 3 and ldm["frechet"].error == 0.1
    assert vae["calls"].mean == 4 and vae["parameters"].mean == 9000 and vae["seconds, batch of 1"].mean == 1.5
    assert vae["bits/dim"].mean == 2 and "bits/dim" not in ldm and vae["training seconds"].mean == 60.5
    assert vae["covered"].mean == 3 and vae["uneven"].mean == 0
    with pytest.raises(ValueError, match="judge: must be one of small, large, got 'other'"):
        ranking.table(file, "other")
    text = ranking.text(file).splitlines()
    assert len(text) == 8 and text[1].startswith("real images") and "0.30" in text[1] and "nan" not in "".join(text)
    assert text[2].split()[:3] == ["vae", "3.00", "±12.71"] and text[3].split()[1] == "7.00"
    assert text[6].split() == ["vae", "4", "1.5", "0.1", "0.5", "9", "60.5", "2"] and text[7].split()[-1] == "-"
    assert max(map(len, text)) < 90


def test_a_repetition_may_differ_by_what_another_training_would():
    stored = results(vae={(0, 0): 1.0, (1, 0): 2.0, (2, 0): 3.0}, gan={(0, 0): 1.0, (0, 1): 2.0})
    now = results(vae={(0, 0): 4.9, (0, 1): 6.9}, gan={(0, 0): 2.0, (0, 1): 2.0}, new={(0, 0): 9.0})
    found = {(one.judge, one.name): one for one in ranking.changes(now, stored) if one.score == "frechet"}
    assert set(found) == {("small", "vae"), ("large", "vae"), ("small", "gan"), ("large", "gan")}
    vae, gan = found["large", "vae"], found["small", "gan"]
    assert (vae.now, vae.stored) == (pytest.approx(5.9), 2.0)
    assert vae.allowed == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(1 / 3 + 1), rel=1e-3)
    assert gan.allowed == pytest.approx(stats.t.ppf(0.975, 78) * 0.1 * math.sqrt(1 / 2 + 1 / 2), rel=1e-3)
