"""A command line run by one of several processes that torchrun started."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from vaeprune.errors import UsageError

COMMANDS = ("train", "analyze", "shrink")
_FIRST, _PATIENCE = "0", timedelta(seconds=2)


def several() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def as_rank(run: Callable[[], int | None], arguments: Sequence[str]) -> int | None:
    """Run a command together with the other ranks; only the first shows progress and output. Raises UsageError."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command not in COMMANDS:
        raise UsageError(f"torchrun: goes with {', '.join(COMMANDS)}, got {command!r}", "start it without torchrun")
    from vaeprune import ranks

    end_on_sigterm()
    with ranks.joined(), _silent(os.environ["RANK"] != _FIRST):
        return run()


def tells_of_failure(kind: str) -> bool:
    """Whether this rank is the one that says why the run failed.

    Rank 0 comes before others that fail in the same way, and all of them before one that only lost another rank.
    """
    if not several():
        return True
    import signal

    from torch import distributed as dist

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what has to be said is said first
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]  # only there where torch was built with it
        host, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False
    )
    rank = os.environ["RANK"]
    patience = 2 * _PATIENCE if kind == "RankError" else _PATIENCE if rank != _FIRST else None
    if patience is not None:
        with contextlib.suppress(dist.DistError):
            store.wait(["vaeprune/failed"], patience)
            return False
    return bool(store.compare_set("vaeprune/failed", "", rank) == rank.encode())


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.ExitStack() as redirected:
        if silent:
            redirected.enter_context(contextlib.redirect_stdout(nowhere))
            redirected.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def named(message: str) -> str:
    """A message, with the rank it comes from unless that is the first."""
    rank = os.environ.get("RANK", _FIRST)
    return message if not several() or rank == _FIRST else f"rank {rank}: {message}"


def end_on_sigterm() -> None:
    """Leave nothing half written when torchrun ends this rank because another has failed."""
    import signal

    def leave(_signal: int, _frame: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
