"""Adherence: what was asked for, held against what is measured."""

import pytest
import torch

from diffutils import adherence, canvas, captions, recipes, runtime, studies, zoo
from diffutils.adherence import scores

RECIPE = recipes.recipe("digits-text")


def asked(pairs: str = "seen", n: int = 40):
    return adherence.real(RECIPE["data"], pairs, n)


def test_everything_found_is_right_and_chance_is_what_shuffling_gives():
    _, words = asked()
    found = scores(words, words)
    assert all(of["right"] == 1 and of["error"] == 0 for of in found.values()) and found["all"]["n"] == 40
    for name in captions.WORDS:
        rows = words[name] >= 0
        a = words[name][rows]
        by_hand = (a[:, None] == a[None]).double().mean().item()  # every prompt with every picture
        assert abs(found[name]["chance"] - by_hand) < 1e-4 and found[name]["n"] == len(a)
    assert found["all"]["chance"] < 0.01 < found["digit"]["chance"] < 0.2


def test_each_attribute_is_scored_by_itself_and_only_where_it_was_asked_for():
    _, words = asked()
    for name in captions.WORDS:
        other = (words[name] + 1) % len(captions.WORDS[name])
        wrong = words | {name: other.where(words[name] >= 0, 0)}  # and something where nothing was asked
        found = scores(words, wrong)
        assert (
            found[name]["right"] == 0 and found["all"]["right"] <= 1 - (words[name] >= 0).any(1).double().mean() + 1e-4
        )
        assert all(found[other]["right"] == 1 for other in captions.WORDS if other != name)
    half = words | {"colour": words["colour"].where(torch.arange(40)[:, None] % 2 == 0, -1)}
    share = (half["colour"] >= 0).sum() / (words["colour"] >= 0).sum()
    assert abs(scores(words, half)["colour"]["right"] - share) < 1e-4


def test_real_canvases_are_what_they_are_said_to_be():
    """The ceiling: the judge on canvases of digits that it has not seen."""
    for pairs in "seen", "unseen":
        found = adherence.compare(RECIPE, asked(pairs, 200)[0], pairs)
        assert all(found[name]["right"] > 0.97 for name in ("digit", "colour", "size", "place", "relation"))
        assert found["stroke"]["right"] > 0.9 and found["slant"]["right"] > 0.9 and found["n"] == 200


def test_pictures_of_something_else_are_found_out():
    x, _ = asked(n=200)
    mirrored, grey = adherence.compare(RECIPE, x.flip(-1), "seen"), adherence.compare(RECIPE, x * 0 - 1, "seen")
    assert mirrored["colour"]["right"] < 1 and mirrored["slant"]["right"] < 0.3 and mirrored["digit"]["right"] < 0.7
    assert grey["digit"]["right"] < 0.3 and grey["all"]["right"] < 0.02


class Perfect(torch.nn.Module):
    """An autoencoder that loses nothing, or everything but a half of the light."""

    def __init__(self, light: float = 1.0):
        super().__init__()
        self.light = light

    def encode(self, x):
        return x, torch.zeros_like(x)

    def decode(self, z):
        return self.light * (z + 1) - 1


def test_a_perfect_autoencoder_keeps_what_the_judge_sees():
    x, _ = asked(n=120)
    perfect, dim = (adherence.reconstruction(Perfect(light), RECIPE, 120) for light in (1.0, 0.5))
    assert perfect["psnr"] > 100 and perfect | {"psnr": 0} == adherence.compare(RECIPE, x, "seen") | {"psnr": 0}
    assert dim["psnr"] < 30 and dim["colour"]["right"] == 1  # half the light is the same colour


class Noisy(Perfect):
    """A latent model that passes pictures on, with noise that would hide most of them."""

    def encode(self, x, generator=None):
        return x + 0.5 * torch.randn(x.shape, generator=generator)


def test_a_study_of_reconstructions_can_be_repeated(monkeypatch):
    monkeypatch.setattr(recipes, "weights", lambda name: (Noisy(), {"recipe": RECIPE}))
    monkeypatch.setattr(adherence, "compare", lambda recipe, x, pairs: x)
    one, two = (adherence._ceiling("digits-text", "reconstructed", "seen", 60) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, asked(n=60)[0])


def test_seen_pairs_and_unseen_ones_are_asked_for_in_turn():
    for pairs in "seen", "unseen":
        words = asked(pairs)[1]
        there = words["digit"] >= 0
        assert (canvas.held_out(words["digit"], words["colour"])[there] == (pairs == "unseen")).all()


def test_adherence_is_that_of_what_is_drawn_for_the_prompts(monkeypatch):
    """With a model that draws the real canvases for the prompts that describe them, it is theirs."""
    x, words = asked(n=100)
    network = torch.nn.Module()
    model = zoo.Model(None, None, network, {"recipe": RECIPE})
    heard = []

    def draw(model, n, sampler, steps, seed, weight, prompts):
        heard.extend(prompts)
        return x

    monkeypatch.setattr(zoo, "draw", draw)
    found = adherence.adherence(model, 100, "seen", 2.0, "ddim", 5, 7)
    assert heard == captions.sentences(words)
    settings = {"pairs": "seen", "weight": 2.0, "sampler": "ddim", "steps": 5, "seed": 7}
    assert found == settings | adherence.compare(RECIPE, x, "seen")


def test_the_study_has_every_weight_for_pairs_seen_and_unseen():
    cells = [settings for settings, _ in studies.STUDIES["text"]()]
    drawn = [of for of in cells if of["pictures"] == "drawn"]
    both = {(of["pairs"], of["weight"]) for of in drawn if of["steps"] == 20 and of["sampler"] == "dpm-solver"}
    assert both == {(pairs, weight) for pairs in ("seen", "unseen") for weight in adherence.WEIGHTS}
    assert {of["recipe"] for of in cells} == {"canvas-text"} and len(cells) - len(drawn) == 4


def test_the_judge_measures_any_batch():
    by = adherence.judge(RECIPE)
    x, words = asked(n=6)
    found, features = by(x, (words["digit"] >= 0).sum(1))
    assert len(features) == (words["digit"] >= 0).sum() and torch.equal(found["colour"], words["colour"])
    assert by.network.size == 32 and runtime.place() == (0, 1)


@pytest.mark.parametrize("name", ["digits-text", "canvas-text"])
def test_a_text_model_that_is_shipped_draws_what_it_is_asked_for(name):
    if not (recipes.FOLDER / f"{name}.safetensors").exists():
        pytest.skip("its weights are not there yet")
    n, least = 48, {"digits-text": 0.5, "canvas-text": 0.8}[name]
    prompts = [f"a large {list(canvas.COLOURS)[i % 6]} {captions.DIGITS[i % 10]} in the middle" for i in range(n)]
    model = zoo.load(name, "cpu")
    x = zoo.draw(model, n, "dpm-solver", 10, seed=5, prompts=prompts, weight=3.0)
    found, _ = adherence.judge(model.header["recipe"])(x, torch.ones(n, dtype=torch.int64))
    assert (found["digit"][:, 0] == torch.arange(n) % 10).double().mean() > least
    assert (found["colour"][:, 0] == torch.arange(n) % 6).double().mean() > least
    assert (found["size"][:, 0] == 2).double().mean() > least and (found["place"][:, 0] == 4).double().mean() > least
