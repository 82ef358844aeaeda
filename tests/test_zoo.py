"""Recipes, the weights that are shipped, and the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.pyplot import imread

from diffutils import bench, captions, data, evaluation, recipes, zoo
from diffutils.__main__ import main
from diffutils.checkpoints import read, write
from diffutils.metrics import frechet_distance
from diffutils.process import generate

SHIPPED = sorted(path.stem for path in recipes.FOLDER.glob("*.safetensors") if not path.stem.endswith("-reference"))
MODELS = [
    name for name in SHIPPED if recipes.recipe(name)["method"] == "ddpm" and "captions" not in recipes.recipe(name)
]
CLASSIFIERS = [name for name in SHIPPED if recipes.recipe(name)["method"] == "classifier"]


def diffutils(*arguments: object, **settings: str) -> subprocess.CompletedProcess:
    """`python -m diffutils ...`, with no data to be found."""
    nowhere = {"DIFFUTILS_DATA": "/dev/null/nowhere", "CI": "true"}
    command = [sys.executable, "-m", "diffutils", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | nowhere | settings, timeout=300)


def test_every_recipe_builds_its_network_schedule_and_objective():
    for name, recipe in recipes.recipes().items():
        network = recipes.build(recipe)
        assert recipe["name"] == name and recipe["about"]
        if recipe["method"] == "ddpm":
            assert recipes.schedule(recipe).T == recipe["schedule"]["T"]
        if recipe["method"] != "classifier":
            cut_out = {"canvas-64-seen": "digits-32", "mnist-canvas-64-seen": "mnist"}
            data = cut_out.get(recipe["data"], recipe["data"])
            assert recipes.recipes()[recipe["judge"]]["data"] == data
        channels = network.channels * (1 + ("autoencoder" in recipe))  # of latents, mean and standard deviation
        x = -torch.ones(2, channels, network.size, network.size)
        if recipe["method"] == "gan":  # two losses, of an update of its own
            assert network.discriminator(network.sample(2, torch.Generator())).shape == (2,)
            continue
        if recipe["method"] == "ddg":
            t = torch.tensor([1, recipes.schedule(recipe).T])
            assert network.discriminator(generate(network.generator, x, t, torch.Generator()), x, t).shape == (2,)
            continue
        if recipe["method"] == "autoencoder":
            assert network(x, torch.Generator())[0].shape == x.shape
            continue
        loss = recipes.objective(recipe, network, iter([torch.Generator().manual_seed(0)]))
        y = torch.ones(2, 3, captions.LENGTH, dtype=torch.int64) if "captions" in recipe else torch.tensor([0, 1])
        assert loss(x, y).isfinite()


def test_the_first_weights_follow_from_the_seed_and_leave_torch_alone():
    recipe = recipes.recipe("digits-ddpm")
    before = torch.get_rng_state()
    one, same, other = (recipes.build(recipe | {"seed": seed}).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_recipe_like_another_says_what_differs():
    base, changed = recipes.recipe("mnist-ddpm"), recipes.recipe("mnist-ddpm-canonical")
    assert {name for name in base if base[name] != changed[name]} >= {
        "name",
        "about",
        "predicts",
        "schedule",
        "optimiser",
    }
    assert changed["network"] == base["network"] and changed["predicts"] == "eps" and "like" not in changed


def test_an_unknown_recipe_or_entry_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="name: must be one of .*mnist-ddpm.*got 'minst-ddpm'"):
        recipes.recipe("minst-ddpm")
    with pytest.raises(ValueError, match="changes: digits-ddpm has no learning_rate; it has .*lr"):
        recipes.recipe("digits-ddpm", learning_rate=1)


def test_every_ratio_of_the_benchmark_is_of_two_contenders():
    """A ratio with a name that no contender has would be left out without a word."""
    names = {one.name for one in bench.CONTENDERS}
    assert len(names) == len(bench.CONTENDERS)
    assert {name for ours, theirs, _ in bench.RATIOS for name in (ours, theirs)} <= names


def test_the_zoo_is_small():
    sizes = {path.name: path.stat().st_size for path in recipes.FOLDER.glob("*.safetensors")}
    assert max(sizes.values()) < 8e6 and sum(sizes.values()) < 60e6, sizes


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_say_how_they_were_trained_and_with_which_result(name):
    _, header = zoo.weights(name)
    written = recipes.recipe(name) | {"about": header["recipe"]["about"]}
    assert header["recipe"] == written  # what trained them is what the file says now
    trained = header["trained"]
    assert (
        trained["steps"] == header["recipe"]["steps"]
        and trained["images"] == trained["steps"] * header["recipe"]["batch"]
    )
    assert trained["seconds"] > 0 and trained["hardware"] and "torch" in trained["versions"] and trained["date"]
    assert header["results"]


def test_digits_and_mnist_are_shipped():
    assert {"digits-ddpm", "mnist-ddpm", "digits-classifier", "mnist-classifier"} <= set(SHIPPED)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_draws_the_quality_that_its_header_states(name):
    """Few images, so the distance is larger than the header's; far below that of images with one row moved."""
    model, judge = zoo.load(name, "cpu"), evaluation.judge(recipes.recipe(name)["judge"])
    n = 360
    y = None if getattr(model.network, "classes", None) is None else torch.arange(n) % 10
    x = zoo.draw(model, n, "ddim", 10, seed=5, y=y)
    assert x.shape == (n, judge.network.channels, judge.network.size, judge.network.size) and x.abs().max() <= 1
    seen = evaluation.features(judge.network, x)
    with torch.no_grad():
        sure, label = judge.network.head(seen).softmax(1).max(1)
    assert (sure > 0.9).double().mean() > 0.75 and label.bincount(minlength=10).min() > 10
    spoilt = evaluation.features(judge.network, x.roll(1, -2).flip(-1))
    assert 2 * frechet_distance(seen, judge.reference) < frechet_distance(spoilt, judge.reference)


def test_a_model_with_classes_draws_what_it_is_asked_for():
    model, judge = zoo.load("digits-ddpm-class", "cpu"), evaluation.judge("digits-classifier")
    y = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 8, 0] * 6)
    x = zoo.draw(model, 60, steps=15, y=y, weight=2.0, size=25)
    with torch.no_grad():
        assert (judge.network(x).argmax(1) == y).double().mean() > 0.95
    alone = zoo.draw(model, 60, steps=15, y=y, weight=1.0, size=25)
    assert not torch.equal(x, alone) and torch.equal(x[:25], zoo.draw(model, 25, steps=15, y=y[:25], weight=2.0))
    with pytest.raises(ValueError, match="y: digits-ddpm-class takes n labels, got 3"):
        zoo.draw(model, 2, y=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="y, prompts: give one of them"):
        zoo.draw(model, 2, y=torch.arange(2), prompts=["a seven"] * 2)
    with pytest.raises(ValueError, match="y: digits-ddpm takes no labels"):
        zoo.draw(zoo.load("digits-ddpm", "cpu"), 2, y=torch.tensor([1, 2]))


def test_drawing_depends_on_the_seed_alone():
    model = zoo.load("digits-ddpm", "cpu")
    one, same, other = (zoo.draw(model, 4, "ddpm", 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_samplers_and_spacings_are_told_apart_by_name():
    model = zoo.load("digits-ddpm", "cpu")
    fine = zoo.draw(model, 6, "dpm-solver", 80, power=1.5)
    drawn = {name: zoo.draw(model, 6, name, 8) for name in zoo.SAMPLERS}
    drawn["quadratic"] = zoo.draw(model, 6, "ddim", 8, power=2.0)
    drawn["some noise"] = zoo.draw(model, 6, "ddim", 8, eta=0.5)
    names = list(drawn)
    assert not any(torch.equal(drawn[a], drawn[b]) for i, a in enumerate(names) for b in names[:i])
    error = {name: (x - fine).square().mean().sqrt().item() for name, x in drawn.items()}
    without = "ddim", "quadratic", "dpm-solver", "heun"  # these follow the one path from each noise
    assert 2 * max(error[name] for name in without) < min(error[name] for name in names if name not in without)
    one = zoo.draw(model, 6, "ddim", 8, eta=1.0)
    assert (one - drawn["ddpm"]).abs().max() < 1e-3


def test_what_cannot_be_loaded_or_drawn_is_said(tmp_path):
    with pytest.raises(ValueError, match="name: must be a .safetensors file or one of .*got 'nothing'"):
        zoo.load("nothing")
    with pytest.raises(
        FileNotFoundError, match="cifar10-ddpm: its weights are not shipped.*diffutils train cifar10-ddpm"
    ):
        zoo.load("cifar10-ddpm")
    with pytest.raises(ValueError, match="digits-classifier is a classifier, and cannot be sampled"):
        zoo.load("digits-classifier")
    write(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="holds no trained network"):
        zoo.load(tmp_path / "a.safetensors")
    model = zoo.load("digits-ddpm", "cpu")
    with pytest.raises(
        ValueError, match="sampler: must be one of ddpm, ddpm-beta, ddim, dpm-solver, heun, got 'euler'"
    ):
        zoo.draw(model, 1, "euler")
    with pytest.raises(ValueError, match="steps: needs 1 <= steps <= T"):
        zoo.draw(model, 1, steps=10_000)


def test_the_command_line_samples_shipped_weights_without_data(tmp_path):
    how = "--sampler", "dpm-solver", "--steps", 5, "--power", 1.5
    done = diffutils("sample", "mnist-ddpm", "--n", 9, *how, "--out", tmp_path / "grid.png")
    assert done.returncode == 0 and "9 images" in done.stdout, done.stderr
    assert imread(tmp_path / "grid.png").shape[:2] == (3 * 34 + 2, 3 * 34 + 2)


def test_the_command_line_trains_evaluates_and_goes_on(tmp_path):
    common = ["digits-ddpm", "--steps", 6, "--batch", 32, "--out", tmp_path]
    done = diffutils("train", *common, "--snapshots", 1)
    assert done.returncode == 0 and "6 steps in" in done.stdout, done.stderr
    assert read(tmp_path / "weights-00000003.safetensors")[1]["trained"]["steps"] == 3
    again = diffutils("train", *common)
    assert again.returncode == 0 and read(own := tmp_path / "weights.safetensors")[1]["trained"]["steps"] == 6
    other = diffutils("train", *common, "--seed", 3)
    assert other.returncode == 1 and "a checkpoint of another recipe, with seed = 0 (now 3)" in other.stderr
    other = diffutils("train", *common, "--micro", 2)
    assert other.returncode == 1 and "a checkpoint of another recipe, with micro = 1 (now 2)" in other.stderr
    done = diffutils("evaluate", own, "--n", 360, "--steps", 2, "--record", tmp_path / "kept.safetensors")
    assert done.returncode == 0 and '"frechet / floor"' in done.stdout, done.stderr
    assert read(tmp_path / "kept.safetensors")[1]["results"]["evaluations"][0]["n"] == 360


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sample", "mnist-dppm"], "error: name: must be a .safetensors file or one of"),
        (["train", "nothing"], "error: name: must be one of"),
        (
            ["train", "mnist-ddpm", "--out", "OUT"],
            "error: mnist: not found in /dev/null/nowhere and not to be downloaded",
        ),
        (["train", "digits-ddpm", "--minutes", "0", "--out", "OUT"], "error: seconds: must be positive, got 0"),
        (["race", "digits-ddpm", "--minutes", "1"], "error: names: must be recipes judged by mnist-classifier"),
        (["train", "digits-ddpm", "--device", "cuda:9", "--out", "OUT"], "error: device: 'cuda:9' is not usable here"),
        (["train", "digits-ddpm", "--out", "/proc/here"], "error: /proc/here"),
        (["evaluate", "digits-ddpm", "--n", "3"], "error: n: the floor is known at"),
    ],
)
def test_mistakes_on_the_command_line_are_one_clear_line(tmp_path, arguments, complaint):
    done = diffutils(*(str(tmp_path) if argument == "OUT" else argument for argument in arguments))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(complaint), done.stderr
    assert "Traceback" not in done.stderr and not re.search(r"weights\.safetensors", done.stdout)


def said(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """`python -m diffutils ...` in this process: its exit status and the last line of what it complains of."""
    monkeypatch.setattr("sys.argv", ["diffutils", *map(str, arguments)])
    try:
        code = main()
    except SystemExit as stop:  # from argparse
        code = stop.code
    return code, (capsys.readouterr().err.splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sample", "mnist-dppm"], r"got 'mnist-dppm' \(did you mean 'mnist-ddpm'\?\)$"),
        (["sample", "nope.safetensors"], "^error: nope.safetensors: No such file"),
        (["sample", "digits-ddpm", "--out", "/nowhere/x.png"], "^error: out: there is no folder /nowhere$"),
        (["evaluate", "digits-ddpm", "--out", "/nowhere/x.json"], "^error: out: there is no folder /nowhere$"),
        (["sample", "digits-ddpm", "--steps", 0], "error: argument --steps: must be a whole number, at least 1, got 0"),
        (["sample", "digits-ddpm", "--n", -3], "error: argument --n: must be a whole number, at least 1, got -3"),
        (["train", "digits-ddpm", "--steps", 0], "error: argument --steps: must be a whole number, at least 1, got 0"),
        (["train", "digits-ddpm", "--every", 0], "error: argument --every: must be"),
        (["evaluate", "digits-ddpm", "--repeats", 0], "error: argument --repeats: must be"),
        (["train", "digits-ddpm", "--snapshots", 1, "--minutes", 1], "^error: snapshots: are kept at shares of"),
        (["train", "digits-ldm", "--images", "."], "^error: images: must be for a diffusion model of pixels"),
        (
            ["evaluate", "digits-gan", "digits-vae", "--record", "x.safetensors"],
            "^error: record: must be .* single recipe",
        ),
        (["evaluate", "digits-gan", "--record", "."], "^error: record: must be a .safetensors file"),
        (["evaluate", "digits-classifier", "--record", "x.safetensors"], "^error: record: must be the folder"),
        (["evaluate", "digits-text", "--eta", 1], "^error: eta, power, inception: are not for models of text"),
        (["bench", "--out", "/nowhere/x.json"], "^error: out: there is no folder /nowhere$"),
        (["race", "digits-ddpm", "--out", "."], r"^error: out: \. cannot be written$"),
        (
            ["race", "digits-gan", "--judge", "digits-classifier", "--n", 360],
            "^error: names: must be .*got 'digits-gan'",
        ),
        (
            ["race", "digits-ddpm-class", "--judge", "digits-classifier", "--n", 360],
            "^error: names: must be .*without cl",
        ),
        (["sample", "digits-ddpm", "--steps", 5000, "--n", 1], "^error: steps: needs 1 <= steps <= T = 1000, got 5000"),
        (["sample", "digits-ddpm", "--sampler", "heun", "--eta", 1], "^error: eta: is for ddim alone, got 1 with heun"),
        (["sample", "digits-gan", "--steps", 5], "^error: sampler, steps, eta: digits-gan draws in a way of its own"),
        (["sample", "digits-ddpm", "--weight", 2], "^error: weight: is of guidance by a label or a prompt"),
        (["sample", "digits-ddpm", "--label", 2], "^error: label: this network takes no labels, got 2"),
        (["sample", "digits-ddpm-class", "--label", 10], r"^error: label: this network has labels 0\.\.9, got 10"),
        (["sample", "digits-ddpm-class", "--prompt", "a seven"], "^error: prompts: digits-ddpm-class takes no prompts"),
        (["evaluate", "digits-ddpm-class", "--weight", 7], "^error: weight: is of guidance by prompts"),
    ],
)
def test_what_an_option_cannot_be_is_said(monkeypatch, capsys, tmp_path, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    code, line = said(monkeypatch, capsys, *arguments)
    assert code and re.search(complaint, line) and not list(tmp_path.iterdir())


def test_a_network_with_classes_is_asked_for_each_in_turn_or_for_one(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(
        zoo, "draw", lambda model, n, *how, y, weight, **rest: asked.append((y, weight)) or torch.zeros(n, 1, 8, 8)
    )
    for more in [], ["--label", 3, "--weight", 2]:
        how = "digits-ddpm-class", "--n", 12, "--device", "cpu", "--out", tmp_path / "x.png", *more
        assert said(monkeypatch, capsys, "sample", *how) == (0, "")
    (turns, usual), (threes, twice) = asked
    assert turns.tolist() == [*range(10), 0, 1] and threes.tolist() == [3] * 12 and (usual, twice) == (1, 2)


def test_losses_and_samples_are_written_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is optional, and not installed here")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = diffutils("train", "digits-ddpm", "--steps", 4, "--batch", 16, "--tensorboard", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")] == [2, 4]


def test_recipes_are_listed():
    done = diffutils("recipes")
    assert done.returncode == 0 and all(name in done.stdout for name in recipes.recipes())


def test_the_recipes_file_explains_every_entry():
    text = (Path(recipes.FOLDER) / "recipes.toml").read_text("utf-8")
    explained = text[: text.index("\n[")]
    entries = {entry for recipe in recipes.recipes().values() for entry in recipe} - {"name", "about"}
    assert all(re.search(rf"\b{entry}\b", explained) for entry in entries), entries


def test_pictures_of_ones_own_are_trained_on_and_drawn(tmp_path):
    from torchvision.utils import save_image

    images = data.images("digits")
    for i in range(24):
        (folder := tmp_path / "pictures" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        save_image((images.x[i] + 1) / 2, folder / f"{i}.png")
    train = "train", "digits-ddpm", "--images", tmp_path / "pictures", "--steps", 2, "--batch", 8, "--out", tmp_path
    done = diffutils(*train, "--device", "cpu")
    assert done.returncode == 0 and "2 steps in" in done.stdout, done.stderr
    header = read(own := tmp_path / "weights.safetensors")[1]
    assert header["recipe"]["data"] == f"folder:{tmp_path / 'pictures'}"
    done = diffutils("sample", own, "--n", 4, "--steps", 2, "--out", tmp_path / "grid.png", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    done = diffutils("evaluate", own)
    assert done.returncode == 1 and "was trained on pictures of your own" in done.stderr
