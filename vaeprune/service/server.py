"""The process: a socket, uvicorn, and its end."""

from __future__ import annotations

import functools
import logging
import signal
import socket
import sys
from typing import Any, cast

import uvicorn

from vaeprune.errors import UsageError
from vaeprune.service.app import make_app
from vaeprune.service.connections import Connection
from vaeprune.service.guard import is_loopback
from vaeprune.service.limits import Limits
from vaeprune.service.served import Served

_LEAST_TOKEN = 16
_HEAD_BYTES = 16 * 1024
_OTHER_FILES = 64
_BACKLOG = 1024


def serve(served: Served, listening: socket.socket, limits: Limits, token: str | None) -> None:
    """Answer requests on `listening` until SIGTERM or SIGINT; what has begun is answered first.

    Returns after SIGTERM; raises KeyboardInterrupt after SIGINT.
    """
    # uvicorn raises the signal that ended it once more when it is done, which by default would kill us
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    # the thread that ran a model waits this long for the one that reads requests to let it go on
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        make_app(served, limits, token),
        http=cast(Any, functools.partial(Connection, limits)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_graceful_shutdown=max(1, round(limits.seconds)),
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        sys.setswitchinterval(interval)
        signal.signal(signal.SIGTERM, before)


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that takes connections. Raises UsageError: another address than loopback without a token, or taken."""
    if not is_loopback(host) and token is None:
        raise UsageError(
            f"--host {host}: everybody who reaches this address could use the service",
            "give it a token (VAEPRUNE_TOKEN), or leave --host out",
        )
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(
            f"--token: got {len(token)} characters, expected at least {_LEAST_TOKEN}, all printable ASCII",
            "make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=False)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{host}:{port}: cannot be listened on: {reason}", "choose another --port") from error


def url(listening: socket.socket) -> str:
    """The address that a browser takes."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def allow_connections(wanted: int) -> int:
    """Raise this process's limit of open files as far as `wanted` connections need; how many it then allows.

    Twice as many are held for a moment, since those for whom there is no room are told so.
    """
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _OTHER_FILES
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, (soft - _OTHER_FILES) // 2))
