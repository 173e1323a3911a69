"""What is read off an ONNX file: counts that can be done by hand, and files that cannot be read."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vaeprune
from planted import convolutional, dense
from vaeprune.errors import StorageError
from vaeprune.onnx_figures import OnnxFigures, onnx_figures, onnx_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x (12) → 9 → 6 latents → 7 → 12."""
    folder = tmp_path_factory.mktemp("pair")
    vaeprune.export_onnx(dense([1]), folder)
    return folder


def figures(folder: Path) -> OnnxFigures:
    encoder, decoder = onnx_pair(folder)
    return onnx_figures(encoder) + onnx_figures(decoder)


def written(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    """A file with `nodes` from x (batch, 2, 4) to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "pair", [x], [y], initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# ---- what is counted


def test_weights_are_those_of_the_state_dict(pair: Path) -> None:
    assert figures(pair).weights == sum(p.numel() for p in dense([1]).parameters())


def test_file_bytes_are_those_on_disk(pair: Path) -> None:
    assert figures(pair).file_bytes == sum(p.stat().st_size for p in pair.iterdir())


def test_flops_of_dense_layers_are_two_for_each_weight(pair: Path) -> None:
    assert figures(pair).flops_per_row == 2 * (12 * 9 + 2 * 9 * 6 + 6 * 7 + 7 * 12)


@pytest.mark.slow
def test_flops_of_convolutions_are_those_counted_by_hand(tmp_path: Path) -> None:
    """17x18 pixels, 3 channels everywhere, 3 latents. Outputs x kernel x channels; transposed: inputs x the same."""
    vaeprune.export_onnx(convolutional([1]), tmp_path)
    down = 9 * 9 * 3 * 9 * 1 + 9 * 9 * 3 * 9 * 3 + 5 * 5 * 3 * 9 * 3 + (3 * 3 * 3 * 9 * 3) * 2
    down += (2 * 2 * 3 * 4 * 3) * 2 + 1 * 1 * 3 * 4 * 3 + 2 * (3 * 3)
    up = 3 * 3 + 1 * 3 * 4 * 3 + (2 * 2) * 3 * 4 * 3 + (2 * 2) * 3 * 4 * 3
    up += (3 * 3) * 3 * 9 * 3 + (3 * 3) * 3 * 9 * 3 + (5 * 5) * 3 * 9 * 3 + (9 * 9) * 3 * 9 * 3 + (9 * 9) * 3 * 9 * 1
    assert figures(tmp_path).flops_per_row == 2 * (down + up)


def test_flops_of_a_batched_and_of_a_grouped_product(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 5), np.float32), "k": np.ones((6, 1, 3), np.float32)}
    product = helper.make_node("MatMul", ["x", "w"], ["h"])  # (1, 2, 5), sums of 4
    grouped = helper.make_node("Conv", ["h", "k"], ["y"], group=2)  # (1, 6, 3), sums of 3
    found = onnx_figures(written(tmp_path / "a.onnx", [product, grouped], weights))
    assert found.flops_per_row == 2 * (2 * 5 * 4 + 6 * 3 * 3)
    assert found.weights == 4 * 5 + 6 * 3


def test_flops_of_a_transposed_gemm(tmp_path: Path) -> None:
    weights = {"shape": np.array([-1, 8]), "w": np.ones((8, 3), np.float32), "again": np.ones((3, 7), np.float32)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["h"]),  # (1, 3)
        helper.make_node("Transpose", ["h"], ["turned"]),
        helper.make_node("Gemm", ["turned", "again"], ["y"], transA=1),  # (1, 7), sums of 3
    ]
    found = onnx_figures(written(tmp_path / "a.onnx", nodes, weights))
    assert found.flops_per_row == 2 * (3 * 8 + 7 * 3)
    assert found.weights == 8 * 3 + 3 * 7  # the integers of the shape are no weights


def test_flops_are_not_known_where_a_shape_depends_on_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["turned"]),
        helper.make_node("MatMul", ["turned", "w"], ["y"]),
    ]
    found = onnx_figures(written(tmp_path / "a.onnx", nodes, {"w": np.ones((3, 2), np.float32)}))
    assert found.flops_per_row is None


def test_flops_are_not_known_where_a_branch_decides(tmp_path: Path) -> None:
    same = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2, 4])],
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=same, else_branch=same)
    assert onnx_figures(written(tmp_path / "a.onnx", [node], {"yes": np.array(True)})).flops_per_row is None


def test_flops_are_not_known_of_a_product_without_a_second_factor(tmp_path: Path) -> None:
    """onnx reads such a graph without complaint."""
    path = written(tmp_path / "a.onnx", [helper.make_node("Conv", ["x"], ["y"])], {})
    assert onnx_figures(path).flops_per_row is None


def test_figures_add_up() -> None:
    one, other = OnnxFigures(1, 20, 300), OnnxFigures(4, 50, 600)
    assert one + other == OnnxFigures(5, 70, 900)
    unknown = OnnxFigures(1, 20, None)
    assert unknown + other == other + unknown == OnnxFigures(5, 70, None)


def with_external_data(pair: Path, folder: Path) -> Path:
    for part in ("encoder", "decoder"):
        model = onnx.load(pair / f"{part}.onnx")
        onnx.save(
            model, folder / f"{part}.onnx", save_as_external_data=True, location=f"{part}.data", size_threshold=100
        )
    return folder


def test_external_data_count_as_bytes_and_change_nothing_else(pair: Path, tmp_path: Path) -> None:
    external = with_external_data(pair, tmp_path)
    assert len(list(external.iterdir())) == 4
    inside, beside = figures(pair), figures(external)
    assert beside.file_bytes == sum(p.stat().st_size for p in external.iterdir())
    assert (beside.weights, beside.flops_per_row) == (inside.weights, inside.flops_per_row)


def test_data_that_two_weights_share_count_once(pair: Path, tmp_path: Path) -> None:
    """All weights of a file lie in one file beside it."""
    external = with_external_data(pair, tmp_path)
    model = onnx.load(external / "encoder.onnx", load_external_data=False)
    assert sum(bool(tensor.external_data) for tensor in model.graph.initializer) > 1
    sizes = [(external / name).stat().st_size for name in ("encoder.onnx", "encoder.data")]
    assert onnx_figures(external / "encoder.onnx").file_bytes == sum(sizes)


# ---- what is refused


def refusal(path: Path) -> str:
    with pytest.raises(StorageError) as error:
        onnx_figures(path)
    return str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    told = "no such folder, expected a folder with encoder.onnx and decoder.onnx; write one with `vaeprune export`"
    with pytest.raises(StorageError) as error:
        onnx_pair(tmp_path / "none")
    assert str(error.value) == f"{tmp_path / 'none'}: {told}"


def test_file_in_place_of_a_folder(pair: Path) -> None:
    file = pair / "encoder.onnx"
    told = f"{file}: is a file, expected a folder with encoder.onnx and decoder.onnx; write one with `vaeprune export`"
    with pytest.raises(StorageError) as error:
        onnx_pair(file)
    assert str(error.value) == told


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_missing_file(pair: Path, tmp_path: Path, name: str) -> None:
    half = Path(shutil.copytree(pair, tmp_path / "half"))
    (half / name).unlink()
    with pytest.raises(StorageError) as error:
        onnx_pair(half)
    told = f"{half / name}: no such file, expected an ONNX model; write one with `vaeprune export`"
    assert str(error.value) == told


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_file_that_is_no_onnx_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    told = refusal(path)
    assert told.startswith(f"{path}: is no ONNX model: ")
    assert told.endswith("; write one with `vaeprune export`")


def test_file_that_is_cut_short(pair: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes((pair / "encoder.onnx").read_bytes()[:1000])
    assert refusal(path).startswith(f"{path}: is no ONNX model: ")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.onnx") == f"{tmp_path / 'a.onnx'}: cannot be read: No such file or directory"


def test_missing_external_data(pair: Path, tmp_path: Path) -> None:
    external = with_external_data(pair, tmp_path)
    (external / "decoder.data").unlink()
    told = f"{external / 'decoder.data'}: no such file, expected the weights of decoder.onnx; write one with"
    assert refusal(external / "decoder.onnx") == f"{told} `vaeprune export`"


def test_operators_of_a_domain_that_is_not_declared(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx", [helper.make_node("Twist", ["x"], ["y"], domain="elsewhere")], {})
    assert refusal(path).startswith(f"{path}: is no valid ONNX model: ")
