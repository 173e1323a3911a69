"""The moments pass over one file by two processes of one thread, beside one process of one thread.

Asked for: at least 1.8 times. The time is from the first row to the merged moments, as rank 0 sees it, after a barrier.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure, faster
from benchmarks.moments import network
from benchmarks.timing import Times, peak_resident_mb
from vaeprune import ranks
from vaeprune.adapters import measuring
from vaeprune.analysis.encoding_pass import accumulate
from vaeprune.data.rows import StreamedRows
from vaeprune.data.sources import FileSource
from vaeprune.data.tiles import tiles

ROWS, RUNS = 600_000, 5


def measured(path: str) -> None:
    """The pass, timed from a barrier on; rank 0 prints the seconds."""
    rows = StreamedRows(FileSource(Path(path)), 0, None)
    vae = network()
    with measuring(vae):
        accumulate(vae, rows.part(0, 100))  # what is done for the first time is not counted
        ranks.gathered(None)
        start = time.perf_counter()
        moments = accumulate(vae, rows)
    assert moments.count == ROWS
    if ranks.rank() == 0:
        print(time.perf_counter() - start, peak_resident_mb())


def _run(words: Sequence[str], path: Path) -> tuple[float, float]:
    """Seconds, and the peak of the first process in MB."""
    command = [sys.executable, *words, "-m", "benchmarks.two_ranks", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def main() -> Sequence[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        block = tiles(ROWS // 10, 0).numpy().reshape(-1, 784)
        np.save(path, np.concatenate([block] * 10))
        two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        found: tuple[list[tuple[float, float]], ...] = ([], [])
        for _ in range(RUNS):
            for runs, words in zip(found, (two, []), strict=True):
                runs.append(_run(words, path))
    a, b = (Times(tuple(s for s, _ in runs), max(peak for _, peak in runs)) for runs in found)
    work = f"moments of {ROWS:,} rows from .npy, two processes of one thread"
    return [faster(work, "one process of one thread", a, b, "at least 1.8")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        with ranks.joined():
            measured(sys.argv[1])
    else:
        measured(sys.argv[1])
