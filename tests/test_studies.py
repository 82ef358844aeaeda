"""Studies: cells measured one after the other, a file that can be gone on with, and the shipped results."""

import json

import pytest

from diffutils import evaluation, recipes, runtime, studies, zoo


def test_a_study_goes_on_with_the_cells_that_are_missing(tmp_path, monkeypatch):
    measured = []

    def cells():
        for seed in range(4):
            yield {"seed": seed}, lambda seed=seed: measured.append(seed) or {"square": seed**2}

    monkeypatch.setitem(studies.STUDIES, "squares", cells)
    path = tmp_path / "new" / "squares.json"
    walk = studies.run("squares", path)
    assert [next(walk), next(walk)] == [{"seed": 0, "square": 0}, {"seed": 1, "square": 1}]
    walk.close()  # stopped in the middle
    assert [row["seed"] for row in studies.run("squares", path)] == [2, 3] and measured == [0, 1, 2, 3]
    kept = json.loads(path.read_text())
    assert kept["rows"] == [{"seed": i, "square": i * i} for i in range(4)]
    assert {"hardware", "threads", "versions", "date"} <= kept["setting"].keys()
    assert not list(studies.run("squares", path)) and [file.name for file in path.parent.iterdir()] == ["squares.json"]


def test_a_file_of_another_study_and_an_unknown_study_are_refused(tmp_path):
    kept = {"study": "bound", "setting": runtime.setting(runtime.device()), "rows": []}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"was measured with study = 'bound' \(now 'families'\)\. Give"):
        next(studies.run("families", tmp_path / "a.json"))
    kept["setting"]["threads"] += 1
    (tmp_path / "a.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"a\.json: was measured with threads = \d+ \(now \d+\)\. Give another file"):
        next(studies.run("bound", tmp_path / "a.json"))
    for broken, says in ("[]", "holds no results that can be gone on with"), ('{"study', "is no whole results file"):
        (tmp_path / "a.json").write_text(broken)
        with pytest.raises(ValueError, match=f"a.json: {says}"):
            next(studies.run("bound", tmp_path / "a.json"))
    with pytest.raises(ValueError, match="name: must be one of families, .*got 'family'"):
        next(studies.run("family", tmp_path / "b.json"))


def test_every_cell_of_every_study_is_another():
    for name, cells in studies.STUDIES.items():
        settings = [json.dumps(of) for of, _ in cells()]
        assert len(settings) == len(set(settings)) > 3, name


def test_bits_add_up_and_a_vae_and_a_diffusion_model_have_their_own_terms():
    found = studies.bits(zoo.load("digits-vae", "cpu"), 20)
    assert found["total"] == pytest.approx(found["distortion"] + found["rate"], abs=1e-4) and 1 < found["total"] < 3


def test_the_error_of_x_0_grows_with_t():
    found = studies.errors(zoo.load("digits-ddpm", "cpu"))
    values = list(found.values())
    assert list(found)[0] == "1" and list(found)[-1] == "1000" and values == sorted(values) and values[-1] < 1


@pytest.mark.parametrize("name", [name for name in studies.STUDIES if (recipes.FOLDER / f"{name}.json").exists()])
def test_shipped_results_are_complete(name):
    kept = studies.results(name)
    for settings, _ in studies.STUDIES[name]():
        assert any(settings.items() <= row.items() for row in kept["rows"]), settings
    assert kept["study"] == name and (recipes.FOLDER / f"{name}.json").stat().st_size < 200_000


def test_a_cell_of_the_ddim_study_is_what_evaluation_says_of_its_settings():
    """A cell without noise, and the pair of times: few steps cost in proportion, the pair is in the order few, many."""
    cells = [cell for cell in studies.ddim() if cell[0].get("steps") == 2 and cell[0]["sampler"] == "dpm-solver"]
    settings, measure = cells[1]
    how = {key: settings[key] for key in ("sampler", "steps", "eta", "power", "seed")}
    found, expected = measure(), evaluation.evaluate(zoo.load("digits-ddpm"), settings["n"], **how)
    assert settings["seed"] == 1 and found["frechet"] == expected["frechet"]["value"] > 0
    pair = studies._pair("digits-ddpm", 2, 20, 4)
    few, many = pair["seconds"]
    assert few < many and 3 < pair["times faster"] < 30 and abs(many / few / pair["times faster"] - 1) < 0.2


def test_the_ddim_study_has_every_steps_and_noise_for_three_seeds():
    cells = [settings for settings, _ in studies.ddim() if "pair" not in settings]
    grid = [cell for cell in cells if cell["power"] == 1.0 and cell["sampler"] in ("ddim", "ddpm-beta")]
    assert len(grid) == 8 * 5 * 3 and {cell["seed"] for cell in grid} == {0, 1, 2}
    assert [cell["steps"] for cell in cells[-15:]] == [1000] * 15  # what takes long comes last


def test_the_ddim_study_of_mnist_compares_every_noise_over_few_steps_and_few_with_all():
    cells = [settings for settings, _ in studies.ddim_mnist() if "pair" not in settings]
    kinds = {(cell["sampler"], cell["eta"]) for cell in cells if cell["steps"] == 50}
    assert kinds == set(studies.ETAS)
    assert {cell["steps"] for cell in cells if (cell["sampler"], cell["eta"]) == ("ddim", 0.0)} >= {50, 100, 1000}
    assert len({json.dumps(cell) for cell in cells}) == len(cells)
