"""Files in 16 and 8 bits beside float32: size, latency in turns, and what they cost in ELBO.

The dense MNIST network, shrunk first, and the convolutional tiles network. Asked for: an int8 file of the dense MNIST
decoder of at most 0.3 of float32's size, its ELBO loss stated.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import vaeprune
from vaeprune.data import DataSets
from vaeprune.data.sets import open_data
from vaeprune.errors import ExportError
from vaeprune.exporting import Exported, Wanted, export
from vaeprune.onnx_precision import PRECISIONS
from vaeprune.posterior import VAE

MODELS = Path(__file__).parents[1] / "models"
ASKED = 0.3


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        named = os.environ.get("VAEPRUNE_DATA_DIR")
        if named:
            mnist = open_data("mnist", folder=Path(named))
            small = vaeprune.shrink(vaeprune.load(MODELS / "mnist-dense"), mnist).model
            assert small is not None
            _show("mnist-dense, shrunk", small, mnist, Path(scratch) / "mnist")
        else:
            print("mnist-dense: left out, since VAEPRUNE_DATA_DIR names no folder with MNIST")
        _show("tiles-conv", vaeprune.load(MODELS / "tiles-conv"), open_data("tiles"), Path(scratch) / "tiles")


def _show(name: str, vae: VAE, data: DataSets, out: Path) -> None:
    print(f"\n{name}, {data.verify.count:,} rows")
    print(f"{'':14}{'file / fp32':>17}{'time / fp32 at batch 1, 32, 256':>46}{'ELBO loss, nats':>24}")
    print(f"{'':14}{'enc':>9}{'dec':>8}{'encoder':>25}{'decoder':>21}")
    for precision in PRECISIONS:
        try:
            done = export(vae, data, out / precision, Wanted(precision))
        except ExportError as error:
            print(f"{precision:14}  refused: {error.message}")
            continue
        print(_line(done))
        if "mnist" in name and precision.startswith("int8"):
            share = done.file_bytes["decoder"] / done.fp32_bytes["decoder"]
            verdict = "met" if share <= ASKED else "MISSED"
            print(f"{'':14}decoder's file {share:.3f} of float32's, asked for: at most {ASKED}: {verdict}")


def _line(done: Exported) -> str:
    files = [done.file_bytes[part] / done.fp32_bytes[part] for part in ("encoder", "decoder")]
    times = {
        part: " ".join(f"{one.ratio:.2f}" for one in done.latency if one.part == part)
        for part in ("encoder", "decoder")
    }
    low, high = done.sampling.ci95
    cost = f"{done.sampling.elbo_difference:+.4f} ({low:+.4f} to {high:+.4f})"
    return f"{done.precision:14}{files[0]:>9.3f}{files[1]:>8.3f}{times['encoder']:>25}{times['decoder']:>21}{cost:>32}"
