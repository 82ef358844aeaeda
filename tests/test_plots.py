"""The figures: right size and shape, shown once, errors that name what is wrong."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from diffutils import plots


def test_panels_give_one_set_of_axes_per_title_and_leave_pyplot_empty():
    figure, axes = plots.panels("a", "b", "c", width=6, height=2)
    assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
    assert tuple(figure.get_size_inches()) == (6, 2)
    assert plots.panels("a", "b", "c", "d", rows=2)[1].shape == (2, 2)
    assert isinstance(plots.panels("alone")[1], Axes)
    assert plt.get_fignums() == []


def test_panels_refuse_titles_that_do_not_fill_the_rows():
    with pytest.raises(ValueError, match="titles: 3 do not fill 2 rows"):
        plots.panels("a", "b", "c", rows=2)


def test_drawing_leaves_the_readers_settings_alone():
    before = dict(plt.rcParams)
    plots.panels("a")
    assert dict(plt.rcParams) == before


def test_tile_puts_every_image_in_its_place_and_pads_the_last_row_with_white():
    x = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 1, 2, 2)
    sheet = plots.tile(x, columns=2, gap=1)
    assert sheet.shape == (5, 5, 1)
    assert (sheet[:2, :2] == 0).all() and (sheet[:2, 3:] == 0.5).all() and (sheet[3:, :2] == 1).all()
    assert (sheet[3:, 3:] == 1).all() and (sheet[2] == 1).all() and (sheet[:, 2] == 1).all()


def test_tile_clips_what_lies_outside_the_range():
    assert np.array_equal(plots.tile(torch.tensor([-3.0, 3.0])[:, None, None, None], 2, gap=0), [[[0], [1]]])


@pytest.mark.parametrize("smooth", [False, True])
def test_images_draw_a_grid_with_names(smooth):
    figure = plots.images(torch.zeros(6, 3, 4, 4), columns=3, top=["a", "b", "c"], left=["x", "y"], smooth=smooth)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert ax.images[0].get_array().shape[:2] == ((68, 104) if smooth else (9, 14))


def test_images_refuse_names_that_do_not_match_the_grid():
    with pytest.raises(ValueError, match="top, left: need 3 and 2 names or none, got 2 and 0"):
        plots.images(torch.zeros(6, 1, 4, 4), columns=3, top=["a", "b"])


def test_spread_draws_the_mean_and_every_run():
    _, ax = plots.panels("")
    plots.spread(ax, [1, 2], torch.tensor([[0.0, 2.0], [2.0, 6.0]]), "label")
    assert ax.lines[0].get_ydata().tolist() == [1, 4]
    assert [line.get_ydata().tolist() for line in ax.lines[1:]] == [[0, 2], [2, 6]]


def test_heat_scales_each_column_to_its_own_maximum():
    _, ax = plots.panels("")
    plots.heat(ax, torch.tensor([[1.0, 10.0], [2.0, 5.0]]), (0, 1), (0, 1))
    assert ax.images[0].get_array().tolist() == [[0.5, 1.0], [1.0, 0.5]]
