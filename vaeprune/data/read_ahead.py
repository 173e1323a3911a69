"""Blocks of rows read by a thread while the one before is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_ahead(
    fill: Callable[[NDArray[Any], int], None], start: int, stop: int, rows: int, shape: tuple[int, ...], dtype: Any
) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first row, block) for rows `start` to `stop`, at most `rows` at a time, in two buffers that take turns.

    `fill(block, at)` reads the rows from `at` on into `block`; its calls follow each other in order. A block is valid
    until the next one is asked for. What `fill` raises is raised here, when its block is due.
    """
    if stop - start <= rows:
        block = np.empty((stop - start, *shape), dtype)
        fill(block, start)
        if len(block):
            yield start, block
        return
    buffers = np.empty((2, rows, *shape), dtype)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:

        def begin(number: int) -> tuple[int, NDArray[Any], Future[None]]:
            at = start + number * rows
            block = buffers[number % 2, : stop - at]
            return at, block, reader.submit(fill, block, at)

        blocks = -(-(stop - start) // rows)
        ahead = begin(0)
        for number in range(blocks):
            at, block, reading = ahead
            reading.result()
            if number + 1 < blocks:
                ahead = begin(number + 1)
            yield at, block
