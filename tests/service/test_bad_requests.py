"""What the service refuses, and that it goes on as before afterwards."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import socket
import struct
import threading
import time

import numpy as np
import pytest
from onnx_pairs import write_pair
from running import BODY, JSON, NPY, npy, rows, serving, whole


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "told"),
    [
        ("/decode", b'{"z": [[1, 2, 3]]}', JSON, 422, "z: has shape (1, 3), expected (rows, 4)"),
        ("/decode", b'{"z": [[1, 2, 3, NaN]]}', JSON, 400, "body: is not JSON"),
        ("/decode", b'{"z": [["a", 2, 3, 4]]}', JSON, 422, "z: holds something other than numbers"),
        ("/decode", b"hello", JSON, 400, "body: is not JSON"),
        ("/decode", b"hello", "text/plain", 415, "content-type: got 'text/plain'"),
        ("/decode", b"", JSON, 400, "body: is not JSON"),
        ("/decode?model=best", b'{"z": [[1, 2, 3, 4]]}', JSON, 422, "query.model: Input should be 'shrunk' or"),
        ("/decode?model=original", b'{"z": [[1, 2, 3, 4]]}', JSON, 422, "z: has shape (1, 4), expected (rows, 6)"),
        ("/encode", b'{"x": [[[[1]]]]}', JSON, 422, "x: has shape (1, 1, 1, 1), expected (rows, 1, 6, 5)"),
        ("/decode", npy(np.zeros((65, 4), np.float32)), NPY, 422, "z: got 65 rows, expected 1 to 64"),
        ("/decode", npy(np.zeros((0, 4), np.float32)), NPY, 422, "z: got 0 rows, expected 1 to 64"),
        ("/decode", npy(np.full((1, 4), np.nan, np.float32)), NPY, 422, "z: row 0 holds NaN"),
        ("/encode", npy(np.full((1, 1, 6, 5), 3e38, np.float32)), NPY, 422, "x: row 0 is so far out that the encoder"),
        ("/decode", npy(np.zeros((3, 4), np.float32))[:-1], NPY, 400, "body: is cut off"),
        ("/decode", npy(np.zeros((1, 4), np.float32)).replace(b"(1, 4)", b"(9999999999999, 4)"), NPY, 400, "body: is"),
        ("/decode", npy(np.array([None])), NPY, 400, "body: holds pickled Python objects, which are never read"),
        ("/sample", b'{"count": 65}', JSON, 422, "count: got 65, expected 1 to 64"),
        ("/sample", b'{"count": 0}', JSON, 422, "body: count: Input should be greater than or equal to 1"),
        ("/sample", b'{"count": "3"}', JSON, 422, "body: count: Input should be a valid integer"),
        ("/sample", b'{"sed": 3}', JSON, 422, "body: sed: Extra inputs are not permitted"),
        ("/sample", b'{"seed": -1}', JSON, 422, "body: seed: Input should be greater than or equal to 0"),
        ("/sample", npy(np.zeros(3)), NPY, 422, "body: is an array, expected a JSON object"),
        ("/decod", b"{}", JSON, 404, "POST /decod: not found"),
        ("/health", b"{}", JSON, 405, "POST /health: method not allowed"),
        ("/page/../app.py", b"", JSON, 404, "POST /page/../app.py: not found"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_json_error(service, path, body, kind, status, told):
    answer = service.ask("POST", path, body, content_type=kind)
    assert (answer.status, answer.error["message"][: len(told)]) == (status, told)


def test_an_answer_nobody_can_read_is_not_made(service):
    answer = service.post("/decode", {"z": [[0] * 4]}, accept="text/html")
    assert (answer.status, answer.error["type"]) == (406, "NotAcceptable")


@pytest.mark.parametrize("size", [BODY + 1, 3 * BODY, 50 * BODY])
def test_a_body_that_is_too_large_is_refused_before_it_is_held(service, size):
    before = service.resident()
    head = f"POST /decode HTTP/1.1\r\nhost: localhost\r\ncontent-type: {NPY}\r\ncontent-length: {size}\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # where it is told before all is sent
            for _ in range(0, size, 10_000):
                connection.sendall(bytes(10_000))
        answer = whole(connection)
    if answer:  # what a client has not read yet is lost where it goes on sending after the end
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert f"body: has more than {BODY:,} bytes".encode() in answer
    assert answer or size > 4 * BODY
    assert service.resident() - before < 2**22


def test_a_body_without_an_end_is_cut_off_at_the_limit(service):
    def endless():
        while True:
            yield bytes(10_000)

    before = service.resident()
    connection = http.client.HTTPConnection(*service.address, timeout=30)
    with contextlib.closing(connection), pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.request("POST", "/decode", endless(), {"content-type": NPY}, encode_chunked=True)
    assert service.resident() - before < 2**22


def test_a_body_that_stops_half_way_is_given_up(service):
    head = f"POST /decode HTTP/1.1\r\nhost: localhost\r\ncontent-type: {NPY}\r\ncontent-length: 1000\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head.encode() + bytes(100))
        answer = whole(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] == "body: did not arrive within 3 seconds"


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(service):
    head = f"POST /decode HTTP/1.1\r\nhost: localhost\r\ncontent-type: {NPY}\r\ncontent-length: 100000\r\n\r\n"
    for _ in range(20):
        with service.connect() as connection:
            connection.sendall(head.encode() + bytes(60_000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + 10
    while "vaeprune_body_bytes 0\n" not in service.get("/metrics").body.decode():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 40_000])
def test_what_is_no_http_gets_the_same_error_object(service, sent):
    with service.connect() as connection:
        connection.sendall(sent)
        answer = whole(connection)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "BadRequest"


def test_slow_clients_however_many_keep_nobody_out(service, small):
    """Two hundred heads that never end, where a hundred connections are allowed."""
    before = service.resident()
    z = rows(small.latent_shape, 1)
    with contextlib.ExitStack() as stack:
        slow = []
        for i in range(200):
            connection = stack.enter_context(service.connect())
            connection.sendall(b"POST /decode HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
            slow.append(connection)
            if i % 20 == 0:
                np.testing.assert_allclose(service.post_npy("/decode", z).npy, small.decode(z), atol=1e-6)
        assert service.post_npy("/decode", z).status == 200
        assert service.resident() - before < 2**24
        first = whole(slow[0])
        assert first.startswith(b"HTTP/1.1 503 ")  # it had to make room
        assert b"all are taken, and this one was waited for longest" in first
        last = whole(slow[-1])  # for which there was room until its time was up
        assert last.startswith(b"HTTP/1.1 408 ")
        assert (
            json.loads(last.partition(b"\r\n\r\n")[2])["error"]["message"] == "request: did not arrive within 3 seconds"
        )


def test_more_requests_than_may_wait_get_429_or_503_and_the_others_the_right_answer(small):
    with serving(small.folder, "--queue", 2, "--connections", 24, "--max-batch", 64) as running:
        z = rows(small.latent_shape, 64)
        body = json.dumps({"z": z.tolist()}).encode()
        barrier = threading.Barrier(32)

        def ask(_):
            barrier.wait()
            found = []
            for _ in range(10):
                with contextlib.suppress(ConnectionError):
                    found.append(running.post("/decode", body))
            return found

        with concurrent.futures.ThreadPoolExecutor(32) as threads:
            answers = [answer for found in threads.map(ask, range(32)) for answer in found]
        assert {answer.status for answer in answers} <= {200, 429, 503}
        assert {429, 200} <= {answer.status for answer in answers}
        expected = small.decode(z)
        for answer in answers:
            if answer.status == 200:
                np.testing.assert_allclose(answer.json["x_hat"], expected, atol=1e-6)
            else:
                assert answer.headers["retry-after"] == "1", answer
                assert answer.error["hint"] == "send it again a little later"
        assert running.post("/decode", body).status == 200


def test_memory_does_not_grow_with_bad_requests(service):
    bad = [
        (JSON, b"[" * 50_000), (JSON, b'{"z": [' + b"[]," * 90_000 + b"[]]}"), (NPY, bytes(250_000)),
        (NPY, npy(np.zeros((1, 4), np.float32)).replace(b"(1, 4)", b"(9999999999999, 4)")),
    ]  # fmt: skip
    for round_ in range(4):
        if round_ == 1:
            before = service.resident()
        for kind, body in bad * 5:
            assert service.ask("POST", "/decode", body, content_type=kind).status in (400, 422)
    assert service.resident() - before < 2**24


def test_a_connection_for_which_there_is_no_room_is_told_so(folder):
    """One connection is allowed, and somebody is at work on it nearly all the time."""
    pair = write_pair(folder, row_shape=(1, 64, 64), latent_shape=(512,))
    body = npy(rows(pair.latent_shape, 256))
    over = threading.Event()
    with serving(folder, "--connections", 1) as running:

        def work() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    running.post_npy("/decode", body)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(300):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answer = running.get("/health")
                    if answer.status == 503:
                        break
        finally:
            over.set()
            worker.join()
        assert answer.error["message"] == "connections: all are taken by requests that are being answered"
        assert answer.headers["connection"] == "close"
        assert running.get("/health").status == 200
