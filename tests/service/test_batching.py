"""Who asks at the same time is answered together, and gets what belongs to him."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vaeprune.service.batching import Batcher


def answers(run, requests, most=64):
    """What each request gets, or raises; and the rows of every call."""
    calls: list[int] = []

    async def ask():
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(run, most, executor, calls.append)
            return await asyncio.gather(*(batcher(rows) for rows in requests), return_exceptions=True)

    return asyncio.run(ask()), calls


def doubled(rows):
    return [2 * rows, rows.sum(1)]


def test_everybody_gets_the_rows_of_his_own():
    generator = np.random.default_rng(0)
    requests = [generator.normal(size=(int(generator.integers(1, 9)), 3)) for _ in range(200)]
    found, calls = answers(doubled, requests)
    for rows, (double, total) in zip(requests, found, strict=True):
        np.testing.assert_array_equal(double, 2 * rows)
        np.testing.assert_array_equal(total, rows.sum(1))
    assert sum(calls) == sum(map(len, requests))


def test_what_comes_while_the_model_runs_goes_together_next():
    def slow(rows):
        time.sleep(0.05)
        return [rows]

    found, calls = answers(slow, [np.full((1, 1), i) for i in range(10)])
    assert calls == [10]  # all were there before the first call began
    assert [int(rows[0, 0]) for (rows,) in found] == list(range(10))


def test_the_first_does_not_wait_for_company():
    started = threading.Event()

    def held(rows):
        started.set()
        time.sleep(0.05)
        return [rows]

    calls: list[int] = []

    async def ask():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(held, 64, executor, calls.append)
            first = asyncio.create_task(batcher(np.zeros((1, 1))))
            await asyncio.to_thread(started.wait)
            await asyncio.gather(first, *(batcher(np.ones((1, 1))) for _ in range(7)))

    asyncio.run(ask())
    assert calls == [1, 7]


def test_no_call_has_more_rows_than_are_allowed():
    found, calls = answers(doubled, [np.full((5, 2), i) for i in range(9)], most=12)
    assert calls == [10, 10, 10, 10, 5]
    assert all((double == 2 * i).all() for i, (double, _) in enumerate(found))


def test_a_failure_reaches_those_who_asked_and_others_go_on():
    def fails_on_seven(rows):
        if (rows == 7).any():
            raise ValueError("seven")
        return [rows]

    found, _ = answers(fails_on_seven, [np.full((1, 1), i) for i in range(10)], most=1)
    assert [type(one).__name__ for one in found] == ["list"] * 7 + ["ValueError"] + ["list"] * 2


def test_one_who_has_left_holds_nobody_up():
    async def ask():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(doubled, 4, executor, lambda _: None)
            leaving = asyncio.create_task(batcher(np.zeros((1, 1))))
            staying = asyncio.create_task(batcher(np.ones((1, 1))))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            return await staying

    double, _ = asyncio.run(ask())
    assert double == [[2]]
