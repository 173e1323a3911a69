"""Who may ask, how the process ends, and what it loads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onnx_pairs import write_pair
from running import NPY, npy, rows, serving, whole

TOKEN = "a-token-of-enough-characters"


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


@pytest.mark.slow
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
        assert running.ended() == (code, said)
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
