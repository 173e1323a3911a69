"""`analyze` of 60,000 MNIST rows as a whole process, beside the usual script as one. Asked for: at least 3 times."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from benchmarks.figures import Figure, faster, processes_in_turn
from vaeprune.data import open_data
from vaeprune.data.torchvision_sets import default_folder
from vaeprune.errors import DataError

MODEL, RUNS = "models/mnist-dense", 5


def main() -> Sequence[Figure]:
    try:
        open_data("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return []
    ours, theirs = "analyze --ablate none, 60,000 MNIST rows, whole process", "the usual script"
    commands = {
        ours: [sys.executable, "-m", "vaeprune.cli", "analyze", MODEL, "--data", "mnist", "--ablate", "none"],
        theirs: [sys.executable, "-m", "benchmarks.usual_script", MODEL, str(default_folder())],
    }
    times, processor = processes_in_turn(commands, RUNS, dict(os.environ))
    return [
        faster(ours, theirs, times[ours], times[theirs], "at least 3"),
        faster(f"{ours}, processor time", theirs, processor[ours], processor[theirs], "at least 3"),
    ]
