"""Canvases: what is drawn is what can be measured again, and what is said."""

import pytest
import torch

from diffutils import canvas, captions, data
from diffutils.canvas import COLOURS, SIZES, Attributes, draw, measure


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


OF = canvas.glyphs(*(part[:300] for part in data.images("digits")))
ONE = draw(60, 64, 1, 3, seeded(1), OF)
TWO = draw(60, 64, 2, 3, seeded(2), OF)


def bar(height: int, width: int, lean: float = 0.0, H: int = 128) -> torch.Tensor:
    """A slanted bar in the middle of a grey canvas, in [-1, 1]; edges are one pixel wide."""
    axis = torch.arange(H) + 0.5 - H / 2
    y, x = axis[:, None], axis[None]
    inside = (0.5 + width / 2 - (x + lean * y).abs()).clamp(0, 1) * (0.5 + height / 2 - y.abs()).clamp(0, 1)
    return (2 * inside - 1)[None, None]


@pytest.mark.parametrize(("height", "width", "lean"), [(60, 10, 0.0), (60, 10, 0.5), (90, 20, -0.3), (40, 8, 1.0)])
def test_a_bar_has_the_size_slant_and_stroke_that_it_was_drawn_with(height, width, lean):
    found = measure(bar(height, width, lean))
    assert abs(found.size[0, 0] * 128 - height) < 0.02 * height
    assert abs(found.slant[0, 0] - lean) < 0.02
    # twice the area over the boundary; the pixels' steps make a slanted boundary seem up to a tenth longer
    stroke = height * width / (height * (1 + lean**2) ** 0.5 + width)
    assert abs(found.stroke[0, 0] * found.size[0, 0] * 128 - stroke) < 0.1 * stroke
    assert found.place[0, 0].abs().max() < 0.01 and found.digit[0, 0] == -1 and found.size[0, 1] == 0


def test_moving_an_image_moves_its_place_and_nothing_else():
    x = bar(40, 8, 0.3)
    before, after = measure(x), measure(x.roll((16, -8), (2, 3)))
    assert torch.allclose(after.place[0, 0] - before.place[0, 0], torch.tensor([-16 / 128, 32 / 128]), atol=1e-4)
    assert all(abs(a[0, 0] - b[0, 0]) < 1e-4 for a, b in zip(before[4:], after[4:], strict=True))


@pytest.mark.parametrize(("drawn", "count"), [(ONE, 1), (TWO, 2)])
def test_what_was_drawn_is_measured_again(drawn, count):
    x, of = drawn
    found = measure(x, count)
    assert torch.equal(found.colour, of.colour)
    assert (found.place - of.place).abs().max() < 0.03  # half of the canvas is 1
    there = of.digit >= 0
    assert there.sum() == count * len(x)
    assert (found.size / of.size - 1)[there].abs().max() < 0.06
    assert (found.slant - of.slant)[there].abs().max() < 0.04
    assert (found.stroke / of.stroke - 1)[there].abs().quantile(0.9) < 0.08


def test_one_and_two_digits_can_be_measured_in_one_batch():
    x = torch.cat([ONE[0][:5], TWO[0][:5]])
    of = [torch.cat([a[:5], b[:5]]) for a, b in zip(ONE[1], TWO[1], strict=True)]
    found = measure(x, torch.tensor([1] * 5 + [2] * 5))
    assert torch.equal(found.colour, of[1]) and torch.equal(found.size > 0, of[0] >= 0)


def test_all_of_the_ink_is_on_the_canvas_and_two_digits_do_not_touch():
    for x, _ in ONE, TWO:
        ink = (x.amax(1) + 1) / 2
        edge = torch.cat([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], 1)
        assert edge.max() < 0.5
    for x, of in zip(TWO[0], TWO[1].place.diff(dim=1)[:, 0].abs(), strict=True):
        profile = ((x.amax(0) + 1) / 2).sum(0 if of[0] > of[1] else 1)
        assert profile[28:36].min() < 0.6  # an empty line near the middle


def test_sizes_and_places_are_the_named_ones_give_or_take():
    of = ONE[1]
    names = torch.tensor(list(SIZES.values()))
    assert ((of.size[:, :1] / names - 1).abs().amin(1) < 0.061).all()
    assert (TWO[1].size > 0.26).all() and (TWO[1].size < 0.425).all()
    assert len(of.colour[:, 0].unique()) == len(COLOURS) and len(of.digit[:, 0].unique()) == 10


def test_canvases_are_images_of_256_levels_and_follow_from_the_seed():
    x, of = draw(3, 32, None, 1, seeded(3), OF)
    assert x.shape == (3, 1, 32, 32) and x.min() == -1 and x.max() == 1
    assert ((x + 1) * 127.5 - ((x + 1) * 127.5).round()).abs().max() < 1e-3
    again, other = draw(3, 32, None, 1, seeded(3), OF)[0], draw(3, 32, None, 1, seeded(4), OF)[0]
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert (of.colour[of.digit >= 0] == list(COLOURS).index("white")).all()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"digits": 3}, "digits: must be 1 or 2"), ({"channels": 2}, "channels: must be 1 or 3, got 2")],
)
def test_other_canvases_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        draw(1, generator=seeded(), of=OF, **settings)


def test_a_picture_is_as_sharp_at_any_size():
    """The edge of a digit is one pixel wide at 32 as at 128: the share of grey pixels falls as one over the size."""
    grey = []
    for pixels in 32, 128:
        x = canvas._one_by_one(canvas.glyphs(*(part[:20] for part in data.images("digits"))), pixels).x
        grey.append(((x > -0.9) & (x < 0.9)).double().mean())
    assert 2.5 < grey[0] / grey[1] < 6


def test_crops_bring_each_digit_to_the_middle_at_one_height():
    for x, of in ONE, TWO:
        cut = canvas.crops(x[:20], Attributes(*(value[:20] for value in of)))
        there = of.digit[:20] >= 0
        found = measure(cut[there])
        assert cut.shape == (20, 2, 1, 32, 32) and found.place.abs().max() < 0.06
        assert (found.size[:, 0] / 0.8 - 1).abs().max() < 0.08
        assert (found.slant[:, 0] - of.slant[:20][there]).abs().max() < 0.06


def test_an_image_set_is_the_same_every_time_and_other_names_are_those_of_the_data():
    x, y = canvas.images("digits-16", train=False)
    assert x.shape == (360, 1, 16, 16) and torch.equal(y, data.images("digits", train=False).y)
    assert torch.equal(x, canvas.images("digits-16", train=False).x)
    assert torch.equal(canvas.images("digits").x, data.images("digits").x)
    for name in "digits-31", "canvas-63", "nothing":
        with pytest.raises(ValueError, match=f"name: must be one of .*got '{name}'"):
            canvas.images(name)
    with pytest.raises(ValueError, match="name: must be 'digits' or 'mnist'"):
        canvas.source("fashion")
    with pytest.raises(ValueError, match="x: an image without ink"):
        canvas.glyphs(-torch.ones(1, 1, 8, 8), torch.zeros(1))


def attributes(**changes) -> Attributes:
    values = {
        "digit": torch.tensor([[7, -1]]),
        "colour": torch.tensor([[0, 0]]),
        "size": torch.tensor([[0.54, 0.0]]),
        "place": torch.tensor([[[-0.3, -0.35], [0.0, 0.0]]]),
        "stroke": torch.tensor([[0.1, 0.0]]),
        "slant": torch.tensor([[0.3, 0.0]]),
    }
    return Attributes(**(values | changes))


def test_captions_say_what_is_there():
    assert captions.caption(attributes(), 0) == "a large thin red seven leaning right at the top left"
    middle = attributes(place=torch.zeros(1, 2, 2), stroke=torch.tensor([[0.18, 0]]), slant=torch.zeros(1, 2))
    assert captions.caption(middle, 0) == "a large red seven in the middle"
    two = attributes(
        digit=torch.tensor([[3, 0]]),
        colour=torch.tensor([[2, 5]]),
        size=torch.tensor([[0.27, 0.41]]),
        place=torch.tensor([[[-0.5, 0.1], [0.5, -0.2]]]),
        stroke=torch.tensor([[0.18, 0.3]]),
        slant=torch.tensor([[0.0, -0.4]]),
    )
    assert captions.caption(two, 0) == "a small blue three to the left of a medium bold white zero leaning left"
    above = two._replace(place=two.place.flip(2) * torch.tensor([1.0, 1.0]))
    assert " above " in captions.caption(above, 0)


def test_words_can_be_left_out_and_all_are_in_the_vocabulary():
    assert captions.caption(attributes(), 0, seeded(), 1.0) == "a seven"
    said = {captions.caption(attributes(), 0, seeded(i), 0.5) for i in range(20)}
    assert len(said) > 5 and all(" seven" in text for text in said)
    words = {word for _, of in (ONE, TWO) for row in range(60) for word in captions.caption(of, row).split()}
    assert words <= set(captions.VOCABULARY) and len(captions.VOCABULARY) < 50
    with pytest.raises(ValueError, match="leave_out: must lie in"):
        captions.caption(attributes(), 0, seeded(), 2.0)
