"""How many latents several networks of one data set use: a count says little without its spread over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaeprune.analysis import Analysis


@dataclass(frozen=True)
class Count:
    """What one network's analysis comes to; `kl` is the sum over its latents of the mean KL, nats per row."""

    model: str
    active: int
    inactive: int
    mixed: int
    kl: float

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return self.active + self.inactive + self.mixed

    @classmethod
    def of(cls, model: str, analysis: Analysis) -> Count:
        """The count of a model that was analyzed."""
        active, inactive, mixed = (len(analysis.indices(v)) for v in ("active", "inactive", "mixed"))
        return cls(model, active, inactive, mixed, sum(latent.kl for latent in analysis.latents))


@dataclass(frozen=True)
class Spread:
    """Lowest, highest and mean of a number over networks."""

    lowest: float
    highest: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(min(values), max(values), statistics.fmean(values))

    def __contains__(self, value: float) -> bool:
        return self.lowest <= value <= self.highest

    def __format__(self, spec: str) -> str:
        low, high = (format(value, spec or "g") for value in (self.lowest, self.highest))
        return low if low == high else f"{low} to {high}, mean {format(self.mean, spec or '.3g')}"

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class LatentCounts:
    """Counts of several networks, in the order given."""

    models: tuple[Count, ...]

    def spread(self, name: str) -> Spread:
        """Of "active", "inactive", "mixed", "kl" or "latent_size" over the networks."""
        return Spread.of([getattr(count, name) for count in self.models])

    def to_json(self) -> dict[str, Any]:
        """Each network's counts and the spread of each number."""
        names = ("active", "inactive", "mixed", "kl")
        return {
            "models": [dataclasses.asdict(count) for count in self.models],
            **{name: dataclasses.asdict(self.spread(name)) for name in names},
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> LatentCounts:
        """Read back what `to_json` wrote."""
        return cls(tuple(Count(**count) for count in entry["models"]))
