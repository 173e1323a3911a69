"""A folder of `.npy` files that are one data set in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vaeprune.data.images import SUFFIXES
from vaeprune.data.sources import Block, FileSource
from vaeprune.errors import DataError


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds `.npy` files."""
    return any(folder.glob("*.npy"))


class ShardedSource:
    """The rows of all `.npy` files in a folder, one file after the other in the order of their names.

    Read like a single file: through reused buffers, none of them mapped. Raises DataError where two files hold rows of
    other shapes or types, or where pictures lie beside them.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        picture = next((p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES), None)
        if picture is not None:
            raise DataError(
                f"{folder}: holds .npy files and pictures ({picture.name}), expected one or the other",
                "move those that are not meant elsewhere",
            )
        self._files = [FileSource(path) for path in sorted(folder.glob("*.npy"))]
        first = self._files[0]
        for file in self._files[1:]:
            if (file.row_shape, file.dtype) != (first.row_shape, first.dtype):
                raise DataError(
                    f"{file.path}: holds rows of shape {file.row_shape} and type {file.dtype}, {first.path.name} of "
                    f"shape {first.row_shape} and type {first.dtype}",
                    "the files of a folder are read as one data set; move others elsewhere",
                )
        self.row_shape, self.dtype = first.row_shape, first.dtype
        self.count = sum(file.count for file in self._files)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Rows `start` to `stop` in order; each block is valid until the next one is asked for."""
        end = self.count if stop is None else min(stop, self.count)
        before = 0
        for file in self._files:
            first, last = max(0, start - before), min(file.count, end - before)
            if first < last:
                yield from file.blocks(first, last)
            before += file.count
