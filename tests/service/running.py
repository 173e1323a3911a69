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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
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
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; its exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@contextlib.contextmanager
def serving(*words: object, **environment: str) -> Iterator[Running]:
    """`vaeprune serve` on a free port; it must end cleanly and in silence unless it was ended before."""
    command = [sys.executable, "-m", "vaeprune.cli", "serve", *map(str, words), "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout
        lines = []
        while line := process.stdout.readline():
            lines.append(line)
            if line == "}\n":
                break
        if not lines:
            raise AssertionError(process.communicate(timeout=30)[1])
        running = Running(process, json.loads("".join(lines))["url"])
        yield running
        if process.poll() is None:
            assert running.stop() == (0, "")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


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
