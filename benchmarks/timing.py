"""Several things timed in turn, A B A B …, so that a drift of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Times:
    """Seconds of each counted run, and memory in MB, where that can be told.

    Of a process: the most it held. Of work within one: the most it held beyond what it held before.
    """

    seconds: tuple[float, ...]
    peak_mb: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.4g} s (min {min(self.seconds):.4g}, max {max(self.seconds):.4g})"


def in_turn(
    work: Mapping[str, Callable[[], object]], runs: int = 7, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Times]:
    """Run each once unmeasured, then all of them `runs` times in turn."""
    for call in work.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    peaks: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(runs):
        for name, call in work.items():
            before = _status_mb("VmRSS") if forget_peak() else None
            start = clock()
            call()
            seconds[name].append(clock() - start)
            peaks[name] += [] if before is None else [peak_resident_mb() - before]
    return {name: Times(tuple(s), max(peaks[name], default=None)) for name, s in seconds.items()}


def ratio(times: Mapping[str, Times], a: str, b: str) -> str:
    """a / b run by run: median and spread."""
    ratios = [x / y for x, y in zip(times[a].seconds, times[b].seconds, strict=True)]
    return f"{statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})"


def peak_resident_mb() -> float:
    """VmHWM of this process; getrusage's ru_maxrss would include the parent's peak from before exec."""
    return _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> bool:
    """Let VmHWM begin again at what is held now; false where the system cannot."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
