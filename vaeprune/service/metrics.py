"""What the service counts of itself, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Histogram:
    """Counts below limits; a fixed number of figures, however much is observed."""

    def __init__(self, limits: tuple[float, ...]) -> None:
        self._limits, self._counts, self._sum = limits, [0] * (len(limits) + 1), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._limits, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for limit, count in zip((*self._limits, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{limit}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.9g}"
        yield f"{name}_count{{{labels}}} {total}"


@dataclass
class Metrics:
    """Requests by route and status, seconds by route, rows by model call; `gauges` are read when asked for."""

    gauges: dict[str, tuple[str, Callable[[], float]]] = field(default_factory=dict)
    _requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    _seconds: dict[str, _Histogram] = field(default_factory=dict)
    _rows: dict[str, _Histogram] = field(default_factory=dict)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request to `route`, one of the service's own, was answered."""
        self._requests[route, status] += 1
        self._seconds.setdefault(route, _Histogram(_SECONDS)).observe(seconds)

    def called(self, part: str, rows: int) -> None:
        """A model was called once for `rows` rows."""
        self._rows.setdefault(part, _Histogram(_ROWS)).observe(rows)

    def text(self) -> str:
        """Everything, with a help line each."""
        lines = ["# HELP vaeprune_requests_total Requests answered.", "# TYPE vaeprune_requests_total counter"]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'vaeprune_requests_total{{route="{route}",status="{status}"}} {count}')
        for name, told, label, histograms in (
            ("vaeprune_request_seconds", "Seconds from a request's head to its answer.", "route", self._seconds),
            ("vaeprune_call_rows", "Rows that one call of a model answered together.", "part", self._rows),
        ):
            lines += [f"# HELP {name} {told}", f"# TYPE {name} histogram"]
            for key in sorted(histograms):
                lines += histograms[key].lines(name, f'{label}="{key}"')
        for name, (told, read) in self.gauges.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge", f"{name} {read():.12g}"]
        return "\n".join(lines) + "\n"
