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

from vaeprune.errors import ModelError, UsageError
from vaeprune.onnx_figures import PARTS, first_line, onnx_figures, onnx_pair
from vaeprune.onnx_input import onnx_input

# onnxruntime is imported where it is used, so that the process that measures memory looks before and after

BATCHES = (1, 32, 256)
Verdict = Literal["slower", "faster", "no difference"]
Progress = Callable[[str, int, int | None], None]  # what is being done, repeats more, repeats in all
_LEAST_SECONDS = 0.002  # of a repeat: the clock's own cost and grain are far below that
_REPEATS_OF_A_LOAD = 3
_MEMORY_RUNS = 3
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

    `weights`, `file_bytes` and `flops_per_row` are those of `OnnxFigures`. `peak_memory_bytes`: what loading and
    running a pair at the largest batch adds to resident memory; None where the system does not tell.
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
    before: str | Path,
    after: str | Path,
    *,
    threads: int = 1,
    repeats: int = 30,
    memory: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two folders with `encoder.onnx` and `decoder.onnx` at batches of 1, 32 and 256 rows.

    `threads` are onnxruntime's intra-op threads. A repeat calls a model until 2 ms have passed. Without `memory` peaks
    are not measured. Raises UsageError for numbers that make no sense, StorageError for files that are missing or
    damaged, ModelError for those that cannot be run or do not take the same x.
    """
    if repeats < 3:
        raise UsageError(f"repeats: got {repeats}, expected at least 3", "fewer have no spread to judge by")
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise UsageError(f"threads: got {threads}, expected 1 to {cores}, the processor cores here")
    folders = Path(before), Path(after)
    files = [onnx_pair(folder) for folder in folders]
    a_holds, b_holds = (onnx_figures(encoder) + onnx_figures(decoder) for encoder, decoder in files)
    models = [[_Model(file, threads) for file in pair] for pair in files]
    (a, _), (b, _) = models
    if a.row_shape != b.row_shape:
        raise ModelError(
            f"{b.path}: takes {b.input} of shape {b.row_shape}, {a.path} takes {a.row_shape}, expected the same",
            "compare two exports whose data are alike",
        )
    latency = tuple(_latencies(models, threads, repeats, progress))
    peaks = [_peak_bytes(pair, threads) if memory else None for pair in models]
    return Comparison(
        str(before),
        str(after),
        threads,
        repeats,
        weights=Change(a_holds.weights, b_holds.weights),
        file_bytes=Change(a_holds.file_bytes, b_holds.file_bytes),
        flops_per_row=Change(a_holds.flops_per_row, b_holds.flops_per_row),
        peak_memory_bytes=Change(*peaks),
        latency=latency,
    )


# ---- how long they run


class _Model:
    """A file in onnxruntime: what it takes, and how long it runs."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        try:
            self._session = _session(str(path), threads)
        except Exception as error:
            raise ModelError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error
        found = onnx_input(self._session, path)
        self.input, self.row_shape, self.dtype = found.name, found.row_shape, found.dtype

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
            raise ModelError(f"{self.path}: onnxruntime fails at batch {len(value)}: {first_line(error)}") from error
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
            reason = first_line(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
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
