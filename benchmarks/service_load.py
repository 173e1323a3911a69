"""A client of the service that checks every answer by value: raw HTTP over connections that stay open."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass
class Load:
    """`statuses` counts answers, 0 those that a closed connection cut off; `wrong` those of other values than asked."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    lasted: float = 0.0

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.statuses[200] / self.lasted

    def __str__(self) -> str:
        others = {status: count for status, count in sorted(self.statuses.items()) if status != 200}
        p50, p99 = (1000 * float(q) for q in np.percentile(self.seconds or [float("nan")], (50, 99)))
        told = f"{self.statuses[200]:,} answers, {self.rate:.0f} a second, p50 {p50:.3g} ms, p99 {p99:.3g} ms"
        return f"{told}; other statuses {others or 'none'}; wrong or crossed {self.wrong}"


@dataclass(frozen=True)
class Question:
    """A request of one row, as bytes, and the answer it must get."""

    request: bytes
    expected: np.ndarray


def questions(host: str, z: np.ndarray, expected: np.ndarray) -> list[Question]:
    """POST /decode for each row of z, in .npy."""
    found = []
    for row, answer in zip(z, expected, strict=True):
        stream = io.BytesIO()
        np.save(stream, row[None])
        body = stream.getvalue()
        head = (
            f"POST /decode HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-npy\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        found.append(Question(head.encode() + body, answer))
    return found


def run_load(url: str, asked: list[Question], connections: int, seconds: float, rate: float | None = None) -> Load:
    """Ask over so many connections, as fast as they are answered or `rate` times a second, for `seconds`.

    With a rate, a request's time counts from when it was due, so that waiting for a connection counts too.
    """
    return asyncio.run(_run(url, asked, connections, seconds, rate))


async def _run(url: str, asked: list[Question], connections: int, seconds: float, rate: float | None) -> Load:
    load = Load()
    turns = itertools.count()
    start = time.perf_counter()
    end = start + seconds

    async def client() -> None:
        stream = None
        while (now := time.perf_counter()) < end:
            turn = next(turns)
            due = now if rate is None else start + turn / rate
            if due > now:
                await asyncio.sleep(due - now)
            question = asked[turn % len(asked)]
            try:
                stream = stream or await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
                keep = await _ask(*stream, question, load, due)
            except (OSError, asyncio.IncompleteReadError):
                load.statuses[0] += 1
                keep = False
            if stream and not keep:
                stream[1].close()
                stream = None
        if stream:
            stream[1].close()

    await asyncio.gather(*(client() for _ in range(connections)))
    load.lasted = time.perf_counter() - start
    return load


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: Question, load: Load, due: float
) -> bool:
    """One request and its answer; whether the connection may be used again."""
    writer.write(question.request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    status = int(head[9:12])
    load.statuses[status] += 1
    if status == 200:
        load.seconds.append(time.perf_counter() - due)
        found = np.frombuffer(body, np.float32, offset=len(body) - 4 * question.expected.size)
        load.wrong += not np.allclose(found, question.expected.ravel(), atol=1e-5)
    return b"connection: close" not in head.lower()
