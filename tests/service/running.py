"""The service as a process of its own, and plain ways to speak to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
JSON, NPY = "application/json", "application/x-npy"
BODY = 300_000  # bytes that the shared service takes


@dataclass(frozen=True)
class Answer:
    """A response: its status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; a constant like NaN is a failure."""
        assert self.headers["content-type"] == JSON, self
        return json.loads(self.body, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))

    @property
    def npy(self) -> Array:
        """The body as an array."""
        assert self.headers["content-type"] == NPY, self
        return np.load(io.BytesIO(self.body), allow_pickle=False)

    @property
    def error(self) -> dict[str, str]:
        """The error object."""
        assert self.status >= 400, self
        error = self.json["error"]
        assert set(error) == {"type", "message", "hint"}
        return error


@dataclass(frozen=True)
class Running:
    """A service that answers at `url`."""

    process: subprocess.Popen[str]
    url: str
    said: IO[str]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        """POST of JSON; bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, body, **({"content_type": JSON} | headers))

    def post_npy(self, path: str, value: Array | bytes, **headers: str) -> Answer:
        """POST of an .npy array; bytes as they are."""
        body = value if isinstance(value, bytes) else npy(value)
        return self.ask("POST", path, body, **({"content_type": NPY} | headers))

    def connect(self, seconds: float = 30) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(self.address, timeout=seconds)

    def resident(self) -> int:
        """Bytes of memory that the process holds now."""
        if not Path("/proc/self/status").exists():
            pytest.skip("this system does not tell how much memory a process holds")
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it said on stderr, once it has ended."""
        code = self.process.wait(30)
        self.said.seek(0)
        return code, self.said.read()


@contextlib.contextmanager
def serving(*words: object, **environment: str) -> Iterator[Running]:
    """`vaeprune serve` on a free port; it must end cleanly and in silence unless it was ended before."""
    command = [sys.executable, "-m", "vaeprune.cli", "serve", *map(str, words), "--port", "0", "--json"]
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would hold it up once it is full
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ | environment
        )
        try:
            assert process.stdout
            told = ""
            for line in process.stdout:
                told += line
                if line == "}\n":
                    break
            running = Running(process, json.loads(told)["url"] if told else "", said)
            if not told:
                raise AssertionError(running.ended())
            yield running
            if process.poll() is None:
                assert running.stop() == (0, "")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)
            if process.stdout:
                process.stdout.close()


def npy(value: Array) -> bytes:
    """`value` as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def whole(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def rows(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> Array:
    """Standard normal rows (count, *shape), float32."""
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)
