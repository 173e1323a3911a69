"""Where rows come from, read front to back in blocks: tensors in memory, `.npy` and `.npz` files."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data.read_ahead import read_ahead
from vaeprune.errors import DataError

Block = tuple[NDArray[Any], ...]  # rows, then the conditions that belong to them

LARGEST_BATCH = 4096
_BLOCK_BYTES = 4 << 20
_MAX_HEADER = 10_000
_MOST_ROW_BYTES = 1 << 30  # a row is held in memory, several times over
_FREE_BYTES, _MOST_FOLD = 1 << 30, 500  # what expands to more than the one may do so this many times; dSprites: 115
ROW_NAMES = ("x", "image", "images", "img", "pixel_values", "data", "input", "inputs", "features")
_DAMAGED = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Source(Protocol):
    """Rows of one shape and type that can be read from the start as often as wanted."""

    @property
    def name(self) -> str:
        """What to call it in errors."""
        ...

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        ...

    @property
    def count(self) -> int | None:
        """How many rows, None where that is not known before the end."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the rows as they are stored."""
        ...

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Rows `start` to `stop` in order, some at a time; a block is valid until the next one is asked for.

        Where `count` is None, only all of them can be asked for.
        """
        ...


class MemorySource:
    """Rows of a tensor or array (N, ...) in memory; uint8 images or real numbers."""

    def __init__(self, name: str, rows: NDArray[Any] | Tensor, *conditions: NDArray[Any] | Tensor) -> None:
        array = as_array(rows)
        check_rows(name, array.dtype, array.shape)
        self.name, self.count, self.row_shape = name, len(array), array.shape[1:]
        self.dtype = array.dtype
        self._arrays = (readable_dtype(array), *(check_condition(name, as_array(c), len(array)) for c in conditions))

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Pieces of a few megabytes, without copying."""
        end = self.count if stop is None else min(stop, self.count)
        step = rows_per_block(self._arrays[0][:1].nbytes)
        for at in range(start, end, step):
            yield tuple(a[at : min(at + step, end)] for a in self._arrays)


class FileSource:
    """Rows of an `.npy` file or of one member of an `.npz` file, read ahead through two reused buffers.

    Not a memory map: the pages of a map that have been touched count as resident memory. `condition` names another
    array of the `.npz`, or another `.npy` file, with as many rows; it is held in memory.
    """

    def __init__(self, path: Path, condition: str | None = None, member: str | None = None) -> None:
        self.path, self.name = path, str(path)
        self._member = None
        if path.suffix == ".npz":
            self._member = _npz_member(path, member, leave_out=condition)
        with self._open() as stream:
            shape, self.dtype = _header(stream, self.name)
            position = stream.tell()
        if member is None:
            check_rows(self.name, self.dtype, shape)
        elif not shape:
            raise DataError(f"{self.name}: {member} is a single number, expected one for each row")
        self.count, self.row_shape = shape[0], shape[1:]
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        if row_bytes > _MOST_ROW_BYTES:
            raise DataError(f"{self.name}: has rows of {row_bytes:,} bytes, expected at most {_MOST_ROW_BYTES:,}")
        available = self._size() - position
        wanted = math.prod(shape) * self.dtype.itemsize
        if available < wanted:
            raise DataError(
                f"{self.name}: holds {available:,} bytes of rows, its header promises {wanted:,}",
                "the file is truncated; copy it again",
            )
        self._conditions: tuple[NDArray[Any], ...] = ()
        if condition is not None:
            if path.suffix != ".npz" and not condition.endswith(".npy"):
                raise DataError(
                    f"{path}: holds rows alone, got the condition {condition!r}", "name an .npy file of conditions"
                )
            other = FileSource(Path(condition) if condition.endswith(".npy") else path, member=condition)
            whole = other.all_rows()
            self._conditions = (check_condition(condition, whole, self.count),)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Rows `start` to `stop` in order; while one block is in use the next is read over the one before."""
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        end = self.count if stop is None else min(stop, self.count)
        with self._open() as stream:
            _header(stream, self.name)
            self._skip(stream, start * row_bytes)

            def fill(block: NDArray[Any], at: int) -> None:
                self._fill(stream, block, at)

            step = min(rows_per_block(row_bytes), self.count)
            for at, block in read_ahead(fill, start, end, step, self.row_shape, self.dtype):
                yield (readable_dtype(block), *(c[at : at + len(block)] for c in self._conditions))

    def all_rows(self) -> NDArray[Any]:
        """Everything at once, as it is stored."""
        whole = np.empty((self.count, *self.row_shape), self.dtype)
        with self._open() as stream:
            _header(stream, self.name)
            self._fill(stream, whole, 0)
        return whole

    def _fill(self, stream: IO[bytes], block: NDArray[Any], start: int) -> None:
        view = memoryview(block.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        filled = 0
        while filled < len(view):
            try:
                got = stream.readinto(view[filled:])  # type: ignore[attr-defined]
            except _DAMAGED as error:
                raise DataError(f"{self.name}: cannot be read near row {start:,}: {error}") from error
            if not got:
                raise DataError(f"{self.name}: ends near row {start:,}, its header promises {self.count:,} rows")
            filled += got

    def _skip(self, stream: IO[bytes], size: int) -> None:
        try:
            stream.seek(size, os.SEEK_CUR)
        except _DAMAGED as error:
            raise DataError(f"{self.name}: cannot be read: {error}") from error

    def _open(self) -> IO[bytes]:
        try:
            if self._member is None:
                return self.path.open("rb", buffering=0)
            with zipfile.ZipFile(self.path) as archive:  # its file stays open for as long as the member's stream does
                return archive.open(self._member)
        except _DAMAGED as error:
            raise DataError(f"{self.name}: cannot be opened: {error}") from error

    def _size(self) -> int:
        if self._member is None:
            return self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            member = archive.getinfo(self._member)
        refuse_bomb(self.name, member.compress_size, member.file_size)
        return member.file_size


def as_array(value: NDArray[Any] | Tensor) -> NDArray[Any]:
    """A numpy array of the same values; bfloat16, which numpy lacks, becomes float32."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


def check_condition(where: str, values: NDArray[Any], count: int) -> NDArray[Any]:
    """Classes (integers) or vectors (floats), one for each row, in a type torch has. Raises DataError."""
    if values.dtype.kind not in "fiub" or values.dtype == np.longdouble or values.ndim == 0 or len(values) != count:
        raise DataError(
            f"{where}: got conditions of shape {values.shape} and type {values.dtype}, "
            f"expected a number for each of {count} rows"
        )
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int64)


def check_rows(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Raise DataError unless (dtype, shape) are rows of uint8, bool or real numbers."""
    if (dtype.kind not in "fb" and dtype != np.uint8) or (dtype.kind == "f" and dtype.itemsize > 8):
        raise DataError(
            f"{name}: got values of type {dtype}, expected uint8 (scaled to [0, 1]) or floats (taken as they are)"
        )
    if len(shape) < 2 or 0 in shape[1:]:
        raise DataError(f"{name}: got an array of shape {tuple(shape)}, expected (rows, ...)")
    if shape[0] == 0:
        raise DataError(f"{name}: is empty, expected at least one row")


def readable_dtype(block: NDArray[Any]) -> NDArray[Any]:
    """What torch can take: native byte order, writable, forward strides; bool as float. Copied where it must be."""
    if block.dtype.kind == "b":
        return block.astype(np.float32)
    block = block.astype(block.dtype.newbyteorder("="), copy=False)
    return block if block.flags.writeable and min(block.strides, default=0) >= 0 else block.copy()


def refuse_bomb(name: str, stored: int, expanded: int) -> None:
    """Raise DataError where a small file becomes a huge array. Real ones shrink up to a hundredfold."""
    if expanded > _FREE_BYTES and expanded > _MOST_FOLD * stored:
        raise DataError(
            f"{name}: its {stored:,} bytes expand to {expanded:,}, expected at most {_MOST_FOLD} times as many",
            "if they are meant, save them uncompressed, as .npy",
        )


def rows_per_block(row_bytes: int) -> int:
    """How many rows make a block of about four megabytes; a multiple of the largest batch, where it holds one."""
    rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
    return rows - rows % LARGEST_BATCH if rows > LARGEST_BATCH else rows


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type from an .npy header; never an object array, which would be pickled code."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except (*_DAMAGED, KeyError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError) as error:
        raise DataError(f"{name}: is not a readable .npy array: {error}") from error
    if dtype.hasobject:
        raise DataError(f"{name}: holds Python objects, which are never unpickled; expected numbers")
    if any(size < 0 for size in shape):
        raise DataError(f"{name}: got an array of shape {shape}, expected (rows, ...)")
    if fortran and len(shape) > 1:
        raise DataError(f"{name}: is stored column by column", "save it again with numpy.ascontiguousarray")
    return shape, dtype


def _npz_member(path: Path, named: str | None, leave_out: str | None) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    except _DAMAGED as error:
        raise DataError(f"{path}: is not a readable .npz file: {error}") from error
    wanted = [m for m in members if m == named] if named is not None else [m for m in members if m != leave_out]
    likely = [m for m in wanted if m.lower() in (*ROW_NAMES, "imgs", "arr_0", "x_train")]
    if len(wanted) == 1 or len(likely) == 1:
        return (likely or wanted)[0] + ".npy"
    names = ", ".join(members) or "none"
    raise DataError(
        f"{path}: holds the arrays {names}; expected {named or 'one, or one of them named x'}",
        "save the rows alone as .npy",
    )
