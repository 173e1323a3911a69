"""How much each layer gives up: the least total cost for a size, by a price that all layers share.

Each layer has a list of levels: so many of its groups gone, in the order of elimination, or one of its weights replaced
by a product of so low a rank, at so many nats. For a price (nats per weight, or per FLOP) each layer takes the level of
least cost + price·size, in turn until nothing changes; that looks past steps that do not pay by themselves. A higher
price gives a smaller network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Axis = tuple[str, int]
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Levels:
    """One choice: `costs[r]` nats per row at level r (0 for none).

    `gone[axis][r]`: entries of a tensor axis lost by then. `weight`, `ranks`: the weight whose rank is `ranks[r]` at
    level r > 0.
    """

    costs: tuple[float, ...]
    gone: Mapping[Axis, tuple[int, ...]] = field(default_factory=dict)
    weight: str | None = None
    ranks: tuple[int, ...] = ()

    @property
    def keys(self) -> set[str]:
        """Tensors whose size depends on the level."""
        return {key for key, _ in self.gone} | ({self.weight} if self.weight else set())


@dataclass(frozen=True)
class State:
    """Entries gone from each tensor axis, and ranks of weights that are products."""

    gone: Mapping[Axis, int]
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Tensors:
    """What the size is made of: per tensor its shape and what each of its entries counts (1, or FLOPs per row).

    `outputs`: the output axis of each weight, where a product of low rank is split.
    """

    shapes: Mapping[str, tuple[int, ...]]
    worth: Mapping[str, float]
    outputs: Mapping[str, int] = field(default_factory=dict)

    def size(self, state: State) -> float:
        """Size of the network in this state."""
        total = 0.0
        for key, shape in self.shapes.items():
            kept = [size - state.gone.get((key, axis), 0) for axis, size in enumerate(shape)]
            entries = math.prod(kept)
            if key in state.ranks:
                outputs = kept[self.outputs[key]]
                entries = state.ranks[key] * (outputs + entries // outputs)
            total += self.worth.get(key, 0.0) * entries
        return total


def state_at(layers: Sequence[Levels], chosen: Sequence[int]) -> State:
    """What is gone, and the ranks, at these levels."""
    gone: dict[Axis, int] = {}
    ranks: dict[str, int] = {}
    for layer, level in zip(layers, chosen, strict=True):
        for axis, counts in layer.gone.items():
            gone[axis] = gone.get(axis, 0) + counts[level]
        if layer.weight and level:
            ranks[layer.weight] = layer.ranks[level]
    return State(gone, ranks)


def allocate(layers: Sequence[Levels], tensors: Tensors, price: float) -> tuple[int, ...]:
    """The level of each layer at a price in nats per unit of size."""
    chosen = [0] * len(layers)
    for _ in range(_MOST_ROUNDS):
        before = list(chosen)
        for number, layer in enumerate(layers):
            sizes = _sizes(layers, tensors, chosen, number)
            totals = [cost + price * size for cost, size in zip(layer.costs, sizes, strict=True)]
            chosen[number] = min(range(len(totals)), key=totals.__getitem__)
        if chosen == before:
            break
    return tuple(chosen)


def _sizes(layers: Sequence[Levels], tensors: Tensors, chosen: Sequence[int], number: int) -> list[float]:
    """The network's size for every level of one layer, up to a constant."""
    layer = layers[number]
    others = state_at(layers, [0 if n == number else level for n, level in enumerate(chosen)])
    part = Tensors({key: tensors.shapes[key] for key in layer.keys}, tensors.worth, tensors.outputs)
    found = []
    for level in range(len(layer.costs)):
        gone, ranks = dict(others.gone), dict(others.ranks)
        for axis, counts in layer.gone.items():
            gone[axis] += counts[level]
        if layer.weight and level:
            ranks[layer.weight] = layer.ranks[level]
        found.append(part.size(State(gone, ranks)))
    return found


def between(low: Sequence[int], high: Sequence[int], share: float) -> tuple[int, ...]:
    """Levels on the way from one allocation to another."""
    return tuple(round(a + share * (b - a)) for a, b in zip(low, high, strict=True))
