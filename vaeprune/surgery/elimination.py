"""In which order channels go at the least cost: optimal brain surgeon, backwards.

With gram matrix S of what a weight W reads and Fisher information F of what it writes, taking out columns B and fitting
the others anew costs ½ tr(F W_B (P_BB)⁻¹ W_Bᵀ) nats, P = S⁻¹ (Hassibi and Stork 1993, for groups of columns). The
cheapest group goes, W and P are brought up to date, and so on. Where several weights read a channel their costs add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reader:
    """One weight that reads the channels of a layer.

    `weight` (O, M), `covariance` (M, M) and `fisher` (O, O), float64; `columns`: per group, its features.
    `compensated`: whether the other columns are fitted anew.
    """

    weight: Tensor
    covariance: Tensor
    fisher: Tensor
    columns: Sequence[Sequence[int]]
    compensated: bool = True


@dataclass(frozen=True)
class Order:
    """Groups in the order in which they go, and what the first so many cost together (nats per row)."""

    groups: tuple[int, ...]
    costs: tuple[float, ...]


def eliminate(readers: Sequence[Reader], groups: int) -> Order:
    """The order of all `groups` but the last one that stays."""
    states = [_State(reader) for reader in readers]
    alive = torch.ones(groups, dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    spent = 0.0
    for _ in range(groups - 1):
        cost = torch.zeros(groups, dtype=torch.float64)
        for state in states:
            cost += state.costs(alive)
        cost[~alive] = torch.inf
        cheapest = int(cost.argmin())
        spent += max(float(cost[cheapest]), 0.0)
        for state in states:
            state.remove(cheapest)
        alive[cheapest] = False
        order.append(cheapest)
        costs.append(spent)
    return Order(tuple(order), tuple(costs))


class _State:
    """One reader while its columns go."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._weight = reader.weight.clone()
        self._curved = reader.fisher @ reader.weight
        self._fisher = reader.fisher
        ridge = 1e-6 * float(reader.covariance.diagonal().mean()) + 1e-30
        eye = torch.eye(len(reader.covariance), dtype=torch.float64)
        self._covariance = reader.covariance + ridge * eye
        self._precision = torch.linalg.inv(self._covariance) if reader.compensated else None
        self._by_size: dict[int, tuple[Tensor, Tensor]] = {}
        sizes: dict[int, list[int]] = {}
        for group, columns in enumerate(reader.columns):
            sizes.setdefault(len(columns), []).append(group)
        for size, members in sizes.items():
            if size:
                at = torch.tensor([list(reader.columns[g]) for g in members])
                self._by_size[size] = (torch.tensor(members), at)

    def costs(self, alive: Tensor) -> Tensor:
        """(groups,) what taking out each one costs now."""
        found = torch.zeros(len(alive), dtype=torch.float64)
        for members, at in self._by_size.values():
            live = alive[members]
            if not live.any():
                continue
            at = at[live]
            curved = torch.einsum("ogb,ogc->gbc", self._weight[:, at], self._curved[:, at])
            if self._precision is None:
                blocks = self._covariance[at[:, :, None], at[:, None, :]]
                found[members[live]] = 0.5 * (curved * blocks).sum((1, 2))
            elif at.shape[1] == 1:
                found[members[live]] = 0.5 * curved[:, 0, 0] / self._precision[at[:, 0], at[:, 0]]
            else:
                blocks = self._precision[at[:, :, None], at[:, None, :]]
                solved = torch.linalg.solve(blocks, curved)
                found[members[live]] = 0.5 * solved.diagonal(dim1=1, dim2=2).sum(1)
        return found

    def remove(self, group: int) -> None:
        """Take out a group's columns and fit the others anew."""
        at = torch.tensor(list(self._reader.columns[group]), dtype=torch.long)
        if not len(at):
            return
        if self._precision is not None:
            rows = self._precision[at]
            share = torch.linalg.solve(rows[:, at], rows)
            self._weight -= self._weight[:, at] @ share
            self._curved -= self._curved[:, at] @ share
            self._precision -= rows.T @ share
            self._precision[at] = 0
            self._precision[:, at] = 0
            self._precision[at, at] = 1
        self._weight[:, at] = 0
        self._curved[:, at] = 0
