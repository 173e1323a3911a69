"""Requests that wait at the same time are answered by one call.

Nobody waits for company: whoever finds the model idle runs at once, and what arrives meanwhile goes together next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from vaeprune.service.npy import Array

Run = Callable[[Array], Sequence[Array]]


@dataclass(frozen=True)
class _Job:
    rows: Array
    done: asyncio.Future[list[Array]]


class Batcher:
    """Calls `run` with the rows of several requests, at most `most` rows at once, and gives each its own back.

    `run` gets an array of rows, in a thread of `executor`, and returns arrays with as many rows. `seen` is told the
    number of rows of every call. To be used from one event loop.
    """

    def __init__(self, run: Run, most: int, executor: Executor, seen: Callable[[int], None]) -> None:
        self._run, self._most, self._executor, self._seen = run, most, executor, seen
        self._waiting: deque[_Job] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, rows: Array) -> list[Array]:
        """The outputs for `rows`; raises what `run` raised."""
        job = _Job(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await job.done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                jobs = self._next()
                rows = jobs[0].rows if len(jobs) == 1 else np.concatenate([job.rows for job in jobs])
                self._seen(len(rows))
                try:
                    outputs = await loop.run_in_executor(self._executor, self._run, rows)
                except Exception as error:  # noqa: BLE001  it belongs to those who asked, and others go on
                    for job in jobs:
                        if not job.done.done():
                            job.done.set_exception(error)
                    continue
                self._hand_out(jobs, outputs)
        finally:
            self._worker = None

    def _next(self) -> list[_Job]:
        """The first jobs that fit into one call; at least one."""
        jobs = [self._waiting.popleft()]
        room = self._most - len(jobs[0].rows)
        while self._waiting and len(self._waiting[0].rows) <= room:
            room -= len(self._waiting[0].rows)
            jobs.append(self._waiting.popleft())
        return jobs

    @staticmethod
    def _hand_out(jobs: list[_Job], outputs: Sequence[Array]) -> None:
        start = 0
        for job in jobs:
            end = start + len(job.rows)
            if not job.done.done():
                job.done.set_result([output[start:end] for output in outputs])
            start = end
