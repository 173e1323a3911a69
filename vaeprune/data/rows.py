"""Rows as a model takes them: batches of floats, from memory or streamed, as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeprune import ranks
from vaeprune.data.hashing import mix, row_hashes
from vaeprune.data.sources import Block, Source
from vaeprune.errors import DataError

Batch = tuple[Tensor, ...]  # x (B, ...), then the conditions
Span = tuple[float, float]  # what uint8 is scaled to
Choose = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]
_CPU = torch.device("cpu")


class Rows(Protocol):
    """Rows that can be read in batches again and again."""

    @property
    def name(self) -> str:
        """What to call them in errors."""
        ...

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row as stored."""
        ...

    @property
    def count(self) -> int | None:
        """How many rows, None where a stream has not been counted."""
        ...

    @property
    def scaled_to(self) -> Span | None:
        """The range all values are known to lie in, because they were uint8 and scaled; None for others."""
        ...

    def batches(self, size: int, dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Iterator[Batch]:
        """All rows in order on `device`, at most `size` at a time; uint8 is scaled, floats stay as they are."""
        ...

    def part(self, index: int, of: int) -> Rows:
        """Part `index`, from 0 on, of `of` disjoint ones that together are all rows."""
        ...


class MemoryRows:
    """Rows held in memory in the type they came in (uint8 images take a quarter of the room floats would)."""

    def __init__(self, name: str, *tensors: Tensor, span: Span = (0.0, 1.0)) -> None:
        self.name, self.tensors, self._span = name, tensors, span
        self.count, self.row_shape = len(tensors[0]), tuple(tensors[0].shape[1:])
        self.scaled_to = span if tensors[0].dtype == torch.uint8 else None
        for tensor in tensors:
            _refuse_non_finite(tensor, name)

    def batches(self, size: int, dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Iterator[Batch]:
        """Slices of the tensors, converted one batch at a time."""
        for start in range(0, self.count, size):
            yield as_batch([t[start : start + size] for t in self.tensors], dtype, self._span, device=device)

    def part(self, index: int, of: int) -> MemoryRows:
        """A run of the rows, without copying; `of` of them are as even as can be, and may be empty."""
        first, last = span_of(self.count, index, of)
        return MemoryRows(self.name, *(t[first:last] for t in self.tensors), span=self._span)

    def every(self, step: int) -> MemoryRows:
        """Rows 0, step, 2·step, …, without copying."""
        return MemoryRows(self.name, *(t[::step] for t in self.tensors), span=self._span)

    def take(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Batch:
        """The rows at `indices`, as a batch."""
        return as_batch([t[indices] for t in self.tensors], dtype, self._span)


class StreamedRows:
    """Rows read from a source block by block, those of one set only; nothing is kept.

    `count`: how many rows `choose` takes, where that is known already.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        choose: Choose | None,
        limit: int | None = None,
        span: Span = (0.0, 1.0),
        count: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._span, self._share = span, share
        self.scaled_to = span if source.dtype == np.uint8 else None
        self._source, self._seed, self._choose, self._limit = source, seed, choose, limit
        self.name, self.row_shape = source.name, source.row_shape
        self.count = count if choose or share[1] > 1 else _limited(source.count, limit)

    def part(self, index: int, of: int) -> StreamedRows:
        """A run of the rows where the source knows how many it has, else every so many blocks.

        Its `count` is an even share of all.
        """
        count = None if self.count is None else self.count // of
        return StreamedRows(
            self._source, self._seed, self._choose, self._limit, self._span, count=count, share=(index, of)
        )

    def batches(self, size: int, dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Iterator[Batch]:
        """Batches of up to `size` rows; each is valid until the next is asked for, which may reuse its memory."""
        room: Tensor | None = None
        for block in limited_blocks(self._source, self._limit, self._share):
            if self._choose is not None:
                chosen = self._choose(row_hashes(block[0], self._seed))
                block = tuple(part[chosen] for part in block)
            for start in range(0, len(block[0]), size):
                parts = [torch.from_numpy(part[start : start + size]) for part in block]
                if room is None and self.scaled_to is not None:
                    room = torch.empty(size, *self.row_shape)
                yield as_batch(parts, dtype, self._span, room, device)


def limited_blocks(source: Source, limit: int | None, share: tuple[int, int] = (0, 1)) -> Iterator[Block]:
    """The blocks of the first `limit` rows; raises DataError where a row changes shape or is not finite.

    `share`: (index, of): those of one part only. Where the source has not counted its rows, all are read, and every
    `of`-th block from `index` on is taken.
    """
    index, of = share
    runs = of > 1 and source.count is not None
    read, end = span_of(_limited(source.count, limit) or 0, index, of) if runs else (0, limit)
    for number, block in enumerate(source.blocks(read, end) if runs else source.blocks()):
        if block[0].shape[1:] != source.row_shape:
            raise DataError(
                f"{source.name}: got rows of shape {block[0].shape[1:]} after rows of shape {source.row_shape}"
            )
        if end is not None:
            block = tuple(part[: end - read] for part in block)
        if runs or number % of == index:
            for part in block:
                _refuse_non_finite(torch.from_numpy(part), source.name, read)
            if len(block[0]):
                yield block
        read += len(block[0])
        if read == end:
            return


class _Sample:
    """At most `keep` of the chosen rows: those whose second hash is smallest.

    A uniform sample that depends on the rows alone, not on their order; memory is bounded by 2·keep rows.
    """

    def __init__(self, choose: Choose, keep: int) -> None:
        self.chosen = 0
        self._choose, self._keep = choose, keep
        self._kept: list[Block] = []
        self._orders: list[NDArray[np.uint64]] = []

    def see(self, block: Block, hashes: NDArray[np.uint64]) -> None:
        chosen = self._choose(hashes)
        self._kept.append(tuple(part[chosen] for part in block))
        self._orders.append(mix(hashes[chosen] ^ np.uint64(0x9E3779B97F4A7C15)))
        self.chosen += len(self._orders[-1])
        if sum(map(len, self._orders)) > 2 * self._keep:
            self._kept, self._orders = _smallest(self._kept, self._orders, self._keep)

    def gather(self) -> None:
        """Take in the samples of the other ranks; collective."""
        if self._kept:
            self._kept, self._orders = _smallest(self._kept, self._orders, self._keep)
        parts = ranks.gathered((self._kept, self._orders, self.chosen))
        self._kept = [block for kept, _, _ in parts for block in kept]
        self._orders = [order for _, orders, _ in parts for order in orders]
        self.chosen = sum(chosen for _, _, chosen in parts)

    def rows(self, source: Source, seed: int, limit: int | None, span: Span) -> MemoryRows:
        (parts,), (order,) = _smallest(self._kept, self._orders, self._keep)
        if not len(order):
            raise _none_left(source, seed, limit)
        return MemoryRows(source.name, *(torch.from_numpy(part) for part in parts), span=span)


def sample_rows(
    source: Source, seed: int, choose: Choose, keep: int, limit: int | None, span: Span = (0.0, 1.0)
) -> MemoryRows:
    """At most `keep` of the chosen rows, in memory; see `samples`."""
    return samples(source, seed, (choose,), keep, limit, span)[0][0]


def samples(
    source: Source, seed: int, chooses: Sequence[Choose], keep: int, limit: int | None, span: Span = (0.0, 1.0)
) -> tuple[list[MemoryRows], int]:
    """For each of `chooses` at most `keep` of the rows it takes, in memory, by one pass; and how many rows none took.

    Uniform samples that depend on the rows alone, not on their order; each takes at most 2·keep rows of memory.
    Of several ranks each reads its part, and all get the same samples.
    """
    found = [_Sample(choose, keep) for choose in chooses]
    read = 0
    for block in limited_blocks(source, limit, (ranks.rank(), ranks.world())):
        hashes = row_hashes(block[0], seed)
        read += len(hashes)
        for sample in found:
            sample.see(block, hashes)
    if ranks.world() > 1:
        read = sum(ranks.gathered(read))
        for sample in found:
            sample.gather()
    return [sample.rows(source, seed, limit, span) for sample in found], read - sum(s.chosen for s in found)


def as_batch(
    parts: Sequence[Tensor],
    dtype: torch.dtype,
    span: Span,
    room: Tensor | None = None,
    device: torch.device = _CPU,
) -> Batch:
    """Rows as floats on `device`, uint8 scaled to `span`; conditions keep their integers.

    `room`, where it has the type and enough rows, takes the scaled rows, so that no memory is asked for. To a GPU bytes
    go as bytes, a quarter of the floats, and are scaled there.
    """
    rows = parts[0]
    if rows.dtype == torch.uint8:
        if device.type == "cuda":
            rows = _moved(rows, device)
            rows = rows.to(dtype).div_(torch.full((), 255.0, dtype=dtype, device=device))  # by a number: by its inverse
        elif dtype == torch.float32:  # in one pass; other types would be rounded to float32 on the way
            rows = torch.div(rows, 255, out=None if room is None else room[: len(rows)])
        else:
            rows = rows.to(dtype).div_(255)
        if span != (0.0, 1.0):
            rows = rows.mul_(span[1] - span[0]).add_(span[0])
    batch = (rows.to(dtype), *(part.to(dtype) if part.is_floating_point() else part for part in parts[1:]))
    return tuple(_moved(part, device) for part in batch)


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """On `device`; to a GPU from page-locked memory, so that the next batch is made ready while this one is encoded."""
    if device.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


def _none_left(source: Source, seed: int, limit: int | None) -> DataError:
    """Why no row was left: too few of them, or all alike."""
    hashes = [row_hashes(block[0], seed) for block in limited_blocks(source, limit)]
    read = sum(map(len, hashes))
    alike = read > 1 and len({int(h) for part in hashes for h in (part.min(), part.max())}) == 1
    found = f"{read} rows that are all alike" if alike else f"{read} row{'' if read == 1 else 's'}"
    return DataError(
        f"{source.name}: got {found}, which leaves none to check the result on",
        "equal rows stay together, so give rows that differ" if alike else "give more rows",
    )


def _smallest(
    blocks: list[Block], orders: list[NDArray[np.uint64]], keep: int
) -> tuple[list[Block], list[NDArray[np.uint64]]]:
    """The rows of `keep` smallest rank, in their order, as one block."""
    rank = np.concatenate(orders) if orders else np.empty(0, np.uint64)
    parts = tuple(np.concatenate(part) for part in zip(*blocks, strict=True))
    if len(rank) > keep:
        order = np.sort(np.argpartition(rank, keep - 1)[:keep])
        parts, rank = tuple(part[order] for part in parts), rank[order]
    return [parts], [rank]


def span_of(count: int, index: int, of: int) -> tuple[int, int]:
    """First row of part `index` of `of`, and the first of the next one."""
    return count * index // of, count * (index + 1) // of


def _limited(count: int | None, limit: int | None) -> int | None:
    return count if limit is None or count is None else min(count, limit)


def _refuse_non_finite(tensor: Tensor, name: str, start: int = 0) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        bad = int(torch.nonzero(~torch.isfinite(tensor.reshape(len(tensor), -1)).all(1))[0])
        raise DataError(f"{name}: NaN or infinite values, first in row {start + bad}; expected finite numbers")
