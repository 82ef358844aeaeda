"""The table of all models, in small: what is measured, how it is gone on with, and who may join."""

import json
from functools import partial

import pytest
import torch
from test_zoo import diffutils
from torch import nn

from diffutils import canvas, data, entrants, evaluation, ranking, recipes, runtime, studies, trilemma, zoo
from diffutils.checkpoints import read
from diffutils.entrants import Entrant

QUICK = (Entrant("VAE", "vae"), Entrant("GAN", "gan"), Entrant("DDIM 2", "ddpm", "ddim", 2), Entrant("no", "none"))
TIMES = ("took", "seconds an image", "seconds, batch of 1", "training seconds", "first stage seconds")


def timeless(path) -> dict:
    kept = json.loads(path.read_text())
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in kept["rows"]]
    return kept | {"rows": sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))}


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trilemma, "ENTRANTS", QUICK)
        patch.setattr(trilemma, "_bits", lambda model: 2.0 if model.header["recipe"]["method"] != "gan" else None)
        yield


@pytest.fixture(scope="module")
def measured(quick, tmp_path_factory):
    """A file that was measured in one go, and what that said."""
    path = tmp_path_factory.mktemp("measured") / "whole.json"
    return path, list(trilemma.run("digits", path, draws=2))


def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path, measured):
    (whole, done), parts = measured, tmp_path / "new" / "parts.json"
    assert [one.index for one in done] == list(range(1, 13)) and {one.total for one in done} == {12}
    assert done[-1].left == 0 and done[-1].next is None and done[0].left > 0
    assert done[0].next == {"kind": "cost", "name": "VAE", "recipe": "digits-vae"}
    walk = trilemma.run("digits", parts, draws=2)
    for _ in range(5):
        next(walk)
    walk.close()
    assert [one.index for one in trilemma.run("digits", parts, draws=2)] == list(range(6, 13))
    assert timeless(whole) == timeless(parts) and not list(trilemma.run("digits", parts, draws=2))
    kept = timeless(whole)
    assert kept["missing"] == {"digits-none": "there is no such recipe"}
    assert {"hardware", "threads", "versions", "date"} <= kept["setting"].keys() and len(kept["revisions"]) == 1
    assert kept["settings"] == {"n": 360, "draws": 2, "retrain": False, "device": runtime.device().type}
    for row in json.loads(whole.read_text())["rows"]:
        assert row.keys() == trilemma.SCHEMA[row["kind"]].keys() | trilemma.SCHEMA["every row"].keys()
    assert kept.keys() == trilemma.SCHEMA["file"].keys() and kept["schema"] == trilemma.SCHEMA
    # what a draw says is what evaluation says of the same images
    x = zoo.draw(zoo.load("digits-ddpm", "cpu"), 360, "ddim", 2, seed=1, size=64)
    of = evaluation.compare(evaluation.judge("digits-classifier"), x)
    row = next(row for row in kept["rows"] if row.get("name") == "DDIM 2" and row.get("draw") == 1)
    assert row["seen by"]["digits-classifier"]["frechet"] == [of["frechet"]["value"], of["frechet"]["error"]]
    assert row["seen by"].keys() == set(entrants.JUDGES["digits"])
    table = ranking.table(kept | {"rows": json.loads(whole.read_text())["rows"]})
    assert list(table) == ["VAE", "GAN", "DDIM 2"] and table["VAE"]["frechet"].mean < table["DDIM 2"]["frechet"].mean
    with pytest.raises(ValueError, match=r"whole.json: was measured with draws = 2 \(now 3\). Give another file."):
        next(trilemma.run("digits", whole, draws=3))
    other = json.loads(parts.read_text())
    other["setting"]["hardware"] = "an abacus"
    parts.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="hardware = 'an abacus'"):
        next(trilemma.run("digits", parts, draws=2))


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path):
    with pytest.raises(ValueError, match="data: must be one of digits, mnist, cifar10, got 'sand'"):
        next(trilemma.run("sand", tmp_path / "a.json"))
    with pytest.raises(ValueError, match="n: the floor is known at 360 images, got 100"):
        next(trilemma.run("digits", tmp_path / "a.json", n=100))
    with pytest.raises(ValueError, match="changes: steps can be changed only with retrain"):
        next(trilemma.run("digits", tmp_path / "a.json", steps=3))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_shipped_are_named_or_found(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(trilemma, "FOLDER", tmp_path)
    assert not list(trilemma.run("digits", tmp_path / "a.json", own=tmp_path / "own"))
    missing = json.loads((tmp_path / "a.json").read_text())["missing"]
    assert (
        missing["digits-vae"] == f"its weights are neither shipped nor in {tmp_path}/own/digits-vae/weights.safetensors"
    )
    file = tmp_path / "own" / "digits-vae" / "weights.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes((recipes.FOLDER / "digits-vae.safetensors").read_bytes())
    rows = [one.row for one in trilemma.run("digits", tmp_path / "a.json", own=tmp_path / "own")]
    assert rows[0]["weights"] == "own" and {row["recipe"] for row in rows} == {"digits-vae"}


def test_retraining_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    """In the middle of a training, of a model that needs another trained first."""
    monkeypatch.setattr(trilemma, "ENTRANTS", (Entrant("GAN", "gan"), Entrant("LDM 2", "ldm", "ddim", 2)))
    monkeypatch.setattr(trilemma, "SEEDS", (0, 1))
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    how = {"retrain": True, "draws": 1, "steps": 4, "batch": 8}
    rows = [one.row for one in trilemma.run("digits", whole, **how)]
    assert [(row["recipe"], row["training"]) for row in rows if row["kind"] == "training"] == [
        (recipe, seed) for seed in (0, 1) for recipe in ("digits-gan", "digits-ldm")
    ]
    assert all(row["weights"] == "trained here" and row["steps"] == 4 for row in rows if row["kind"] == "training")
    assert {(row["training"], row["draw"]) for row in rows if row["kind"] == "draw"} == {(0, 0), (1, 1)}
    of = {row["recipe"]: row for row in rows if row["kind"] == "training"}
    assert of["digits-ldm"]["first stage seconds"] > 0 and of["digits-gan"]["first stage seconds"] is None
    (seen,) = {tuple(row["seen by"]) for row in rows if row["kind"] == "draw" and row["recipe"] == "digits-ldm"}
    assert seen == ("digits-32-classifier",)
    folders = {file.name for file in (tmp_path / "whole").iterdir()}
    assert folders == {f"digits-{name}" for name in ("gan-0", "gan-1", "ldm-0", "ldm-1", "autoencoder-0")}
    own = read(tmp_path / "whole" / "digits-autoencoder-0" / "weights.safetensors")[0]
    held = read(tmp_path / "whole" / "digits-ldm-1" / "weights.safetensors")[0]
    assert all(torch.equal(held[f"autoencoder.{key}"], value) for key, value in own.items())

    class Killed(Exception):
        pass

    follow = recipes.Run.__iter__

    def killed(self):
        for step in follow(self):
            yield step
            if self.recipe["method"] == "autoencoder" and step.index == 2:
                self.checkpoints.save(2)
                raise Killed

    monkeypatch.setattr(recipes.Run, "__iter__", killed)
    init = recipes.Run.__init__
    monkeypatch.setattr(recipes.Run, "__init__", lambda self, *a, **k: init(self, *a, **k | {"every": 1}))
    with pytest.raises(Killed):
        list(trilemma.run("digits", parts, **how))
    monkeypatch.setattr(recipes.Run, "__iter__", follow)
    monkeypatch.setattr(recipes.Run, "__init__", init)
    again = list(trilemma.run("digits", parts, **how))
    assert again[0].row["recipe"] == "digits-ldm" and timeless(whole) == timeless(parts)


@pytest.mark.parametrize(
    ("one", "calls"),
    [
        (Entrant("", "vae"), 1),
        (Entrant("", "gan"), 1),
        (Entrant("", "ddg"), 4),
        (Entrant("", "ddpm", "ddpm", 5), 5),
        (Entrant("", "ddpm", "heun", 5), 9),
        (Entrant("", "ddpm", "dpm-solver", 5), 5),
        (Entrant("", "ddpm-class", "ddim", 5), 5),
        (Entrant("", "ldm", "ddim", 5), 5),
    ],
)
def test_calls_and_parameters_in_use_are_counted(one, calls):
    recipe = recipes.recipe(f"digits-{one.model}")
    model = zoo.model(recipes.build(recipe), {"recipe": recipe})
    found = entrants.cost(partial(one.draw, model), model.network)
    network = model.network
    used = {
        "vae": lambda: [network.decoder, network.enter],
        "gan": lambda: [network.generator],
        "ddg": lambda: [network.generator],
        "ldm": lambda: [network.autoencoder.decoder, *(m for k, m in network.named_children() if k != "autoencoder")],
    }.get(one.model, lambda: [network])()
    size = sum(weight.numel() for module in used for weight in module.parameters())
    assert found["calls"] == calls and found["parameters in use"] == size
    assert all(seconds > 0 for seconds in found["seconds, batch of 1"])
    assert found["MiB, batch of 64"] > size * 4 / 2**20


def test_memory_is_what_is_held_and_a_short_walk_holds_as_much():
    layer = nn.Linear(1, 2**10, bias=False)

    def draw(n, seed):
        for _ in range(3):
            x = layer(torch.zeros(n, 1))  # of two steps, one is still there when the next one comes
        return x[:, :64].reshape(n, 1, 8, 8)

    found = entrants.cost(draw, layer)
    mib = (2 * 64 * 2**10 + 2**10) * 4 / 2**20
    assert found["MiB, batch of 64"] == pytest.approx(mib, abs=0.01) and found["calls"] == 3
    model, one = zoo.load("digits-ddpm", "cpu"), Entrant("", "ddpm", "dpm-solver", 8)
    full, short = (entrants.cost(partial(one.draw, model, steps=steps), model.network) for steps in (None, 3))
    assert (full["calls"], short["calls"]) == (8, 3)
    assert full["MiB, batch of 64"] == pytest.approx(short["MiB, batch of 64"], rel=0.01)


def test_classes_are_asked_for_equally_often():
    model = zoo.load("digits-ddpm-class", "cpu")
    x = Entrant("", "ddpm-class", "ddim", 10).draw(model, 40, 0)
    with torch.no_grad():
        label = evaluation.judge("digits-classifier").network(x).argmax(1)
    assert (label == torch.arange(40) % 10).double().mean() > 0.8


def test_images_of_8_pixels_are_enlarged_as_the_data_were():
    real = data.images("digits", train=False).x
    assert torch.equal(canvas.enlarged(real, 32), canvas.images("digits-32", train=False).x)
    empty = canvas.enlarged(torch.cat([-torch.ones(1, 1, 8, 8), real[:1]]), 32)
    assert (empty[0] == -1).all() and empty[1].max() > 0.9
    assert (canvas.enlarged(-torch.ones(2, 1, 8, 8), 16) == -1).all()
    said = entrants.seen(real, ["digits-classifier", "digits-32-classifier"])
    for name, of in said.items():
        floor = evaluation.judge(name).header["results"]["floor"]["360"]
        assert abs(of["frechet"][0] - floor["frechet"][0]) < 0.01 and of["recall"][0] == pytest.approx(
            floor["recall"][0], abs=0.01
        )
    assert list(entrants.seen(canvas.images("digits-32", train=False).x, said)) == ["digits-32-classifier"]


def test_a_readers_own_model_joins_by_one_call(measured):
    of = json.loads(measured[0].read_text())
    real = data.images("digits").x

    def remember(n, seed):
        return real[torch.randint(len(real), (n,), generator=runtime.generator(seed))]

    table = ranking.table(entrants.join(of, "memory", remember))
    assert list(table) == ["VAE", "GAN", "DDIM 2", "memory"] and list(ranking.table(of)) == ["VAE", "GAN", "DDIM 2"]
    assert table["memory"]["frechet"].mean < table["VAE"]["frechet"].mean and len(table["memory"]["recall"].units) == 2
    network = zoo.load("digits-vae", "cpu").network
    again = entrants.join(of, "mine", lambda n, seed: network.sample(n, runtime.generator(seed)).detach(), network)
    mine = ranking.table(again)["mine"]
    assert mine["calls"].mean == 1 and mine["parameters"].mean > mine["parameters in use"].mean > 0
    with pytest.raises(ValueError, match="name: there is a model 'GAN' already"):
        entrants.join(of, "GAN", remember)


def test_the_floor_has_the_shares_of_the_data():
    floor = trilemma._floor(evaluation.judge("digits-classifier"), 360)
    share = data.images("digits").y.bincount().double() / 1437
    assert max(abs(a - b) for a, b in zip(floor["share"], share.tolist(), strict=True)) < 0.002
    assert floor["frechet"] == evaluation.judge("digits-classifier").header["results"]["floor"]["360"]["frechet"][0]


def test_every_entrant_has_a_recipe_and_every_judge_a_data_set():
    for entrant in entrants.ENTRANTS:
        for name in "digits", "mnist":
            recipe = recipes.recipe(f"{name}-{entrant.model}")
            assert recipe["judge"] in entrants.JUDGES[name]
            assert (entrant.steps is None) == (recipe["method"] in ("vae", "gan", "ddg"))
    assert len({entrant.name for entrant in entrants.ENTRANTS}) == len(entrants.ENTRANTS)


def test_the_command_line_says_what_is_wrong_and_what_is_missing(tmp_path):
    done = diffutils("trilemma", "--data", "sand", "--out", tmp_path / "a.json")
    assert done.returncode == 1 and done.stderr.startswith("error: data: must be one of digits, mnist, cifar10")
    done = diffutils("trilemma", "--data", "cifar10", "--out", tmp_path / "a.json")
    assert done.returncode == 1 and "the judge cifar10-classifier is not shipped" in done.stderr


SHIPPED = [name for name in entrants.JUDGES if (recipes.FOLDER / f"trilemma-{name}.json").exists()]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_table_is_complete(name):
    kept = trilemma.results(name)
    assert not kept["missing"] and kept["schema"] == trilemma.SCHEMA and kept["judges"] == list(entrants.JUDGES[name])
    table = ranking.table(kept)
    assert list(table) == [entrant.name for entrant in entrants.ENTRANTS]
    least = 3 if name == "digits" else 1
    drawn = [row for row in kept["rows"] if row["kind"] == "draw"]
    assert all(len({row["training"] for row in drawn if row["name"] == one}) >= least for one in table)
    assert all("+" not in str(revision) for revision in kept["revisions"])
    assert (recipes.FOLDER / f"trilemma-{name}.json").stat().st_size < 400_000
    assert studies.results(f"trilemma-{name}") == kept
