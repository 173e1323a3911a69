"""Arrays as .npy bytes. A header is believed only where the bytes that follow are those it announces."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from vaeprune.service.refusals import bad_request, unprocessable

Array = np.ndarray[Any, Any]
CONTENT_TYPE = "application/x-npy"
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
_MAX_HEADER = 4096
_FLOATS = (2, 4, 8)


def read_npy(body: bytes) -> Array:
    """The array in `body`: float16, float32 or float64 in any byte order; nothing is allocated beyond the body.

    Raises Refusal: no .npy file, pickled objects, other types, more or fewer bytes than its header says.
    """
    stream = io.BytesIO(body)
    try:
        version = npy_format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"format version {version[0]}.{version[1]} is not read, expected 1.0 or 2.0")
        shape, fortran_order, dtype = _HEADERS[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # noqa: BLE001  numpy parses the header as Python text, which fails in many ways
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise bad_request(f"body: is no .npy array: {reason}", "write it with numpy.save") from None
    if dtype.hasobject:
        raise bad_request("body: holds pickled Python objects, which are never read", "save an array of float32")
    if dtype.kind != "f" or dtype.itemsize not in _FLOATS:
        raise unprocessable(
            f"body: holds {dtype}, expected float16, float32 or float64",
            "scale the values as the model was trained on them, and save float32",
        )
    if not all(type(size) is int and size >= 0 for size in shape):
        raise bad_request(f"body: its header gives the shape {shape!r:.100}")
    found, said = len(body) - stream.tell(), math.prod(shape) * dtype.itemsize
    if found != said:
        what = "is cut off" if found < said else "has bytes to spare"
        raise bad_request(f"body: {what}: the .npy header announces {said:,} bytes of numbers, got {found:,}")
    flat = np.frombuffer(body, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def write_npy(value: Array) -> bytes:
    """`value` as .npy bytes, float32."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(value, np.float32), allow_pickle=False)
    return stream.getvalue()
