"""The paper's tiles: 1 to 3 white squares on black, generated (Asperti, section V).

The paper leaves two things open; here the number of tiles is uniform on {1, 2, 3} and their places are uniform
among all placements that do not overlap (they may touch). An image is a held-out one if the hash of its tiles'
places says so: the two splits come from different seeds and share no image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data.hashing import row_hashes, unit_interval
from vaeprune.errors import DataError

IMAGE = 28
TILE = 4
MOST_TILES = 3
TRAINING_ROWS = 60_000
HELD_OUT_ROWS = 10_000
_HELD_OUT_SHARE = HELD_OUT_ROWS / (HELD_OUT_ROWS + TRAINING_ROWS)
_MEMBERSHIP_SEED = 20_19  # not the generator's seed: an image belongs to the same split under every seed
_NO_TILE = -1


def tiles(rows: int, seed: int, held_out: bool = False) -> Tensor:
    """Generate `rows` images as uint8 (rows, 28, 28), 0 or 255; the same for the same arguments.

    Raises DataError for fewer than one row.
    """
    if rows < 1:
        raise DataError(f"tiles: got {rows} rows, expected at least 1")
    generator = np.random.default_rng([seed, int(held_out)])
    present = np.arange(MOST_TILES) < generator.integers(1, MOST_TILES + 1, size=(rows, 1))
    corners = np.full((rows, MOST_TILES), _NO_TILE)
    open_rows = np.arange(rows)
    while len(open_rows):
        tried, good = _places(generator, present[open_rows])
        good &= (unit_interval(row_hashes(tried, _MEMBERSHIP_SEED)) < _HELD_OUT_SHARE) == held_out
        corners[open_rows[good]] = tried[good]
        open_rows = open_rows[~good]
    return _draw(corners)


def _places(generator: np.random.Generator, present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Top-left corners of the tiles `present` (N, 3), as y·28 + x, sorted, -1 for none; and which N do not overlap."""
    y, x = generator.integers(0, IMAGE - TILE + 1, size=(2, *present.shape))
    apart = np.maximum(abs(y[:, :, None] - y[:, None]), abs(x[:, :, None] - x[:, None])) >= TILE
    irrelevant = ~(present[:, :, None] & present[:, None]) | np.eye(MOST_TILES, dtype=bool)
    return np.sort(np.where(present, y * IMAGE + x, _NO_TILE), axis=1), (apart | irrelevant).all((1, 2))


def _draw(corners: NDArray[np.int64]) -> Tensor:
    images = np.zeros((len(corners), IMAGE * IMAGE), np.uint8)
    row, tile = np.nonzero(corners != _NO_TILE)
    square = (np.arange(TILE)[:, None] * IMAGE + np.arange(TILE)).ravel()
    images[row[:, None], corners[row, tile][:, None] + square] = 255
    return torch.from_numpy(images.reshape(-1, IMAGE, IMAGE))
