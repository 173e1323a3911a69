"""`vaeprune verify`: two models compared value by value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import safetensors.torch

from vaeprune.architectures.dense import DenseVAE
from vaeprune.model_folder import ModelFolder, write_model_folder
from vaeprune.storage import read_tensors

EVIDENCE = {"passed", "n_samples", "exact", "mean_path", "sampling", "prior_samples", "onnx"}
GATES = [
    "exact", "exact in float64", "mean path", "ELBO loss, upper 95% bound", "prior samples, RMS", "ONNX encoder",
    "ONNX decoder",
]  # fmt: skip


def assert_same_evidence(found, shrunk):
    """As `shrink` wrote it; what an ONNX file differs by is rounding, whose last bit is not the same in every run."""
    written = json.loads((shrunk / "evidence.json").read_text())
    for evidence in (found, written):
        onnx = evidence.pop("onnx")
        assert max(onnx["encoder_max_abs_error"], onnx["decoder_max_abs_error"]) < 2e-6
        evidence["gates"] = [gate for gate in evidence["gates"] if "ONNX" not in gate["name"]]
    assert found == written


def test_verify_repeats_the_evidence_of_shrink(vaeprune, idle_model, shrunk, rows):
    ran = vaeprune("verify", idle_model, shrunk, "--data", rows, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() >= EVIDENCE
    assert_same_evidence(ran.json, shrunk)


def test_text_lists_each_gate(vaeprune, idle_model, shrunk, rows):
    ran = vaeprune("verify", idle_model, shrunk, "--data", rows)
    assert (ran.code, ran.err) == (0, "")
    passed = [line.split() for line in ran.out.splitlines() if line.endswith(" passed")]
    assert [" ".join(words[:-3]) for words in passed] == GATES
    assert "FAILED" not in ran.out


def test_without_a_plan_nothing_is_compared_exactly(vaeprune, idle_model, busy_model, rows):
    ran = vaeprune("verify", busy_model, busy_model, "--data", rows, "--json")
    assert ran.code == 0
    found = ran.json
    assert found.keys() >= EVIDENCE
    assert found["exact"] is None
    assert found["onnx"] is None
    assert found["mean_path"] == {"max_abs_error": 0.0, "rms_error": 0.0}
    assert found["prior_samples"] == {"max_abs_error": 0.0, "rms_error": 0.0}
    assert found["sampling"]["elbo_difference"] == 0.0
    assert f"{busy_model} holds no plan" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_quiet_keeps_stderr_empty(vaeprune, busy_model, rows):
    assert vaeprune("verify", busy_model, busy_model, "--data", rows, "--quiet").err == ""


def test_without_a_plan_other_sizes_have_no_prior_samples_in_common(vaeprune, idle_model, shrunk, rows, copied):
    bare = copied(shrunk)
    (bare / "plan.json").unlink()
    ran = vaeprune("verify", idle_model, bare, "--data", rows, "--max-elbo-loss", 10, "--json")
    assert ran.code == 0
    assert (ran.json["exact"], ran.json["prior_samples"]) == (None, None)
    assert ran.json["onnx"] is not None
    assert ran.json["mean_path"]["max_abs_error"] < 1e-6


def test_plan_may_be_named(vaeprune, idle_model, shrunk, rows, copied):
    bare = copied(shrunk)
    for name in ("plan.json", "plan.safetensors"):
        (bare / name).unlink()
    ran = vaeprune("verify", idle_model, bare, "--data", rows, "--plan", shrunk / "plan.json", "--json")
    assert_same_evidence(ran.json, shrunk)


def test_other_weights_fail(vaeprune, idle_model, other_idle_model, rows):
    ran = vaeprune("verify", idle_model, other_idle_model, "--data", rows, "--json")
    assert ran.code == 1
    assert ran.json["passed"] is False
    assert ran.json["mean_path"]["max_abs_error"] > 0.01


def test_failed_gate_is_marked(vaeprune, idle_model, other_idle_model, rows):
    ran = vaeprune("verify", idle_model, other_idle_model, "--data", rows)
    assert ran.code == 1
    assert any(line.startswith("mean path") and line.endswith("FAILED") for line in ran.out.splitlines())


def test_tampered_onnx_file_fails(vaeprune, idle_model, shrunk, rows, copied):
    damaged = copied(shrunk)
    model = onnx.load(damaged / "decoder.onnx")
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "vae.output.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(model, damaged / "decoder.onnx")
    ran = vaeprune("verify", idle_model, damaged, "--data", rows, "--json")
    assert ran.code == 1
    assert [gate["name"] for gate in ran.json["gates"] if not gate["passed"]] == ["ONNX decoder"]


def test_missing_half_of_the_onnx_files_is_told(vaeprune, idle_model, shrunk, rows, copied):
    damaged = copied(shrunk)
    (damaged / "decoder.onnx").unlink()
    ran = vaeprune("verify", idle_model, damaged, "--data", rows)
    assert ran.code == 2 or "decoder.onnx" in ran.err


def test_damaged_onnx_file_is_refused(idle_model, shrunk, rows, copied, refused):
    damaged = copied(shrunk)
    whole = (damaged / "encoder.onnx").read_bytes()
    (damaged / "encoder.onnx").write_bytes(whole[: len(whole) // 2])
    told = f"{damaged / 'encoder.onnx'}: onnxruntime cannot load it"
    refused("verify", idle_model, damaged, "--data", rows, told=[told])


def test_tampered_weights_fail_the_exact_gate(vaeprune, idle_model, shrunk, rows, copied):
    damaged = copied(shrunk)
    tensors = read_tensors(damaged / "model.safetensors")
    tensors["mean_head.bias"][0] += 1e-3
    safetensors.torch.save_file(tensors, damaged / "model.safetensors")
    ran = vaeprune("verify", idle_model, damaged, "--data", rows, "--json")
    assert ran.code == 1
    failed = [gate["name"] for gate in ran.json["gates"] if not gate["passed"]]
    assert "exact" in failed


def test_plan_of_other_weights_is_refused(other_idle_model, shrunk, rows, refused):
    refused("verify", other_idle_model, shrunk, "--data", rows, told=["plan: was made for other weights than these"])


def test_models_in_the_wrong_order_are_refused(idle_model, shrunk, rows, refused):
    told = "was made for other weights than these"
    refused("verify", shrunk, idle_model, "--data", rows, "--plan", shrunk, told=[told])


def test_model_for_other_rows_is_refused(busy_model, rows, refused, desk):
    flat = Path("flat")
    write_model_folder(ModelFolder(DenseVAE((16,), (8,), (8,), 4)), flat)
    refused("verify", busy_model, flat, "--data", rows, "--quiet", told=["(16,)"])
