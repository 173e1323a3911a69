"""What a body may be, and what kind of answer a request asks for."""

from __future__ import annotations

import asyncio
import json
import re

import numpy as np
import pytest
from starlette.requests import Request

from vaeprune.service.bodies import Bodies, _rows_of_json, accepted, checked_rows, kind_of
from vaeprune.service.limits import Limits
from vaeprune.service.refusals import Refusal

JSON, NPY = "application/json", "application/x-npy"


def request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs})


@pytest.mark.parametrize(
    ("accept", "default", "found"),
    [
        ("*/*", JSON, JSON),
        ("*/*", NPY, NPY),
        ("", NPY, NPY),
        (JSON, NPY, JSON),
        (NPY, JSON, NPY),
        ("application/*", NPY, NPY),
        ("application/json;q=0.5, application/x-npy", JSON, NPY),
        ("application/json;q=0.5, */*;q=0.1", NPY, JSON),
        ("*/*, application/x-npy;q=0", NPY, JSON),
        ("text/html, */*;q=0.8", JSON, JSON),
        ("Application/JSON; charset=utf-8", NPY, JSON),
        ("application/json;q=nonsense", NPY, JSON),
    ],
)
def test_the_kind_preferred_is_given(accept, default, found):
    assert accepted(request(accept=accept), default) == found


def test_without_accept_the_answer_is_what_the_request_was():
    assert accepted(request(), NPY) == NPY


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/xml, image/*"])
def test_what_cannot_be_given_is_refused(accept):
    with pytest.raises(Refusal, match=r"^accept: names neither application/json nor application/x-npy$") as refusal:
        accepted(request(accept=accept), JSON)
    assert refusal.value.status == 406


def test_content_type_says_what_the_body_is():
    assert kind_of(request(content_type="application/json; charset=utf-8")) == JSON
    for headers, got in ({"content_type": "text/plain"}, "got 'text/plain'"), ({}, "is missing"):
        with pytest.raises(Refusal, match=rf"^content-type: {got}, expected application/json or") as refusal:
            kind_of(request(**headers))
        assert refusal.value.status == 415


def test_rows_of_json_are_float32():
    found = _rows_of_json(b'{"z": [[1, 2.5, -3e-2], [0.1, 0, 16777217]]}', "z", (3,), 9)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[1, 2.5, -3e-2], [0.1, 0, 16777217]], np.float32))


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "body: is not JSON"),
        (b"text", 400, "body: is not JSON"),
        (b'{"z": [[1, 2, 3]', 400, "body: is not JSON"),
        (b'{"z": [[1, 2, NaN]]}', 400, "body: is not JSON"),
        (b'{"z": [[1, 2, Infinity]]}', 400, "body: is not JSON"),
        (b"\xff\xfe", 400, "body: is not JSON"),
        (b"[" * 100_000, 400, "body: is not JSON"),
        (b"[]", 422, "body: is a list, expected a JSON object"),
        (b"null", 422, "body: is a NoneType, expected a JSON object"),
        (b"{}", 422, "body: has the keys [], expected z alone"),
        (b'{"z": [[1, 2, 3]], "x": 1}', 422, "body: has the keys ['x', 'z'], expected z alone"),
        (b'{"z": 3}', 422, "z: got int, expected a list of rows of shape (3,)"),
        (b'{"z": "abc"}', 422, "z: got str, expected a list of rows"),
        (b'{"z": []}', 422, "z: has shape (0,), expected (rows, 3)"),
        (b'{"z": [1, 2, 3]}', 422, "z: has shape (3,), expected (rows, 3); put the row into a list of rows"),
        (b'{"z": [[1, 2]]}', 422, "z: has shape (1, 2), expected (rows, 3)"),
        (b'{"z": [[1, 2, 3], [1, 2]]}', 422, "z: its rows are not alike, expected each of shape (3,)"),
        (b'{"z": [[1, 2, "3"]]}', 422, "z: holds something other than numbers"),
        (b'{"z": [["1", "2", "3"]]}', 422, "z: holds something other than numbers"),
        (b'{"z": [[true, false, true]]}', 422, "z: holds something other than numbers"),
        (b'{"z": [[1, 2, null]]}', 422, "z: holds something other than numbers"),
        (b'{"z": [[1, 2, 1e39]]}', 422, "z: row 0 holds NaN, infinity or more than float32 can hold"),
        (b'{"z": [[1, 2, 1' + b"0" * 60 + b"]]}", 422, "z: "),
        (b'{"z": [' + b"[1, 2, 3]," * 9 + b"[1, 2, 3]]}", 422, "z: got 10 rows, expected 1 to 9; send fewer at once"),
    ],
)
def test_json_that_is_no_rows_is_refused(body, status, told):
    with pytest.raises(Refusal) as refusal:
        _rows_of_json(body, "z", (3,), 9)
    assert refusal.value.status == status
    said = f"{refusal.value.message}; {refusal.value.hint}".rstrip("; ")
    assert re.match(re.escape(told), said), said


def test_the_row_that_is_not_finite_is_named():
    rows = np.zeros((4, 2, 2))
    rows[2, 1, 0] = np.nan
    with pytest.raises(Refusal, match=r"^x: row 2 holds NaN, infinity or more than float32 can hold$"):
        checked_rows(rows, "x", (2, 2), 9)


# ---- how much is held


def sending(*chunks: bytes, **headers: str) -> Request:
    """A request whose body comes in `chunks`; the client leaves where the last one is missing."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if chunks and chunks[-1] == b"":
        messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    return Request({"type": "http", "headers": request(**headers).scope["headers"]}, receive)


def read(bodies: Bodies, asked: Request) -> bytes:
    async def inside() -> bytes:
        async with bodies.of(asked) as body:
            assert bodies.held >= len(body)
            return body

    return asyncio.run(inside())


def test_a_body_counts_as_held_until_its_request_is_answered():
    bodies = Bodies(Limits(body_bytes=10))
    assert read(bodies, sending(b"12345", b"67890", b"")) == b"1234567890"
    assert bodies.held == 0


@pytest.mark.parametrize(
    ("chunks", "headers", "held", "status"),
    [
        ((b"12345678901", b""), {}, 0, 413),
        ((), {"content_length": "41"}, 0, 413),
        ((b"1" * 30, b"1" * 30, b""), {}, 0, 413),
        ((b"12345", b"67890", b""), {}, 155, 503),
        ((b"12345",), {}, 0, 400),
    ],
    ids=["too large", "said to be far too large", "far too large", "no room", "left"],
)
def test_a_body_that_is_refused_is_held_no_longer(chunks, headers, held, status):
    bodies = Bodies(Limits(body_bytes=10))
    bodies.held = held
    with pytest.raises(Refusal) as refusal:
        read(bodies, sending(*chunks, **headers))
    assert refusal.value.status == status
    assert bodies.held == held


@pytest.mark.parametrize("rows", [2, 9000])
def test_an_answer_in_json_is_what_json_reads(rows):
    values = {"mean": np.random.default_rng(0).standard_normal((rows, 2, 3), np.float32), "none": np.zeros((0, 3))}
    response = asyncio.run(Bodies(Limits()).answer(values, JSON, values["mean"]))
    told = json.loads(response.body)
    np.testing.assert_array_equal(np.array(told["mean"], np.float32), values["mean"])
    assert told["none"] == []
