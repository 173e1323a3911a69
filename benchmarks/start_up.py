"""`vaeprune --help` beside an empty program that imports the same two libraries. Asked for: at most 2 times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.timing import in_turn, ratio


def main() -> None:
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
    for name, taken in times.items():
        print(f"{name:22} {taken}")
    print(f"ratio {ratio(times, 'vaeprune --help', 'import typer, rich')}, asked for: at most 2")
