"""Rows side by side: pictures as PNG, rows that are none as lines; for a page, and as sheets in files of their own."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaeprune.report.drawing import BEFORE, FAINT, svg_of
from vaeprune.report.rows_seen import Pixels, Seen

CELL = 96  # pixels of a picture's longer side on a page
_LINE_CELL = (1.1, 0.75)  # inches
DOTS = 96


@dataclass(frozen=True)
class Strip:
    """Rows side by side on a page: a PNG as a data address, or an SVG element; the other is empty.

    `label` stands beside it, `alt` says what it shows. `width`: CSS pixels it is best seen at.
    """

    label: str
    alt: str
    width: int
    png: str = ""
    svg: str = ""


def strip(view: Seen, values: Tensor, label: str, alt: str, name: str, most: int = CELL, points: int = 80) -> Strip:
    """Rows (N, ...) side by side; `most` pixels for a picture's longer side, `points` for a line."""
    if view.is_picture:
        pixels = view.pixels(values, most)
        address = base64.b64encode(png(beside(pixels))).decode()
        grown = max(1, round(56 / max(pixels.shape[1:3])))
        width = len(pixels) * (pixels.shape[2] * grown + 2)
        return Strip(label, alt, width, png=f"data:image/png;base64,{address}")
    drawn = lines(view, [view.rows(values)], points)
    return Strip(label, alt, round(len(values) * _LINE_CELL[0] * DOTS * 0.75), svg=svg_of(drawn, name))


def difference_view(view: Seen, factor: int) -> Seen:
    """How |a − b| is shown so that it can be seen: `factor` times as large, black where it is 0."""
    return Seen(view.shape, 0.0, view.span() / factor, view.moved, view.side_by_side)


def beside(pixels: Pixels, gap: int = 1) -> Pixels:
    """Pictures (N, H, W, C) as one (H, …, C + 1), the last channel transparent between them."""
    count, height, width, channels = pixels.shape
    sheet = np.zeros((height, count * (width + gap) - gap, channels + 1), np.uint8)
    for i in range(count):
        left = i * (width + gap)
        sheet[:, left : left + width, :channels] = pixels[i]
        sheet[:, left : left + width, channels] = 255
    return sheet


def png(pixels: Pixels) -> bytes:
    """A picture (H, W, C) as PNG: grey, grey and alpha, colour, or colour and alpha."""
    room = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(room, "PNG", optimize=True)
    return room.getvalue()


def lines(view: Seen, rows: Sequence[Tensor | NDArray[np.floating]], points: int) -> Figure:
    """Rows of cells, each the line of one row's values between `view.low` and `view.high`; longer ones are thinned."""
    grid = [_thinned(np.asarray(row, dtype=np.float64).reshape(len(row), -1), points) for row in rows]
    columns = max(len(row) for row in grid)
    drawn = Figure(figsize=(columns * _LINE_CELL[0], len(grid) * _LINE_CELL[1]))
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, columns), ylim=(0, len(grid)))
    axes.set_axis_off()
    cells, floors = [], []
    zero = (min(max(0.0, view.low), view.high) - view.low) / view.span()
    for r, row in enumerate(grid):
        bottom = len(grid) - 1 - r
        across = np.linspace(0.06, 0.94, row.shape[1])
        heights = 0.06 + 0.88 * np.clip((row - view.low) / view.span(), 0, 1)
        cells += [np.column_stack([across + c, height + bottom]) for c, height in enumerate(heights)]
        floors += [
            np.array([[c + 0.04, bottom + 0.06 + 0.88 * zero], [c + 0.96, bottom + 0.06 + 0.88 * zero]])
            for c in range(len(row))
        ]
    axes.add_collection(LineCollection(floors, colors=FAINT, linewidths=0.8))
    axes.add_collection(LineCollection(cells, colors=BEFORE, linewidths=1.3))
    return drawn


def _thinned(row: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    return row[:, :: -(-row.shape[1] // points)]
