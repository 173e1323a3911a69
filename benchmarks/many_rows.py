"""The moments pass over `.npy` files of 784-wide uint8 rows, in a process each: time and peak memory by rows.

Asked for: ten million rows linear in their number within 10%, and below 1 GB. `--rows` names other numbers; the
files need 784 bytes a row in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.moments import network
from benchmarks.timing import peak_resident_mb
from vaeprune.adapters import measuring
from vaeprune.analysis.encoding_pass import accumulate
from vaeprune.data.rows import StreamedRows
from vaeprune.data.sources import FileSource
from vaeprune.data.tiles import tiles

ROWS, RUNS = (1_000_000, 10_000_000), 3
_WRITTEN = 60_000


def measured(path: str) -> None:
    """The whole pass over a file; prints its time and this process's peak."""
    vae, start = network(), time.perf_counter()
    with measuring(vae):
        accumulate(vae, StreamedRows(FileSource(Path(path)), 0, None))
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak_resident_mb()}))


def written(folder: Path, rows: int) -> Path:
    """A file of so many rows."""
    path = folder / f"{rows}.npy"
    block = tiles(_WRITTEN, 0).numpy().reshape(-1, 784)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, 784))
    for start in range(0, rows, _WRITTEN):
        images[start : start + _WRITTEN] = block[: rows - start]
    return path


def _measure(path: Path) -> dict[str, float]:
    command = [sys.executable, "-c", f"from benchmarks.many_rows import measured; measured({str(path)!r})"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main(rows: Sequence[int] = ROWS) -> list[Figure]:
    few, many = rows
    with tempfile.TemporaryDirectory() as folder:
        paths = [written(Path(folder), count) for count in rows]
        runs = [[_measure(path) for path in paths] for _ in range(RUNS)]
    ratios = [b["seconds"] / many / (a["seconds"] / few) for a, b in runs]
    a, b = (sorted(run[i]["seconds"] for run in runs)[RUNS // 2] for i in range(2))
    peaks = [max(run[i]["peak_mb"] for run in runs) for i in range(2)]
    figure = Figure(
        f"moments of {many:,} rows from .npy", f"{few:,} rows, time a row", b, a, sorted(ratios)[RUNS // 2],
        min(ratios), max(ratios), "0.9 to 1.1, below 1,000 MB", ours_mb=peaks[1], theirs_mb=peaks[0],
    )  # fmt: skip
    return [figure]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_rows", description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS)
    print(*main(parser.parse_args().rows), sep="\n")
