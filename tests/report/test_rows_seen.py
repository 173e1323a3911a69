"""How rows of each shape are shown."""

from __future__ import annotations

import pytest
import torch

import planted
from vaeprune.data import as_data
from vaeprune.report.rows_seen import Seen, seen


def view(shape, input_shape=None, likelihood=planted.BERNOULLI):
    vae = planted.dense((0,), 2, input_shape=input_shape or shape, likelihood=likelihood)
    return seen(vae, as_data(planted.rows(400, shape)))


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((9, 7), (1, 9, 7)),
        ((1, 9, 7), (1, 9, 7)),
        ((3, 5, 4), (3, 5, 4)),
        ((5, 4, 3), (3, 5, 4)),
        ((12,), (12,)),
        ((1, 12), (12,)),
        ((1, 1, 12), (12,)),
        ((2, 2, 3, 4), (48,)),
    ],
)
def test_pictures_are_told_from_lines_by_their_shape(shape, shown):
    assert view(shape, (1, 1, *shape) if len(shape) == 1 else None).shape == shown


def test_the_datas_shape_shows_pictures_to_a_model_that_takes_them_flat_and_the_other_way_round():
    assert view((1, 9, 7), (63,)).shape == (1, 9, 7)
    assert view((63,), (1, 9, 7)).shape == (1, 9, 7)


def test_what_is_no_picture_is_said():
    assert view((12,)).said == "rows of shape (12,) are no pictures, so the 12 values of a row are drawn as a line"
    assert view((1, 9, 7)).said == ""
    assert view((4, 5, 6)).said == "rows have 4 channels, which stand beside each other in grey"


def test_many_channels_stand_beside_each_other():
    row = torch.arange(12.0).reshape(1, 2, 2, 3)
    shown = Seen((1, 2, 6), 0, 11, side_by_side=2).rows(row)
    assert shown[0, 0].tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


def test_channels_may_come_last():
    row = torch.arange(12.0).reshape(1, 2, 2, 3)
    shown = Seen((3, 2, 2), 0, 11, moved=(2, 0, 1)).rows(row)
    assert torch.equal(shown[0, 1], row[0, :, :, 1].double())


def test_pixels_go_from_black_to_white_and_are_cut_off_there():
    rows = torch.tensor([[[[-1.0, 0.0], [0.5, 3.0]]]])
    assert Seen((1, 2, 2), -1.0, 1.0).pixels(rows)[0, :, :, 0].tolist() == [[0, 128], [191, 255]]


def test_large_pictures_are_made_smaller_by_averaging():
    rows = torch.zeros(1, 1, 4, 8)
    rows[..., :4] = 1.0
    small = Seen((1, 4, 8), 0.0, 1.0).pixels(rows, most=4)
    assert small.shape == (1, 2, 4, 1)
    assert small[0, 0, :, 0].tolist() == [255, 255, 0, 0]


def test_the_range_of_lines_leaves_single_outliers_out():
    values = torch.linspace(-1, 1, 400 * 12).reshape(400, 12)
    values[3, 3] = 1e6
    vae = planted.dense((0,), 2, input_shape=(12,), likelihood=planted.GAUSSIAN)
    shown = seen(vae, as_data(values))
    assert -1.001 < shown.low < -0.9
    assert 0.9 < shown.high < 1.001


def test_without_data_the_models_own_shape_decides():
    vae = planted.dense((0,), 2, input_shape=(1, 9, 7))
    assert seen(vae, None) == Seen((1, 9, 7), 0.0, 1.0)
