"""What a case measured beside what was asked for: printed, kept as JSON, and shown as the table of README."""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import Times

KEPT = Path("out/benchmarks/figures.json")
_GLANCE = 0.002  # seconds between two looks at the memory of a process


@dataclass(frozen=True)
class Figure:
    """One line of the table: seconds (or another unit) of ours and of what it is held against, and their ratio.

    `ratio` is what `asked` speaks of, with its smallest and largest value over the runs.
    """

    work: str
    against: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    asked: str
    unit: str = "s"
    ours_mb: float | None = None
    theirs_mb: float | None = None

    def __str__(self) -> str:
        peak = "" if self.ours_mb is None or self.theirs_mb is None else f", {self.ours_mb:.0f} MB"
        against = "" if not peak else f", {self.theirs_mb:.0f} MB"
        return (
            f"{self.work}: {self.ours:.3g} {self.unit}{peak}; {self.against}: {self.theirs:.3g} {self.unit}{against}; "
            f"ratio {self.ratio:.3g} ({self.low:.3g} to {self.high:.3g}), asked for: {self.asked}"
        )


def faster(work: str, against: str, ours: Times, theirs: Times, asked: str) -> Figure:
    """Their time over ours, run by run."""
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return Figure(
        work, against, ours.median, theirs.median, statistics.median(ratios), min(ratios), max(ratios), asked,
        ours_mb=ours.peak_mb, theirs_mb=theirs.peak_mb,
    )  # fmt: skip


def slower(work: str, against: str, ours: Times, theirs: Times, asked: str) -> Figure:
    """Our time over theirs, run by run."""
    swapped = faster(work, against, theirs, ours, asked)
    return dataclasses.replace(
        swapped, ours=swapped.theirs, theirs=swapped.ours, ours_mb=swapped.theirs_mb, theirs_mb=swapped.ours_mb
    )


def processes_in_turn(
    commands: Mapping[str, Sequence[str]], runs: int, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Whole processes, in turns after one unmeasured run of each: seconds by the wall, and processor seconds."""
    ran: dict[str, list[Ran]] = {name: [] for name in commands}
    for run in range(runs + 1):
        for name, command in commands.items():
            found = watched(command, environment)
            ran[name] += [found] if run else []
    peaks = {name: max(r.peak_mb for r in found) or None for name, found in ran.items()}
    return (
        {name: Times(tuple(r.seconds for r in found), peaks[name]) for name, found in ran.items()},
        {name: Times(tuple(r.worked for r in found), peaks[name]) for name, found in ran.items()},
    )


@dataclass(frozen=True)
class Ran:
    """A whole process: seconds by the wall, processor seconds, and its VmHWM in MB as last seen (0 if never).

    getrusage would give this process's own peak from before exec.
    """

    seconds: float
    worked: float
    peak_mb: float


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command. Raises RuntimeError with what it said if it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as running:
        peak, status = 0.0, Path(f"/proc/{running.pid}/status")
        while running.poll() is None:
            lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
            peak = max([peak, *(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))])
            time.sleep(_GLANCE)
        if running.returncode:
            said = running.stderr.read().decode() if running.stderr else ""
            raise RuntimeError(f"{' '.join(command)}: ended with {running.returncode}: {said[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(time.perf_counter() - start, worked, peak)


def keep(case: str, figures: Sequence[Figure], path: Path = KEPT) -> None:
    """Put a case's figures into the JSON file, in place of earlier ones of the same case."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[case] = [dataclasses.asdict(figure) for figure in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def table(path: Path = KEPT) -> str:
    """Everything kept, as Markdown."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = ["| work | against | ours | theirs | ratio (spread) | asked for |", "|---|---|---|---|---|---|"]
    for figure in (Figure(**entry) for entries in kept.values() for entry in entries):
        ours, theirs = (
            f"{value:.3g} {figure.unit}" + (f", {peak:.0f} MB" if peak is not None else "")
            for value, peak in ((figure.ours, figure.ours_mb), (figure.theirs, figure.theirs_mb))
        )
        ratio = f"{figure.ratio:.3g} ({figure.low:.3g} to {figure.high:.3g})"
        lines.append(f"| {figure.work} | {figure.against} | {ours} | {theirs} | {ratio} | {figure.asked} |")
    return "\n".join(lines)


Case = Callable[[], Sequence[Figure] | None]
