"""The service as a process of its own, asked over real connections: what it answers."""

from __future__ import annotations

import concurrent.futures
import re
import threading

import numpy as np
import onnxruntime
import pytest
from onnx_pairs import CONSTANTS
from running import JSON, NPY, rows


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
