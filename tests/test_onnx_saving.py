"""Files too large for one protobuf keep their weights beside the graph; nothing else is noted in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vaeprune.architectures import DenseVAE
from vaeprune.errors import ExportError
from vaeprune.onnx_export import export_onnx
from vaeprune.onnx_saving import save_onnx

WEIGHTS = np.random.default_rng(0).standard_normal((40, 30), dtype=np.float32)


def linear(operator: str = "MatMul", **attributes: object) -> onnx_ir.Model:
    """x (batch, 40) times a weight of 4,800 bytes."""
    node = helper.make_node(operator, ["x", "w"][: 2 if operator == "MatMul" else 1], ["y"], name="n", **attributes)
    node.doc_string = "File /home/somebody/model.py, line 3"
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/model.py")
    width = 30 if operator == "MatMul" else 40
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def assert_computes(path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 40), dtype=np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ WEIGHTS, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("external", "largest", "names"),
    [
        (False, 4800, ["encoder.onnx"]),
        (False, 4799, ["encoder.onnx", "encoder.onnx.data"]),
        (True, 10**9, ["encoder.onnx", "encoder.onnx.data"]),
    ],
)
def test_weights_go_beside_the_graph_above_the_largest_size_or_when_asked(
    tmp_path: Path, external: bool, largest: int, names: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    save_onnx(linear(), tmp_path / "out" / "encoder.onnx", {}, external=external, largest=largest)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert_computes((tmp_path / "out").rename(tmp_path / "moved") / "encoder.onnx")
    if len(names) == 2:
        assert (tmp_path / "moved" / names[1]).read_bytes() == WEIGHTS.tobytes()
        assert (tmp_path / "moved" / names[0]).stat().st_size < 1000


def test_only_our_metadata_are_in_a_file(tmp_path: Path) -> None:
    save_onnx(linear(), tmp_path / "decoder.onnx", {"vaeprune.version": "1"})
    model = onnx.load(tmp_path / "decoder.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "vaeprune.part": "decoder",
        "vaeprune.version": "1",
    }
    assert b"somebody" not in (tmp_path / "decoder.onnx").read_bytes()


def test_random_operators_are_refused_in_branches_too(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        save_onnx(linear("RandomNormalLike"), tmp_path / "encoder.onnx", {})
    assert str(error.value).startswith("encoder.onnx: contains random operators RandomNormalLike; ")
    branches = {}
    for name, operator in (("then_branch", "Identity"), ("else_branch", "RandomUniformLike")):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [value])
    condition = numpy_helper.from_array(np.array(True), "c")
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
        [condition],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="random operators RandomUniformLike"):
        save_onnx(onnx_ir.from_proto(model), tmp_path / "encoder.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    model = linear()
    model.graph.outputs[0].shape = onnx_ir.Shape(["batch", 31])
    with pytest.raises(ExportError, match=r"^encoder\.onnx: onnx's checker refuses it: .*") as error:
        save_onnx(model, tmp_path / "encoder.onnx", {})
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_is_written_and_runs(tmp_path: Path) -> None:
    if not os.environ.get("VAEPRUNE_LARGE_FILES"):
        pytest.skip("VAEPRUNE_LARGE_FILES is not set, and this takes 3 GB of disk and 12 GB of memory")
    vae = DenseVAE((8,), (270_000, 2000), (16,), 4)
    assert export_onnx(vae.eval(), tmp_path) == (tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")
    assert (tmp_path / "encoder.onnx.data").stat().st_size > 2**31
    x = torch.rand(2, 8)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], vae.encode(x).mean.numpy(), atol=1e-4)
