from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vaeprune.data.hashing import mix, row_hashes, unit_interval


def rows(count: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_the_order_of_the_rows_does_not_change_their_hashes() -> None:
    x, order = rows(100, 5), np.random.default_rng(1).permutation(100)
    assert np.array_equal(row_hashes(x[order], 0), row_hashes(x, 0)[order])


def test_a_row_hashes_the_same_alone_and_among_others() -> None:
    x = rows(20, 3, 3)
    alone = np.concatenate([row_hashes(x[i : i + 1], 7) for i in range(20)])
    assert np.array_equal(alone, row_hashes(x, 7))


def test_equal_rows_have_equal_hashes_and_others_do_not() -> None:
    x = rows(1000, 4)
    x[500:] = x[:500]
    h = row_hashes(x, 0)
    assert np.array_equal(h[:500], h[500:])
    assert len(np.unique(h)) == len(np.unique(x, axis=0))


def test_another_seed_gives_other_unrelated_hashes() -> None:
    x = rows(10_000, 9)
    a, b = (unit_interval(row_hashes(x, seed)) for seed in (0, 1))
    assert not np.any(a == b)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(10_000)


def test_the_hashes_of_today_are_those_of_tomorrow() -> None:
    """A plan records the seed only, so a split must be the same on every machine and in every release."""
    x = np.arange(6, dtype=np.uint8).reshape(2, 3)
    words = np.array([0x020100, 0x050403], np.uint64)
    coefficient = np.random.default_rng([5, 1]).integers(0, 2**64, size=1, dtype=np.uint64) | np.uint64(1)
    expected = [fmix64(int(w) * int(coefficient[0])) for w in words]
    assert row_hashes(x, 5).tolist() == expected


def fmix64(h: int) -> int:
    """MurmurHash3's finaliser in Python's own integers."""
    h %= 2**64
    h ^= h >> 33
    h = h * 0xFF51AFD7ED558CCD % 2**64
    h ^= h >> 33
    h = h * 0xC4CEB9FE1A85EC53 % 2**64
    return h ^ h >> 33


@pytest.mark.parametrize("h", [0, 1, 2**33, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_mix_is_the_finaliser_of_murmurhash3(h: int) -> None:
    assert mix(np.array([h], np.uint64)).tolist() == [fmix64(h)]


@pytest.mark.parametrize("length", range(1, 18))
def test_every_byte_of_a_row_counts_whatever_its_length(length: int) -> None:
    one = np.zeros((length + 1, length), np.uint8)
    one[np.arange(length), np.arange(length)] = 1
    assert len(np.unique(row_hashes(one, 0))) == length + 1


def test_one_changed_bit_changes_half_of_the_hash() -> None:
    x = rows(2000, 11)
    y = x.copy()
    y[:, 4] ^= 8
    flipped = np.unpackbits((row_hashes(x, 0) ^ row_hashes(y, 0)).view(np.uint8)).reshape(2000, 64).mean(0)
    assert np.abs(flipped - 0.5).max() < 5 * 0.5 / np.sqrt(2000)


SPARSE = np.unique(np.random.default_rng(3).integers(0, 2, (20_000, 64)), axis=0)


@pytest.mark.parametrize(
    "x",
    [
        rows(20_000, 12),
        np.arange(20_000, dtype=np.uint32).view(np.uint8).reshape(-1, 4),
        np.random.default_rng(0).standard_normal((20_000, 3)),
        np.random.default_rng(0).standard_normal((20_000, 3)).astype(np.float32),
        SPARSE.astype(np.uint8) * 255,
        SPARSE.astype(np.float32),
        SPARSE.astype(np.float64),
        np.random.default_rng(0).integers(0, 256, (20_000, 16)).astype(np.float64),
    ],
    ids=["bytes", "counter", "float64", "float32", "tiles", "binary float32", "binary float64", "whole float64"],
)
def test_hashes_of_distinct_rows_are_distinct_and_uniform(x: NDArray[np.generic]) -> None:
    h = row_hashes(x, 0)
    assert len(np.unique(h)) == len(x)
    counts = np.histogram(unit_interval(h), bins=16, range=(0, 1))[0]
    expected = len(x) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 44.3  # 1 in 10,000 at 15 degrees of freedom


def test_rows_that_are_not_contiguous_hash_as_their_copies() -> None:
    x = rows(50, 6, 4)
    assert np.array_equal(row_hashes(x[::2, :, 1:3], 0), row_hashes(x[::2, :, 1:3].copy(), 0))
    assert np.array_equal(row_hashes(np.asfortranarray(x), 0), row_hashes(x, 0))


def test_the_unit_interval_is_half_open() -> None:
    ends = unit_interval(np.array([0, 2**63, 2**64 - 1], np.uint64))
    assert ends.tolist() == [0.0, 0.5, 1 - 2.0**-53]
