"""Latents that were added to a trained network, and how their KL is warmed up while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeprune.errors import TrainingError
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE
from vaeprune.training.history import Epoch


@dataclass(frozen=True)
class Growth:
    """One widening of a network: it had `latents` before, and `epoch` epochs were done.

    The weight of the new latents' KL rises linearly from 0 to 1 over the next `warm_up` epochs (Bowman et al. 2016
    raise that of all latents, at the start of a training).
    """

    latents: int
    epoch: int
    warm_up: float

    def __post_init__(self) -> None:
        for name, least in (("latents", 1), ("epoch", 0)):
            if not least <= getattr(self, name) < 2**31:
                raise TrainingError(f"growth: {name} is {getattr(self, name)}, expected at least {least}")
        if not (math.isfinite(self.warm_up) and self.warm_up >= 0):
            raise TrainingError(f"warm-up: got {self.warm_up} epochs, expected a finite number of at least 0")

    def weight(self, epochs: float) -> float:
        """Weight of the new latents' KL when so many epochs are done, counted from the very start; 0 to 1."""
        return min(1.0, max(0.0, epochs - self.epoch) / self.warm_up) if self.warm_up else 1.0

    @classmethod
    def from_json(cls, entry: object) -> Growth:
        """Read an entry of a config's training record. Raises TrainingError."""
        if not isinstance(entry, Mapping) or set(entry) != {"latents", "epoch", "warm_up"}:
            raise TrainingError(f"growth: got {entry!r:.80}, expected latents, epoch and warm_up")
        warm_up = entry["warm_up"]
        whole = all(type(entry[name]) is int for name in ("latents", "epoch"))
        if not whole or type(warm_up) not in (int, float) or not abs(warm_up) < 1e300:
            raise TrainingError(f"growth: got {dict(entry)!r:.80}, expected numbers")
        return cls(entry["latents"], entry["epoch"], float(warm_up))


def kl_weights(grown: Sequence[Growth], latent_size: int, epochs: float) -> Tensor | None:
    """The weight of each latent's KL (D,) when so many epochs are done; None where all are 1."""
    if not grown:
        return None
    weights = torch.ones(latent_size)
    for growth in grown:  # the latest growth comes last
        weights[growth.latents :] = growth.weight(epochs)
    return None if bool((weights == 1).all()) else weights


@dataclass(frozen=True)
class CameAlive:
    """How many of the `new` latents that were added last are `alive`; `weight` is that of their KL by now."""

    new: int
    alive: int
    weight: float

    def words(self) -> str:
        """The share, in a sentence."""
        ramp = (
            "" if self.weight == 1 else f"; their KL is weighted by {self.weight:.2g} so far, so more may go idle yet"
        )
        return f"{self.alive} of {self.new} new latents came alive ({self.alive / self.new:.0%}){ramp}"


def last_growth(training: Mapping[str, Any] | None) -> Growth | None:
    """The latest growth that a training records; None if there is none. Raises TrainingError."""
    grown = (training or {}).get("grown") or []
    if not isinstance(grown, list):
        raise TrainingError(f"growth: got {grown!r:.80}, expected a list")
    return Growth.from_json(grown[-1]) if grown else None


def came_alive(training: Mapping[str, Any] | None, last: Epoch) -> CameAlive | None:
    """How many latents of the last growth that a training records are alive after the epoch `last`; None if none.

    Alive is what has left the prior behind: a mean posterior variance of at most 0.8. Means that move alone are not
    enough, since `grow` gives the new ones a variance of 1 to start with.
    """
    growth = last_growth(training)
    if growth is None:
        return None
    new = len(last.variance) - growth.latents
    alive = sum(value <= INACTIVE_POSTERIOR_VARIANCE for value in last.posterior_variance[growth.latents :])
    return CameAlive(new, alive, growth.weight(last.epoch))
