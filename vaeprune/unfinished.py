"""What is being written beside its target, and what a killed process left of it.

Whoever writes holds a lock on the unfinished folder or file, and the system lets go of it when the process dies. So a
later run knows leftovers from the work of others, and removes them before it writes the same target.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is known to be a leftover there, so nothing is removed
    fcntl = None  # type: ignore[assignment]

_MARK = ".vaeprune-unfinished-"
_OLD = "-old"
_LONGEST = 60  # of a target's name, within that of what is unfinished


@contextlib.contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """A locked, empty folder beside `target`; whatever has that name in the end is removed."""
    with _locked(target, folder=True) as path:
        try:
            yield path
        finally:
            remove(path)


@contextlib.contextmanager
def unfinished_file(target: Path) -> Iterator[Path]:
    """A locked, empty file beside `target`; whatever has that name in the end is removed."""
    with _locked(target, folder=False) as path:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def set_aside(unfinished: Path) -> Path:
    """The name under which the old target waits while the new one takes its place in two steps."""
    return unfinished.with_name(unfinished.name + _OLD)


def remove(folder: Path) -> None:
    """Remove a folder of ours, also if Ctrl-C comes while it is being removed."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def clean_up(target: Path) -> None:
    """Remove what killed processes left of `target`; a folder that was set aside and never replaced is put back."""
    prefix = _prefix(target)
    try:
        names = [entry.name for entry in os.scandir(target.absolute().parent) if entry.name.startswith(prefix)]
    except OSError:  # whoever writes next will be told
        return
    for path in (target.absolute().parent / name for name in sorted(names)):
        with _abandoned(path) as abandoned:
            if not abandoned:
                continue
            if path.name.endswith(_OLD) and not os.path.lexists(target) and len(target.name) <= _LONGEST:
                path.rename(target)
            elif path.is_dir():
                remove(path)
            else:
                path.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    return f".{target.name[:_LONGEST]}{_MARK}"


@contextlib.contextmanager
def _locked(target: Path, folder: bool) -> Iterator[Path]:
    """A fresh folder or file that nobody takes for a leftover."""
    prefix, parent = _prefix(target), target.absolute().parent
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            handle = os.open(path, os.O_RDONLY) if fcntl else -1
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, dir=parent)
            path = Path(name)
            if not fcntl:  # Windows renames no open file
                os.close(handle)
                handle = -1
        try:
            if fcntl:
                with contextlib.suppress(OSError):  # a file system without locks; there nothing is cleaned up either
                    fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists():  # else somebody took it for a leftover before it was locked
                yield path
                return
        finally:
            if handle >= 0:
                os.close(handle)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody writes `path` any more; nobody can begin to while the context lasts."""
    if fcntl is None or path.is_symlink():
        yield False
        return
    handle = -1
    try:
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        abandoned = True
    except OSError:  # locked, gone, not ours, or on a file system without locks
        abandoned = False
    try:
        yield abandoned
    finally:
        if handle >= 0:
            os.close(handle)
