"""Strips hold what they were given, to the pixel."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image

from vaeprune.report.rows_seen import Seen
from vaeprune.report.strips import difference_view, lines, strip

GREY = Seen((1, 3, 2), 0.0, 1.0)


def decoded(found):
    kind, _, data = found.png.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_strip_is_its_pictures_with_a_transparent_line_between_them():
    rows = torch.tensor([[0.0, 1.0, 0.2, 0.4, 0.6, 0.8], [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]]).reshape(2, 1, 3, 2)
    pixels = decoded(strip(GREY, rows, "label", "alt", "name"))
    assert pixels.shape == (3, 5, 2)
    assert pixels[:, :2, 0].tolist() == [[0, 255], [51, 102], [153, 204]]
    assert pixels[:, 3:, 0].tolist() == [[255, 0], [0, 0], [0, 255]]
    assert pixels[..., 1].tolist() == [[255, 255, 0, 255, 255]] * 3


def test_three_channels_stay_in_colour():
    view = Seen((3, 1, 1), 0.0, 1.0)
    pixels = decoded(strip(view, torch.tensor([1.0, 0.0, 0.4]).reshape(1, 3, 1, 1), "", "", ""))
    assert pixels.tolist() == [[[255, 0, 102, 255]]]


def test_a_difference_is_seen_as_many_times_as_large():
    view = difference_view(Seen((1, 1, 2), -1.0, 1.0), 10)
    assert view.pixels(torch.tensor([[[[0.0, 0.1]]]]))[0, 0, :, 0].tolist() == [0, 128]


def test_rows_that_are_no_pictures_are_drawn_as_lines_between_low_and_high():
    view = Seen((5,), 0.0, 2.0)
    drawn = lines(view, [torch.tensor([[0.0, 1.0, 2.0, 1.0, 0.0], [2.0] * 5])], points=80)
    floors, cells = drawn.axes[0].collections
    first, second = cells.get_segments()
    assert np.allclose(first[:, 1], [0.06, 0.5, 0.94, 0.5, 0.06])
    assert np.allclose(second[:, 1], 0.94)
    assert second[:, 0].min() > first[:, 0].max()
    assert len(floors.get_segments()) == 2


def test_long_lines_are_thinned():
    drawn = lines(Seen((1000,), 0.0, 1.0), [torch.rand(1, 1000)], points=80)
    assert len(drawn.axes[0].collections[1].get_segments()[0]) == 77


def test_a_strip_of_lines_is_svg_with_ids_of_its_own():
    found = strip(Seen((5,), 0.0, 1.0), torch.rand(3, 5), "", "", "here")
    assert found.png == ""
    assert found.svg.startswith("<svg")
    assert 'id="here-figure_1"' in found.svg
