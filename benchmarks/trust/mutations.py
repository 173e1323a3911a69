"""Files made wrong on purpose: JSON by entries, safetensors and .npy by headers, all by bytes."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ODD_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400,
    0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308,
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\0", "\x1b[31mred\x1b[0m\r\nvaeprune: all is well", "../../../../tmp/outside", "/etc/passwd",
    "a/../../b", "evil.py:run", "os:system", "<script>alert(1)</script>", "%s%n", "{0.__class__}", "$(touch owned)",
    "\u202egpj.exe", "\udcff", "x" * 100_000, "NaN", "dense", "é" * 300, "C:\\windows", "-rf", "--out",
)  # fmt: skip
_ODD: tuple[Any, ...] = (*ODD_NUMBERS, *ODD_TEXTS, None, True, False, [], {}, [[]], [{}], {"a": 1}, [1, 2, 3], ["a"])
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "[" * 3000,
    "{" * 3000,
    "0x10",
    "'",
    "\\",
    '"',
    ",",
    ":",
    "null",
    "\ud800",
)


class Boobytrap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


_DESCR = (
    "<f4",
    "<f4",
    ">f8",
    "<f2",
    "|u1",
    "|b1",
    "|O",
    "<U7",
    "<c8",
    "<M8[s]",
    "<i8",
    "<f16",
    "V12",
    "x",
    [("a", "<f4")],
)


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, dropped, doubled or put in, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        at, size = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8, 100))
        how = rng.randrange(6)
        if how == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            content[at : at + size] = rng.randbytes(size)
        elif how == 2:
            del content[at : at + size]
        elif how == 3:
            content[at:at] = content[max(0, at - size) : at] * rng.choice((1, 3))
        elif how == 4:
            content[at : at + size] = rng.choice((b"\0", b"\xff", b"\x80")) * size
        else:
            del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def json_changed(rng: random.Random, text: str) -> bytes:
    """An entry replaced, left out, doubled or moved, or the text itself spoiled."""
    if rng.random() < 0.15:
        at = rng.randrange(len(text) + 1)
        return (text[:at] + rng.choice(_RAW) + text[at + rng.choice((0, 1, 5)) :]).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        return bytes_changed(rng, text.encode())
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _entry_changed(rng, value)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _entry_changed(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(_ODD))
    owner, key = rng.choice(places)
    how = rng.randrange(8)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        owner[rng.choice(ODD_TEXTS)] = owner.pop(key)
    elif how == 1:
        owner.insert(key, copy.deepcopy(owner[key]))
    elif how == 2:
        other_owner, other = rng.choice(places)
        owner[key] = copy.deepcopy(other_owner[other])
    elif how == 3 and isinstance(owner[key], (int, float)):
        owner[key] = owner[key] + rng.choice((1, -1, 10**6, 0.5))
    elif how == 4:
        owner[key] = [owner[key]] * rng.choice((1, 2, 1000))
    else:
        owner[key] = copy.deepcopy(rng.choice(_ODD))
    return value


def _places(value: Any) -> Any:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def safetensors_changed(rng: random.Random, content: bytes, canary: Path) -> bytes:
    """The header's entries, its length, the values, or something else altogether under that name."""
    how = rng.randrange(10)
    if how == 0:
        return pickled(rng, canary)
    if how == 1:
        return bytes_changed(rng, content)
    length = struct.unpack("<Q", content[:8])[0]
    header, values = content[8 : 8 + length], bytearray(content[8 + length :])
    if how == 2:
        size = rng.choice((0, 1, length - 1, length + 1, 10**8 + 1, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", size) + header + bytes(values)
    if how < 5:
        number = rng.choice(
            (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\x01\0\0\0", b"\xca\xf2\x49\x71")
        )
        for _ in range(rng.choice((1, 5, 500))):
            at = 4 * rng.randrange(max(1, len(values) // 4))
            values[at : at + 4] = number
        return content[: 8 + length] + bytes(values)
    entries = json.loads(header)
    for _ in range(rng.choice((1, 1, 3))):
        name = rng.choice([n for n in entries if n != "__metadata__"] or [""])
        entry = entries.get(name)
        if not isinstance(entry, dict):
            break
        part = rng.randrange(5)
        if part == 0:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", 7))
        elif part == 1:
            entry["shape"] = rng.choice(
                ([], [0], [2**40], [2**62, 4], [-1], entry["shape"][::-1], [*entry["shape"], 1], [10**9] * 3)
            )
        elif part == 2:
            entry["data_offsets"] = rng.choice(([0, 0], [0, 2**62], [4, 0], [-4, 4], [0], [2**63, 2**63]))
        elif part == 3:
            entries[rng.choice(ODD_TEXTS)] = entries.pop(name)
        else:
            del entries[name]
    header = json.dumps(entries).encode("utf-8", "replace")
    return struct.pack("<Q", len(header)) + header + bytes(values)


def pickled(rng: random.Random, canary: Path) -> bytes:
    """A trap as a bare pickle, in a zip, in a tar, in an object array, or as torch writes it."""
    trap, out = Boobytrap(canary), io.BytesIO()
    bare = pickle.dumps({"state_dict": {"w": trap}}, protocol=rng.choice((0, 2, 4)))
    how = rng.randrange(5)
    if how == 0:
        return bare
    if how == 1:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", bare)
            archive.writestr("archive/version", "3\n")
            archive.writestr("x.npy", bare)
    elif how == 2:
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("pickle", "storages", "../outside"):
                entry = tarfile.TarInfo(name)
                entry.size = len(bare)
                tar.addfile(entry, io.BytesIO(bare))
    else:
        objects = np.empty((3, 2), dtype=object)
        objects[:] = trap
        if how == 3:
            np.save(out, objects, allow_pickle=True)
        else:
            np.savez(out, x=objects)
    return out.getvalue()


def npy_changed(rng: random.Random, rows: np.ndarray[Any, Any], canary: Path) -> bytes:
    """The header's entries, the values, the bytes, or a trap."""
    how = rng.randrange(8)
    if how == 0:
        return pickled(rng, canary)
    if how < 4:
        return _npy_header_changed(rng, rows)
    out, values = io.BytesIO(), rows.copy()
    if how < 6:
        at = rng.randrange(values.size)
        values.flat[at :: rng.choice((1, 7, 10**9))] = rng.choice((np.nan, np.inf, -np.inf, 1e30, -1, 1e-40, 2))
        np.save(out, values.astype(rng.choice(("<f4", "<f8", ">f4", "<f2"))))
        return out.getvalue()
    np.save(out, values)
    return bytes_changed(rng, out.getvalue())


def _npy_header_changed(rng: random.Random, rows: np.ndarray[Any, Any]) -> bytes:
    """Another type, shape or order than the values have, or no header at all."""
    descr = rng.choice(_DESCR)
    shapes = ((len(rows), 2**40), (2**62, 4), (-1, 12), (), (0, 12), (200, 0), (200,), (3, 4, 5, 6), ("a",), (2.5, 3))
    shape = rng.choice((rows.shape, *shapes))
    entry = {"descr": descr, "fortran_order": rng.choice((False, False, True, 2)), "shape": shape}
    text = (
        repr(entry)
        if rng.random() < 0.8
        else rng.choice(("", "[" * 5000, "__import__('os').abort()", repr(entry)[:-1], "{}"))
    )
    text = text.encode()
    version = rng.choice((1, 1, 2, 3, 9))
    size = struct.pack("<H" if version == 1 else "<I", rng.choice((len(text), len(text), 0, 65535)))
    return b"\x93NUMPY" + bytes((version, 0)) + size + text + rows.tobytes()


def npz_changed(rng: random.Random, rows: np.ndarray[Any, Any], canary: Path) -> bytes:
    """An archive of such arrays: odd names, doubled names, bombs, and spoiled bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in rng.choice((("x",), ("x", "y"), ("../../outside",), ("/tmp/outside",), ("x", "labels"), ())):
            archive.writestr(f"{name}.npy", npy_changed(rng, rows, canary))
    if rng.random() < 0.1:
        return bomb_npz(rng)
    return out.getvalue() if rng.random() < 0.6 else bytes_changed(rng, out.getvalue())


def bomb_npz(rng: random.Random) -> bytes:
    """Zeros, deflated a thousandfold: rows without end, or few of them and huge."""
    shape = rng.choice(((25 * 10**4, 12), (20, 6 * 10**5), (3, 4 * 10**6)))
    out, head = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(head.getvalue())
        for _ in range(4 * shape[0] * shape[1] // 10**6):
            member.write(bytes(10**6))
    return out.getvalue()


def bomb_png(side: int) -> bytes:
    """A grey picture of side × side pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    line = bytes(1 + side)
    content = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
