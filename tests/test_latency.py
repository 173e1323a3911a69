import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vaeprune
from planted import convolutional, dense
from vaeprune.errors import ModelError, StorageError, UsageError, VaepruneError
from vaeprune.latency import BATCHES, Change, Comparison, Latency, Timing, compare

CORES = os.cpu_count() or 1


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


def exported(vae: vaeprune.VAE, folder: Path) -> Path:
    folder.mkdir()
    vaeprune.export_onnx(vae, folder)
    return folder


@pytest.fixture(scope="module")
def wide(shelf: Path) -> Path:
    """x (12) → 9 → 6 latents → 7 → 12."""
    return exported(dense([1]), shelf / "wide")


@pytest.fixture(scope="module")
def narrow(shelf: Path) -> Path:
    """x (12) → 9 → 4 latents → 7 → 12."""
    return exported(dense([], latents=4), shelf / "narrow")


@pytest.fixture(scope="module")
def comparison(wide: Path, narrow: Path) -> Comparison:
    return compare(wide, narrow, repeats=3)


# ---- what is counted


def test_weights_are_those_of_the_state_dict(comparison: Comparison) -> None:
    counts = [sum(p.numel() for p in vae.parameters()) for vae in (dense([1]), dense([], latents=4))]
    assert comparison.weights == Change(*counts)
    assert comparison.weights.ratio == counts[1] / counts[0]


def test_file_bytes_are_those_on_disk(comparison: Comparison, wide: Path, narrow: Path) -> None:
    sizes = [sum(p.stat().st_size for p in folder.iterdir()) for folder in (wide, narrow)]
    assert comparison.file_bytes == Change(*sizes)


def test_flops_of_dense_layers_are_two_for_each_weight(comparison: Comparison) -> None:
    before = 2 * (12 * 9 + 2 * 9 * 6 + 6 * 7 + 7 * 12)
    after = 2 * (12 * 9 + 2 * 9 * 4 + 4 * 7 + 7 * 12)
    assert comparison.flops_per_row == Change(before, after)


@pytest.mark.slow
def test_flops_of_convolutions_are_those_counted_by_hand(tmp_path: Path) -> None:
    """17x18 pixels, 3 channels everywhere, 3 latents. Outputs x kernel x channels; transposed: inputs x the same."""
    pair = exported(convolutional([1]), tmp_path / "pair")
    down = 9 * 9 * 3 * 9 * 1 + 9 * 9 * 3 * 9 * 3 + 5 * 5 * 3 * 9 * 3 + (3 * 3 * 3 * 9 * 3) * 2
    down += (2 * 2 * 3 * 4 * 3) * 2 + 1 * 1 * 3 * 4 * 3 + 2 * (3 * 3)
    up = 3 * 3 + 1 * 3 * 4 * 3 + (2 * 2) * 3 * 4 * 3 + (2 * 2) * 3 * 4 * 3
    up += (3 * 3) * 3 * 9 * 3 + (3 * 3) * 3 * 9 * 3 + (5 * 5) * 3 * 9 * 3 + (9 * 9) * 3 * 9 * 3 + (9 * 9) * 3 * 9 * 1
    assert compare(pair, pair, repeats=3).flops_per_row == Change(2 * (down + up), 2 * (down + up))


def written(folder: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    """A pair whose two models are the same: `nodes` from x (batch, 2, 4) to y."""
    folder.mkdir()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "pair", [x], [y], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for part in ("encoder", "decoder"):
        onnx.save(model, folder / f"{part}.onnx")
    return folder


def test_flops_of_a_batched_and_of_a_grouped_product(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 5), np.float32), "k": np.ones((6, 1, 3), np.float32)}
    product = helper.make_node("MatMul", ["x", "w"], ["h"])  # (1, 2, 5), sums of 4
    grouped = helper.make_node("Conv", ["h", "k"], ["y"], group=2)  # (1, 6, 3), sums of 3
    pair = written(tmp_path / "pair", [product, grouped], weights)
    found = compare(pair, pair, repeats=3)
    assert found.flops_per_row.before == 2 * 2 * (2 * 5 * 4 + 6 * 3 * 3)
    assert found.weights.before == 2 * (4 * 5 + 6 * 3)


def test_flops_of_a_transposed_gemm(tmp_path: Path) -> None:
    weights = {"shape": np.array([-1, 8]), "w": np.ones((8, 3), np.float32), "again": np.ones((3, 7), np.float32)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["h"]),  # (1, 3)
        helper.make_node("Transpose", ["h"], ["turned"]),
        helper.make_node("Gemm", ["turned", "again"], ["y"], transA=1),  # (1, 7), sums of 3
    ]
    pair = written(tmp_path / "pair", nodes, weights)
    found = compare(pair, pair, repeats=3)
    assert found.flops_per_row.before == 2 * 2 * (3 * 8 + 7 * 3)
    assert found.weights.before == 2 * (8 * 3 + 3 * 7)  # the integers of the shape are no weights


def test_flops_are_not_known_where_a_shape_depends_on_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["turned"]),
        helper.make_node("MatMul", ["turned", "w"], ["y"]),
    ]
    pair = written(tmp_path / "pair", nodes, {"w": np.ones((3, 2), np.float32)})
    found = compare(pair, pair, repeats=3)
    assert found.flops_per_row == Change(None, None)
    assert found.to_json()["flops_per_row"] == {"before": None, "after": None, "ratio": None}


def test_flops_are_not_known_where_a_branch_decides(tmp_path: Path) -> None:
    same = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 2, 4])],
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=same, else_branch=same)
    pair = written(tmp_path / "pair", [node], {"yes": np.array(True)})
    assert compare(pair, pair, repeats=3).flops_per_row == Change(None, None)


def with_external_data(pair: Path, folder: Path) -> Path:
    folder.mkdir()
    for part in ("encoder", "decoder"):
        model = onnx.load(pair / f"{part}.onnx")
        onnx.save(
            model, folder / f"{part}.onnx", save_as_external_data=True, location=f"{part}.data", size_threshold=100
        )
    return folder


def test_external_data_count_as_bytes_and_change_nothing_else(comparison: Comparison, wide: Path, tmp_path) -> None:
    pair = with_external_data(wide, tmp_path / "external")
    assert len(list(pair.iterdir())) == 4
    found = compare(wide, pair, repeats=3)
    assert found.file_bytes.after == sum(p.stat().st_size for p in pair.iterdir())
    for name in ("weights", "flops_per_row"):
        assert getattr(found, name).after == getattr(found, name).before == getattr(comparison, name).before


# ---- what is measured


def test_each_part_is_timed_at_each_batch(comparison: Comparison) -> None:
    assert BATCHES == (1, 32, 256)
    assert [(one.part, one.batch) for one in comparison.latency] == [
        (part, batch) for batch in BATCHES for part in ("encoder", "decoder")
    ]
    for one in comparison.latency:
        for timing in (one.before, one.after):
            assert 0 < timing.lower_quartile_ms <= timing.median_ms <= timing.upper_quartile_ms
            assert timing.iqr_ms >= 0
        assert one.ratio > 0
    assert (comparison.threads, comparison.repeats) == (1, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_peak_memory_grows_with_the_layers(wide: Path, tmp_path: Path) -> None:
    """6 MB more of hidden units at batch 256, measured in processes that did not grow with this one."""
    large = exported(dense([], encoder=(6_000,)), tmp_path / "large")
    found = compare(wide, large, repeats=3)
    assert found.peak_memory_bytes.before is not None
    assert found.peak_memory_bytes.after is not None
    assert found.peak_memory_bytes.before > 0
    assert found.peak_memory_bytes.after - found.peak_memory_bytes.before > 3e6


def test_a_pair_beside_itself_has_the_same_counts(wide: Path) -> None:
    found = compare(wide, str(wide), repeats=4)
    for name in ("weights", "file_bytes", "flops_per_row"):
        change = getattr(found, name)
        assert change.before == change.after > 0
        assert change.ratio == 1


def test_swapped_pairs_have_swapped_counts(comparison: Comparison, wide: Path, narrow: Path) -> None:
    swapped = compare(narrow, wide, repeats=3)
    for name in ("weights", "file_bytes", "flops_per_row"):
        one, other = getattr(comparison, name), getattr(swapped, name)
        assert (one.before, one.after) == (other.after, other.before)
    assert (swapped.before, swapped.after) == (str(narrow), str(wide))


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((1.0, 2.0, 3.0), (3.1, 4.0, 5.0), "slower"),
        ((1.0, 2.0, 3.0), (3.0, 4.0, 5.0), "no difference"),
        ((3.1, 4.0, 5.0), (1.0, 2.0, 3.0), "faster"),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), "no difference"),
    ],
)
def test_verdict_is_given_only_where_the_quartiles_are_apart(before, after, verdict) -> None:
    (low, median, high), (other_low, other_median, other_high) = before, after
    one = Latency("encoder", 1, Timing(median, low, high), Timing(other_median, other_low, other_high))
    assert one.verdict == verdict
    assert one.ratio == other_median / median


@pytest.mark.parametrize(("before", "after", "ratio"), [(4, 2, 0.5), (0, 2, None), (None, 2, None), (2, None, None)])
def test_ratio_is_none_where_there_is_none(before, after, ratio) -> None:
    assert Change(before, after).ratio == ratio


def test_progress_counts_the_repeats(wide: Path) -> None:
    told = []
    compare(wide, wide, repeats=4, progress=lambda *step: told.append(step))
    assert told == [("timing", 1, 4)] * 4


def test_json_has_a_key_for_every_figure(comparison: Comparison, wide: Path, narrow: Path) -> None:
    entry = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    changes = {"weights", "file_bytes", "flops_per_row", "peak_memory_bytes"}
    assert entry.keys() == {"before", "after", "threads", "repeats", "latency"} | changes
    assert (entry["before"], entry["after"], entry["threads"], entry["repeats"]) == (str(wide), str(narrow), 1, 3)
    for name in changes:
        assert entry[name].keys() == {"before", "after", "ratio"}
    assert len(entry["latency"]) == 6
    for one, found in zip(entry["latency"], comparison.latency, strict=True):
        assert one.keys() == {"part", "batch", "before", "after", "ratio", "verdict"}
        figures = {"median_ms", "lower_quartile_ms", "upper_quartile_ms", "iqr_ms"}
        assert one["before"].keys() == one["after"].keys() == figures
        assert (one["part"], one["batch"], one["verdict"]) == (found.part, found.batch, found.verdict)
        assert all(math.isfinite(one[side][figure]) for side in ("before", "after") for figure in figures)


def test_results_cannot_be_changed(comparison: Comparison) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.repeats = 1  # type: ignore[misc]


def test_importing_loads_no_torch() -> None:
    code = "import vaeprune.latency, sys; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_comparing_loads_no_torch(wide: Path) -> None:
    code = f"import sys, vaeprune.latency as l; l.compare({str(wide)!r}, {str(wide)!r}, repeats=3)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


# ---- what is refused


def refusal(kind: type[VaepruneError], before: Path, after: Path, **options: int) -> str:
    with pytest.raises(kind) as error:
        compare(before, after, **{"repeats": 3, **options})  # type: ignore[arg-type]
    assert type(error.value) is kind
    return str(error.value)


@pytest.fixture
def damaged(wide: Path, tmp_path: Path) -> Path:
    """A copy of a pair that may be damaged."""
    return Path(shutil.copytree(wide, tmp_path / "damaged"))


def test_too_few_repeats(wide: Path) -> None:
    told = "repeats: got 2, expected at least 3; fewer have no spread to judge by"
    assert refusal(UsageError, wide, wide, repeats=2) == told


@pytest.mark.parametrize("threads", [0, -1, CORES + 1])
def test_senseless_threads(wide: Path, threads: int) -> None:
    told = f"threads: got {threads}, expected 1 to {CORES}, the processor cores here"
    assert refusal(UsageError, wide, wide, threads=threads) == told


def test_missing_folder(wide: Path, tmp_path: Path) -> None:
    told = "no such folder, expected a folder with encoder.onnx and decoder.onnx; write one with `vaeprune export`"
    assert refusal(StorageError, wide, tmp_path / "none") == f"{tmp_path / 'none'}: {told}"
    assert refusal(StorageError, tmp_path / "none", wide) == f"{tmp_path / 'none'}: {told}"


def test_file_in_place_of_a_folder(wide: Path) -> None:
    file = wide / "encoder.onnx"
    told = f"{file}: is a file, expected a folder with encoder.onnx and decoder.onnx; write one with `vaeprune export`"
    assert refusal(StorageError, file, wide) == told


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_missing_file(wide: Path, damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    told = f"{damaged / name}: no such file, expected an ONNX model; write one with `vaeprune export`"
    assert refusal(StorageError, wide, damaged) == told


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_file_that_is_no_onnx_model(wide: Path, damaged: Path, content: bytes) -> None:
    (damaged / "decoder.onnx").write_bytes(content)
    told = refusal(StorageError, wide, damaged)
    assert told.startswith(f"{damaged / 'decoder.onnx'}: is no ONNX model: ")
    assert told.endswith("; write one with `vaeprune export`")


def test_file_that_is_cut_short(wide: Path, damaged: Path) -> None:
    path = damaged / "encoder.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(StorageError, damaged, wide).startswith(f"{path}: is no ONNX model: ")


def test_missing_external_data(wide: Path, tmp_path: Path) -> None:
    pair = with_external_data(wide, tmp_path / "external")
    (pair / "decoder.data").unlink()
    told = f"{pair / 'decoder.data'}: no such file, expected the weights of decoder.onnx; write one with"
    assert refusal(StorageError, wide, pair) == f"{told} `vaeprune export`"


def test_operators_of_a_domain_that_is_not_declared(tmp_path: Path) -> None:
    pair = written(tmp_path / "pair", [helper.make_node("Twist", ["x"], ["y"], domain="elsewhere")], {})
    assert refusal(StorageError, pair, pair).startswith(f"{pair / 'encoder.onnx'}: is no valid ONNX model: ")


def test_graph_that_contradicts_itself(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    pair = written(tmp_path / "pair", nodes, {"w": np.ones((3, 5), np.float32)})
    told = refusal(ModelError, pair, pair)
    assert told.startswith(f"{pair / 'encoder.onnx'}: onnxruntime cannot load it: ")


def test_pairs_that_take_different_rows(wide: Path, tmp_path: Path) -> None:
    other = exported(dense([1], input_shape=(1, 3, 4)), tmp_path / "other")
    file, known = other / "encoder.onnx", wide / "encoder.onnx"
    assert refusal(ModelError, wide, other) == (
        f"{file}: takes x of shape (1, 3, 4), {known} takes (12,), expected the same; "
        "compare two exports whose data are alike"
    )


def changed_input(pair: Path, **shape: int | str) -> None:
    """Change sizes of the decoder's z: `batch`, `latents`."""
    model = onnx.load(pair / "decoder.onnx")
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(sizes, ("batch", "latents"), strict=True):
        if name in shape:
            dimension.Clear()
            setattr(dimension, "dim_value" if isinstance(shape[name], int) else "dim_param", shape[name])
    onnx.save(model, pair / "decoder.onnx")


@pytest.mark.parametrize(
    ("shape", "told"), [({"batch": 5}, "[5, 6]"), ({"latents": "any"}, "['batch', 'any']")], ids=["batch", "row"]
)
def test_batch_that_is_fixed_or_row_that_is_free(wide: Path, damaged: Path, shape, told) -> None:
    changed_input(damaged, **shape)
    told = f"{damaged / 'decoder.onnx'}: z has shape {told}, expected a free batch and fixed sizes after it"
    assert refusal(ModelError, wide, damaged) == told


def test_model_that_takes_integers(tmp_path: Path) -> None:
    pair = written(tmp_path / "pair", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], {})
    model = onnx.load(pair / "encoder.onnx")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, pair / "encoder.onnx")
    told = f"{pair / 'encoder.onnx'}: takes x tensor(int64), expected one input of float numbers"
    assert refusal(ModelError, pair, pair) == told


def test_model_that_fails_at_a_batch(tmp_path: Path) -> None:
    """Its first dimension is free, but it can only reshape a single row."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    pair = written(tmp_path / "pair", nodes, {"shape": np.array([1, 8])})
    assert refusal(ModelError, pair, pair).startswith(f"{pair / 'encoder.onnx'}: onnxruntime fails at batch 32: ")
