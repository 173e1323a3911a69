from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from vaeprune.data import sources
from vaeprune.data.batch_source import BatchSource, rows_in
from vaeprune.data.sources import FileSource, MemorySource, Source, as_array
from vaeprune.errors import DataError


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 64)


def everything(source: Source) -> NDArray[Any]:
    return np.concatenate([block[0].copy() for block in source.blocks()])


def normal(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def save_npy(path: Path, x: NDArray[Any]) -> Path:
    np.save(path / "x.npy", x)
    return path / "x.npy"


def save_npz(path: Path, x: NDArray[Any]) -> Path:
    np.savez(path / "x.npz", x=x)
    return path / "x.npz"


def save_compressed(path: Path, x: NDArray[Any]) -> Path:
    np.savez_compressed(path / "x.npz", x=x)
    return path / "x.npz"


SAVERS = pytest.mark.parametrize("save", [save_npy, save_npz, save_compressed])
Save = Callable[[Path, NDArray[Any]], Path]


def write_header(path: Path, header: str, body: int = 1000, version: bytes = b"\x01\x00") -> Path:
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    path.write_bytes(b"\x93NUMPY" + version + length + header.encode("latin1") + bytes(body))
    return path


# Files


@SAVERS
@pytest.mark.parametrize(
    "x",
    [
        normal(37, 3),
        normal(37, 3, dtype=np.float64),
        normal(37, 2, 5, dtype=np.float16),
        np.random.default_rng(0).integers(0, 256, (37, 1, 4, 4), dtype=np.uint8),
        normal(1, 3),
        normal(3, 100),
    ],
    ids=["float32", "float64", "float16", "uint8", "one row", "rows larger than a block"],
)
@pytest.mark.usefixtures("small_blocks")
def test_a_file_gives_back_its_rows_in_blocks(tmp_path: Path, save: Save, x: NDArray[Any]) -> None:
    source = FileSource(save(tmp_path, x))
    assert (source.count, source.row_shape) == (len(x), x.shape[1:])
    got = everything(source)
    assert got.dtype == x.dtype
    assert np.array_equal(got, x)


@SAVERS
@pytest.mark.usefixtures("small_blocks")
def test_a_file_can_be_read_again_also_after_a_reading_broken_off(tmp_path: Path, save: Save) -> None:
    x = normal(50, 4)
    source = FileSource(save(tmp_path, x))
    blocks = source.blocks()
    assert np.array_equal(next(blocks)[0], x[:4])
    del blocks
    assert np.array_equal(everything(source), x)
    assert np.array_equal(everything(source), x)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_a_file_share_two_buffers_in_turns(tmp_path: Path) -> None:
    blocks = [block[0] for block in FileSource(save_npy(tmp_path, normal(40, 4))).blocks()]
    assert len(blocks) == 10
    assert all(np.shares_memory(blocks[i % 2], block) for i, block in enumerate(blocks))
    assert not np.shares_memory(blocks[0], blocks[1])


@SAVERS
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 4), (7, 50), (11, 12), (49, 50), (20, 20), (9, 900)])
@pytest.mark.usefixtures("small_blocks")
def test_a_run_of_a_files_rows_is_read_alone(tmp_path: Path, save: Save, start: int, stop: int) -> None:
    x = normal(50, 4)
    blocks = [block[0].copy() for block in FileSource(save(tmp_path, x)).blocks(start, stop)]
    assert np.array_equal(np.concatenate([*blocks, x[:0]]), x[start:stop])


@SAVERS
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
def test_big_endian_numbers_are_read_as_what_they_mean(tmp_path: Path, save: Save, dtype: str) -> None:
    x = normal(20, 3).astype(dtype)
    got = everything(FileSource(save(tmp_path, x)))
    assert got.dtype.isnative
    assert np.array_equal(got, x)
    torch.from_numpy(got)


@SAVERS
def test_booleans_are_zeros_and_ones(tmp_path: Path, save: Save) -> None:
    x = normal(20, 3) > 0
    got = everything(FileSource(save(tmp_path, x)))
    assert got.dtype == np.float32
    assert np.array_equal(got, x.astype(np.float32))


@SAVERS
def test_fortran_order_is_refused_with_the_remedy(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path, np.asfortranarray(normal(5, 3)))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert str(caught.value) == f"{path}: is stored column by column; save it again with numpy.ascontiguousarray"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc on Linux only")
@SAVERS
def test_a_refused_file_does_not_stay_open(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path, np.asfortranarray(normal(5, 3)))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    handles = [str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink() and f.exists()]
    assert str(path) not in handles
    assert caught.value.message.startswith(str(path))


@SAVERS
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint16, np.complex64, "datetime64[s]", "S4", "U4"])
def test_other_types_are_refused_by_name(tmp_path: Path, save: Save, dtype: Any) -> None:
    path = save(tmp_path, np.zeros((5, 3), dtype))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == (
        f"{path}: got values of type {np.dtype(dtype)}, expected uint8 (scaled to [0, 1]) or floats (taken as they are)"
    )


def test_a_float_type_that_torch_does_not_know_is_refused(tmp_path: Path) -> None:
    if np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is double here")
    path = save_npy(tmp_path, np.zeros((5, 3), np.longdouble))
    with pytest.raises(DataError, match="got values of type"):
        FileSource(path)


@SAVERS
@pytest.mark.parametrize("shape", [(), (5,), (5, 0), (5, 3, 0)])
def test_an_array_that_is_not_rows_is_refused(tmp_path: Path, save: Save, shape: tuple[int, ...]) -> None:
    path = save(tmp_path, np.zeros(shape))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: got an array of shape {shape}, expected (rows, ...)"


@SAVERS
def test_no_rows_are_refused(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path, np.zeros((0, 3)))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: is empty, expected at least one row"


@pytest.mark.parametrize("lost", [1, 12, 100])
def test_a_truncated_npy_is_refused_before_it_is_read(tmp_path: Path, lost: int) -> None:
    path = save_npy(tmp_path, normal(20, 3))
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: holds {240 - lost} bytes of rows, its header promises 240"
    assert caught.value.hint == "the file is truncated; copy it again"


def test_an_npy_that_shrinks_while_it_is_used_is_refused(tmp_path: Path) -> None:
    path = save_npy(tmp_path, normal(20, 3))
    source = FileSource(path)
    path.write_bytes(path.read_bytes()[:-24])
    with pytest.raises(DataError) as caught:
        everything(source)
    assert caught.value.message == f"{path}: ends near row 0, its header promises 20 rows"


@pytest.mark.parametrize("save", [save_npz, save_compressed])
def test_a_truncated_npz_is_refused(tmp_path: Path, save: Save) -> None:
    path = save(tmp_path, normal(20, 3))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: is not a readable .npz file: File is not a zip file"


def attempt(path: Path) -> tuple[str, NDArray[Any] | None]:
    """The error's message, or the rows."""
    try:
        return "", everything(FileSource(path))
    except DataError as error:
        return error.message, None


@pytest.mark.parametrize("save", [save_npz, save_compressed])
@pytest.mark.parametrize("pattern", [b"\x00", b"\xff", b"\x55"])
def test_a_damaged_npz_is_one_line_of_error_wherever_it_is_damaged(tmp_path: Path, save: Save, pattern: bytes) -> None:
    x = np.random.default_rng(0).integers(0, 20, (100, 10), dtype=np.uint8)
    path = save(tmp_path, x)
    whole = path.read_bytes()
    for at in range(0, len(whole) - 8, 7):
        path.write_bytes(whole[:at] + pattern * 8 + whole[at + 8 :])
        refused, got = attempt(path)
        if got is None:
            assert refused.startswith(f"{path}: "), at
        else:
            assert np.array_equal(got, x), at


def test_an_npz_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 1000)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(100))
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match=r"holds 100 bytes of rows, its header promises 4,000,000,000,000"):
        FileSource(path)
    whole = path.read_bytes()  # and now the archive's directory joins in the lie
    size, lie = struct.pack("<I", len(header.getvalue()) + 100), struct.pack("<I", 0xFFFFFF00)
    path.write_bytes(whole.replace(size, lie))
    with pytest.raises(DataError, match="promises"):
        everything(FileSource(path))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "\x00",
        "[1]",
        "'\\",
        "'''",
        "{'descr': (",
        "(" * 300,
        "-" * 9000 + "1",
        "\n  1\n 2",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'more': 1}",
        "{'descr': 5, 'fortran_order': False, 'shape': (2, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getpid()}",
        " " * 20_000,
    ],
)
def test_a_hostile_header_is_one_line_of_error(tmp_path: Path, header: str) -> None:
    path = write_header(tmp_path / "x.npy", header)
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message.startswith(f"{path}: ")


def test_a_header_that_promises_terabytes_allocates_nothing(tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.npy", "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 2)}")
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: holds 1,000 bytes of rows, its header promises 80,000,000,000,000"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x09\x00\x00\x00", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"x\.np[yz]: is not a readable \.np[yz] "):
        FileSource(tmp_path / name)


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@SAVERS
def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path, save: Save) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path, np.array([[Canary(canary)]], dtype=object))
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert caught.value.message == f"{path}: holds Python objects, which are never unpickled; expected numbers"
    assert not canary.exists()
    np.load(path, allow_pickle=True)["x"] if path.suffix == ".npz" else np.load(path, allow_pickle=True)
    assert canary.exists(), "a canary that cannot sing proves nothing"


def test_objects_inside_a_structured_array_are_refused(tmp_path: Path) -> None:
    path = write_header(
        tmp_path / "x.npy", "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (2, 2)}"
    )
    with pytest.raises(DataError, match="never unpickled"):
        FileSource(path)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_bare_pickle_is_never_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(DataError):
        FileSource(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_of_several_arrays_in_an_npz_the_one_named_x_is_taken(tmp_path: Path) -> None:
    x = normal(5, 3)
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(5), more=np.zeros((5, 3)))
    assert np.array_equal(everything(FileSource(tmp_path / "x.npz")), x)


def test_the_only_array_in_an_npz_is_taken_whatever_its_name(tmp_path: Path) -> None:
    x = normal(5, 3)
    np.savez(tmp_path / "x.npz", embeddings=x)
    assert np.array_equal(everything(FileSource(tmp_path / "x.npz")), x)


def test_an_npz_that_leaves_a_choice_is_refused_with_its_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train=np.zeros((5, 3)), test=np.zeros((5, 3)))
    with pytest.raises(DataError) as caught:
        FileSource(tmp_path / "x.npz")
    assert caught.value.message == (
        f"{tmp_path / 'x.npz'}: holds the arrays train, test; expected one, or one of them named x"
    )
    assert caught.value.hint == "save the rows alone as .npy"


def test_an_npz_without_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match="holds the arrays none; expected one"):
        FileSource(tmp_path / "x.npz")


def test_a_missing_file_is_one_line_of_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.npy: cannot be opened: .*No such file"):
        FileSource(tmp_path / "x.npy")


# Memory


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["array", "tensor", "tensor with a gradient"])
def test_memory_gives_back_its_rows_in_blocks_without_copying(kind: str) -> None:
    x = normal(37, 3)
    given = x if kind == "array" else torch.from_numpy(x)
    if kind == "tensor with a gradient":
        given = torch.from_numpy(x).requires_grad_()
    source = MemorySource("array", given)
    blocks = [block[0] for block in source.blocks()]
    assert (source.count, source.row_shape, len(blocks)) == (37, (3,), 8)
    assert np.array_equal(np.concatenate(blocks), x)
    assert all(np.shares_memory(block, x) for block in blocks)


def test_bfloat16_tensors_are_read_as_their_values() -> None:
    x = torch.from_numpy(normal(5, 3)).bfloat16()
    assert np.array_equal(everything(MemorySource("array", x)), x.float().numpy())


def test_memory_of_another_type_is_refused() -> None:
    with pytest.raises(DataError, match=r"array: got values of type int64, expected uint8"):
        MemorySource("array", torch.arange(6).view(2, 3))
    with pytest.raises(DataError, match=r"array: got an array of shape \(3,\), expected \(rows, ...\)"):
        MemorySource("array", torch.ones(3))
    with pytest.raises(DataError, match="array: is empty"):
        MemorySource("array", torch.ones(0, 3))


# What a user iterates over


class Pairs:
    """Batches of (x, y), as often as wanted."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in self.x.split(4):
            yield part, torch.zeros(len(part))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: list(x.split(4)),
        lambda x: [part.numpy() for part in x.split(4)],
        lambda x: [[part, None] for part in x.split(4)],
        lambda x: [{"image": part, "label": 1} for part in x.split(4)],
        lambda x: [({"image": (part, 3)},) for part in x.split(4)],
        lambda x: [part.bfloat16().float().to(torch.bfloat16) for part in x.split(4)],
        Pairs,
        lambda x: DataLoader(TensorDataset(x), batch_size=4),
    ],
    ids=["tensors", "arrays", "lists", "dicts", "nested", "bfloat16", "own class", "DataLoader"],
)
def test_batches_of_any_common_form_give_their_rows(wrap: Callable[[torch.Tensor], Any]) -> None:
    x = torch.arange(30.0).view(10, 3)
    source = BatchSource("data", wrap(x))
    assert (source.count, source.row_shape) == (None, (3,))
    assert np.array_equal(everything(source), x.numpy())
    assert np.array_equal(everything(source), x.numpy())


def test_a_generator_is_refused_because_it_can_be_read_only_once() -> None:
    with pytest.raises(DataError) as caught:
        BatchSource("data", (torch.ones(2, 3) for _ in range(2)))
    assert caught.value.message == "data: got a generator that can be read only once"
    assert caught.value.hint.startswith("pass a list or a DataLoader")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "data: is empty, expected batches of rows"),
        (["abc"], "data: got a batch of str, expected tensors or arrays of rows"),
        ([{}], "data: got a batch of dict, expected tensors or arrays of rows"),
        ([()], "data: got a batch of tuple, expected tensors or arrays of rows"),
        ([[1.0, 2.0]], "data: got a batch of float, expected tensors or arrays of rows"),
        ([torch.ones(3)], "data: got an array of shape (3,), expected (rows, ...)"),
    ],
)
def test_batches_that_hold_no_rows_are_refused(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        BatchSource("data", batches)
    assert caught.value.message == message


def test_the_rows_of_a_batch_are_detached() -> None:
    assert np.array_equal(rows_in(torch.ones(2, 1, requires_grad=True), "data"), np.ones((2, 1)))


def test_of_a_dict_the_rows_are_what_is_called_so_and_else_what_comes_first() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2)
    for name in ("x", "image", "images", "pixel_values", "features"):
        assert np.array_equal(rows_in({"label": y, name: x}, "data"), x.numpy())
    assert np.array_equal(rows_in({"spectrum": x, "label": y}, "data"), x.numpy())


def test_an_array_of_bfloat16_has_its_values_as_float32() -> None:
    x = torch.tensor([1.0, -0.3]).bfloat16()
    assert as_array(x).dtype == np.float32
    assert np.array_equal(as_array(x), x.float().numpy())


class Augmented:
    """Other rows at every reading."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        yield self.generator.standard_normal((5, 3))
        yield self.generator.standard_normal((5, 3))


def test_rows_that_differ_from_pass_to_pass_are_noticed() -> None:
    source = BatchSource("data", Augmented())
    everything(source)
    with pytest.warns(UserWarning, match="data: its rows differ from pass to pass; turn random augmentation off"):
        everything(source)


def test_rows_that_only_change_places_raise_no_alarm() -> None:
    loader = DataLoader(TensorDataset(torch.from_numpy(normal(40, 3))), batch_size=7, shuffle=True)
    source = BatchSource("data", loader)
    for _ in range(3):
        assert len(everything(source)) == 40


# Conditions


def both(source: Source) -> tuple[NDArray[Any], NDArray[Any]]:
    """All rows, and all conditions."""
    blocks = [(x.copy(), c.copy()) for x, c in source.blocks()]
    return np.concatenate([x for x, _ in blocks]), np.concatenate([c for _, c in blocks])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", ["npz", "npy", "memory", "pairs", "dicts"])
@pytest.mark.parametrize(
    ("c", "dtype"),
    [
        (np.arange(37, dtype=np.uint8), np.int64),
        (np.arange(37) % 2 == 0, np.int64),
        (normal(37, 2, dtype=np.float64), np.float32),
    ],
    ids=["classes", "booleans", "vectors"],
)
def test_conditions_stay_beside_their_rows(tmp_path: Path, form: str, c: NDArray[Any], dtype: type) -> None:
    x = normal(37, 3)
    source: Source
    if form == "npz":
        np.savez(tmp_path / "x.npz", x=x, y=c, z=c[::-1])
        source = FileSource(tmp_path / "x.npz", condition="y")
    elif form == "npy":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "c.npy", c)
        source = FileSource(tmp_path / "x.npy", condition=str(tmp_path / "c.npy"))
    elif form == "memory":
        source = MemorySource("array", x, c)
    elif form == "pairs":
        source = BatchSource("data", [(x[:20], c[:20]), (x[20:], c[20:])], condition="1")
    else:
        source = BatchSource("data", [{"y": c[:20], "x": x[:20]}, {"y": c[20:], "x": x[20:]}], condition="y")
    rows, conditions = both(source)
    assert np.array_equal(rows, x)
    assert conditions.dtype == dtype
    assert np.array_equal(conditions, c.astype(dtype))


@pytest.mark.parametrize(
    "wrong",
    [
        np.arange(5),
        np.array(["a"] * 37),
        np.zeros(37, np.complex64),
        np.array([None] * 37, dtype=object),
        np.zeros(0),
        np.float32(3),
    ],
    ids=["too few", "words", "complex", "objects", "none", "a scalar"],
)
def test_conditions_that_are_no_number_for_each_row_are_refused(tmp_path: Path, wrong: Any) -> None:
    np.savez(tmp_path / "x.npz", x=normal(37, 3), y=wrong)
    np.save(tmp_path / "x.npy", normal(37, 3))
    np.save(tmp_path / "c.npy", wrong)
    with pytest.raises(DataError):
        FileSource(tmp_path / "x.npz", condition="y")
    with pytest.raises(DataError):
        FileSource(tmp_path / "x.npy", condition=str(tmp_path / "c.npy"))


def test_a_condition_that_is_not_there_is_refused(tmp_path: Path) -> None:
    x = normal(37, 3)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(37))
    with pytest.raises(DataError, match=r"x\.npz: holds the arrays x, y; expected labels"):
        FileSource(tmp_path / "x.npz", condition="labels")
    with pytest.raises(DataError, match=r"c\.npy: cannot be opened"):
        FileSource(tmp_path / "x.npz", condition=str(tmp_path / "c.npy"))
    with pytest.raises(DataError, match="data: has no condition '2' in its batches, which hold positions 0 to 1"):
        BatchSource("data", [(x, np.arange(37))], condition="2")
    with pytest.raises(DataError, match=r"data: has no condition 'y' in its batches, which hold \['x'\]"):
        BatchSource("data", [{"x": x}], condition="y")
    with pytest.raises(DataError, match="data: has no condition 'y'"):
        BatchSource("data", [x], condition="y")


def test_the_rows_are_never_taken_for_their_own_condition(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(37, 3))
    with pytest.raises(DataError):
        FileSource(tmp_path / "x.npy", condition="labels")
