"""Bodies in and out: JSON or .npy, by content-type and accept, with every row checked against the model's shape."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
import pydantic_core
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vaeprune.service import npy
from vaeprune.service.limits import Limits
from vaeprune.service.npy import Array
from vaeprune.service.refusals import CONTENT_TYPE as JSON
from vaeprune.service.refusals import Refusal, bad_request, overloaded, too_large, unprocessable

_KINDS = (JSON, npy.CONTENT_TYPE)
_THREAD_FROM = 64 * 1024  # bytes of JSON that are read or written beside the event loop rather than in it
_DISCARDED = 4  # times the limit that is read and thrown away, so that the client is there to read the answer


class Bodies:
    """Reads bodies within the limits, and writes answers. `held`: bytes of all whose requests are not answered yet."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.held = limits, 0
        # one thread: JSON takes many times the size of its text while it is read or written
        self._texts = ThreadPoolExecutor(1, "json")

    @contextlib.asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, counted as held until the block ends.

        Raises Refusal: too large (413), no room for it (503), ended too early (400).
        """
        limit = self._limits.body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > _DISCARDED * limit:
            raise too_large(limit)
        body, got = bytearray(), 0
        try:
            async for chunk in request.stream():
                got += len(chunk)
                if got > _DISCARDED * limit:
                    break
                if got <= limit:
                    self._hold(len(chunk))
                    body += chunk
            if got > limit:
                raise too_large(limit)
            yield bytes(body)
        except ClientDisconnect:  # nobody will read this
            raise bad_request("body: ended before it was complete") from None
        finally:
            self.held -= len(body)

    def _hold(self, size: int) -> None:
        if self.held + size > self._limits.held_bytes:
            raise overloaded("memory: the bodies of other requests fill it")
        self.held += size

    async def rows(self, body: bytes, kind: str, name: str, shape: tuple[int, ...]) -> Array:
        """The rows (B, *shape) of a body, finite float32: {name: rows} in JSON, or an .npy array. Raises Refusal."""
        most = self._limits.rows
        if kind == npy.CONTENT_TYPE:
            return checked_rows(npy.read_npy(body), name, shape, most)
        if len(body) < _THREAD_FROM:
            return _rows_of_json(body, name, shape, most)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._texts, _rows_of_json, body, name, shape, most)

    async def answer(self, values: Mapping[str, Array], kind: str, binary: Array) -> Response:
        """JSON with all `values`, or `binary` alone as .npy."""
        if kind == npy.CONTENT_TYPE:
            return Response(npy.write_npy(binary), media_type=kind)
        if sum(value.size for value in values.values()) < _THREAD_FROM // 8:
            return Response(_json_of(values), media_type=kind)
        loop = asyncio.get_running_loop()
        return Response(await loop.run_in_executor(self._texts, _json_of, values), media_type=kind)


def kind_of(request: Request) -> str:
    """What a request's body is, by its content-type. Raises Refusal (415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _KINDS:
        got = f"got {kind!r:.80}" if kind else "is missing"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: {got}, expected {' or '.join(_KINDS)}")
    return kind


def accepted(request: Request, default: str) -> str:
    """What an answer is to be, by accept: the kind preferred there; `default` where all are alike. Raises Refusal."""
    weights = {kind: _weight(request.headers.get("accept", "*/*"), kind) for kind in _KINDS}
    if not any(weights.values()):
        raise Refusal(HTTPStatus.NOT_ACCEPTABLE, f"accept: names neither {' nor '.join(_KINDS)}")
    return max(_KINDS, key=lambda kind: (weights[kind], kind == default))


def _weight(accept: str, kind: str) -> float:
    """The q of the most specific range that covers `kind` (RFC 9110, 12.5.1); 0 where none does."""
    found = (0, 0.0)
    for entry in accept.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        specific = 3 if name == kind else 2 if name == "application/*" else 1 if name in ("*/*", "") else 0
        q = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weight = min(max(float(q), 0.0), 1.0)
        except ValueError:
            weight = 1.0
        if specific > found[0]:
            found = specific, weight
    return found[1]


def _rows_of_json(body: bytes, name: str, shape: tuple[int, ...], most: int) -> Array:
    entry = read_object(body)
    if set(entry) != {name}:
        raise unprocessable(f"body: has the keys {sorted(entry)!s:.100}, expected {name} alone")
    rows = entry[name]
    if not isinstance(rows, list):
        raise unprocessable(f"{name}: got {type(rows).__name__}, expected a list of rows of shape {shape}")
    if len(rows) > most:
        raise _too_many(name, len(rows), most)
    try:
        value = np.asarray(rows)
    except (ValueError, OverflowError):  # what numpy says of ragged lists does not name the row
        raise unprocessable(f"{name}: its rows are not alike, expected each of shape {shape}") from None
    if value.dtype.kind not in "iuf" and value.size:
        raise unprocessable(f"{name}: holds something other than numbers, expected rows of numbers of shape {shape}")
    return checked_rows(value, name, shape, most)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; NaN is no JSON. Raises Refusal (400, or 422 for other values)."""
    try:
        entry = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"body: is not JSON: {str(error)[:200]}") from None
    if not isinstance(entry, dict):
        raise unprocessable(f"body: is a {type(entry).__name__}, expected a JSON object")
    return entry


def checked_rows(value: Array, name: str, shape: tuple[int, ...], most: int) -> Array:
    """`value` as finite float32 rows of `shape`, between one and `most` of them. Raises Refusal (422)."""
    if value.shape[1:] != shape or value.ndim != 1 + len(shape):
        hint = "put the row into a list of rows" if value.shape == shape else ""
        expected = ", ".join(map(str, ("rows", *shape)))
        raise unprocessable(f"{name}: has shape {value.shape}, expected ({expected})", hint)
    if not 1 <= len(value) <= most:
        raise _too_many(name, len(value), most)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(value, np.float32)
    bad = ~np.isfinite(rows).reshape(len(rows), -1).all(1)
    if bad.any():
        raise unprocessable(f"{name}: row {int(bad.argmax())} holds NaN, infinity or more than float32 can hold")
    return rows


def _too_many(name: str, got: int, most: int) -> Refusal:
    return unprocessable(f"{name}: got {got} rows, expected 1 to {most}", "send fewer at once" if got else "")


def _json_of(values: Mapping[str, Array]) -> bytes:
    """Row by row, so that a thread that writes many lets others go on between them."""
    members = (b'"%s":[%s]' % (name.encode(), b",".join(map(_row, value))) for name, value in values.items())
    return b"{" + b",".join(members) + b"}"


def _row(row: Array) -> bytes:
    return pydantic_core.to_json(row.tolist())
