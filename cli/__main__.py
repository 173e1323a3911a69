"""Entry point: run the app, and turn every failure into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from vaeprune.errors import VaepruneError, one_line

from .app import app
from .as_rank import as_rank, named, several, tells_of_failure

_OUT_OF_MEMORY = ("can't allocate memory", "failed to map segment", "Cannot allocate memory", "std::bad_alloc")
_RESERVE = mmap.mmap(-1, 1 << 22)  # never touched; given back when memory ends, so that there is room to say so
DONE, GATE_FAILED, FAILED, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Run on the command line's arguments and exit."""
    gc.set_threshold(50_000, 20, 20)  # at Python's own 700 a tenth of the time to import torch goes into collections
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # pressed again, while the first was being answered
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # and again, while Python goes
    gc.freeze()  # before it goes Python would look for garbage among all objects of torch, for 0.4 s
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code: 0 done, 1 a gate failed, 2 an error, 130 interrupted."""
    try:
        code = as_rank(lambda: _app(arguments), arguments) if several() else _app(arguments)
        sys.stdout.flush()
    except VaepruneError as error:
        return _report(arguments, type(error).__name__, error.message, error.hint)
    except typer.TyperException as error:
        return _report(arguments, "UsageError", one_line(error.format_message()), "see --help")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as error:
        # Typer and rich leave this way when whoever reads our output has gone, which is no failure
        if not (isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE):
            raise
        return _silent()
    except BrokenPipeError:
        return _silent()
    except OSError as error:
        if _ran_out_of_memory(error):
            return _no_memory(arguments)
        if error.filename:
            return _report(arguments, "OSError", one_line(f"{error.filename}: {error.strerror}"), "")
        code = _report(arguments, "OSError", one_line(f"output cannot be written: {error.strerror or error}"), "")
        _silent()
        return code
    except Exception as error:  # noqa: BLE001  the last resort: one line instead of a traceback, exit code 2
        if _ran_out_of_memory(error):
            return _no_memory(arguments)
        what = one_line(f"{type(error).__name__}: {error}")
        return _report(arguments, "UnexpectedError", what, _how_to_report(error))
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else DONE


def _app(arguments: Sequence[str]) -> int | None:
    code: int | None = app(args=list(arguments), prog_name="vaeprune", standalone_mode=False)
    return code


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Also where that is the cause of something else; torch and the system's loader have only words for it.

    Gives the reserve back first: to look, and to say what was found, takes memory too.
    """
    _RESERVE.close()
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if any(words in str(error) for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_memory(arguments: Sequence[str]) -> int:
    return _report(arguments, "MemoryError", "not enough memory", "take fewer rows or a smaller network")


def _how_to_report(error: Exception) -> str:
    """What to do about an error nobody expected; its traceback is kept."""
    from .traceback_file import keep_traceback

    kept = keep_traceback(error)
    if kept is None:
        return "this is a bug: please report it with the traceback that VAEPRUNE_DEBUG=1 shows"
    return f"this is a bug: please report it with its traceback, {one_line(str(kept))} (look it over first)"


def _silent() -> int:
    """Nothing more is written to a reader that has gone, at exit neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _report(arguments: Sequence[str], kind: str, message: str, hint: str) -> int:
    if os.environ.get("VAEPRUNE_DEBUG"):
        traceback.print_exc()
    if not tells_of_failure(kind):
        return FAILED
    message = named(message)
    print(f"vaeprune: error: {message}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    if "--json" in arguments:
        from .output import print_json

        with contextlib.suppress(OSError):
            print_json({"error": {"type": kind, "message": message, "hint": hint}})
            sys.stdout.flush()
    return FAILED


if __name__ == "__main__":
    main()
