"""Strict JSON files. Apart from `storage`, so that what runs ONNX files alone need not load torch to read a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vaeprune.errors import StorageError


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), two spaces deep, with a final newline."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; `what` names it in errors ("config", "plan"). Raises StorageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file, expected the {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read as the {what}: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: is not valid JSON: {error}", f"restore the {what} from its source") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
