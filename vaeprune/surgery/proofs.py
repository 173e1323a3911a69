"""Which constants are proved: interval bounds over the input's declared range, and over a stated range of z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeprune.data import DataSets
from vaeprune.posterior import VAE
from vaeprune.surgery.bounds import Interval, operand_bounds
from vaeprune.surgery.channels import Call
from vaeprune.surgery.probe import Subject

_LEAST_LATENT = 6.0  # standard deviations of the prior; one draw in 5·10^8 lies beyond


@dataclass(frozen=True)
class Proofs:
    """Bounds of what each call reads if x lies in `input_range` (None: none is declared) and |z| ≤ `latent_range`."""

    input_range: tuple[float, float] | None
    latent_range: float
    bounds: dict[Call, Interval]

    def constant(self, call: Call, columns: Sequence[int], values: Tensor, tolerance: float) -> bool:
        """Whether these columns can never be further than `tolerance` from `values`."""
        interval = self.bounds.get(call)
        if interval is None:
            return False
        at = list(columns)
        above, below = interval.upper[at] - values, values - interval.lower[at]
        return bool((above <= tolerance).all() and (below <= tolerance).all())

    def describe(self) -> dict[str, Any]:
        """What a plan records of the ranges behind `proved`."""
        declared = None if self.input_range is None else list(self.input_range)
        return {"proved_for_input_range": declared, "proved_for_latent_range": self.latent_range}


def prove(subject: Subject, sets: DataSets, largest_latent: float) -> Proofs:
    """Bound what every weight reads. `largest_latent`: of any |z| seen; the range is at least six, and wider than that.

    The input's range is declared where pictures were scaled to it, or by the Bernoulli likelihood; else x is unbounded
    and only what does not depend on it is proved.
    """
    vae = subject.vae
    declared = sets.calibrate.scaled_to or ((0.0, 1.0) if vae.likelihood.kind == "bernoulli" else None)
    reach = max(_LEAST_LATENT, float(math.ceil(largest_latent)))
    low, high = declared or (-math.inf, math.inf)
    condition = [part[:1] for part in subject.example[1:]]

    def encode(vae: VAE, x: Tensor) -> Any:
        return vae.encode(x, *condition)

    def decode(vae: VAE, z: Tensor) -> Any:
        return vae.decode_parameters(z, *condition)

    bounds: dict[Call, Interval] = {}
    for side, run, shape, ends in (
        ("encode", encode, vae.input_shape, (low, high)),
        ("decode", decode, vae.latent_shape, (-reach, reach)),
    ):
        box = Interval(*(torch.full((1, *shape), end, dtype=torch.float64) for end in ends))
        try:
            found = operand_bounds(subject, run, box)
        except Exception:  # noqa: BLE001, S112  the model's own code may refuse this input; nothing is proved then
            continue
        bounds |= {(side, call): interval for call, interval in enumerate(found)}  # type: ignore[misc]
    return Proofs(declared, reach, bounds)
