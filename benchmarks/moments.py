"""The moments pass of `analyze` beside the bare encoder, and its peak memory on 60 thousand and 2 million rows.

Asked for: at least 80% of the speed of the bare in-memory loop; a peak that does not depend on the rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import in_turn, ratio
from vaeprune.adapters import measuring
from vaeprune.adapters.measuring import batch_rows
from vaeprune.analysis.analysis import accumulate
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data.rows import StreamedRows
from vaeprune.data.sources import FileSource, MemorySource
from vaeprune.data.tiles import tiles

ROWS, MANY = 60_000, 2_000_000
BATCH = batch_rows((28, 28))


def network() -> DenseVAE:
    vae = DenseVAE((1, 28, 28), (256, 32, 24), (24, 32, 256), 16)
    initialise(vae, "glorot", 0)
    return vae


def speed() -> None:
    """60,000 rows of 28×28 uint8 in memory; what the pixels are does not matter to the time."""
    vae, images = network(), tiles(ROWS, 0)
    rows = StreamedRows(MemorySource("tiles", images), 0, None)
    floats = images.float().div_(255).view(-1, 1, 28, 28)

    def bare(batch: int) -> None:
        for start in range(0, ROWS, batch):
            vae.encode(images[start : start + batch].view(-1, 1, 28, 28).float().div_(255))

    def bare_floats() -> None:
        for start in range(0, ROWS, BATCH):
            vae.encode(floats[start : start + BATCH])

    own = f"bare loop, uint8, batches of {BATCH}"
    work = {
        "moments pass": lambda: accumulate(vae, rows),
        own: lambda: bare(BATCH),
        "bare loop, uint8, batches of 512": lambda: bare(512),
        "bare loop, floats": bare_floats,
    }
    with measuring(vae):
        times = in_turn(work, runs=21)
    for name, taken in times.items():
        print(f"{name:38} {taken}")
    for name in [name for name in work if name != "moments pass"]:
        print(f"speed of the pass, of the {name:36} {ratio(times, name, 'moments pass')}")
    print("asked for: at least 0.8")


def memory() -> None:
    """Peak resident memory of one process each."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for count in (ROWS, MANY):
            path = Path(folder) / f"{count}.npy"
            images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 784))
            block = tiles(ROWS, 0).numpy().reshape(ROWS, 784)
            for start in range(0, count, ROWS):
                images[start : start + ROWS] = block[: count - start]
            del images
            command = [sys.executable, "-c", f"from benchmarks.moments import peak; peak({str(path)!r})"]
            peaks[count] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            path.unlink()
    for count, peak in peaks.items():
        print(f"{count:>9,} rows from .npy: {peak['seconds']:.2f} s, peak {peak['peak_mb']:.0f} MB")
    print(f"peak grows by {peaks[MANY]['peak_mb'] - peaks[ROWS]['peak_mb']:.0f} MB; asked for: not with the rows")


def peak(path: str) -> None:
    """The whole moments pass over a file; prints its time and this process's peak."""
    import time

    vae, start = network(), time.perf_counter()
    with measuring(vae):
        accumulate(vae, StreamedRows(FileSource(Path(path)), 0, None))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_resident_mb()}))


def peak_resident_mb() -> float:
    """VmHWM of this process; getrusage's ru_maxrss would include the parent's peak from before exec."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    print(f"{torch.get_num_threads()} threads")
    speed()
    memory()
