"""`vaeprune serve`: a model over HTTP, and a page to play with its latents."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from vaeprune.errors import UsageError

from . import options as o
from .output import note, print_json, show


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with encoder.onnx and decoder.onnx.")],
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
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Rows of a request, and of a call that answers several.")
    ] = 256,
    max_body: Annotated[
        int | None, typer.Option("--max-body", min=1, help="Bytes of a body; if left out, what --max-batch rows need.")
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Requests that may wait at once; further get 429.")
    ] = 128,
    connections: Annotated[
        int, typer.Option("--connections", min=1, help="Connections at once; the slowest make room, else 503.")
    ] = 512,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for a request to arrive, and for its answer to be taken.")
    ] = 10.0,
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
    from vaeprune.service.limits import Limits, body_bytes_for
    from vaeprune.service.served import open_served
    from vaeprune.service.server import allow_connections, listen, url
    from vaeprune.service.server import serve as serve_forever

    limits = Limits(rows=max_batch, queue=queue, connections=connections, seconds=timeout)
    with listen(host, port, token) as listening:
        served = open_served(folder, against, threads or max(1, (os.cpu_count() or 1) // 2))
        allowed = allow_connections(connections)
        if allowed < connections:
            note(f"--connections: {connections} need more open files than this process may have, so {allowed}", quiet)
        body_bytes = max_body or body_bytes_for(max_batch, served.numbers_in_a_row)
        limits = dataclasses.replace(limits, connections=allowed, body_bytes=body_bytes)
        address = url(listening)
        if json:
            print_json({"url": address, "model": str(folder), "against": str(against) if against else None})
        else:
            show(f"{folder} is served at {address} (Ctrl-C ends it)")
        if not is_loopback(host):
            note("what is sent here can be read on the way: put it behind something that speaks HTTPS", quiet)
        serve_forever(served, listening, limits, token)
