"""Rows out of whatever a user iterates over: lists of batches, DataLoaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data.hashing import row_hashes
from vaeprune.data.sources import ROW_NAMES, Block, as_array, check_condition, check_rows, readable_dtype
from vaeprune.errors import DataError
from vaeprune.factory import own_words


class BatchSource:
    """Whatever a user iterates over: batches (B, ...) or tuples and dicts that hold one, perhaps beside a condition.

    It must be readable again from the start: a list, a Dataset's DataLoader; not a generator. Rows that differ from
    pass to pass (random augmentation) are noticed, with a warning: the split goes by what a row contains.
    """

    def __init__(self, name: str, batches: Iterable[Any], condition: str | None = None) -> None:
        if iter(batches) is batches:
            raise DataError(
                f"{name}: got a {type(batches).__name__} that can be read only once",
                "pass a list or a DataLoader: analysis, selection and verification each read the data",
            )
        self.name, self.count, self._batches, self._condition = name, None, batches, condition
        self._digest: tuple[int, int] | None = None
        first = next(iter(self._blocks()), None)
        if first is None:
            raise DataError(f"{name}: is empty, expected batches of rows")
        self.row_shape, self.dtype = first[0].shape[1:], first[0].dtype

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """One block for each batch, always from the first to the last."""
        count = total = 0
        for block in self._blocks():
            count += len(block[0])
            total += int(row_hashes(block[0], 0).sum(dtype=np.uint64))  # a sum, so that shuffling changes nothing
            yield block
        if self._digest not in (None, (count, total % 2**64)):
            warnings.warn(
                f"{self.name}: its rows differ from pass to pass; turn random augmentation off, or what chooses and "
                "what judges may be the same rows",
                stacklevel=2,
            )
        self._digest = (count, total % 2**64)

    def _blocks(self) -> Iterator[Block]:
        for batch in self._own():
            rows = rows_in(batch, self.name)
            check_rows(self.name, rows.dtype, rows.shape)
            if (rows.dtype == np.uint8) != (getattr(self, "dtype", rows.dtype) == np.uint8):
                raise DataError(f"{self.name}: got rows of type {rows.dtype} after rows of type {self.dtype}")
            conditions: list[NDArray[Any]] = []
            if self._condition is not None:
                conditions = [check_condition(self.name, item_in(batch, self._condition, self.name), len(rows))]
            yield (readable_dtype(rows), *conditions)

    def _own(self) -> Iterator[Any]:
        """The user's batches; what their code raises is quoted."""
        batches = iter(self._batches)
        while True:
            with own_words(self.name, DataError):
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


_END = object()


def rows_in(batch: Any, where: str) -> NDArray[Any]:
    """The rows in a batch: the batch itself, or what a tuple, list or dict around it holds, labels aside."""
    item = batch
    while isinstance(item, (tuple, list, dict)) and len(item):
        if isinstance(item, dict):
            item = next((item[name] for name in ROW_NAMES if name in item), next(iter(item.values())))
        else:
            item = item[0]
    if isinstance(item, (Tensor, np.ndarray)):
        return as_array(item)
    raise DataError(f"{where}: got a batch of {type(item).__name__}, expected tensors or arrays of rows")


def item_in(batch: Any, name: str, where: str) -> NDArray[Any]:
    """The item of a batch that goes by `name`: a key, or a position. Raises DataError."""
    found = None
    if isinstance(batch, dict):
        found = batch.get(name)
    elif isinstance(batch, (tuple, list)) and name.isdigit() and int(name) < len(batch):
        found = batch[int(name)]
    if not isinstance(found, (Tensor, np.ndarray)):
        there = list(batch) if isinstance(batch, dict) else f"positions 0 to {len(batch) - 1}"
        raise DataError(f"{where}: has no condition {name!r} in its batches, which hold {there}")
    return as_array(found)
