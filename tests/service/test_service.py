"""The service as a process of its own, asked over real connections."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx_pairs import CONSTANTS, write_pair
from running import BODY, JSON, NPY, npy, serving, whole

TOKEN = "a-token-of-enough-characters"


@pytest.fixture(autouse=True)
def _next_is_served(request):
    """Whatever a test did to the service, the next request must be answered, and rightly."""
    yield
    if "service" in request.fixturenames:
        running, small = request.getfixturevalue("service"), request.getfixturevalue("small")
        z = np.random.default_rng(0).standard_normal((2, 4), np.float32)
        answer = running.post_npy("/decode", z)
        assert answer.status == 200, answer
        np.testing.assert_allclose(answer.npy, small.decode(z), atol=1e-6)


def rows(shape, count=3, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


# ---- what is right


@pytest.mark.parametrize("which", ["shrunk", "original"])
@pytest.mark.parametrize("binary", [True, False])
def test_decode_gives_what_onnxruntime_gives(service, small, original, which, binary):
    pair = small if which == "shrunk" else original
    z = rows(pair.latent_shape)
    session = onnxruntime.InferenceSession(pair.folder / "decoder.onnx")
    (expected,) = session.run(None, {"z": z})
    path = f"/decode?model={which}"
    if binary:
        found = service.post_npy(path, z).npy
        assert found.dtype == np.float32
    else:
        found = np.array(service.post(path, {"z": z.tolist()}).json["x_hat"], np.float32)
    np.testing.assert_array_equal(found, expected)


def test_encode_gives_mean_and_logvar(service, small):
    x = rows(small.row_shape)
    mean, logvar = small.encode(x)
    told = service.post("/encode", {"x": x.tolist()}).json
    np.testing.assert_allclose(told["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told["logvar"], logvar, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(service.post_npy("/encode", x).npy, [mean, logvar], rtol=1e-4, atol=1e-5)


def test_reconstruct_decodes_the_mean(service, small):
    x = rows(small.row_shape)
    mean, logvar = small.encode(x)
    told = service.post("/reconstruct", {"x": x.tolist()}).json
    np.testing.assert_allclose(told["x_hat"], small.decode(mean), atol=1e-5)
    np.testing.assert_allclose(told["logvar"], logvar, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(service.post_npy("/reconstruct", x).npy, small.decode(mean), atol=1e-5)


def test_samples_are_decoded_and_repeat_with_their_seed(service, small):
    told = service.post("/sample", {"count": 50, "seed": 7}).json
    z = np.array(told["z"])
    assert z.shape == (50, 4)
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.2
    np.testing.assert_allclose(told["x_hat"], small.decode(z), atol=1e-6)
    assert service.post("/sample", {"count": 50, "seed": 7}).json == told
    assert service.post("/sample", {"count": 50, "seed": 8}).json != told
    np.testing.assert_allclose(service.post("/sample", {"count": 50, "seed": 7}, accept=NPY).npy, told["x_hat"])
    assert service.post("/sample", {}).json["z"] != service.post("/sample", {}).json["z"]


def test_what_goes_in_as_one_kind_may_come_out_as_the_other(service, small):
    z = rows(small.latent_shape)
    expected = small.decode(z)
    np.testing.assert_allclose(service.post("/decode", {"z": z.tolist()}, accept=NPY).npy, expected, atol=1e-6)
    np.testing.assert_allclose(service.post_npy("/decode", z, accept=JSON).json["x_hat"], expected, atol=1e-6)


def test_requests_that_wait_together_are_answered_together_and_uncrossed(service, small):
    before = calls(service)
    requests = [rows(small.latent_shape, 1 + seed % 5, seed) for seed in range(64)]
    barrier = threading.Barrier(len(requests))

    def ask(z):
        barrier.wait()
        return service.post_npy("/decode", z)

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as threads:
        answers = list(threads.map(ask, requests))
    for z, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer.npy, small.decode(z), atol=1e-6)
    assert calls(service) - before < len(requests)


def calls(service) -> int:
    """How often the small decoder was called."""
    text = service.get("/metrics").body.decode()
    found = re.search(r'vaeprune_call_rows_count{part="shrunk decoder"} (\d+)', text)
    return int(found[1]) if found else 0


def test_metrics_count_what_was_answered(service):
    def count(text, status):
        found = re.search(rf'vaeprune_requests_total{{route="/decode",status="{status}"}} (\d+)', text)
        return int(found[1]) if found else 0

    before = service.get("/metrics").body.decode()
    service.post("/decode", {"z": [[0] * 4]})
    service.post("/decode", {"z": [[0] * 3]})
    answer = service.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    after = answer.body.decode()
    for status in (200, 422):
        assert count(after, status) == count(before, status) + 1
    assert "vaeprune_requests_waiting 0\n" in after
    assert "vaeprune_body_bytes 0\n" in after
    for line in after.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[a-z_]+({[^{}]*})? [-+0-9.e]+", line), line


def test_the_model_is_described(service):
    told = service.get("/model").json
    assert (told["latent_shape"], told["original_latent_size"], told["against"]) == ([4], 6, "original")
    constants = {latent["number"]: latent["constant"] for latent in told["latents"] if latent["place"] is None}
    assert constants == CONSTANTS


def test_openapi_names_every_route_and_its_refusals(service):
    document = service.get("/openapi.json").json
    assert set(document["paths"]) == {"/encode", "/decode", "/reconstruct", "/sample", "/health", "/model", "/metrics"}
    decode = document["paths"]["/decode"]["post"]
    assert set(decode["responses"]) == {"200", *map(str, (400, 401, 406, 408, 413, 415, 422, 429, 503))}
    assert set(decode["requestBody"]["content"]) == {JSON, NPY}
    assert service.get("/docs").status == 200


# ---- what is wrong


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
        assert first.startswith(b"HTTP/1.1 408 ")
        last = whole(slow[-1])  # for which there was room until its time was up
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
                assert answer.headers["retry-after"] == "1"
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


# ---- who may ask


def test_without_a_token_only_this_machines_names_are_answered_to(service):
    assert service.get("/health", host="localhost").status == 200
    assert service.get("/health", host="127.0.0.1:8000").status == 200
    refused = service.get("/health", host="evil.example:8000")
    assert (refused.status, refused.error["hint"]) == (400, "start it with a token")


def test_a_token_is_asked_for_and_must_be_right(small):
    with serving(small.folder, VAEPRUNE_TOKEN=TOKEN) as running:
        for headers in {}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer é"}:
            refused = running.post("/decode", {"z": [[0] * 4]}, **headers)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.error["hint"] == "send the header Authorization: Bearer TOKEN"
        right = {"authorization": f"Bearer {TOKEN}"}
        assert running.post("/decode", {"z": [[0] * 4]}, **right).status == 200
        assert running.get("/model", **right, host="any.example").status == 200
        assert {path: running.get(path).status for path in ("/", "/docs", "/health", "/page/api.js")} == dict.fromkeys(
            ("/", "/docs", "/health", "/page/api.js"), 200
        )
        assert {running.get(path).status for path in ("/model", "/metrics", "/openapi.json", "/nope")} == {401}


# ---- beginning and end


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 0, ""), (signal.SIGINT, 130, "interrupted\n")])
def test_what_has_begun_is_answered_before_the_end(folder, number, code, said):
    pair = write_pair(folder, row_shape=(1, 64, 64), latent_shape=(512,))
    with serving(folder, "--timeout", 20) as running:
        z = rows(pair.latent_shape, 256)
        body = npy(z)
        head = f"POST /decode HTTP/1.1\r\nhost: localhost\r\ncontent-type: {NPY}\r\ncontent-length: {len(body)}\r\n\r\n"
        with running.connect() as connection, running.connect():
            connection.sendall(head.encode() + body[:-1000])
            time.sleep(0.3)
            running.process.send_signal(number)
            time.sleep(0.3)
            connection.sendall(body[-1000:])
            answer = whole(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        head_, _, found = answer.partition(b"\r\n\r\n")
        assert len(found) == int(re.search(rb"content-length: (\d+)", head_)[1])
        _, err = running.process.communicate(timeout=30)
        assert (running.process.returncode, err) == (code, said)
        with pytest.raises(ConnectionRefusedError):
            running.connect()


def test_the_service_process_loads_no_torch(small, original):
    with serving(small.folder, "--against", original.folder, PYTHONPROFILEIMPORTTIME="1") as running:
        assert running.get("/model").status == 200
        assert running.post("/sample", {}).status == 200
        code, err = running.stop()
        assert code == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert {"fastapi", "onnxruntime", "numpy"} <= loaded
    assert not loaded & {"torch", "torchvision", "onnx", "safetensors", "PIL", "matplotlib"}


def test_the_import_check_can_fail():
    done = subprocess.run(
        [sys.executable, "-c", "import vaeprune; vaeprune.analyze"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    assert "torch" in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_every_file_the_pages_name_is_there(service):
    folder = Path(__file__).parents[2] / "vaeprune" / "service" / "page"
    named = {name for page in folder.iterdir() for name in re.findall(r'"/page/([\w.]+)"', page.read_text())}
    assert len(named) >= 4
    kinds = {name: service.get(f"/page/{name}") for name in named}
    assert {name: answer.status for name, answer in kinds.items()} == dict.fromkeys(named, 200)
    assert kinds["explorer.js"].headers["content-type"].startswith("text/javascript")
    assert "default-src 'self'" in kinds["explorer.js"].headers["content-security-policy"]
