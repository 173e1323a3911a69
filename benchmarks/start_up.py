"""`vaeprune --help` beside an empty program that imports the same two libraries. Asked for: at most 1.7 times."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.figures import Figure, processes_in_turn, slower

RUNS = 15


def main() -> list[Figure]:
    ours, theirs = "vaeprune --help", "import typer, rich"
    commands = {
        ours: [str(Path(sys.executable).with_name("vaeprune")), "--help"],
        theirs: [sys.executable, "-c", "import typer, rich"],
    }
    times, processor = processes_in_turn(commands, RUNS)
    asked = "at most 1.7 times as long"
    return [
        slower(ours, theirs, times[ours], times[theirs], asked),
        slower(f"{ours}, processor time", theirs, processor[ours], processor[theirs], asked),
    ]
