"""`vaeprune export`: ONNX files that compute what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vaeprune import load
from vaeprune.data import tiles


def session(path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_files_compute_what_the_model_computes(vaeprune, idle_model, rows):
    ran = vaeprune("export", idle_model, "--data", rows, "--out", "files", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {"out", "files", "onnx"}
    assert (ran.json["out"], ran.json["files"]) == ("files", ["files/encoder.onnx", "files/decoder.onnx"])
    assert ran.json["onnx"].keys() == {"encoder_max_abs_error", "decoder_max_abs_error"}
    assert all(0 <= error < 1e-5 for error in ran.json["onnx"].values())
    assert sorted(p.name for p in Path("files").iterdir()) == ["decoder.onnx", "encoder.onnx"]
    encoder, decoder = session(Path("files/encoder.onnx")), session(Path("files/decoder.onnx"))
    assert [i.name for i in encoder.get_inputs()] == ["x"]
    assert [o.name for o in encoder.get_outputs()] == ["mu", "logvar"]
    assert [i.name for i in decoder.get_inputs()] == ["z"]
    assert [o.name for o in decoder.get_outputs()] == ["x_hat"]
    vae = load(idle_model)
    for count in (1, 7, 200):
        x = tiles(count, seed=count).float().div(255).view(-1, 1, 28, 28)
        with torch.no_grad():
            posterior = vae.encode(x)
            x_hat = vae.decode(posterior.mean)
        mu, logvar = encoder.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(mu, posterior.mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(logvar, posterior.logvar, rtol=0, atol=1e-5)
        np.testing.assert_allclose(decoder.run(None, {"z": mu})[0], x_hat, rtol=0, atol=1e-5)


def test_text_has_errors_and_sizes_and_training_data_are_the_default(vaeprune, busy_model, rows):
    ran = vaeprune("export", busy_model, "--out", "files")
    assert (ran.code, ran.err) == (0, "")
    first, *files = ran.out.splitlines()
    assert first.startswith(f"largest difference from PyTorch on rows of {rows}: encoder ")
    sizes = [f"    files/{n}.onnx  {Path(f'files/{n}.onnx').stat().st_size:,} bytes" for n in ("encoder", "decoder")]
    assert files == sizes


def test_model_that_does_not_say_its_data_wants_them_named(other_idle_model, refused):
    told = "--data: is missing, and the model does not say what it was trained on"
    refused("export", other_idle_model, "--out", "files", told=[told])


def test_existing_folder_is_refused(busy_model, rows, refused):
    Path("files").mkdir()
    told = "files: already exists; choose another name or pass --force to replace it"
    refused("export", busy_model, "--data", rows, "--out", "files", told=[told])


def test_force_replaces_an_earlier_export(vaeprune, busy_model, rows):
    words = ("export", busy_model, "--data", rows, "--out", "files")
    assert vaeprune(*words).code == 0
    again = vaeprune(*words, "--force")
    assert again.code == 0, again.err


def test_files_that_differ_too_much_are_a_failed_gate(vaeprune, busy_model, rows, desk):
    """--onnx-tolerance is one of the gates, and a failed gate is exit 1."""
    ran = vaeprune("export", busy_model, "--data", rows, "--out", "files", "--onnx-tolerance", 0)
    assert "differs from PyTorch by" in ran.err
    assert list(desk.iterdir()) == []
    assert ran.code == 1


@pytest.mark.parametrize("tolerance", ["nan", "-1"])
def test_senseless_tolerance_is_refused_for_what_it_is(busy_model, rows, refused, tolerance):
    told = ["tolerance", f"got {float(tolerance)}"]
    refused("export", busy_model, "--data", rows, "--out", "files", "--onnx-tolerance", tolerance, told=told)


def test_files_that_shrink_wrote_compute_what_the_smaller_model_computes(shrunk):
    z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (x_hat,) = session(shrunk / "decoder.onnx").run(None, {"z": z})
    with torch.no_grad():
        np.testing.assert_allclose(x_hat, load(shrunk).decode(torch.from_numpy(z)), rtol=0, atol=1e-5)
