"""Strict JSON files. Apart from `storage`, so that what runs ONNX files alone need not load torch to read a config."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from vaeprune.errors import StorageError

_MOST_BYTES = 64 << 20  # parsed, a text of brackets takes twenty times as much


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), two spaces deep, with a final newline."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str, most_bytes: int | None = _MOST_BYTES) -> Any:
    """Parse a JSON file of at most `most_bytes`; `what` names it in errors ("config", "plan"). Raises StorageError."""
    try:
        _refuse_odd_file(path, what, most_bytes)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file, expected the {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read as the {what}: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is not valid JSON: {error}", f"restore the {what} from its source") from error


def _refuse_odd_file(path: Path, what: str, most_bytes: int | None) -> None:
    """A pipe would be waited for without end, a device read without end, a text parsed into many times its size."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"{path}: is not a file, so it cannot be read as the {what}")
    if most_bytes is not None and found.st_size > most_bytes:
        raise StorageError(f"{path}: has {found.st_size:,} bytes, the {what} has at most {most_bytes:,}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
