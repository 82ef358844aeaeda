"""From words to pictures: sentences as numbers, attention, a network that follows them, end to end."""

import math
import re

import pytest
import torch
from torch import nn

from diffutils import adherence, canvas, captions, recipes, runtime, samplers, schedules, zoo
from diffutils.__main__ import main
from diffutils.captions import LENGTH, VOCABULARY, WORDS, said, sentences, tokens
from diffutils.networks.text import Block, TextEncoder
from diffutils.networks.unet import CrossAttention, UNet
from diffutils.process import denoiser, guided, q_sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random, those that start at zero included."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


OF = canvas.glyphs(*(part[:100] for part in canvas.images("digits")))
X, ON = canvas.draw(40, 32, None, 3, seeded(1), OF)


def test_a_sentence_says_what_is_said_and_nothing_else():
    """Each word of every caption comes from one attribute, and putting the phrases together again gives the caption."""
    words = said(ON)
    two = ON.digit[:, 1] >= 0
    assert two.any() and not two.all()
    assert torch.equal(words["place"][:, 0] < 0, two) and torch.equal(words["relation"][:, 0] >= 0, two)
    for row, sentence in enumerate(sentences(words)):
        assert sentence == captions.caption(ON, row)
        for name, phrases in WORDS.items():
            spoken = [phrases[i] for i in words[name][row].tolist() if i >= 0]
            assert all(re.search(rf"\b{phrase}\b", sentence) for phrase in spoken), (sentence, name)
        assert ("thin" in sentence) == (words["stroke"][row] == 0).any()
        assert ("bold" in sentence) == (words["stroke"][row] == 1).any()


def test_words_follow_the_numbers():
    of = canvas.Attributes(
        digit=torch.tensor([[7, -1], [3, 0]]),
        colour=torch.tensor([[0, 0], [2, 5]]),
        size=torch.tensor([[0.54, 0.0], [0.27, 0.41]]),
        place=torch.tensor([[[-0.3, -0.35], [0.0, 0.0]], [[0.1, -0.5], [-0.2, 0.5]]]),
        stroke=torch.tensor([[0.1, 0.0], [0.18, 0.3]]),
        slant=torch.tensor([[0.3, 0.0], [0.0, -0.4]]),
    )
    found = {name: value.tolist() for name, value in said(of).items()}
    assert found["size"] == [[2, -1], [0, 1]] and found["colour"] == [[0, -1], [2, 5]]
    assert found["stroke"] == [[0, -1], [-1, 1]] and found["slant"] == [[1, -1], [-1, 0]]
    assert found["place"] == [[0, -1], [-1, -1]] and found["relation"] == [[-1, -1], [1, -1]]
    assert captions.PLACES[0] == "at the top left" and captions.PLACES[4] == "in the middle"
    assert said(of, (0.05, 0.08))["stroke"].tolist() == [[1, -1], [1, 1]]
    assert captions.strokes("mnist-canvas-64") != captions.strokes("canvas-64")


def test_tokens_are_the_words_and_zeros():
    prompts = ["A large red seven, at the top left.", ""]
    rows = tokens(prompts)
    assert rows.shape == (2, LENGTH) and rows.dtype == torch.int64 and (rows[1] == 0).all()
    back = [VOCABULARY[i - 1] for i in rows[0].tolist() if i]
    assert back == "a large red seven at the top left".split() and (rows[0, 8:] == 0).all()
    assert torch.equal(tokens("a seven"), tokens(["a seven"]))
    longest = max(sentences(said(canvas.draw(300, 32, 2, 3, seeded(2), OF)[1])), key=lambda s: len(s.split()))
    assert len(longest.split()) <= LENGTH


def test_an_unknown_word_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="^prompts: the words known are a, above, .*, zero; unknown in") as error:
        tokens(["a red seven", "a crimson sevn"])
    assert str(error.value).endswith("unknown in 'a crimson sevn': 'crimson', 'sevn' (did you mean 'seven'?)")
    assert all(word in str(error.value) for word in VOCABULARY)
    with pytest.raises(ValueError, match=f"prompts: at most {LENGTH} words, got {LENGTH + 1}"):
        tokens(["a " * (LENGTH + 1)])


def test_variants_leave_words_out():
    of = canvas.Attributes(*(value[:5] for value in ON))
    assert torch.equal(captions.variants(of, 2, 0.0, seeded())[:, 1], tokens(sentences(said(of))))
    bare = captions.variants(of, 3, 1.0, seeded())
    texts = [captions.caption(of, row, seeded(), 1.0) for row in range(5)]
    assert bare.shape == (5, 3, LENGTH) and torch.equal(bare[:, 2], tokens(texts))
    some = captions.variants(of, 8, 0.5, seeded())
    assert len(some.flatten(0, 1).unique(dim=0)) > 10


def test_held_out_pairs_are_never_drawn_or_alone():
    drawn = {pairs: canvas.draw(300, 32, None, 3, seeded(3), OF, pairs=pairs)[1] for pairs in ("all", "seen", "unseen")}
    out = {pairs: canvas.held_out(of.digit, of.colour)[of.digit >= 0] for pairs, of in drawn.items()}
    assert not out["seen"].any() and out["unseen"].all() and 0.08 < out["all"].double().mean() < 0.25
    assert len(drawn["seen"].colour.unique()) == 6
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(6))
    assert canvas.held_out(*pairs.T).sum() == 10  # one colour of each digit
    assert canvas.held_out(torch.tensor(6), torch.tensor(0))  # six in red
    with pytest.raises(ValueError, match="pairs: must be 'all', 'seen' or 'unseen', got 'some'"):
        canvas.draw(1, of=OF, pairs="some")


def test_a_set_without_the_held_out_pairs_has_the_same_name_and_an_ending():
    x, of = canvas.described("canvas-32-unseen", False, 10)
    assert x.shape == (10, 3, 32, 32) and canvas.held_out(of.digit, of.colour)[of.digit >= 0].all()
    for name in "canvas-32-none", "mnist-canvas-32", "digits-32":
        with pytest.raises(ValueError, match="name: must be canvas-32, .*got"):
            canvas.described(name)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_block_looks_as_torch_does(heads):
    """Against nn.MultiheadAttention with the same weights, in float64."""
    block = awake(Block(16, heads)).double()
    theirs = nn.MultiheadAttention(16, heads, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    h = randn(3, 7, 16).double()
    normed = block.norm(h)
    looked = h + theirs(normed, normed, normed)[0]
    expected = looked + block.think(block.norm_2(looked))
    assert (block(h) - expected).abs().max() < 1e-12


def test_cross_attention_is_its_formula_and_torchs():
    layer = awake(CrossAttention(64, 24, head_width=16)).double()
    theirs = nn.MultiheadAttention(64, 4, batch_first=True, kdim=24, vdim=24).double()
    theirs.load_state_dict(
        {
            "q_proj_weight": layer.q.weight[..., 0, 0],
            "k_proj_weight": layer.kv.weight[:64],
            "v_proj_weight": layer.kv.weight[64:],
            "in_proj_bias": torch.cat([layer.q.bias, layer.kv.bias]),
            "out_proj.weight": layer.leave.weight[..., 0, 0],
            "out_proj.bias": layer.leave.bias,
        }
    )
    x, words = randn(2, 64, 4, 4).double(), randn(2, 5, 24, seed=1).double()
    pixels = layer.norm(x).flatten(2).transpose(1, 2)
    answer, weight = theirs(pixels, words, words, average_attn_weights=False)
    assert (layer(x, words) - x - answer.transpose(1, 2).reshape(x.shape)).abs().max() < 1e-12
    mine = layer.weights(x, words)
    assert mine.shape == (2, 4, 5, 4, 4) and (mine.sum(2) - 1).abs().max() < 1e-12
    assert (mine.flatten(3).transpose(2, 3) - weight).abs().max() < 1e-12
    q, k, v = layer.asked(x, words)
    by_hand = (q @ k.mT / math.sqrt(16)).softmax(-1) @ v
    assert (nn.functional.scaled_dot_product_attention(q, k, v) - by_hand).abs().max() < 1e-12


def test_cross_attention_does_not_care_in_which_order_words_come_but_the_encoder_does():
    layer, order = awake(CrossAttention(32, 24)), torch.tensor([3, 0, 4, 1, 2])
    x, words = randn(1, 32, 4, 4), randn(1, 5, 24, seed=1)
    assert (layer(x, words) - layer(x, words[:, order])).abs().max() < 1e-5
    encoder = awake(TextEncoder(9, 5, 24))
    y = torch.tensor([[1, 2, 3, 4, 5]])
    assert (encoder(y)[:, order] - encoder(y[:, order])).abs().max() > 0.1


def test_the_encoder_takes_tokens_of_its_length_only():
    encoder = TextEncoder(9, 5, 16)
    assert encoder(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 16)
    with pytest.raises(ValueError, match=r"y: this network takes tokens \(B, 5\), got \(2, 4\)"):
        encoder(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="y: tokens must lie in 0..8, got 0 to 9"):
        encoder(torch.tensor([[0, 1, 2, 3, 9]]))
    with pytest.raises(ValueError, match="width: must be a multiple of heads, 4, got 18"):
        TextEncoder(9, 5, 18)


def text_unet(**settings) -> UNet:
    return awake(UNet(8, 3, 16, text=TextEncoder(9, 5, 16, 1), **settings))


def test_a_network_listens_wherever_it_attends_and_no_prompt_is_the_empty_one():
    network = text_unet()
    x, t = randn(2, 3, 8, 8), torch.tensor([5, 900])
    y = torch.tensor([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]])
    assert torch.equal(network(x, t), network(x, t, torch.zeros_like(y))) and network.nothing == 0
    assert (network(x, t, y) - network(x, t)).abs().max() > 1e-3
    swapped = network(x, t, y.flip(0))
    assert (network(x, t, y) - swapped).abs().amax((1, 2, 3)).min() > 1e-3
    layers = [layer for layer in network.modules() if isinstance(layer, CrossAttention)]
    both = UNet(8, 3, 16, attention=0, text=TextEncoder(9, 5, 16, 1))
    assert len(layers) == 2 * 2 + 2 * 3 + 1
    assert sum(isinstance(layer, CrossAttention) for layer in both.modules()) == 1  # in the middle
    with pytest.raises(ValueError, match="classes, text: a network takes labels or words, got 10 classes"):
        UNet(8, classes=10, text=TextEncoder(9, 5, 16, 1))


def test_a_new_network_ignores_the_words_until_it_has_learned():
    with runtime.seeded(0):
        network = UNet(8, 3, 16, text=TextEncoder(9, 5, 16, 1))
    nn.init.normal_(network.leave[2].weight, generator=seeded())
    y = torch.tensor([[1, 2, 3, 4, 5]])
    assert torch.equal(network(randn(1, 3, 8, 8), torch.tensor([3]), y), network(randn(1, 3, 8, 8), torch.tensor([3])))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_guidance_by_words_starts_from_the_empty_prompt(weight):
    network, chain = text_unet(), schedules.cosine(100)
    x, t, y = randn(2, 3, 8, 8), torch.tensor([50, 50]), torch.tensor([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    told, untold = (denoiser(network, chain, "v", y=of)(x, t) for of in (y, torch.zeros_like(y)))
    found = guided(network, chain, y, weight, "v")(x, t)
    assert (found - (untold + weight * (told - untold))).abs().max() < 1e-4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An autoencoder and a text model after a few steps, trained as a reader trains them, on a few canvases."""
    folder, before = tmp_path_factory.mktemp("text"), canvas.described
    few = pytest.MonkeyPatch()
    few.setattr(canvas, "described", lambda name, train=True, n=None: before(name, train, n or 60))
    game = {"penalty": 1e-4, "weight": 0.5, "start": 2}
    first = recipes.recipe("canvas-text-autoencoder", steps=4, batch=16, game=game)
    second = recipes.recipe("digits-text", steps=4, batch=16, autoencoder=str(folder / "one/weights.safetensors"))
    for recipe, name in (first, "one"), (second, "two"):
        for _ in recipes.Run(recipe, folder / name):
            pass
    few.undo()
    return folder / "two/weights.safetensors"


PROMPTS = ["a large red seven", "a small blue three above a white one", ""]


def test_prompts_are_drawn_by_the_same_loop(trained):
    model = zoo.load(trained, "cpu")
    network, chain = model.network, model.schedule
    x = zoo.draw(model, 3, "ddim", 4, seed=3, prompts=PROMPTS, weight=2.0)
    z_T = torch.randn(3, 4, 16, 16, generator=seeded(3))
    kernel = samplers.ddim(guided(network, chain, tokens(PROMPTS), 2.0, "v", bf16=True), chain)
    z_0 = samplers.sample(kernel, z_T, schedules.subsequence(chain.T, 4))
    assert x.shape == (3, 3, 64, 64) and torch.equal(x, network.decode(z_0).clamp(-1, 1))


def test_prompts_for_other_models_and_other_numbers_are_refused(trained):
    model = zoo.load(trained, "cpu")
    with pytest.raises(ValueError, match="prompts: needs a list of 2, one for each image, got"):
        zoo.draw(model, 2, prompts=PROMPTS)
    with pytest.raises(ValueError, match="unknown in 'a red elephant': 'elephant'"):
        zoo.draw(model, 1, prompts=["a red elephant"])
    with pytest.raises(ValueError, match="prompts: digits-ddpm takes no prompts, got 1"):
        zoo.draw(zoo.load("digits-ddpm", "cpu"), 1, prompts=["a seven"])


def test_an_image_is_redrawn_and_its_kept_part_comes_back_to_the_pixel(trained):
    model = zoo.load(trained, "cpu")
    x, keep = X.new_zeros(2, 3, 64, 64) + torch.tensor([-1.0, 0.5])[:, None, None, None], torch.zeros(1, 1, 64, 64)
    keep[..., :31] = 1
    again = zoo.redraw(model, x, PROMPTS[:2], keep=keep.bool(), steps=3, weight=2.0)
    assert torch.equal(again[..., :31], x[..., :31]) and not torch.equal(again[..., 31:], x[..., 31:])
    other = zoo.redraw(model, x, PROMPTS[:2], strength=0.5, steps=4, seed=1)
    network, chain, generator = model.network, model.schedule, seeded(1)
    x_0 = network.encode(x, generator)
    x_t = q_sample(x_0, 500, torch.randn(x_0.shape, generator=generator), chain)
    kernel = samplers.ddim(guided(network, chain, tokens(PROMPTS[:2]), 1.0, "v", bf16=True), chain)
    assert torch.equal(other, network.decode(samplers.sample(kernel, x_t, [500, 250, 0])).clamp(-1, 1))


def test_what_a_text_model_minimises_hears_one_caption_or_none():
    """With drop = 1 the words don't matter; with drop = 0 and captions alike the random choice does not."""
    recipe = recipes.recipe("digits-text", drop=1.0)
    network = awake(recipes.build(recipe))
    x, y = randn(4, 8, 16, 16), tokens([*PROMPTS, "a"])[:, None].expand(4, 3, LENGTH)

    def loss(recipe, y):
        return recipes.objective(recipe, network, iter([seeded()]))(x, y)

    assert torch.equal(loss(recipe, y), loss(recipe, torch.zeros_like(y)))
    told = recipe | {"drop": 0.0}
    assert not torch.equal(loss(told, y), loss(told, torch.zeros_like(y)))
    assert torch.equal(loss(told, y), loss(told, y.flip(1)))


def command(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """`python -m diffutils ...` in this process: its exit status and all that it says."""
    monkeypatch.setattr("sys.argv", ["diffutils", *map(str, arguments)])
    code, said = main(), capsys.readouterr()
    return code, said.out + said.err


def test_a_prompt_is_drawn_from_the_command_line_and_a_wrong_one_explained(trained, tmp_path, monkeypatch, capsys):
    file = tmp_path / "seven.png"
    how = "sample", trained, "--n", 2, "--steps", 2, "--out", file, "--device", "cpu", "--prompt"
    assert command(monkeypatch, capsys, *how, "a red seven")[0] == 0 and file.stat().st_size > 500
    code, said = command(monkeypatch, capsys, *how, "a red sevn")
    assert code == 1 and "'sevn' (did you mean 'seven'?)" in said and said.count("\n") == 1


def test_a_text_model_is_evaluated_by_its_adherence(trained, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(adherence, "adherence", lambda model, *how: asked.append(how) or {"digit": {"right": 0.5}})
    kept = tmp_path / "kept.safetensors"
    settings = "--n", 7, "--sampler", "heun", "--steps", 3, "--weight", 2, "--repeats", 2, "--record", kept
    assert command(monkeypatch, capsys, "evaluate", trained, *settings)[0] == 0
    assert asked == [(7, pairs, 2.0, "heun", 3, seed) for pairs in ("seen", "unseen") for seed in (0, 1)]
    assert zoo.weights(kept)[1]["results"] == {"adherence": [{"digit": {"right": 0.5}}] * 4}
