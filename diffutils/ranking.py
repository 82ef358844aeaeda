"""What the measurements of :mod:`diffutils.trilemma` say: means with intervals, who is surely better, and the front."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .studies import SCORES

MORE = ("precision", "recall", "density", "coverage", "covered", "sure")
"""The columns of a :func:`table` of which more is better; of all others less is."""


class Estimate(NamedTuple):
    """A mean of repeated measurements, and how far to trust it."""

    mean: float
    """Of :attr:`units`."""
    error: float
    """The standard error of the mean; 0 for what is counted, and nan for what was measured once."""
    dof: float
    """Degrees of freedom of that error."""
    units: tuple[float, ...]
    """What the mean is of: one number a training, or, of a single training, one a draw."""
    kind: str
    """Which of the two: ``trainings`` or ``draws``."""

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        return quantile(self.dof) * self.error if self.error else 0.0


@functools.cache
def quantile(dof: float, level: float = 0.95) -> float:
    r"""How many standard errors the two-sided interval of ``level`` reaches: of Student's t with ``dof`` >= 1 degrees
    of freedom, or of the normal distribution if that is infinite.

    With :math:`x = \sqrt\nu \tan\theta` the density of t turns into a power of the cosine,

    .. math:: P(|t| \le x) = \int_0^\theta \cos^{\nu - 1} \Big/ \int_0^{\pi / 2} \cos^{\nu - 1},

    which is inverted on a grid, to 5 digits. Raises ``ValueError`` for fewer degrees of freedom, and for a level
    outside (0, 1). Source: chapter 13; Student (1908).
    """
    if not dof >= 1 or not 0 < level < 1:
        raise ValueError(f"dof, level: need dof >= 1 and 0 < level < 1, got {dof} and {level}")
    if dof > 1e4:
        return math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()
    theta = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(theta.cos().clamp(min=0) ** (dof - 1), theta)
    i = int(torch.searchsorted(mass, level * mass[-1]))
    low = mass[i - 1] if i else mass.new_zeros(())
    at = theta[i] + (theta[i + 1] - theta[i]) * (level * mass[-1] - low) / (mass[i] - low)
    return math.sqrt(dof) * at.tan().item()


def estimate(values: Sequence[Sequence[float]], errors: Sequence[Sequence[float]] | None = None) -> Estimate:
    r"""The mean of ``values[training][draw]``, and its standard error.

    Of K >= 2 trainings the means :math:`m_k` of their draws are the units: whatever a new training and new draws would
    change is in their spread, :math:`\text{error}^2 = \sum_k (m_k - \bar m)^2 / K (K - 1)`, with K - 1 degrees of
    freedom. Of a single training the draws are the units. They differ by their images only, so what the error of each
    value says of that, ``errors`` e (:func:`diffutils.metrics.half_sample_error`), counts instead of their spread:
    :math:`\overline{e^2} / n` for n draws, with 39 n degrees of freedom, e being from 40 half samples.

    Raises ``ValueError`` if there is no value. Source: chapter 13.
    """
    if not values or not all(values):
        raise ValueError(f"values: needs at least one value of each training, got {values}")
    several = len(values) > 1
    units = torch.tensor([sum(of) / len(of) for of in values] if several else values[0], dtype=torch.float64)
    n = len(units)
    if errors is not None and not several:
        variance, dof = sum(e * e for e in errors[0]) / n**2, 39 * n
    else:
        variance, dof = (units.var().item() / n, n - 1) if n > 1 else (math.nan, 1)
    return Estimate(
        units.mean().item(), math.sqrt(variance), dof, tuple(units.tolist()), "trainings" if several else "draws"
    )


def counted(value: float) -> Estimate:
    """What has no error: a number of calls or of parameters."""
    return Estimate(float(value), 0.0, math.inf, (float(value),), "draws")


def table(results: dict[str, Any], judge: str | None = None) -> dict[str, dict[str, Estimate]]:
    """What the file ``results`` says of each model by name, in the order of the file.

    Columns: the scores, ``sure``, ``covered`` (classes with at least a tenth of their share), ``uneven`` (the
    total variation between the classes drawn and the data's), the cost of drawing, ``parameters``, ``training seconds``
    and ``bits/dim`` where it is defined. ``judge`` is one of ``results["judges"]``, by default the last, whose pixels
    all models can be shown in; models whose images it cannot be shown are left out. Raises ``ValueError`` for another.
    """
    judge = judge or results["judges"][-1]
    if judge not in results["judges"]:
        raise ValueError(f"judge: must be one of {', '.join(results['judges'])}, got {judge!r}")
    share = results["floor"][judge]["share"]
    found: dict[str, dict[str, Estimate]] = {}
    for name in dict.fromkeys(row["name"] for row in results["rows"] if row["kind"] == "draw"):
        draws = [row for row in results["rows"] if row["kind"] == "draw" and row["name"] == name]
        if judge not in draws[0]["seen by"]:
            continue
        recipe = draws[0]["recipe"]
        trained = [row for row in results["rows"] if row["kind"] == "training" and row["recipe"] == recipe]
        cost = [row for row in results["rows"] if row["kind"] == "cost" and row["name"] == name]

        def each(get: Any, draws: list[dict[str, Any]] = draws) -> list[list[float]]:
            return [
                [get(row) for row in draws if row["training"] == k] for k in dict.fromkeys(r["training"] for r in draws)
            ]

        of = found[name] = {}
        for score in SCORES:
            pairs = [each(lambda row, s=score, i=i: row["seen by"][judge][s][i]) for i in (0, 1)]
            of[score] = estimate(*pairs)
        of["sure"] = estimate(each(lambda row: row["seen by"][judge]["sure"]))
        of["covered"] = estimate(each(lambda row: covered(row["seen by"][judge]["classes"], share)))
        of["uneven"] = estimate(each(lambda row: uneven(row["seen by"][judge]["classes"], share)))
        of["seconds, batch of 64"] = estimate(each(lambda row: row["seconds an image"]))
        if cost:
            of["seconds, batch of 1"] = estimate([cost[0]["seconds, batch of 1"]])
            of |= {key: counted(cost[0][key]) for key in ("calls", "parameters in use", "MiB, batch of 64")}
        if trained:
            of["parameters"] = counted(trained[0]["parameters"])
            for column in "training seconds", "bits/dim":
                if trained[0].get(column) is not None:
                    of[column] = estimate([[row[column]] for row in trained])
    return found


def covered(counts: Sequence[int], share: Sequence[float], least: float = 0.1) -> float:
    """How many classes have at least ``least`` times their share of the images."""
    return float(sum(count >= least * part * sum(counts) for count, part in zip(counts, share, strict=True)))


def uneven(counts: Sequence[int], share: Sequence[float]) -> float:
    r"""The total variation :math:`\frac12 \sum_c |n_c / n - p_c|` between the classes of images and their shares."""
    return sum(abs(count / sum(counts) - part) for count, part in zip(counts, share, strict=True)) / 2


def surely(a: Estimate, b: Estimate, level: float = 0.95) -> int:
    r"""1 if a is larger than b beyond what the errors allow, -1 if it is smaller, 0 if it cannot be said: the interval
    of the difference, by Welch's test.

    .. math:: |a - b| > t_\nu \sqrt{e_a^2 + e_b^2}, \qquad
        \nu = \frac{(e_a^2 + e_b^2)^2}{e_a^4 / \nu_a + e_b^4 / \nu_b}.

    Where an error is not known (nan), it cannot be said. Source: chapter 13; Welch (1947).
    """
    difference, variance = a.mean - b.mean, a.error**2 + b.error**2
    if variance == 0 or math.isnan(variance):
        return 0 if math.isnan(variance) else (difference > 0) - (difference < 0)
    among = a.error**4 / a.dof + b.error**4 / b.dof
    dof = variance**2 / among if among else math.inf
    return 0 if abs(difference) <= quantile(dof, level) * variance**0.5 else (difference > 0) - (difference < 0)


def places(found: dict[str, dict[str, Estimate]], column: str) -> dict[str, tuple[int, int]]:
    """The best and the worst place in a column that a model's interval leaves open, 1 being the best: one more than
    the models that are :func:`surely` better, and than all that are not surely worse. Best mean first; those that lack
    the column are left out.
    """
    sign = 1 if column in MORE else -1
    of = {name: columns[column] for name, columns in found.items() if column in columns}
    ordered = sorted(of, key=lambda name: -sign * of[name].mean)
    beats = {(a, b): sign * surely(of[a], of[b]) for a in of for b in of if a != b}
    return {
        name: (
            1 + sum(beats[b, name] > 0 for b in of if b != name),
            1 + sum(beats[name, b] <= 0 for b in of if b != name),
        )
        for name in ordered
    }


def front(
    found: dict[str, dict[str, Estimate]], columns: Sequence[str], generator: Generator, draws: int = 4000
) -> dict[str, float]:
    """How often each model is on the Pareto front, where no other is as good in every one of ``columns`` and better in
    one, when every number is drawn anew from its interval (its mean plus its error times Student's t).

    1 and 0 are sure. Models that lack a column are left out, and an error that is not known counts as none.
    """
    of = {name: [of[c] for c in columns] for name, of in found.items() if all(c in of for c in columns)}
    # (models, columns, draws), more is better
    better = torch.stack([_drawn(row, columns, generator, draws) for row in of.values()])
    as_good = (better[:, None] >= better[None]).all(2)
    more = (better[:, None] > better[None]).any(2)
    on = ~(as_good & more).any(0)
    return dict(zip(of, on.double().mean(1).tolist(), strict=True))


def _drawn(row: Sequence[Estimate], columns: Sequence[str], generator: Generator, draws: int) -> Tensor:
    """New values of a model's columns, (columns, draws), signed so that more is better."""
    values = []
    for one, column in zip(row, columns, strict=True):
        z = torch.randn(draws, generator=generator, dtype=torch.float64)
        if math.isfinite(one.dof):  # t = z / sqrt(chi^2 / dof)
            chi2 = torch.randn(int(one.dof), draws, generator=generator, dtype=torch.float64).square().sum(0)
            z = z / (chi2 / int(one.dof)).sqrt()
        error = 0.0 if math.isnan(one.error) else one.error
        values.append((1 if column in MORE else -1) * (one.mean + error * z))
    return torch.stack(values)


class Change(NamedTuple):
    """A score that differs from the stored one."""

    judge: str
    """Which classifier gave it."""
    name: str
    """Of the model."""
    score: str
    """Which of :data:`diffutils.studies.SCORES`."""
    now: float
    """Its mean in the file that was found."""
    stored: float
    """Its mean in the stored file."""
    allowed: float
    """How far apart the two may be by chance."""


def changes(found: dict[str, Any], stored: dict[str, Any], level: float = 0.95) -> Iterator[Change]:
    """Every score that both files have, and by how much a repetition may differ from the ``stored`` one.

    That is the interval of the difference of two means, with the stored spread from unit to unit: of K trainings there
    and k here, :math:`t\\, s \\sqrt{1 / K + 1 / k}`. A file measured from one training's weights is one unit.
    """
    for judge in set(found["judges"]) & set(stored["judges"]):
        ours, theirs = table(found, judge), table(stored, judge)
        for name in ours.keys() & theirs.keys():
            for score in SCORES:
                a, b = ours[name][score], theirs[name][score]
                k, K = len(a.units) if a.kind == b.kind else 1, len(b.units)
                spread = b.error * math.sqrt(K)
                allowed = quantile(b.dof, level) * spread * math.sqrt(1 / K + 1 / k)
                yield Change(judge, name, score, a.mean, b.mean, allowed)


def text(results: dict[str, Any], judge: str | None = None) -> str:
    """The :func:`table` as lines of text, with its floor: the scores, then what the models cost."""
    found, floor = table(results, judge), results["floor"][judge or results["judges"][-1]]
    width = 2 + max(map(len, [*found, "real images"]))
    scores = "frechet", "precision", "recall", "coverage", "uneven"
    lines = [" " * width + "".join(f"{score:>14}" for score in scores)]
    lines.append(f"{'real images':{width}}" + "".join(f"{floor[s]:8.2f}      " if s in floor else "" for s in scores))
    for name, of in found.items():
        lines.append(f"{name:{width}}" + "".join(_cell(of[score]) for score in scores))
    costs = {
        "calls": "calls",
        "s, alone": "seconds, batch of 1",
        "s, of 64": "seconds, batch of 64",
        "MiB": "MiB, batch of 64",
        "k weights": "parameters",
        "train s": "training seconds",
        "bits/dim": "bits/dim",
    }
    lines += ["", " " * width + "".join(f"{head:>10}" for head in costs)]
    for name, of in found.items():
        at = {column: of[column].mean for column in costs.values() if column in of}
        at |= {"parameters": at["parameters"] / 1000} if "parameters" in at else {}
        cells = (f"{at[column]:10.4g}" if column in at else f"{'-':>10}" for column in costs.values())
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(one: Estimate) -> str:
    half = "" if math.isnan(one.half) else f" ±{one.half:.2f}"
    return f"{one.mean:8.2f}{half}".ljust(14)
