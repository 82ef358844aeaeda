"""Every generative model of the book on the same data, before the same judges, on one machine: one table, one file.

``python -m diffutils trilemma`` measures one cell after the other and writes the file after each; started again, it
goes on with those that are missing. What stands in the file is said in it (:data:`SCHEMA`); :mod:`diffutils.ranking`
reads it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import data, evaluation, recipes, runtime, studies, zoo
from .entrants import ENTRANTS, JUDGES, Entrant, cost, drawn
from .recipes import FOLDER
from .zoo import Model

SCHEMA = {
    "file": {
        "trilemma": "the data set",
        "schema": "this",
        "settings": "what the numbers depend on besides the weights; a file is gone on with under the same only",
        "setting": "hardware, threads, versions, and the day of the first row",
        "revisions": "the commits that measured, with + where files had been changed",
        "judges": "classifiers in whose features images are compared; all models' images can be shown to the last",
        "floor": "of each judge: the scores of n real images of the other half of the data, and the classes' share",
        "missing": "recipes that could not be measured, and why",
        "rows": "what was measured, of three kinds: training, cost and draw",
    },
    "training": {
        "recipe": "which network, and how it is trained",
        "training": "the seed",
        "weights": "shipped, own (the reader's file), or trained here",
        "parameters": "of all networks trained together",
        "steps": "of its training",
        "images": "of its training, steps times batch",
        "training seconds": "by the clock",
        "trained on": "the hardware",
        "first stage seconds": "of training the autoencoder that it needs; null if it needs none, or its file is away",
        "bits/dim": "the variational bound on 60 test images; null without a likelihood, with classes, or without data",
    },
    "cost": {
        "name": "which way of drawing",
        "recipe": "with which network",
        "calls": "of the network, one after the other, for an image",
        "parameters in use": "of the parts that are called",
        "seconds, batch of 1": "three times, or twice if it takes long, after one image to warm up",
        "MiB, batch of 64": "the most that tensors hold at one time, the parameters in use included",
    },
    "draw": {
        "name": "which way of drawing",
        "recipe": "with which network",
        "training": "the seed of its training",
        "draw": "the seed of the draw, another one for every training",
        "n": "images",
        "seconds an image": "in batches of 64",
        "seen by": "of each judge every score as [value, standard error over half samples], sure (the share that it is "
        "more than 90 % sure of) and classes (how many it counts in each)",
    },
    "every row": {"kind": "training, cost or draw", "took": "seconds that measuring it took"},
}

SEEDS = (0, 1, 2)
BITS = 60
"""Test images that bits/dim are measured on."""


class Done(NamedTuple):
    """A row that has been measured, and how far that is."""

    row: dict[str, Any]
    """As it was written to the file."""
    index: int
    """Rows so far, those of earlier starts included."""
    total: int
    """Rows there will be."""
    left: float
    """Seconds until the last, about."""
    next: dict[str, Any] | None
    """What comes now, by the first entries of its row."""


def run(
    name: str = "digits",
    path: str | Path | None = None,
    retrain: bool = False,
    n: int | None = None,
    draws: int | None = None,
    device: str | None = None,
    own: str | Path = "runs",
    **changes: Any,
) -> Iterator[Done]:
    """Measure what the file ``path`` lacks of the table of a data set, write it after each row, and yield the rows.

    Args:
        name: the data set: ``digits``, ``mnist`` or ``cifar10``.
        path: the file (default ``runs/trilemma-NAME.json``).
        retrain: train every model from nothing, with the seeds 0, 1 and 2, in a folder beside the file that is called
            as it is. Else the shipped weights are measured, one training a model.
        n: images a draw; by default as many as the judges know their floor at, up to 2000.
        draws: sampling seeds a training, by default 3, on the digits 2, whose walk of 1000 steps is drawn once.
        device: by default a GPU if there is one.
        own: where weights that are not shipped may lie, as ``train`` leaves them: ``RECIPE/weights.safetensors``.
        changes: entries of all recipes to train otherwise, for a rehearsal (``steps=10``).

    Models without weights are left out, and the file says which. A training that was stopped goes on from its last
    checkpoint, so that a run that was killed ends with the numbers of one that was not, but for times. Raises
    ``ValueError`` for an unknown data set, for an n without a floor, for changes without ``retrain``, and if the file
    is of other settings or another machine; ``FileNotFoundError`` if a judge is not there.
    """
    if changes and not retrain:
        raise ValueError(f"changes: {', '.join(changes)} can be changed only with retrain")
    if name not in JUDGES:
        raise ValueError(f"data: must be one of {', '.join(JUDGES)}, got {name!r}")
    draws = draws or (2 if name == "digits" else 3)
    judges = {judge: evaluation.judge(judge) for judge in JUDGES[name]}
    if n is None:
        n = max(k for k in map(int, judges[JUDGES[name][0]].header["results"]["floor"]) if k <= 2000)
    for by in judges.values():
        evaluation.check_n(by, n)
    path = Path(path or Path("runs") / f"trilemma-{name}.json")
    where = runtime.device(device)
    kept = studies.resumed(
        path,
        {
            "trilemma": name,
            "schema": SCHEMA,
            "settings": {"n": n, "draws": draws, "retrain": retrain, "device": where.type} | changes,
            "setting": runtime.setting(where),
            "revisions": [],
            "judges": list(judges),
            "floor": {judge: _floor(by, n) for judge, by in judges.items()},
            "missing": {},
            "rows": [],
        },
    )
    plan = _Plan(name, path.with_suffix(""), retrain, n, draws, device, Path(own), changes)
    cells = list(plan.cells())
    kept["missing"], revision = plan.missing, runtime.revision()
    left = [cell for cell in cells if not any(cell.key.items() <= row.items() for row in kept["rows"])]
    guess = _guesses(name, retrain, left)
    studies.write(path, kept)
    spent = 0.0
    for i, cell in enumerate(left):
        start = time.perf_counter()
        row = cell.key | cell.measure()
        row["took"] = round(time.perf_counter() - start, 2)
        kept["rows"].append(row)
        if revision not in kept["revisions"]:
            kept["revisions"].append(revision)
        studies.write(path, kept)
        spent += row["took"]
        still = spent * sum(guess[i + 1 :]) / sum(guess[: i + 1])
        coming = left[i + 1].key if i + 1 < len(left) else None
        yield Done(row, len(cells) - len(left) + i + 1, len(cells), still, coming)


def results(name: str = "digits") -> dict[str, Any]:
    """The shipped file of a data set. Raises ``FileNotFoundError`` if there is none."""
    return studies.results(f"trilemma-{name}")


def _floor(by: evaluation.Judge, n: int) -> dict[str, Any]:
    known = by.header["results"]["floor"][str(n)]
    with torch.no_grad():
        label = by.network.head(by.reference).argmax(1)
    share = label.bincount(minlength=by.network.head.out_features).double() / len(label)
    return {score: value[0] for score, value in known.items()} | {"share": [round(p, 5) for p in share.tolist()]}


class _Cell(NamedTuple):
    key: dict[str, Any]
    work: float
    """Calls of a network for one image, about."""
    measure: Callable[[], dict[str, Any]]


def _guesses(name: str, retrain: bool, cells: list[_Cell]) -> list[float]:
    """Seconds that cells may take: those they took when the shipped file was made, or by their work."""
    try:
        rows = [row for row in results(name)["rows"] if retrain or row["kind"] != "training"]
    except FileNotFoundError:
        rows = []
    known = [next((row["took"] for row in rows if cell.key.items() <= row.items()), None) for cell in cells]
    return [2 + 3e-4 * cell.work if took is None else took + 0.1 for cell, took in zip(cells, known, strict=True)]


@dataclass
class _Plan:
    """The cells of a data set, and the trainings that they need."""

    name: str
    folder: Path
    retrain: bool
    n: int
    draws: int
    device: str | None
    own: Path
    changes: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)

    def cells(self) -> Iterator[_Cell]:
        """One seed after the other, so that a run that is stopped early has every model."""
        for seed in SEEDS if self.retrain else SEEDS[:1]:
            for model in dict.fromkeys(entrant.model for entrant in ENTRANTS):
                recipe = f"{self.name}-{model}"
                try:
                    entry, file = recipes.recipe(recipe), self._file(recipe, seed)
                except ValueError:
                    self.missing[recipe] = "there is no such recipe"
                except FileNotFoundError as error:
                    self.missing[recipe] = str(error)
                else:
                    yield from self._cells(entry, seed, file, [one for one in ENTRANTS if one.model == model])

    def _cells(self, entry: recipes.Recipe, seed: int, file: Path, entrants: list[Entrant]) -> Iterator[_Cell]:
        recipe = entry["name"]
        bound = BITS * 1000 * (entry["method"] == "ddpm" and "drop" not in entry)
        work = bound + 3 * entry["steps"] * entry["batch"] * self.retrain
        yield _Cell(
            {"kind": "training", "recipe": recipe, "training": seed}, work, lambda: self._trained(recipe, seed, file)
        )
        for one in entrants:
            of, calls = {"name": one.name, "recipe": recipe}, one.steps or 1
            if seed == SEEDS[0]:
                yield _Cell({"kind": "cost"} | of, 20 * calls, lambda one=one: self._cost(one, file))
            once = self.name == "digits" and calls > 500
            first = self.draws * seed  # from one noise two trainings would draw related images, and seem to agree
            for draw in range(first, first + (1 if once else self.draws)):
                key = {"kind": "draw"} | of | {"training": seed, "draw": draw}
                yield _Cell(key, calls * self.n, lambda one=one, draw=draw: self._drawn(one, file, draw))

    def _file(self, recipe: str, seed: int) -> Path:
        """Where the weights are, or will be. Raises ``FileNotFoundError`` if they are not and will not."""
        if self.retrain:
            return self.folder / f"{recipe}-{seed}" / "weights.safetensors"
        shipped, own = FOLDER / f"{recipe}.safetensors", self.own / recipe / "weights.safetensors"
        if not shipped.exists() and not own.exists():
            raise FileNotFoundError(f"its weights are neither shipped nor in {own}")
        return shipped if shipped.exists() else own

    def _train(self, recipe: str, seed: int) -> None:
        """Follow a recipe, from where an earlier start left it; first, if it needs one, that of its autoencoder, which
        is the same for all seeds.
        """
        entry, first = recipes.recipe(recipe, seed=seed, **self.changes), None
        if "autoencoder" in entry:
            self._train(entry["autoencoder"], SEEDS[0])
            first = self._file(entry["autoencoder"], SEEDS[0])
        file = self._file(recipe, seed)
        if not file.exists():
            for _ in recipes.Run(entry, file.parent, self.device, every=20, autoencoder=first):
                pass

    def _trained(self, recipe: str, seed: int, file: Path) -> dict[str, Any]:
        if self.retrain:
            self._train(recipe, seed)
        model = zoo.load(file, self.device)
        trained, first = model.header["trained"], None
        if "autoencoder" in model.header["recipe"]:
            try:
                stage = self._file(model.header["recipe"]["autoencoder"], SEEDS[0])
                first = recipes.weights(stage)[1]["trained"]["seconds"]
            except FileNotFoundError:  # the model holds what it needs of it
                pass
        return {
            "weights": "trained here" if self.retrain else "shipped" if file.parent == FOLDER else "own",
            "parameters": sum(weight.numel() for weight in model.network.parameters()),
            "steps": trained["steps"],
            "images": trained["images"],
            "training seconds": trained["seconds"],
            "trained on": trained["hardware"],
            "first stage seconds": first,
            "bits/dim": _bits(model),
        }

    def _cost(self, one: Entrant, file: Path) -> dict[str, Any]:
        model = zoo.load(file, self.device)
        short = min(one.steps or 1, 3)  # from then on a walk's memory does not grow
        return cost(partial(one.draw, model), model.network, partial(one.draw, model, steps=short))

    def _drawn(self, one: Entrant, file: Path, seed: int) -> dict[str, Any]:
        model = zoo.load(file, self.device)
        return drawn(partial(one.draw, model), self.n, seed, JUDGES[self.name])


def _bits(model: Model) -> float | None:
    """The bound of a VAE, or of a diffusion model of pixels that is told nothing."""
    recipe = model.header["recipe"]
    if recipe["method"] not in ("ddpm", "vae") or "drop" in recipe or "autoencoder" in recipe:
        return None
    try:
        data.images(recipe["data"], train=False)
    except FileNotFoundError:
        return None
    return studies.bits(model, BITS)["total"]
