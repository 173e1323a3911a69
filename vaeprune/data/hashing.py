"""A seeded hash of what a row contains, for thousands of rows at a time.

Rows are put into the calibrate, select and verify sets by this hash, so neither their order nor their number
moves a row from one set to another, and equal rows stay together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_hashes(rows: NDArray[np.generic], seed: int) -> NDArray[np.uint64]:
    """Hash each of rows (N, ...) by its bytes; returns (N,) numbers uniform on [0, 2^64).

    Two random linear forms, over the row's 64-bit words and over their upper halves, then the finaliser of MurmurHash3.
    The second is for words whose lower bits are all zero, such as float64s of few digits: of those a product modulo
    2^64 keeps little.
    """
    count = len(rows)
    raw = np.ascontiguousarray(rows).reshape(count, -1).view(np.uint8)
    spare = -raw.shape[1] % 8
    if spare:
        raw = np.pad(raw, ((0, 0), (0, spare)))
    words = raw.view(np.uint64)
    lower, upper = np.random.default_rng([seed, words.shape[1]]).integers(
        0, 2**64, size=(2, words.shape[1]), dtype=np.uint64, endpoint=False
    )
    form = np.asarray(words @ (lower | np.uint64(1)))
    return mix(form ^ mix(np.asarray((words >> np.uint64(32)) @ (upper | np.uint64(1)))))


def mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """MurmurHash3's 64-bit finaliser: every input bit reaches every output bit."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ (h >> np.uint64(33))) * np.uint64(factor)
    return np.asarray(h ^ (h >> np.uint64(33)))


def unit_interval(h: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return np.asarray((h >> np.uint64(11)).astype(np.float64) * 2.0**-53)
