from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vaeprune.data.read_ahead import read_ahead


def numbers(block: NDArray[Any], at: int) -> None:
    block[:] = np.arange(at, at + len(block))[:, None]


@pytest.mark.parametrize(("start", "stop", "rows"), [(0, 10, 3), (2, 9, 4), (0, 4, 4), (0, 5, 4), (3, 3, 2), (1, 2, 9)])
def test_blocks_follow_each_other_and_are_whole(start: int, stop: int, rows: int) -> None:
    seen = [(at, block.copy()) for at, block in read_ahead(numbers, start, stop, rows, (2,), np.int64)]
    assert [at for at, _ in seen] == list(range(start, stop, rows))
    assert [n for _, block in seen for n in block[:, 0].tolist()] == list(range(start, stop))


def test_the_next_block_is_read_while_one_is_in_use_and_does_not_touch_it() -> None:
    second = threading.Event()

    def fill(block: NDArray[Any], at: int) -> None:
        numbers(block, at)
        if at == 4:
            second.set()

    blocks = read_ahead(fill, 0, 12, 4, (1,), np.int64)
    _, first = next(blocks)
    assert second.wait(10), "the second block is not read before it is asked for"
    assert first[:, 0].tolist() == [0, 1, 2, 3]
    blocks.close()


def test_what_reading_raises_comes_when_its_block_is_due() -> None:
    def fill(block: NDArray[Any], at: int) -> None:
        if at == 8:
            raise OSError("disk gone")

    blocks = read_ahead(fill, 0, 12, 4, (1,), np.int64)
    assert [next(blocks)[0], next(blocks)[0]] == [0, 4]
    with pytest.raises(OSError, match="disk gone"):
        next(blocks)


def test_a_reading_broken_off_leaves_no_thread() -> None:
    before = threading.active_count()
    blocks = read_ahead(numbers, 0, 100, 4, (1,), np.int64)
    next(blocks)
    blocks.close()
    assert threading.active_count() == before
