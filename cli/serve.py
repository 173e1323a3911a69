"""`vaeprune serve`: a model over HTTP, and a page to play with its latents."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import UsageError

from . import options as o
from .groups import takes
from .output import note, print_json, show

if TYPE_CHECKING:
    from vaeprune.service.limits import Limits


@dataclass(frozen=True)
class Bounds:
    """How much may be asked at once."""

    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Rows of a request, and of a call that answers several.")
    ] = 256
    max_body: Annotated[
        int | None, typer.Option("--max-body", min=1, help="Bytes of a body; if left out, what --max-batch rows need.")
    ] = None
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait at once; further get 429.")] = 128
    connections: Annotated[
        int, typer.Option("--connections", min=1, help="Connections at once; the slowest make room, else 503.")
    ] = 512
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for a request to arrive, and for its answer to be taken.")
    ] = 10.0

    def limits(self, numbers_in_a_row: int, connections: int) -> Limits:
        """The library's form, for rows of so many numbers."""
        from vaeprune.service.limits import Limits, body_bytes_for

        body_bytes = self.max_body or body_bytes_for(self.max_batch, numbers_in_a_row)
        return Limits(self.max_batch, body_bytes, self.queue, connections, self.timeout)


@takes(Bounds)
def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with encoder.onnx and decoder.onnx.")],
    bounds: Bounds,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="ORIGINAL", help="ONNX files of the model it was cut from, to show beside."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address; others than this machine's own need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="VAEPRUNE_TOKEN", help="Requests must carry it; best given by the variable."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads within an operator; half of the cores if left out.")
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Serve a model over HTTP, with a page to play with it.

    onnxruntime alone, no torch. /encode, /decode, /reconstruct and /sample take JSON or .npy; / is the page.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serve: {' and '.join(missing)} not installed", "install the extra: pip install 'vaeprune[serve]'"
        )
    from vaeprune.service.guard import is_loopback
    from vaeprune.service.served import open_served
    from vaeprune.service.server import allow_connections, listen, url
    from vaeprune.service.server import serve as serve_forever

    bounds.limits(1, bounds.connections)  # what makes no sense is told before anything is loaded
    with listen(host, port, token) as listening:
        served = open_served(folder, against, threads or max(1, (os.cpu_count() or 1) // 2))
        allowed = allow_connections(bounds.connections)
        if allowed < bounds.connections:
            note(f"--connections: {bounds.connections} need more open files than are allowed here, so {allowed}", quiet)
        address = url(listening)
        if json:
            print_json({"url": address, "model": str(folder), "against": str(against) if against else None})
        else:
            show(f"{folder} is served at {address} (Ctrl-C ends it)")
        sys.stdout.flush()
        if not is_loopback(host):
            note("what is sent here can be read on the way: put it behind something that speaks HTTPS", quiet)
        serve_forever(served, listening, bounds.limits(served.numbers_in_a_row, allowed), token)
