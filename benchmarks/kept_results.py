"""Results of long measurements in a JSON file, each with a mark of what it was measured with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: one process at a time there
    fcntl = None  # type: ignore[assignment]  # stands for its lack


class Kept:
    """Cells by (row, column); written whole after each one, so that an interrupted run goes on where it stopped.

    Several processes may keep their cells in one file: each adds to what the others have put there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells = self._read()

    def get(self, where: tuple[str, str], mark: str | None = None) -> dict[str, Any] | None:
        """The cell, None if there is none, or none with this mark."""
        row, column = where
        cell = self._cells.get(row, {}).get(column)
        if cell is None or (mark is not None and cell["mark"] != mark):
            return None
        return dict(cell["found"])

    def put(self, where: tuple[str, str], mark: str, found: dict[str, Any]) -> None:
        """Keep a cell."""
        row, column = where
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._cells = self._read()
            self._cells.setdefault(row, {})[column] = {"mark": mark, "found": found}
            fresh = self.path.with_suffix(".part")
            fresh.write_text(json.dumps(self._cells, indent=1), encoding="utf-8")
            fresh.replace(self.path)

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.is_file() else {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
