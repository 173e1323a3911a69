"""`vaeprune report` on MNIST: time and memory of the process, size of the file. Asked for: under 20 s, under 5 MB.

The model, what its own shrink made of it, 60,000 + 10,000 rows: analysis, evidence with ONNX, pictures, page.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import watched

ASKED_SECONDS, ASKED_BYTES = 20, 5_000_000
MODELS = ("mnist-dense", "mnist-conv")


def main() -> None:
    folder = os.environ.get("VAEPRUNE_DATA_DIR")
    if folder is None:
        print("left out: VAEPRUNE_DATA_DIR names no folder with MNIST")
        return
    for name in MODELS:
        with tempfile.TemporaryDirectory() as room:
            _measure(name, ["--data", "mnist", "--data-dir", folder], Path(room))


def _measure(name: str, data: list[str], room: Path) -> None:
    command, small, page = [sys.executable, "-m", "vaeprune.cli"], room / "small", room / "page.html"
    cut = ["shrink", f"models/{name}", *data, "--scope", "latents", "--out", str(small), "--quiet"]
    subprocess.run([*command, *cut], check=True, stdout=subprocess.DEVNULL)
    words = ["report", f"models/{name}", "--against", str(small), *data, "--out", str(page), "--quiet"]
    ran = watched([*command, *words])
    print(
        f"{name:12} {ran.seconds:6.1f} s ({ran.worked:.1f} s of computing; {_load()}), peak {ran.peak_mb:.0f} MB, "
        f"asked for: under {ASKED_SECONDS} s; {page.stat().st_size:,} bytes, asked for: under {ASKED_BYTES:,}"
    )


def _load() -> str:
    """How busy the machine is, since seconds of a shared one say little alone."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else "load unknown"
