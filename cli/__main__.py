"""Entry point: run the app, and turn every failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from vaeprune.errors import VaepruneError, one_line

from .app import app
from .output import print_json

DONE, GATE_FAILED, FAILED, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Run on the command line's arguments and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code: 0 done, 1 a gate failed, 2 an error, 130 interrupted."""
    try:
        code = app(args=list(arguments), prog_name="vaeprune", standalone_mode=False)
        sys.stdout.flush()
    except VaepruneError as error:
        return _report(arguments, type(error).__name__, error.message, error.hint)
    except typer.TyperException as error:
        return _report(arguments, "UsageError", one_line(error.format_message()), "see --help")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has gone; not a failure
        return DONE
    except MemoryError:
        return _report(arguments, "MemoryError", "not enough memory", "try fewer rows with --rows")
    except Exception as error:  # noqa: BLE001  the last resort: one line instead of a traceback, exit code 2
        what = one_line(f"{type(error).__name__}: {error}")
        return _report(arguments, "UnexpectedError", what, "this is a bug; VAEPRUNE_DEBUG=1 shows the traceback")
    return code if isinstance(code, int) else DONE


def _report(arguments: Sequence[str], kind: str, message: str, hint: str) -> int:
    if os.environ.get("VAEPRUNE_DEBUG"):
        traceback.print_exc()
    print(f"vaeprune: error: {message}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    if "--json" in arguments:
        print_json({"error": {"type": kind, "message": message, "hint": hint}})
    return FAILED


if __name__ == "__main__":
    main()
