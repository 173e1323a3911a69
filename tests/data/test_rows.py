from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data import MemoryRows, sources
from vaeprune.data.batch_source import BatchSource
from vaeprune.data.hashing import mix, row_hashes
from vaeprune.data.rows import StreamedRows, as_batch, limited_blocks, sample_rows, samples
from vaeprune.data.sources import Block, FileSource, MemorySource, Source
from vaeprune.errors import DataError


def everyone(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.ones(len(hashes), bool)


def nobody(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.zeros(len(hashes), bool)


def even(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.asarray(hashes % 2 == 0)


def odd(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return ~even(hashes)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gathered(rows: MemoryRows | StreamedRows, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    none = torch.empty(0, *rows.row_shape, dtype=dtype)
    return torch.cat([none, *(x.clone() for (x,) in rows.batches(size, dtype))])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks from a few rows."""
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 100)


# Conversion


def test_bytes_become_numbers_from_0_to_1() -> None:
    (got,) = as_batch([torch.tensor([[0], [51], [255]], dtype=torch.uint8)], torch.float64, (0.0, 1.0))
    assert torch.equal(got, torch.tensor([[0], [51], [255]]).double() / 255)


def test_bytes_become_numbers_of_the_range_asked_for() -> None:
    x = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    (got,) = as_batch([x], torch.float64, (-1.0, 3.0))
    torch.testing.assert_close(got, torch.tensor([[-1.0, -0.2, 3.0]]).double())
    rows = MemoryRows("array", x, span=(-1.0, 1.0))
    torch.testing.assert_close(gathered(rows, 1), torch.tensor([[-1.0, -0.6, 1.0]]))
    torch.testing.assert_close(rows.take(torch.tensor([0]))[0], torch.tensor([[-1.0, -0.6, 1.0]]))
    stream = StreamedRows(MemorySource("array", x), 0, None, span=(-1.0, 1.0))
    torch.testing.assert_close(gathered(stream, 1), torch.tensor([[-1.0, -0.6, 1.0]]))
    assert x.tolist() == [[0, 51, 255]]


def test_floats_are_not_scaled_and_conditions_keep_their_integers() -> None:
    x, classes, vectors = torch.tensor([[0.25]]), torch.tensor([7]), torch.tensor([[0.5]], dtype=torch.float64)
    got = as_batch([x, classes, vectors], torch.float32, (-1.0, 1.0))
    assert [part.dtype for part in got] == [torch.float32, torch.int64, torch.float32]
    assert [part.item() for part in got] == [0.25, 7, 0.5]
    (byte_classes,) = as_batch([x, torch.tensor([255], dtype=torch.uint8)], torch.float32, (0.0, 1.0))[1:]
    assert byte_classes.item() == 255


def test_floats_stay_as_they_are() -> None:
    x = torch.tensor([[-3.5, 700.0]])
    for given in (x, x.double()):
        (got,) = as_batch([given], torch.float32, (0.0, 1.0))
        assert torch.equal(got, x)


# In memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_on_a_gpu_are_those_of_the_cpu_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    x = np.random.default_rng(0).integers(0, 256, (70_000, 30), np.uint8)
    np.save(tmp_path / "rows.npy", x)
    device = torch.device("cuda")
    for rows in (MemoryRows("rows", torch.from_numpy(x)), StreamedRows(FileSource(tmp_path / "rows.npy"), 0, None)):
        here = torch.cat([b.clone() for (b,) in rows.batches(500, dtype)])
        there = torch.cat([b.clone() for (b,) in rows.batches(500, dtype, device)])
        assert there.device.type == "cuda"
        assert torch.equal(there.cpu(), here)


def test_batches_in_memory_are_all_rows_in_order() -> None:
    x = normal(10, 2, 3)
    rows = MemoryRows("array", x)
    assert (rows.count, rows.row_shape) == (10, (2, 3))
    batches = [b[0] for b in rows.batches(4)]
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), x)


def test_conditions_travel_with_their_rows() -> None:
    x, labels = normal(10, 2), torch.arange(10.0).view(10, 1)
    rows = MemoryRows("array", x, labels)
    taken, condition = rows.take(torch.tensor([7, 0, 7]))
    assert torch.equal(taken, x[[7, 0, 7]])
    assert torch.equal(condition, torch.tensor([[7.0], [0.0], [7.0]]))
    assert torch.equal(torch.cat([b[1] for b in rows.batches(3)]), labels)


def test_bytes_in_memory_are_converted_batch_by_batch_and_not_in_place() -> None:
    x = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)
    rows = MemoryRows("array", x)
    assert torch.equal(gathered(rows, 1, torch.float64), x.double() / 255)
    assert torch.equal(rows.take(torch.tensor([1]), torch.float64)[0], x[1:].double() / 255)
    assert x.tolist() == [[0, 255], [51, 102]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_the_first_row(value: float) -> None:
    x = torch.zeros(5, 2, 2)
    x[3, 1, 0] = x[4, 0, 0] = value
    with pytest.raises(DataError) as caught:
        MemoryRows("x.npy", x)
    assert caught.value.message == ("x.npy: NaN or infinite values, first in row 3; expected finite numbers")


# Streamed


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_streamed_file_equals_the_array_in_memory(tmp_path: Path, size: int, dtype: type) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 2, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    for choose in (None, even, everyone):
        chosen = x if choose is None else x[choose(row_hashes(x, 4))]
        from_file = StreamedRows(FileSource(tmp_path / "x.npy"), 4, choose)
        from_memory = StreamedRows(MemorySource("array", x), 4, choose)
        expected = MemoryRows("array", torch.from_numpy(chosen))
        assert torch.equal(gathered(from_file, size), gathered(expected, size))
        assert torch.equal(gathered(from_memory, size), gathered(expected, size))
        assert torch.equal(gathered(from_file, size), gathered(expected, size)), "the second time"


def test_a_stream_knows_its_count_only_where_all_rows_are_taken() -> None:
    source = MemorySource("array", normal(60, 3))
    assert StreamedRows(source, 0, None).count == 60
    assert StreamedRows(source, 0, None, limit=7).count == 7
    assert StreamedRows(source, 0, None, limit=700).count == 60
    assert StreamedRows(source, 0, even).count is None
    assert StreamedRows(BatchSource("data", [normal(4, 3)]), 0, None, limit=2).count is None


@pytest.mark.parametrize("limit", [1, 8, 9, 59, 60, 61])
def test_a_limit_takes_the_first_rows(limit: int) -> None:
    x = normal(60, 3)
    assert torch.equal(gathered(StreamedRows(MemorySource("array", x), 0, None, limit), 7), x[:limit])


def test_a_limit_does_not_read_beyond_it() -> None:
    class Broken:
        name, row_shape, count = "broken", (2,), None

        def blocks(self) -> Iterator[Block]:
            yield (np.zeros((4, 2), np.float32),)
            raise AssertionError("read too far")

    assert sum(len(b[0]) for b in limited_blocks(Broken(), 4)) == 4


def test_streamed_nan_is_refused(tmp_path: Path) -> None:
    x = normal(60, 3).numpy()
    x[41, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"x\.npy: NaN or infinite values, first in row \d+"):
        gathered(StreamedRows(FileSource(tmp_path / "x.npy"), 0, None), 10)


def test_rows_that_change_shape_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        gathered(StreamedRows(BatchSource("data", [torch.ones(2, 3), torch.ones(2, 4)]), 0, None), 10)
    assert caught.value.message == "data: got rows of shape (4,) after rows of shape (3,)"


def test_conditions_stay_beside_the_rows_that_are_chosen() -> None:
    x, c = normal(60, 3), torch.arange(60)
    chosen = torch.from_numpy(even(row_hashes(x.numpy(), 0)))
    stream = StreamedRows(MemorySource("array", x, c), 0, even)
    assert torch.equal(torch.cat([b[1] for b in stream.batches(7)]), c[chosen])
    sample = sample_rows(MemorySource("array", x, c), 0, even, 10, None)
    for row, condition in zip(*sample.tensors, strict=True):
        assert torch.equal(row, x[condition])


# Parts


def three_kinds(folder: Path, x: torch.Tensor) -> list[Source]:
    np.save(folder / "x.npy", x.numpy())
    return [FileSource(folder / "x.npy"), MemorySource("array", x), BatchSource("batches", list(x.split(5)))]


@pytest.mark.parametrize("limit", [None, 1, 2, 41, 60])
@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_parts_of_a_stream_are_disjoint_and_together_all_of_it(tmp_path: Path, of: int, limit: int | None) -> None:
    x = torch.arange(60.0).view(60, 1) + normal(60, 1) / 100
    for source in three_kinds(tmp_path, x):
        for choose in (None, even):
            stream = StreamedRows(source, 3, choose, limit)
            parts = [gathered(stream.part(i, of), 4) for i in range(of)]
            assert torch.equal(torch.cat(parts).sort(0).values, gathered(stream, 4).sort(0).values), type(source)


@pytest.mark.parametrize("of", [1, 2, 3, 80])
def test_parts_of_rows_in_memory_are_runs(of: int) -> None:
    x = normal(60, 3)
    parts = [MemoryRows("array", x).part(i, of) for i in range(of)]
    assert torch.equal(torch.cat([part.tensors[0] for part in parts]), x)
    assert max(part.count for part in parts) - min(part.count for part in parts) <= 1


# Sampled


def test_a_sample_holds_the_rows_of_smallest_second_hash() -> None:
    x = normal(200, 3).numpy()
    rank = mix(row_hashes(x, 9) ^ np.uint64(0x9E3779B97F4A7C15))
    chosen = np.flatnonzero(even(row_hashes(x, 9)))
    expected = x[np.sort(chosen[np.argsort(rank[chosen])[:25]])]
    (got,) = sample_rows(MemorySource("array", x), 9, even, keep=25, limit=None).tensors
    assert np.array_equal(got.numpy(), expected)


def test_several_samples_of_one_pass_are_those_of_a_pass_each() -> None:
    passes = 0

    class Counted(MemorySource):
        def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Block]:
            nonlocal passes
            passes += 1
            return super().blocks(start, stop)

    source = Counted("array", normal(200, 3))
    (a, b), others = samples(source, 9, (even, odd), 25, None)
    assert passes == 1
    assert torch.equal(a.tensors[0], sample_rows(source, 9, even, 25, None).tensors[0])
    assert torch.equal(b.tensors[0], sample_rows(source, 9, odd, 25, None).tensors[0])
    assert others == 0
    assert samples(source, 9, (even,), 25, None)[1] == int(odd(row_hashes(normal(200, 3).numpy(), 9)).sum())


def test_a_sample_holds_the_same_rows_whatever_their_order() -> None:
    x = normal(200, 3).numpy()
    order = np.random.default_rng(1).permutation(200)
    a, b = (sample_rows(MemorySource("array", y), 0, everyone, 30, None).tensors[0].numpy() for y in (x, x[order]))
    assert {row.tobytes() for row in a} == {row.tobytes() for row in b}


def test_a_sample_large_enough_holds_all_chosen_rows_in_order() -> None:
    x = normal(100, 3).numpy()
    (got,) = sample_rows(MemorySource("array", x), 0, even, keep=1 << 62, limit=None).tensors
    assert np.array_equal(got.numpy(), x[even(row_hashes(x, 0))])


def test_a_sample_is_uniform() -> None:
    x = np.arange(4000, dtype=np.float32).reshape(-1, 1)
    counts = np.zeros(8)
    for seed in range(10):
        (got,) = sample_rows(MemorySource("array", x), seed, everyone, 200, None).tensors
        assert len(got) == 200
        counts += np.histogram(got.numpy(), bins=8, range=(0, 4000))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 29.9  # 1 in 10,000 at 7 degrees of freedom


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (normal(10, 3), "x.npy: got 10 rows, which leaves none to check the result on; give more rows"),
        (normal(1, 3), "x.npy: got 1 row, which leaves none to check the result on; give more rows"),
        (
            torch.full((400, 3), 0.5),
            (
                "x.npy: got 400 rows that are all alike, which leaves none to check the result on; "
                "equal rows stay together, so give rows that differ"
            ),
        ),
    ],
    ids=["ten", "one", "constant"],
)
def test_a_sample_of_nothing_is_refused_with_the_reason(x: torch.Tensor, told: str) -> None:
    with pytest.raises(DataError) as caught:
        sample_rows(MemorySource("x.npy", x), 0, nobody, 5, None)
    assert str(caught.value) == told
