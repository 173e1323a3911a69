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
    found: list[NDArray[np.int64]] = []
    missing = rows
    while missing > 0:
        corners = _corners(generator, count=max(1024, missing))
        belongs = unit_interval(row_hashes(corners, _MEMBERSHIP_SEED)) < _HELD_OUT_SHARE
        found.append(corners[belongs == held_out][:missing])
        missing -= len(found[-1])
    return _draw(np.concatenate(found))


def _corners(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Top-left corners (count', 3) of tiles that do not overlap, as y·28 + x, sorted; -1 where there is none."""
    places = IMAGE - TILE + 1
    y, x = generator.integers(0, places, size=(2, count, MOST_TILES))
    present = np.arange(MOST_TILES) < generator.integers(1, MOST_TILES + 1, size=(count, 1))
    apart = np.maximum(abs(y[:, :, None] - y[:, None]), abs(x[:, :, None] - x[:, None])) >= TILE
    irrelevant = ~(present[:, :, None] & present[:, None]) | np.eye(MOST_TILES, dtype=bool)
    good = (apart | irrelevant).all((1, 2))
    return np.sort(np.where(present, y * IMAGE + x, _NO_TILE)[good], axis=1)


def _draw(corners: NDArray[np.int64]) -> Tensor:
    images = np.zeros((len(corners), IMAGE * IMAGE), np.uint8)
    row, tile = np.nonzero(corners != _NO_TILE)
    square = (np.arange(TILE)[:, None] * IMAGE + np.arange(TILE)).ravel()
    images[row[:, None], corners[row, tile][:, None] + square] = 255
    return torch.from_numpy(images.reshape(-1, IMAGE, IMAGE))
