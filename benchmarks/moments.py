"""The moments pass of `analyze` beside the bare encoder, the encoder beside what this machine's processor can do.

Asked for: at least 0.9 of the speed of the bare in-memory loop over the same batches, by wall clock and by processor
time (which other work on the machine disturbs less); the bare loop at 0.6 of the measured rate of matrix products,
counting its multiplications alone.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.figures import Figure, faster
from benchmarks.timing import Times, in_turn
from vaeprune.adapters import measuring
from vaeprune.adapters.measuring import batch_rows
from vaeprune.analysis.encoding_pass import accumulate
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data.rows import MemoryRows, StreamedRows
from vaeprune.data.sources import MemorySource
from vaeprune.data.tiles import tiles

ROWS = 60_000
BATCH = batch_rows((28, 28))


def network() -> DenseVAE:
    vae = DenseVAE((1, 28, 28), (256, 32, 24), (24, 32, 256), 16)
    initialise(vae, "glorot", 0)
    return vae


def speed() -> list[Figure]:
    """60,000 rows of 28×28 uint8 in memory; what the pixels are does not matter to the time."""
    vae, images = network(), tiles(ROWS, 0)
    rows = StreamedRows(MemorySource("tiles", images), 0, None)

    def bare(batch: int) -> None:
        for start in range(0, ROWS, batch):
            vae.encode(images[start : start + batch].view(-1, 1, 28, 28).float().div_(255))

    ours, theirs, large = "moments pass, 60,000 rows", f"bare loop, uint8, batches of {BATCH}", "of 4,096"
    work = {ours: lambda: accumulate(vae, rows), theirs: lambda: bare(BATCH), large: lambda: bare(4096)}
    asked = "at least 0.9"
    with measuring(vae):
        times = in_turn(work, runs=21)
        processor = in_turn(work, runs=21, clock=time.process_time)
    return [
        faster(ours, theirs, times[ours], times[theirs], asked),
        faster(ours, f"bare loop, uint8, batches {large}", times[ours], times[large], asked),
        faster(f"{ours}, processor time", theirs, processor[ours], processor[theirs], asked),
        *_limits(times[theirs]),
    ]


def _limits(bare: Times) -> list[Figure]:
    """The bare loop's multiplications and its reading, at the rates of one large product and one large copy."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    source, target = torch.rand(1 << 26), torch.empty(1 << 26)
    times = in_turn({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}, runs=9)
    flops = 2 * 2048**3 / times["product"].median
    copied = 2 * source.nbytes / times["copy"].median
    weights = sum(layer.weight.numel() for layer in network().modules() if isinstance(layer, torch.nn.Linear))
    encoder = weights - sum(layer.weight.numel() for layer in _decoder_layers())
    least = ROWS * 2 * encoder / flops
    rates = f"{flops / 1e9:.0f} GFLOP/s measured, {copied / 1e9:.0f} GB/s copied"
    ratios = [least / seconds for seconds in bare.seconds]
    ratio = statistics.median(ratios)
    work = f"bare loop, dense encoder of {encoder:,} weights"
    return [Figure(work, f"its products at {rates}", bare.median, least, ratio, min(ratios), max(ratios), "0.6")]


def _decoder_layers() -> list[torch.nn.Linear]:
    vae = network()
    return [layer for layer in (*vae.decoder.modules(), vae.output) if isinstance(layer, torch.nn.Linear)]


def on_gpu() -> list[Figure]:
    """A million rows on a GPU, whose transfer and scaling are part of it, beside the CPU."""
    if not torch.cuda.is_available():
        print("the pass on a GPU is left out: there is no CUDA device here")
        return []
    rows = MemoryRows("tiles", tiles(ROWS, 0).repeat(17, 1, 1)[:1_000_000])
    here, there = network(), network().cuda()
    ours, theirs = "moments pass, a million rows, on the GPU", "on the CPU"
    with measuring(here, there):
        times = in_turn({ours: lambda: accumulate(there, rows), theirs: lambda: accumulate(here, rows)}, runs=5)
    return [faster(ours, theirs, times[ours], times[theirs], "a figure")]


def main() -> list[Figure]:
    print(f"{torch.get_num_threads()} threads")
    return [*speed(), *on_gpu()]
