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
from planted import dense
from vaeprune.errors import ModelError, StorageError, UsageError, VaepruneError
from vaeprune.latency import BATCHES, Change, Comparison, Latency, Timing, compare
from vaeprune.onnx_figures import onnx_figures

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


# ---- what is measured


def test_counts_are_those_of_encoder_and_decoder_together(comparison: Comparison, wide: Path, narrow: Path) -> None:
    before, after = (onnx_figures(p / "encoder.onnx") + onnx_figures(p / "decoder.onnx") for p in (wide, narrow))
    for name in ("weights", "file_bytes", "flops_per_row"):
        assert getattr(comparison, name) == Change(getattr(before, name), getattr(after, name))
    assert comparison.weights.ratio == after.weights / before.weights < 1


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


def test_swapped_pairs_have_swapped_counts(comparison: Comparison, wide: Path, narrow: Path) -> None:
    swapped = compare(narrow, wide, repeats=3)
    for name in ("weights", "file_bytes", "flops_per_row"):
        one, other = getattr(comparison, name), getattr(swapped, name)
        assert (one.before, one.after) == (other.after, other.before)
    assert (swapped.before, swapped.after) == (str(narrow), str(wide))


def test_times_are_told_on_the_side_they_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a model that does nothing, 2 million multiplications a row cannot pass for the faster."""
    monkeypatch.setattr("vaeprune.latency.BATCHES", (1,))
    idle = written(tmp_path / "idle", [helper.make_node("Identity", ["x"], ["y"])], {})
    sizes = (4, 1000), (1000, 1000), (1000, 4)
    weights = {f"w{i}": np.full(size, 0.01, np.float32) for i, size in enumerate(sizes)}
    names = ("x", "a", "b", "y")
    work = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(3)]
    busy = written(tmp_path / "busy", work, weights)
    assert min(one.ratio for one in compare(idle, busy, repeats=3).latency) > 1
    assert max(one.ratio for one in compare(busy, idle, repeats=3).latency) < 1


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_peak_memory_grows_with_the_layers(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB more of hidden units at batch 256, measured in processes that did not grow with this one."""
    monkeypatch.setattr("vaeprune.latency.BATCHES", (256,))
    large = exported(dense([], encoder=(10_000,)), tmp_path / "large")
    peak = compare(wide, large, repeats=3).peak_memory_bytes
    assert peak.before is not None
    assert peak.after is not None
    assert peak.before >= 0
    assert peak.after - peak.before > 5e6


def test_figures_that_are_not_known_are_null(tmp_path: Path) -> None:
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


def test_files_that_cannot_be_read_on_either_side(wide: Path, tmp_path: Path) -> None:
    told = "no such folder, expected a folder with encoder.onnx and decoder.onnx; write one with `vaeprune export`"
    assert refusal(StorageError, wide, tmp_path / "none") == f"{tmp_path / 'none'}: {told}"
    assert refusal(StorageError, tmp_path / "none", wide) == f"{tmp_path / 'none'}: {told}"


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
