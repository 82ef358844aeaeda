"""Flipbooks: frames that are small and described, a link that the browser follows, an output to compare."""

import base64
import io

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image, ImageColor

from diffutils import plots, widgets


def frames(n=3, size=4):
    made = []
    for i in range(n):
        figure, ax = plots.panels("A line", width=size, height=2)
        ax.plot([0, i])
        made.append(figure)
    return made


def flipbook(n=3, **changes):
    settings = {"values": [f"t = {i}" for i in range(n)], "name": "t", "alt": [f"slope {i}" for i in range(n)]}
    return widgets.Flipbook(frames(n), **settings | changes)


def test_the_slider_is_linked_to_the_pages_in_the_browser():
    book = flipbook(start=1)
    slider, stack = book.children
    assert (slider.index, slider.options, slider.description) == (1, ("t = 0", "t = 1", "t = 2"), "t")
    assert len(stack.children) == 3 and stack.selected_index == 1
    assert book.link.source == (slider, "index") and book.link.target == (stack, "selected_index")
    assert not plt.get_fignums()


def test_every_page_is_a_picture_with_its_description():
    for i, page in enumerate(flipbook(alt=['a "flat" line', "slope 1", "slope < 3"]).children[1].children):
        assert page.value.startswith('<img src="data:image/png;base64,')
        assert ("a &quot;flat&quot; line", "slope 1", "slope &lt; 3")[i] in page.value


def test_a_page_is_small_and_of_the_size_asked_for():
    (figure,) = frames(1)
    usual = io.BytesIO()
    figure.savefig(usual, format="png", dpi=80)
    page = widgets.png(figure, dots=80)
    assert Image.open(io.BytesIO(page)).size == (320, 160) and len(page) < 0.8 * len(usual.getvalue())


def test_a_small_dot_beside_a_picture_of_many_greys_keeps_its_colour():
    figure, (left, right) = plots.panels("A picture", "A dot", width=4, height=2)
    left.imshow(torch.linspace(0, 1, 4096).reshape(64, 64).numpy(), cmap="gray")
    right.plot(0, 0, "o", color=plots.VERMILION)
    colours = Image.open(io.BytesIO(widgets.png(figure))).convert("RGB").getcolors()
    wanted = ImageColor.getrgb(plots.VERMILION)
    assert min(sum(abs(a - b) for a, b in zip(found, wanted, strict=True)) for _, found in colours) < 30


def test_where_there_are_no_widgets_the_first_page_is_shown():
    bundle = flipbook(start=2)._repr_mimebundle_()
    assert bundle["text/plain"] == "t: t = 0 to t = 2, 3 frames"  # no addresses, no ids: nbval compares this
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).format == "PNG"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"values": ["t = 0"]}, "frames, values, alt: need the same number"),
        ({"alt": ["", "b", "c"]}, "alt: every frame needs a description"),
        ({"start": 3}, "start: must be an index of the 3 frames, got 3"),
        ({"n": 1}, "two or more"),
    ],
)
def test_what_makes_no_flipbook_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        flipbook(**changes)


def test_frames_that_take_too_much_room_are_refused(monkeypatch):
    monkeypatch.setattr(widgets, "BUDGET", 1000)
    with pytest.raises(ValueError, match="frames: .* bytes are more than 1,000; take fewer frames"):
        flipbook()


def test_a_notebook_stores_what_a_page_needs():
    """The state of the widgets goes into the notebook, made of the kinds that flipbook.js knows, and of no other."""
    source = """
from diffutils import plots, widgets
figures = []
for i in range(2):
    figure, ax = plots.panels("A line", width=2)
    ax.plot([0, i])
    figures.append(figure)
widgets.Flipbook(figures, ["low", "high"], "slope", ["flat", "steep"])
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3").execute()
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    kinds = sorted(
        model.model_name for model in state.values() if not model.model_name.endswith(("LayoutModel", "StyleModel"))
    )
    assert kinds == ["HTMLModel", "HTMLModel", "LinkModel", "SelectionSliderModel", "StackModel", "VBoxModel"]
    assert notebook.cells[0].outputs[0].data["text/plain"] == "slope: low to high, 2 frames"
