"""The path a search for a latent size took, and the rules it goes by."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vaeprune.latent_counts import Count, LatentCounts
from vaeprune.shrinking import Shrunk
from vaeprune.training import History

LARGEST_START = 64
LARGEST = 1024
_LEAST_PATIENCE = 5

Decision = Literal["double", "shrink", "keep", "collapsed"]


@dataclass(frozen=True)
class Oversized:
    """One training of a search, and what was decided on it.

    `loss`: −ELBO of the select rows, which no weight was trained on, after `epochs`, in nats per row. `settled`: the
    epoch from which on the number of idle latents stayed the same; None where it was still changing. `count`: verdicts
    of `analyze`. `decision`: "double" trains one of twice the size; "shrink" and "keep" end with and without latents
    to cut out; "collapsed" ends with no latent active.
    """

    seed: int
    latent_size: int
    epochs: int
    loss: float
    settled: int | None
    count: Count
    decision: Decision
    reason: str

    @property
    def in_use(self) -> int:
        """Latents that are not idle: active and mixed."""
        return self.count.active + self.count.mixed

    def to_json(self) -> dict[str, Any]:
        """Its entry in `search.json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LatentSearch:
    """The path of a search. `trainings`: every training, in order; the last one of each seed gives its count.

    `components`: principal components that hold 99% of the variance of the training rows. `chosen`: the seed whose
    network was shrunk into `out`, the one with the lowest loss; None where all collapsed. `latent_size`: that of `out`.
    `shrunk`: the result of `shrink`, with the evidence; it is not read back from JSON.
    """

    data: str
    components: int
    trainings: tuple[Oversized, ...]
    chosen: int | None = None
    latent_size: int | None = None
    out: Path | None = None
    notes: tuple[str, ...] = ()
    shrunk: Shrunk | None = field(default=None, compare=False, repr=False)

    @property
    def finished(self) -> tuple[Oversized, ...]:
        """The training that ended each seed's search."""
        return tuple(training for training in self.trainings if training.decision != "double")

    @property
    def counts(self) -> LatentCounts:
        """The counts of the finished trainings, one a seed."""
        return LatentCounts(tuple(training.count for training in self.finished))

    @property
    def reason(self) -> str:
        """The answer in words, with how far the seeds agree."""
        spread = self.counts.spread("active")
        mixed = self.counts.spread("mixed")
        seeds = len(self.finished)
        found = f"active latents: {spread}" + (f", and {mixed} mixed" if mixed.highest else "")
        found += f", over {seeds} seeds" if seeds > 1 else " (one seed; --seeds 3 says how far that varies)"
        if self.chosen is None:
            return (
                f"{found}; no network is kept: either rows have nothing in common that latents could tell (noise), or "
                "the training needs more --epochs or another --learning-rate"
            )
        return f"{found}; seed {self.chosen} was kept" + (", which has the lowest loss" if seeds > 1 else "")

    def to_json(self) -> dict[str, Any]:
        """What `search.json` holds."""
        return {
            "data": self.data,
            "components": self.components,
            "trainings": [training.to_json() for training in self.trainings],
            "counts": self.counts.to_json(),
            "chosen": self.chosen,
            "latent_size": self.latent_size,
            "out": str(self.out) if self.out else None,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> LatentSearch:
        """Read back what `to_json` wrote."""
        trainings = tuple(Oversized(**t | {"count": Count(**t["count"])}) for t in entry["trainings"])
        out = Path(entry["out"]) if entry["out"] else None
        fixed = {name: entry[name] for name in ("data", "components", "chosen", "latent_size")}
        return cls(**fixed, trainings=trainings, out=out, notes=tuple(entry["notes"]))


def patience(epochs: int) -> int:
    """Over how many epochs the number of idle latents must stay the same: a quarter of all, at least 5."""
    return max(_LEAST_PATIENCE, math.ceil(epochs / 4))


def settled(history: History, epochs: int) -> int | None:
    """The epoch from which on the number of idle latents (`Epoch.n_inactive`) stayed the same.

    None if that is less than `patience(epochs)` epochs, `epochs` being what the whole training has.
    """
    counts = [epoch.n_inactive for epoch in history.epochs]
    same = next((i for i, count in enumerate(reversed(counts)) if count != counts[-1]), len(counts))
    return len(counts) - same + 1 if same >= patience(epochs) else None


def start_size(components: int, ceiling: int) -> int:
    """An oversized start: a tenth more than the principal components, at least one more; at most 64 and `ceiling`."""
    return min(components + max(1, math.ceil(components / 10)), LARGEST_START, ceiling)


def decide(count: Count, idle: int, since: int | None, done: int, epochs: int, ceiling: int) -> tuple[Decision, str]:
    """What follows from a training: `idle` latents, their number unchanged `since` an epoch, `done` of its epochs."""
    size = count.latent_size
    steady = f"the same number since epoch {since}" if since else "the number still changing"
    if not count.active and idle:
        short = " or was trained too briefly" if since is None else ""
        return "collapsed", f"none of {size} is active after {done} epochs: the posterior has collapsed{short}"
    if idle:
        return ("shrink" if count.inactive else "keep"), f"{idle} idle, {steady}: there were enough"
    if size < ceiling:
        stopped = f"so after {done} of {epochs} epochs it was given up" if done < epochs else "after all its epochs"
        return "double", f"none idle, {steady}, {stopped}"
    return "keep", f"none idle, {steady}, but more than {ceiling} latents make no sense for these data"
