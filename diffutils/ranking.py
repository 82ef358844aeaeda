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

    Of K >= 2 trainings the means :math:`m_k` of their draws are the units: what a new training would change is in
    their spread, and so is what a new draw would. Of a single training the draws are. With ``errors`` e, those of each
    value that come from the choice of the images (:func:`diffutils.metrics.half_sample_error`), the error is never less
    than theirs, by the spread's chance:

    .. math:: \text{error}^2 = \max\Bigl(\frac{1}{K (K - 1)} \sum_k (m_k - \bar m)^2,\ \frac{\overline{e^2}}{n}\Bigr)

    with n values in all, and K - 1 degrees of freedom; of a single value it is e, with 39, from 40 half samples.
    Raises ``ValueError`` if there is no value. Source: chapter 13.
    """
    if not values or not all(values):
        raise ValueError(f"values: needs at least one value of each training, got {values}")
    kind = "trainings" if len(values) > 1 else "draws"
    units = torch.tensor([sum(of) / len(of) for of in values] if len(values) > 1 else values[0], dtype=torch.float64)
    K, n = len(units), sum(map(len, values))
    least = None if errors is None else sum(e * e for of in errors for e in of) / n**2
    if K > 1:
        error, dof = math.sqrt(max((units.var() / K).item(), least or 0.0)), K - 1
    else:
        error, dof = (math.nan, 1) if least is None else (math.sqrt(least), 39)
    return Estimate(units.mean().item(), error, dof, tuple(units.tolist()), kind)


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
    name: str
    score: str
    now: float
    stored: float
    allowed: float


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
    """The :func:`table` as lines of text, with its floor."""
    columns = {"frechet": 2, "precision": 2, "recall": 2, "coverage": 2, "uneven": 2, "bits/dim": 2}
    cost = ("calls", "seconds, batch of 1", "seconds, batch of 64", "MiB, batch of 64", "training seconds")
    found, judge = table(results, judge), judge or results["judges"][-1]
    floor = results["floor"][judge]
    width = 2 + max(map(len, [*found, "real images"]))
    heads = ["calls", "s (1)", "s (64)", "MiB", "train s"]
    lines = [" " * width + "".join(f"{c:>13}" for c in columns) + "".join(f"{h:>10}" for h in heads)]
    cells = "".join(f"{floor[c]:7.2f}      " if c in floor else " " * 13 for c in columns)
    lines.append(f"{'real images':{width}}{cells}")
    for name, of in found.items():
        cells = ""
        for column, digits in columns.items():
            one = of.get(column)
            cells += _cell(one, digits) if one else f"{'-':>7}      "
        cells += "".join(f"{of[c].mean:10.4g}" if c in of else f"{'-':>10}" for c in cost)
        lines.append(f"{name:{width}}{cells}")
    return "\n".join(lines)


def _cell(one: Estimate, digits: int) -> str:
    half = "" if math.isnan(one.half) else f" ±{one.half:.{digits}f}"
    return f"{one.mean:7.{digits}f}{half}".ljust(13)
