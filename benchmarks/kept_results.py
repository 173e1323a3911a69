"""Results of long measurements in a JSON file, each with a mark of what it was measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Kept:
    """Cells by (row, column); written whole after each one, so that an interrupted run goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

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
        self._cells.setdefault(row, {})[column] = {"mark": mark, "found": found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self._cells, indent=1), encoding="utf-8")
        fresh.replace(self.path)
