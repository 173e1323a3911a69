"""`vaeprune serve` from the command line: what it refuses, and a model that `shrink` wrote."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys

import numpy as np
import pytest


def test_a_shrunk_model_is_served_beside_its_original(shrunk, idle_model, rows, vaeprune, desk):
    assert vaeprune("export", idle_model, "--data", rows, "--out", "original").code == 0
    command = [sys.executable, "-m", "vaeprune.cli", "serve", shrunk, "--against", "original", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(f"{shrunk} is served at http://127.0.0.1:")
            url = line.split()[4]
            model = json.loads(ask(url, "GET", "model"))
            z = np.random.default_rng(0).standard_normal((8, 4))
            places = {latent["place"]: latent["number"] for latent in model["latents"] if latent["place"] is not None}
            full = np.zeros((8, 6))
            full[:, [places[i] for i in range(4)]] = z
            for latent in model["latents"]:
                if latent["place"] is None:
                    full[:, latent["number"]] = latent["constant"]
            a, b = (
                np.array(json.loads(ask(url, "POST", path, {"z": values.tolist()}))["x_hat"])
                for path, values in (("decode", z), ("decode?model=original", full))
            )
        finally:
            process.terminate()
    assert process.returncode == 0
    np.testing.assert_allclose(a, b, atol=1e-5)  # the cut is exact
    assert model["kl_from"] == "analysis.json"
    kl = [latent["kl"] for latent in model["latents"]]
    assert kl[:4] == sorted(kl[:4], reverse=True)
    assert max(kl[4:]) < 0.05 < min(kl[:4])
    assert sorted(latent["number"] for latent in model["latents"][4:]) == [1, 4]


def ask(url, method, path, value=None):
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(method, "/" + path, value and json.dumps(value), {"content-type": "application/json"})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    return body


def test_what_is_not_there_is_told(refused, desk, idle_model):
    refused("serve", "nowhere", "--port", 0, told=["nowhere: no such folder, expected a folder with encoder.onnx"])
    refused(
        "serve", idle_model, "--port", 0, told=["holds a PyTorch model without ONNX files; export it first: vaeprune"]
    )
    (desk / "damaged").mkdir()
    for name in ("encoder", "decoder"):
        (desk / "damaged" / f"{name}.onnx").write_bytes(b"not a model")
    refused("serve", "damaged", "--port", 0, told=["damaged/encoder.onnx: onnxruntime cannot load it"])


def test_an_original_that_was_not_exported_is_told_to_be(refused, shrunk, idle_model):
    told = f"{idle_model}: holds a PyTorch model without ONNX files; export it first: vaeprune export {idle_model}"
    refused("serve", shrunk, "--against", idle_model, "--port", 0, told=[told])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_another_address_needs_a_token(refused, shrunk, host):
    told = f"--host {host}: everybody who reaches this address could use the service; give it a token (VAEPRUNE_TOKEN)"
    refused("serve", shrunk, "--host", host, "--port", 0, told=[told])


@pytest.mark.parametrize("token", ["short", "a token with a line\nin it", "ein Schlüssel mit Umlaut"])
def test_a_token_that_is_none_is_refused_and_not_repeated(refused, shrunk, token):
    error = refused("serve", shrunk, "--token", token, "--port", 0, told=["expected at least 16, all printable ASCII"])
    assert token not in error["message"]


def test_a_port_that_is_taken_is_told(refused, shrunk):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            "serve", shrunk, "--port", port, told=[f"127.0.0.1:{port}: cannot be listened on: Address already in use"]
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--timeout", 0), "seconds: got 0.0, expected a positive number"),
        (("--timeout", "nan"), "seconds: got nan, expected a positive number"),
        (("--max-batch", 0), "Invalid value for '--max-batch'"),
        (("--port", 70000), "Invalid value for '--port'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(refused, shrunk, words, told):
    refused("serve", shrunk, *words, told=[told])


def test_without_the_extra_it_is_named(refused, shrunk, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else found(name, *a))
    told = "serve: uvicorn not installed; install the extra: pip install 'vaeprune[serve]'"
    refused("serve", shrunk, "--port", 0, told=[told])
