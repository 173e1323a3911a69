"""The path a search for a latent size took, and the rules it goes by."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vaeprune.latent_counts import Count, LatentCounts
from vaeprune.shrinking import Shrunk
from vaeprune.training import Epoch, History

LARGEST_START = 64
LARGEST = 1024
_LEAST_PATIENCE = 5
_IN_USE = 0.5
_TRAVEL = 4.0  # how far a weight can move meanwhile

Decision = Literal["poorer", "double", "shrink", "keep", "collapsed"]


@dataclass(frozen=True)
class Oversized:
    """One training of a search, and what was decided on it.

    `loss`: −ELBO of the select rows, which no weight was trained on, after `epochs`, in nats per row. `settled`: the
    epoch from which on the number of latents in use stayed the same; None where it was still changing. `count`:
    verdicts of `analyze`. `decision`: "poorer" is given up for another seed; "double" trains one of twice the size;
    "shrink" and "keep" end with and without latents to cut out; "collapsed" ends with no latent active.
    """

    seed: int
    latent_size: int
    epochs: int
    loss: float
    settled: int | None
    count: Count
    decision: Decision
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Its entry in `search.json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LatentSearch:
    """The path of a search. `trainings`: every training, in order; the last one of each repetition gives its count.

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
        """The training that ended each repetition."""
        return tuple(training for training in self.trainings if training.decision not in ("poorer", "double"))

    @property
    def counts(self) -> LatentCounts:
        """The counts of the finished trainings, one for each repetition."""
        return LatentCounts(tuple(training.count for training in self.finished))

    @property
    def reason(self) -> str:
        """The answer in words, with how far the seeds agree."""
        spread = self.counts.spread("active")
        mixed = self.counts.spread("mixed")
        seeds = len(self.finished)
        found = f"active latents: {spread}" + (f", and {mixed} mixed" if mixed.highest else "")
        found += f", over {seeds} searches" if seeds > 1 else " (one search; --seeds 3 says how far that varies)"
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


def patience(epochs: int, steps: int, learning_rate: float) -> int:
    """Over how many epochs of `steps` minibatches the number of latents in use must stay the same to be settled.

    A quarter of all epochs, at least 5, and enough for a weight to travel: Adam moves one by about the learning rate a
    step, and latents of the paper's network on MNIST took 4,000 steps at 1e-3 to fade.
    """
    return max(_LEAST_PATIENCE, math.ceil(epochs / 4), math.ceil(_TRAVEL / (learning_rate * steps)))


def in_use(epoch: Epoch) -> int:
    """How many latents are plainly in use: E_x[sigma²] below ½, so that each carries at least ½ ln 2 nats.

    While latents fade their sigma² passes through all values between, so neither the idle nor the others say it early.
    """
    return sum(variance < _IN_USE for variance in epoch.posterior_variance)


def settled(history: History, patience: int) -> int | None:
    """The epoch from which on the number of latents in use stayed the same; None if that is less than `patience`."""
    counts = [in_use(epoch) for epoch in history.epochs]
    same = next((i for i, count in enumerate(reversed(counts)) if count != counts[-1]), len(counts))
    return len(counts) - same + 1 if same >= patience else None


def start_size(components: int, ceiling: int) -> int:
    """An oversized start: a tenth more than the principal components, at least one more; at most 64 and `ceiling`."""
    return min(components + max(1, math.ceil(components / 10)), LARGEST_START, ceiling)


def decide(count: Count, since: int | None, done: int, epochs: int, ceiling: int) -> tuple[Decision, str]:
    """What follows from a training: its verdicts, settled `since` an epoch, after `done` of its `epochs`."""
    size, when = count.latent_size, f"settled in epoch {since}" if since else "not settled"
    if not count.active:
        unsure = ", or training was too short" if since is None else ""
        return "collapsed", f"none of {size} is active after {done} epochs: the posterior has collapsed{unsure}"
    if count.inactive:
        return "shrink", f"{count.inactive} idle, so there were enough; {when}"
    if count.mixed:
        return "keep", f"none idle, but {count.mixed} not plainly in use; {when}"
    if since is None:
        return "keep", f"all in use, but that has not settled within {done} epochs"
    if size < ceiling:
        return "double", f"all in use since epoch {since}; given up after {done} of {epochs} epochs"
    return "keep", f"all in use since epoch {since}, but these data have no use for more than {ceiling}"
