"""How many channels each layer gives up: the least total cost for a size, by a price that all layers share.

Each layer has a list of levels: so many of its groups gone, in the order of elimination, at so many nats. For a price
(nats per weight, or per FLOP) each layer takes the level of least cost + price·size, in turn until nothing changes;
that looks past steps that do not pay by themselves. A higher price gives a smaller network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Axis = tuple[str, int]
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Levels:
    """One layer: `costs[r]` nats per row for giving up r groups (0 for none), `gone[axis][r]` entries lost by then."""

    costs: tuple[float, ...]
    gone: Mapping[Axis, tuple[int, ...]]


@dataclass(frozen=True)
class Tensors:
    """What the size is made of: per tensor its shape and what each of its entries counts (1, or FLOPs per row)."""

    shapes: Mapping[str, tuple[int, ...]]
    worth: Mapping[str, float]

    def size(self, gone: Mapping[Axis, int]) -> float:
        """Size of the network once so many entries of each axis are gone."""
        total = 0.0
        for key, shape in self.shapes.items():
            kept = math.prod(size - gone.get((key, axis), 0) for axis, size in enumerate(shape))
            total += self.worth.get(key, 0.0) * kept
        return total


def gone_at(layers: Sequence[Levels], chosen: Sequence[int]) -> dict[Axis, int]:
    """How many entries of each tensor axis go at these levels."""
    gone: dict[Axis, int] = {}
    for layer, level in zip(layers, chosen, strict=True):
        for axis, counts in layer.gone.items():
            gone[axis] = gone.get(axis, 0) + counts[level]
    return gone


def allocate(layers: Sequence[Levels], tensors: Tensors, price: float) -> tuple[int, ...]:
    """The level of each layer at a price in nats per unit of size."""
    chosen = [0] * len(layers)
    for _ in range(_MOST_ROUNDS):
        before = list(chosen)
        for number, layer in enumerate(layers):
            sizes = _sizes(layers, tensors, chosen, number)
            chosen[number] = min(range(len(layer.costs)), key=lambda r: layer.costs[r] + price * sizes[r])
        if chosen == before:
            break
    return tuple(chosen)


def _sizes(layers: Sequence[Levels], tensors: Tensors, chosen: Sequence[int], number: int) -> list[float]:
    """The network's size for every level of one layer, up to a constant."""
    layer = layers[number]
    others = [*chosen]
    others[number] = 0
    gone = gone_at(layers, others)
    touched = {key for key, _ in layer.gone}
    part = Tensors({key: tensors.shapes[key] for key in touched}, tensors.worth)
    found = []
    for level in range(len(layer.costs)):
        now = dict(gone)
        for axis, counts in layer.gone.items():
            now[axis] = now.get(axis, 0) + counts[level]
        found.append(part.size(now))
    return found


def between(low: Sequence[int], high: Sequence[int], share: float) -> tuple[int, ...]:
    """Levels on the way from one allocation to another."""
    return tuple(round(a + share * (b - a)) for a, b in zip(low, high, strict=True))
