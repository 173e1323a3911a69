"""Files of one folder that belong together, read while somebody may put another folder in its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vaeprune.errors import StorageError, VaepruneError


@contextlib.contextmanager
def unreplaced(folder: Path) -> Iterator[None]:
    """Raise StorageError if another folder takes the place of `folder` meanwhile: what was read may be of both."""
    try:
        handle = os.open(folder, os.O_RDONLY)  # holds on to its identity, which a new folder might get otherwise
    except OSError:  # not there, which whoever reads will be told; or Windows, which opens no folders
        yield
        return
    try:
        try:
            yield
        except VaepruneError:
            if _is_at(handle, folder):
                raise
        if not _is_at(handle, folder):
            raise StorageError(f"{folder}: was replaced while it was read", "run again")
    finally:
        os.close(handle)


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        return False
