from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vaeprune.data.tiles import tiles
from vaeprune.errors import DataError

PLACES = 25  # a 4x4 tile has 25 places along an axis of 28 pixels


def corners(image: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Take 4x4 squares away from the top; fails unless the image is a union of such squares."""
    left, found = image.copy(), []
    while left.any():
        y, x = divmod(int(np.flatnonzero(left)[0]), 28)
        square = left[y : y + 4, x : x + 4]
        assert square.shape == (4, 4)
        assert (square == 255).all(), (y, x)
        square[:] = 0
        found.append((y, x))
    return found


@pytest.fixture(scope="module")
def training() -> NDArray[np.uint8]:
    return tiles(60_000, seed=0).numpy()


@pytest.fixture(scope="module")
def held_out() -> NDArray[np.uint8]:
    return tiles(10_000, seed=0, held_out=True).numpy()


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64] | float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def bound(degrees: int) -> float:
    """Exceeded once in 10,000 times (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.72 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_every_image_is_one_to_three_white_squares_that_do_not_overlap() -> None:
    numbers = [len(corners(image)) for image in tiles(2000, seed=3).numpy()]
    assert set(numbers) == {1, 2, 3}


def test_images_are_black_and_white_bytes(training: NDArray[np.uint8]) -> None:
    assert training.shape == (60_000, 28, 28)
    assert training.dtype == np.uint8
    assert np.unique(training).tolist() == [0, 255]
    areas = (training == 255).sum((1, 2))
    assert np.unique(areas).tolist() == [16, 32, 48]


def test_one_two_and_three_tiles_are_equally_frequent(training: NDArray[np.uint8]) -> None:
    counts = np.bincount((training == 255).sum((1, 2)) // 16, minlength=4)[1:]
    assert chi_square(counts, len(training) / 3) < bound(2), counts / len(training)


def test_a_single_tile_is_anywhere_with_equal_chance(training: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> None:
    seen: list[set[tuple[int, ...]]] = []
    for images in (training, held_out):
        single = images[(images == 255).sum((1, 2)) == 16].reshape(-1, 784)
        places, counts = np.unique(single.argmax(1), return_counts=True)
        assert chi_square(counts, len(single) / len(places)) < bound(len(places) - 1)
        seen.append({divmod(int(place), 28) for place in places})
    assert seen[0] | seen[1] == set(itertools.product(range(PLACES), repeat=2))
    assert not seen[0] & seen[1]


def test_two_tiles_are_uniform_among_all_placements_that_do_not_overlap(training: NDArray[np.uint8]) -> None:
    y, x = (a.ravel() for a in np.mgrid[:PLACES, :PLACES])
    apart = (abs(y[:, None] - y) >= 4) | (abs(x[:, None] - x) >= 4)
    partners = apart.sum(1).reshape(PLACES, PLACES) / apart.sum()  # share of placements with a tile there
    expected = np.zeros((28, 28))
    for dy, dx in itertools.product(range(4), repeat=2):
        expected[dy : dy + PLACES, dx : dx + PLACES] += 2 * partners
    pairs = training[(training == 255).sum((1, 2)) == 32] == 255
    error = (expected * (1 - expected) / len(pairs)) ** 0.5
    assert (abs(pairs.mean(0) - expected) / error).max() < 5


def test_the_same_arguments_give_the_same_images() -> None:
    assert torch.equal(tiles(500, 7), tiles(500, 7))
    assert torch.equal(tiles(500, 7, held_out=True), tiles(500, 7, held_out=True))


def test_another_seed_gives_other_images() -> None:
    assert not torch.equal(tiles(500, 7), tiles(500, 8))


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    tiles(10, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_training_and_held_out_images_share_none(training: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> None:
    seen = {image.tobytes() for image in np.packbits(training > 0, axis=(-1))}
    assert not any(image.tobytes() in seen for image in np.packbits(held_out > 0, axis=-1))


def test_an_image_is_on_one_side_under_every_seed(training: NDArray[np.uint8]) -> None:
    seen = {image.tobytes() for image in training}
    assert not any(image.tobytes() in seen for image in tiles(5000, seed=99, held_out=True).numpy())
    assert any(image.tobytes() in seen for image in tiles(5000, seed=99).numpy())


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025])
def test_as_many_images_as_asked_for(rows: int) -> None:
    assert tiles(rows, 0, held_out=True).shape == (rows, 28, 28)


@pytest.mark.parametrize("rows", [0, -1])
def test_fewer_than_one_image_is_refused(rows: int) -> None:
    with pytest.raises(DataError) as caught:
        tiles(rows, 0)
    assert caught.value.message == f"tiles: got {rows} rows, expected at least 1"
