"""Two plans, one after the other, as one plan for the first one's weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vaeprune.errors import PlanError
from vaeprune.surgery.plan import SCOPES, Plan, Slice


def composed(first: Plan, second: Plan) -> Plan:
    """`second` was made for what `first` gives; the result does both.

    Raises PlanError where `first` already fitted weights anew: what it added could not be told apart from `second`'s.
    """
    if first.refits:
        raise PlanError("plan: weights that were fitted anew are cut no further", "start again from the original")
    kept = {(s.key, s.axis): s.kept for s in first.slices}
    sizes = {(s.key, s.axis): s.size for s in first.slices}

    def original(key: str, axis: int, index: int) -> int:
        return kept[key, axis][index] if (key, axis) in kept else index

    slices = {(s.key, s.axis): s for s in first.slices}
    for part in second.slices:
        where = (part.key, part.axis)
        indices = tuple(original(*where, i) for i in part.kept)
        slices[where] = Slice(*where, sizes.get(where, part.size), indices)
    changes = dict(first.bias_changes)
    for key, change in second.bias_changes.items():
        spread = _spread(change, kept.get((key, 0)), sizes.get((key, 0)), 0.0)
        changes[key] = changes[key] + spread if key in changes else spread
    held = dict(first.held)
    for where, values in second.held.items():
        spread = _spread(values, kept.get(where), sizes.get(where), float("nan"))
        held[where] = torch.where(held[where].isnan(), spread, held[where]) if where in held else spread
    channels = tuple(replace(c, channel=original(c.weight, c.axis, c.channel)) for c in second.channels)
    removals = tuple(replace(r, latent=first.kept_latents[r.latent]) for r in second.removals)
    return replace(
        first,
        scope=max(first.scope, second.scope, key=SCOPES.index),
        removals=(*first.removals, *removals),
        slices=tuple(slices.values()),
        attributes={**first.attributes, **second.attributes},
        data={**first.data, **second.data},
        bias_changes=changes,
        channels=(*first.channels, *channels),
        left=(*first.left, *(entry for entry in second.left if entry not in first.left)),
        held=held,
        refits=dict(second.refits),
        factors=dict(second.factors),
    )


def _spread(values: Tensor, kept: tuple[int, ...] | None, size: int | None, filler: float) -> Tensor:
    """Values of the kept entries at their places among all."""
    if kept is None or size is None:
        return values
    spread = torch.full((size,), filler, dtype=values.dtype)
    spread[list(kept)] = values
    return spread
