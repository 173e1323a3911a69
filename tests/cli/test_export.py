"""`vaeprune export`: ONNX files that compute what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vaeprune import load
from vaeprune.data import tiles

FOREIGN = """
import torch
from torch import nn


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads, self.back = nn.Linear(12, 9), nn.Linear(9, 8), nn.Linear(4, 12)

    def encode(self, x):
        return self.heads(torch.tanh(self.trunk(x))).chunk(2, dim=1)

    def decode(self, z):
        return self.back(z)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar
"""


def session(path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_files_compute_what_the_model_computes(vaeprune, idle_model, rows):
    ran = vaeprune("export", idle_model, "--data", rows, "--out", "files", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert {"out", "files", "onnx", "sampling", "gates"} < ran.json.keys()
    assert (ran.json["out"], ran.json["files"]) == ("files", ["files/decoder.onnx", "files/encoder.onnx"])
    assert (ran.json["precision"], ran.json["opset"]) == ("fp32", 20)
    for part in ("encoder", "decoder"):
        assert 0 <= ran.json["onnx"][f"{part}_rms_error"] <= ran.json["onnx"][f"{part}_max_abs_error"] < 1e-5
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


def test_text_has_checks_and_sizes_and_training_data_are_the_default(vaeprune, busy_model, rows):
    ran = vaeprune("export", busy_model, "--out", "files")
    assert (ran.code, ran.err) == (0, "")
    first, header, *checks = ran.out.splitlines()
    assert first == f"fp32, opset 20, beside PyTorch on rows of {rows}"
    assert header.split() == ["check", "measured", "limit"]
    assert [line.split(",")[0] for line in checks[:3]] == ["encoder.onnx", "decoder.onnx", "ELBO loss"]
    assert all(line.endswith("passed") for line in checks[:3])
    assert checks[3].startswith("ELBO: ")
    sizes = [f"    files/{n}.onnx  {Path(f'files/{n}.onnx').stat().st_size:,} bytes" for n in ("decoder", "encoder")]
    assert checks[4:] == ["", "files:", *sizes]


def test_int8_prints_what_it_saves_and_costs_beside_float32(vaeprune, busy_model, rows):
    words = ("export", busy_model, "--data", rows, "--precision", "int8-static", "--max-elbo-loss", 50)
    ran = vaeprune(*words, "--out", "files", "--autoencoder", "--opset", 21, "--onnx-tolerance", 0.1)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith("int8-static, opset 21, calibrated on ")
    assert any(line.split()[:2] == ["beside", "fp32"] for line in lines)
    for part in ("encoder", "decoder", "autoencoder"):
        size = Path(f"files/{part}.onnx").stat().st_size
        (line,) = [line for line in lines if line.startswith(f"{part}.onnx ") and "RMS" not in line]
        assert f"{size:,}" in line
        assert 0 < float(line.split()[-1]) < 1
    assert sum(line.startswith(("    encoder, batch", "    decoder, batch")) for line in lines) == 6
    assert onnx.load("files/encoder.onnx").opset_import[0].version == 21


def test_foreign_model_is_exported_in_half_precision(vaeprune, desk):
    Path("mine.py").write_text(FOREIGN)
    np.save("rows.npy", np.random.default_rng(0).random((400, 12), dtype=np.float32))
    words = ("export", "mine.py:VAE", "--data", "rows.npy", "--out", "files", "--precision", "fp16")
    ran = vaeprune(*words, "--likelihood", "gaussian", "--spread", "logvar", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["precision"] == "fp16"
    x = np.load("rows.npy")[:7]
    namespace: dict = {}
    exec(compile(FOREIGN, "mine.py", "exec"), namespace)
    vae = namespace["VAE"]().eval()
    with torch.no_grad():
        mean, logvar = vae.encode(torch.from_numpy(x))
        decoded = vae.decode(mean)
    mu, lv = session(Path("files/encoder.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(mu, mean, rtol=0, atol=5e-3)
    np.testing.assert_allclose(lv, logvar, rtol=0, atol=5e-3)
    np.testing.assert_allclose(
        session(Path("files/decoder.onnx")).run(None, {"z": mean.numpy()})[0], decoded, rtol=0, atol=5e-3
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--opset", 99), "opset: got 99, expected 11 to "),
        (("--opset", 12), "encoder.onnx: torch's exporter gave opset 18, expected 12; take a later --opset"),
        (("--precision", "int4"), "'int4' is not one of 'fp32', 'fp16', 'int8-dynamic', 'int8-static'"),
        (("--max-elbo-loss", "nan"), "tolerance elbo: got nan, expected a finite number of at least 0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(busy_model, rows, refused, words, told):
    refused("export", busy_model, "--data", rows, "--out", "files", *words, told=[told])


def test_model_that_does_not_say_its_data_wants_them_named(other_idle_model, refused):
    told = "--data: is missing, and the model does not say what it was trained on"
    refused("export", other_idle_model, "--out", "files", told=[told])


def test_what_help_says_of_defaults_is_what_they_are(vaeprune):
    from vaeprune.exporting import LIMITS
    from vaeprune.onnx_export import OPSET

    text = " ".join(vaeprune("export", "--help").out.split())
    assert f"[default: {OPSET}]" in text
    largest, half, eight = (LIMITS[name] for name in ("fp32", "fp16", "int8-static"))
    assert LIMITS["int8-dynamic"] == eight
    assert f"fp32 ({largest.outputs:.4f}), RMS for fp16 ({half.outputs}) and int8 ({eight.outputs})" in text
    assert f"{largest.elbo}, and {eight.elbo:g} for int8" in text
    assert half.elbo == largest.elbo


def test_existing_folder_is_refused(busy_model, rows, refused):
    Path("files").mkdir()
    told = "files: already exists; choose another name or pass --force to replace it"
    refused("export", busy_model, "--data", rows, "--out", "files", told=[told])


def test_force_replaces_an_earlier_export(vaeprune, busy_model, rows):
    words = ("export", busy_model, "--data", rows, "--out", "files")
    assert vaeprune(*words).code == 0
    again = vaeprune(*words, "--force")
    assert again.code == 0, again.err


@pytest.mark.parametrize("form", ["text", "json"])
def test_files_that_differ_too_much_are_a_failed_gate(vaeprune, busy_model, rows, desk, form):
    """Exit 1, nothing written, and a table of what failed."""
    words = ("export", busy_model, "--data", rows, "--out", "files", "--onnx-tolerance", 0)
    ran = vaeprune(*words, *(["--json"] if form == "json" else []))
    assert ran.code == 1
    assert "export failed: encoder.onnx, largest" in ran.err
    assert "nothing was written" in ran.err
    assert list(desk.iterdir()) == []
    if form == "json":
        assert ran.json["out"] is None
        assert [gate["passed"] for gate in ran.json["gates"]] == [False, False, True]
    else:
        assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == ["FAILED", "FAILED", "passed"]


@pytest.mark.parametrize("tolerance", ["nan", "-1"])
def test_senseless_tolerance_is_refused_for_what_it_is(busy_model, rows, refused, tolerance):
    told = ["tolerance outputs", f"got {float(tolerance)}"]
    refused("export", busy_model, "--data", rows, "--out", "files", "--onnx-tolerance", tolerance, told=told)


def test_files_that_shrink_wrote_compute_what_the_smaller_model_computes(shrunk):
    z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    (x_hat,) = session(shrunk / "decoder.onnx").run(None, {"z": z})
    with torch.no_grad():
        np.testing.assert_allclose(x_hat, load(shrunk).decode(torch.from_numpy(z)), rtol=0, atol=1e-5)
