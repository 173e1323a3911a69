"""Files and folders that are either completely there or not there at all.

Everything is written beside its target, flushed to disk and renamed, so a crash, a full disk or Ctrl-C leaves
the old state. Reading checks what it reads and says where it broke.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vaeprune.errors import StorageError
from vaeprune.json_files import read_json as read_json
from vaeprune.json_files import write_json as write_json
from vaeprune.unfinished import clean_up, remove, set_aside, unfinished_file, unfinished_folder

_EXPORTED = {
    f"{part}.{ending}" for part in ("encoder", "decoder", "autoencoder") for ending in ("onnx", "onnx.data", "pt2")
}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def refuse_existing(target: Path, force: bool) -> None:
    """Raise StorageError if `target` is in the way. Call it before hours of work, not only after them."""
    with _named(target):
        _refuse_existing(target, force)


def _refuse_existing(target: Path, force: bool) -> None:
    if target.is_symlink() or target.exists():
        if not force:
            raise StorageError(f"{target}: already exists", "choose another name or pass --force to replace it")
        if target.is_symlink():
            raise StorageError(f"{target}: is a symbolic link", "name the folder itself")
    parent = target.absolute().parent
    if parent.exists() and not parent.is_dir():
        raise StorageError(f"{parent}: is a file, expected a folder to write {target.name} into")


def refuse_foreign_folder(target: Path) -> None:
    """Raise StorageError if `target` is a file, or a folder that holds something this package did not write."""
    if target.is_file():
        raise StorageError(f"{target}: is a file, expected a folder to replace", "--force replaces model folders only")
    if target.is_dir() and any(target.iterdir()) and not _is_own(target):
        raise StorageError(
            f"{target}: is not empty and not a model folder",
            "--force replaces model folders only; remove it first",
        )


def _is_own(folder: Path) -> bool:
    """Whether a folder was written by this package: a model, or exported files alone."""
    if {path.name for path in folder.iterdir()} <= _EXPORTED:
        return True
    try:
        entry = read_json(folder / "config.json", "model's config")
    except StorageError:
        return False
    return isinstance(entry, dict) and {"format", "architecture", "likelihood"} <= set(entry)


@contextlib.contextmanager
def new_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder; on success it becomes `target` in one rename, else it is removed.

    Raises StorageError if the target exists and `force` is false, or anything cannot be written.
    """
    refuse_existing(target, force)
    if force:
        refuse_foreign_folder(target)
    with _named(target), _parents(target), unfinished_folder(target) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for path in sorted(temporary.rglob("*")):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())  # some writers make private files
            _flush(path)
        _flush(temporary)
        refuse_existing(target, force)  # it may have appeared meanwhile
        _put_in_place(temporary, target)


@contextlib.contextmanager
def new_file(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling file name; on success it becomes `target` in one rename, else it is removed."""
    refuse_existing(target, force)
    if target.is_dir():
        raise StorageError(f"{target}: is a folder, expected a file name")
    with _named(target), _parents(target), unfinished_file(target) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        refuse_existing(target, force)
        temporary.replace(target)
        _flush(target.absolute().parent)


@contextlib.contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above `target`, and remove what killed runs left there of it.

    Folders that were made are removed again if the writing fails.
    """
    parent = target.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    clean_up(target)
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors; shared or strided memory is copied first."""
    safetensors.torch.save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)


def read_tensors(
    path: Path, choose: Callable[[dict[str, Tensor]], Collection[str] | None] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file into memory; nothing in it is executed. Raises StorageError.

    `choose` sees names, types and shapes before any value is read; it may raise, or name the only ones to be read.
    """
    if not path.is_file():
        raise StorageError(f"{path}: no such file, expected safetensors")
    try:
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        try:
            mapped = safetensors.torch.load_file(path)  # checks the header against the file's size
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise StorageError(
                f"{path}: is not a complete safetensors file: {error}", "it may be truncated; copy it again"
            ) from error
        wanted = choose(mapped) if choose else None
        if wanted is not None:
            mapped = {name: value for name, value in mapped.items() if name in wanted}
        promised = sum(value.nbytes for value in mapped.values())
        if promised > _memory():
            raise StorageError(f"{path}: promises {promised:,} bytes, more than this machine's {_memory():,} of memory")
        try:
            return _in_memory(file, mapped)
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(f"{path}: changed while it was read: {error}", "run again once it is whole") from error


def _memory() -> int:
    """Bytes of memory that the machine has; where that is not told, no file is too large."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def _in_memory(file: BufferedReader, mapped: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors out of the file itself. A map shows whatever becomes of a file, or kills who reads a cut one."""
    before = os.fstat(file.fileno())
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(min(length, before.st_size)))
    tensors = {}
    for name, like in mapped.items():
        start, _ = header[name]["data_offsets"]
        tensors[name] = torch.empty(like.shape, dtype=like.dtype)
        view = memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        file.seek(8 + length + start)
        if file.readinto(view) != len(view):
            raise ValueError(f"it ends within {name}")
    after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise ValueError("somebody writes it")
    return tensors


def refuse_non_finite(tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Raise StorageError naming every tensor that holds NaN or infinity."""
    odd = [k for k, v in tensors.items() if v.is_floating_point() and v.element_size() < 2]
    if odd:
        raise StorageError(
            f"{where}: {', '.join(odd)} are of a type torch cannot compute with", "convert them to float32"
        )
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise StorageError(f"{where}: NaN or infinite values in {', '.join(bad)}", "expected finite weights")


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes in order of name: the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Turn what the operating system says into one line that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "free some space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"{target}: cannot be written: {reason}", hint) from error
    except safetensors.SafetensorError as error:
        raise StorageError(f"{target}: cannot be written: {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; where an old folder stands, swap the two in one step so that there is always a whole one."""
    if not target.exists():
        temporary.rename(target)
    elif target.is_dir() and not any(target.iterdir()):
        temporary.replace(target)
    elif not _exchange(temporary, target):
        old = set_aside(temporary)
        target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        remove(old)
    _flush(target.absolute().parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically (Linux renameat2); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return done == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
