"""`vaeprune --help` beside an empty program that imports the same two libraries. Asked for: at most 1.7 times."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from benchmarks.figures import Figure, faster
from benchmarks.timing import in_turn


def main() -> list[Figure]:
    script = Path(sys.executable).with_name("vaeprune")
    commands = {
        "vaeprune --help": [str(script), "--help"],
        "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    }
    calls = {
        name: (lambda c=command: subprocess.run(c, check=True, stdout=subprocess.DEVNULL))
        for name, command in commands.items()
    }
    times = in_turn(calls, runs=15)
    figure = faster("vaeprune --help", "import typer, rich", *times.values(), "at most 1.7 times as long")
    ratios = {"ratio": 1 / figure.ratio, "low": 1 / figure.high, "high": 1 / figure.low}
    return [dataclasses.replace(figure, **ratios)]
