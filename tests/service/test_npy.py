"""Arrays from strangers."""

from __future__ import annotations

import io
import re
import tracemalloc

import numpy as np
import pytest
from running import npy

from vaeprune.service.npy import read_npy, write_npy
from vaeprune.service.refusals import Refusal


def file(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy file with any header."""
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode("latin-1") + data


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_kind_are_read_as_they_are(dtype, order):
    value = np.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)).astype(dtype), order=order)
    found = read_npy(npy(value))
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


def test_what_is_written_is_float32_and_reads_back():
    value = np.linspace(-1, 1, 24).reshape(2, 3, 4)
    found = np.load(io.BytesIO(write_npy(value)), allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value.astype(np.float32))


def test_pickled_objects_are_never_read():
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(Refusal, match=r"^body: holds pickled Python objects, which are never read$") as refusal:
        read_npy(stream.getvalue())
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "is no .npy array"),
        (b"PK\x03\x04 a zip", 400, "is no .npy array"),
        (b"\x93NUMPY", 400, "is no .npy array"),
        (file("{}", version=b"\x09\x00"), 400, "is no .npy array: format version 9.0 is not read"),
        (file("{'descr': '<f4'"), 400, "is no .npy array"),
        (file("__import__('os').system('true')"), 400, "is no .npy array"),
        (file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)" + " " * 9000 + "}"), 400, "is no .npy array"),
        (file("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }", bytes(16)), 400, "gives the shape"),
        (file("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", bytes(4)), 400, "gives the shape"),
        (
            file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }", bytes(31)),
            400, "is cut off: the .npy header announces 32 bytes of numbers, got 31",
        ),
        (file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(9)), 400, "has bytes to spare"),
        (npy(np.arange(4)), 422, "holds int64, expected float16, float32 or float64"),
        (npy(np.zeros(4, np.uint8)), 422, "holds uint8"),
        (npy(np.zeros(4, complex)), 422, "holds complex128"),
        (npy(np.zeros(4, "<U3")), 422, "holds <U3"),
        (npy(np.zeros(4, [("a", "<f4")])), 422, "expected float16, float32 or float64"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(body, status, told):
    with pytest.raises(Refusal, match=re.escape(told)) as refusal:
        read_npy(body)
    assert refusal.value.status == status
    assert refusal.value.message.startswith("body: ")


def test_gigantic_sizes_in_a_header_allocate_nothing():
    body = file(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**40}, {2**40}), }}", bytes(64))
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match="is cut off"):
            read_npy(body)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
