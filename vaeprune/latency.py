"""What two ONNX pairs cost to run, side by side: weights, bytes, FLOPs, latency and peak memory in onnxruntime.

A pair is a folder with `encoder.onnx` and `decoder.onnx`. The two are timed in turns within one process, so that a
change of clock or load meets both alike; memory is measured in processes of their own. No torch is loaded here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vaeprune.errors import ModelError, StorageError, UsageError

# onnx and onnxruntime are imported where they are used: the process that measures memory needs only the latter

BATCHES = (1, 32, 256)
PARTS = ("encoder", "decoder")  # vaeprune.onnx_export names the files alike, but importing it would load torch
Verdict = Literal["slower", "faster", "no difference"]
Progress = Callable[[str, int, int | None], None]  # what is being done, repeats more, repeats in all
_LEAST_SECONDS = 0.002  # of a repeat: the clock's own cost and grain are far below that
_REPEATS_OF_A_LOAD = 3
_MEMORY_RUNS = 3
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
# The path is set before anything is imported, so that the new process finds what this one found and nothing else
_PEAK = "import sys; sys.path[:] = sys.argv[2].split('\\n'); from vaeprune.latency import print_peak; print_peak()"


@dataclass(frozen=True)
class Change:
    """One figure of both pairs; None where it could not be known."""

    before: int | None
    after: int | None

    @property
    def ratio(self) -> float | None:
        """After / before; None where either is not known or before is 0."""
        return self.after / self.before if self.before and self.after is not None else None


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of the repeats, in ms per batch."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float

    @property
    def iqr_ms(self) -> float:
        """The spread: interquartile range in ms per batch."""
        return self.upper_quartile_ms - self.lower_quartile_ms


@dataclass(frozen=True)
class Latency:
    """The encoder or the decoder of both pairs at one batch size."""

    part: str
    batch: int
    before: Timing
    after: Timing

    @property
    def ratio(self) -> float:
        """Median after / median before."""
        return self.after.median_ms / self.before.median_ms

    @property
    def verdict(self) -> Verdict:
        """Slower or faster only where the ranges from lower to upper quartile do not overlap."""
        if self.after.lower_quartile_ms > self.before.upper_quartile_ms:
            return "slower"
        if self.after.upper_quartile_ms < self.before.lower_quartile_ms:
            return "faster"
        return "no difference"


@dataclass(frozen=True)
class Comparison:
    """All figures of two pairs, each of encoder and decoder together but for the latency.

    `weights`: elements of the float initialisers. `file_bytes`: with external data. `flops_per_row`: multiplications
    and additions of Conv, ConvTranspose, Gemm and MatMul; None where a shape stays unknown. `peak_memory_bytes`: what
    loading and running a pair at the largest batch adds to resident memory; None where the system does not tell.
    """

    before: str
    after: str
    threads: int
    repeats: int
    weights: Change
    file_bytes: Change
    flops_per_row: Change
    peak_memory_bytes: Change
    latency: tuple[Latency, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `vaeprune bench --json` prints."""
        entry = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "latency"}
        changes = {k: vars(v) | {"ratio": v.ratio} for k, v in entry.items() if isinstance(v, Change)}
        latency = [
            {
                "part": one.part,
                "batch": one.batch,
                "before": vars(one.before) | {"iqr_ms": one.before.iqr_ms},
                "after": vars(one.after) | {"iqr_ms": one.after.iqr_ms},
                "ratio": one.ratio,
                "verdict": one.verdict,
            }
            for one in self.latency
        ]
        return entry | changes | {"latency": latency}


def compare(
    before: str | Path, after: str | Path, *, threads: int = 1, repeats: int = 30, progress: Progress | None = None
) -> Comparison:
    """Measure two folders with `encoder.onnx` and `decoder.onnx` at batches of 1, 32 and 256 rows.

    `threads` are onnxruntime's intra-op threads. A repeat calls a model until 2 ms have passed. Raises UsageError for
    numbers that make no sense, StorageError for files that are missing or damaged, ModelError for those that cannot be
    run or do not take the same x.
    """
    if repeats < 3:
        raise UsageError(f"repeats: got {repeats}, expected at least 3", "fewer have no spread to judge by")
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise UsageError(f"threads: got {threads}, expected 1 to {cores}, the processor cores here")
    folders = Path(before), Path(after)
    files = [[_existing(folder, part) for part in PARTS] for folder in folders]
    sizes = [[_size(file) for file in pair] for pair in files]
    models = [[_Model(file, threads) for file in pair] for pair in files]
    (a, _), (b, _) = models
    if a.row_shape != b.row_shape:
        raise ModelError(
            f"{b.path}: takes {b.input} of shape {b.row_shape}, {a.path} takes {a.row_shape}, expected the same",
            "compare two exports whose data are alike",
        )
    latency = tuple(_latencies(models, threads, repeats, progress))
    peaks = [_peak_bytes(pair, threads) for pair in models]
    return Comparison(
        str(before),
        str(after),
        threads,
        repeats,
        weights=_summed(sizes, "weights"),
        file_bytes=_summed(sizes, "file_bytes"),
        flops_per_row=_summed(sizes, "flops_per_row"),
        peak_memory_bytes=Change(*peaks),
        latency=latency,
    )


# ---- what the files hold


@dataclass(frozen=True)
class _Size:
    weights: int
    file_bytes: int
    flops_per_row: int | None


def _existing(folder: Path, part: str) -> Path:
    path = folder / f"{part}.onnx"
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise StorageError(f"{folder}: {found}, expected a folder with encoder.onnx and decoder.onnx", _EXPORT)
    if not path.is_file():
        raise StorageError(f"{path}: no such file, expected an ONNX model", _EXPORT)
    return path


_EXPORT = "write one with `vaeprune export`"


def _size(path: Path) -> _Size:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise StorageError(f"{path}: is no ONNX model: {_first_line(error)}", _EXPORT) from error
    if not model.graph.output:  # an empty file, too, is a message that protobuf can read
        raise StorageError(f"{path}: is no ONNX model: it has no outputs", _EXPORT)
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floats)
    return _Size(weights, path.stat().st_size + _external_bytes(path, model), _flops(path, model))


def _external_bytes(path: Path, model: Any) -> int:
    """Bytes of the files beside an ONNX file that hold its weights, each counted once."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    total = 0
    for name in {entry.value for entry in entries}:
        data = path.parent / name
        if not data.is_file():
            raise StorageError(f"{data}: no such file, expected the weights of {path.name}", _EXPORT)
        total += data.stat().st_size
    return total


def _flops(path: Path, model: Any) -> int | None:
    """Multiplications and additions at batch 1, biases apart; padded taps count. Changes `model`."""
    from onnx import shape_inference

    if model.functions or any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        return None  # what runs inside a function or a branch is not known without running it
    graph, initial = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    try:
        for value in graph.input:
            if value.name not in initial and value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = 1
        del graph.value_info[:]  # they say "batch" where 1 is to be found
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise StorageError(f"{path}: is no valid ONNX model: {_first_line(error)}", _EXPORT) from error
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {value.name: _known_shape(value.type.tensor_type) for value in values}
    shapes |= {name: tuple(tensor.dims) for name, tensor in initial.items()}
    costs = [_node_flops(node, shapes) for node in graph.node if node.op_type in _COUNTED]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _known_shape(kind: Any) -> tuple[int, ...] | None:
    sizes = kind.shape.dim
    known = kind.HasField("shape") and all(size.HasField("dim_value") for size in sizes)
    return tuple(size.dim_value for size in sizes) if known else None


_COUNTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def _node_flops(node: Any, shapes: dict[str, tuple[int, ...] | None]) -> int | None:
    read, weight, made = shapes.get(node.input[0]), shapes.get(node.input[1]), shapes.get(node.output[0])
    if read is None or weight is None or made is None:
        return None
    if node.op_type == "Conv":  # weight (out, in / groups, *kernel): one dot product for each output
        return 2 * math.prod(made) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, *kernel): each input is spread over the outputs
        return 2 * math.prod(read) * math.prod(weight[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * math.prod(made) * read[0 if transposed else -1]


def _summed(sizes: list[list[_Size]], name: str) -> Change:
    totals = []
    for pair in sizes:
        figures = [getattr(size, name) for size in pair]
        totals.append(None if None in figures else sum(figures))
    return Change(*totals)


# ---- how long they run


class _Model:
    """A file in onnxruntime: what it takes, and how long it runs."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        try:
            self._session = _session(str(path), threads)
        except Exception as error:
            raise ModelError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{i.name} {i.type}" for i in inputs) or "nothing"
            raise ModelError(f"{path}: takes {found}, expected one input of float numbers")
        self.input, shape = inputs[0].name, inputs[0].shape
        if not shape or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
            raise ModelError(f"{path}: {self.input} has shape {shape}, expected a free batch and fixed sizes after it")
        self.row_shape, self.dtype = tuple(shape[1:]), _TYPES[inputs[0].type]

    def rows(self, batch: int) -> np.ndarray[Any, Any]:
        return _rows((batch, *self.row_shape), self.dtype)

    def seconds(self, value: np.ndarray[Any, Any], calls: int) -> float:
        """Seconds per call, over `calls` calls."""
        feed, run = {self.input: value}, self._session.run
        start = time.perf_counter()
        try:
            for _ in range(calls):
                run(None, feed)
        except Exception as error:
            raise ModelError(f"{self.path}: onnxruntime fails at batch {len(value)}: {_first_line(error)}") from error
        return (time.perf_counter() - start) / calls


def _session(path: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # the threads of one model must not go on spinning on the cores that the other is timed on
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _rows(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random(shape).astype(dtype)


def _latencies(models: list[list[_Model]], threads: int, repeats: int, progress: Progress | None) -> list[Latency]:
    """Both models in turns, A B, B A, A B, …: what one leaves in the caches meets both alike.

    Now and then both are loaded afresh: where its weights happen to lie in memory makes a model faster or slower by
    several percent for as long as it stays there, which is no property of the model.
    """
    cases = [(batch, which) for batch in BATCHES for which in range(len(PARTS))]
    taken: dict[tuple[int, int], list[list[float]]] = {case: [[], []] for case in cases}
    calls: dict[tuple[int, int], int] = {}
    for repeat in range(repeats):
        order = (0, 1) if repeat % 2 == 0 else (1, 0)
        if repeat and repeat % _REPEATS_OF_A_LOAD == 0:
            paths = [[model.path for model in pair] for pair in models]
            fresh = {side: [_Model(path, threads) for path in paths[side]] for side in order}
            models = [fresh[0], fresh[1]]
        for batch, which in cases:
            pair = models[0][which], models[1][which]
            rows = {side: pair[side].rows(batch) for side in order}
            once = [min(pair[side].seconds(rows[side], 1) for _ in range(3)) for side in order]
            many = calls.setdefault((batch, which), math.ceil(1.5 * _LEAST_SECONDS / min(once)))
            for side in order:
                taken[batch, which][side].append(1000 * pair[side].seconds(rows[side], many))
        if progress:
            progress("timing", 1, repeats)
    return [Latency(PARTS[which], batch, *map(_timing, taken[batch, which])) for batch, which in cases]


def _timing(milliseconds: list[float]) -> Timing:
    lower, median, upper = (float(q) for q in np.percentile(milliseconds, (25, 50, 75)))
    return Timing(median, lower, upper)


# ---- how much memory they take


def _peak_bytes(pair: list[_Model], threads: int) -> int | None:
    """Median over fresh processes of what a pair adds to the peak of resident memory; None where it is not told."""
    models = [(str(model.path), model.input, (max(BATCHES), *model.row_shape), model.dtype) for model in pair]
    command = [sys.executable, "-c", _PEAK, json.dumps([threads, models]), "\n".join(sys.path)]
    found = []
    for _ in range(_MEMORY_RUNS):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603, PLW1510  this Python, no shell
        if done.returncode:
            reason = _first_line(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
            raise ModelError(f"{pair[0].path.parent}: cannot be run in a process of its own: {reason}")
        found.append(json.loads(done.stdout))
    return None if None in found else int(statistics.median(found))


def print_peak() -> None:
    """Run the models that the first argument names; prints by how many bytes the peak of this process grew, or null."""
    import onnxruntime  # noqa: F401  before the first look, so that the library itself does not count

    threads, models = json.loads(sys.argv[1])
    values = [_rows(tuple(shape), dtype) for _, _, shape, dtype in models]
    start = _peak_resident_bytes()
    sessions = [_session(path, threads) for path, *_ in models]
    outputs = [
        session.run(None, {name: value}) for session, (_, name, *_), value in zip(sessions, models, values, strict=True)
    ]
    end = _peak_resident_bytes()
    del outputs
    print(json.dumps(None if start is None or end is None else end - start))


def _peak_resident_bytes() -> int | None:
    """Of this process; on Linux from VmHWM, since ru_maxrss there includes what the parent had before exec."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
