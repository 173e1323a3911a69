"""What can be given up for nats: channels of a layer, directions of a linear link, the rank of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from vaeprune.architectures.low_rank import can_be_split
from vaeprune.surgery.allocation import Axis, Levels
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.channels import Call, Channels, Group
from vaeprune.surgery.curvature import Moments
from vaeprune.surgery.elimination import Order, Reader, eliminate
from vaeprune.surgery.links import Basis, best_basis, linear_link
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.refitting import Mixture
from vaeprune.surgery.regression import as_matrix, columns_of, rank_costs, root


class Choice(Protocol):
    """One thing of which more or less can be given up; level 0 is nothing."""

    def levels(self, factor: float) -> Levels:
        """Costs, multiplied by a factor that was measured, and what is gone at each level."""
        ...

    @property
    def costs(self) -> Sequence[float]:
        """Predicted nats per row at each level from 1 on."""
        ...


@dataclass(frozen=True)
class LayerChoice:
    """Channels of one layer: the groups in the order of elimination, or a linear link's directions by `basis`."""

    layer: tuple[Group, ...]
    order: Order
    basis: Basis | None

    @property
    def costs(self) -> Sequence[float]:
        """Predicted nats per row at each level from 1 on."""
        return self.order.costs

    def levels(self, factor: float) -> Levels:
        """Level r: the first r groups of the order are gone."""
        gone: dict[Axis, list[int]] = {axis: [0] for group in self.layer for axis in group.entries}
        for number in self.order.groups:
            for axis, counts in gone.items():
                counts.append(counts[-1] + len(self.layer[number].entries.get(axis, ())))
        costs = (0.0, *(factor * cost for cost in self.order.costs))
        return Levels(costs, {axis: tuple(counts) for axis, counts in gone.items()})

    def gone(self, level: int) -> list[Chosen]:
        """The groups that go at a level."""
        evidence = "searched" if self.basis is None else "searched, the others are its layer's best combinations"
        return [Chosen(self.layer[number], "cheap", evidence) for number in self.order.groups[:level]]

    def mixture(self, level: int) -> tuple[Call, Mixture] | None:
        """What a linear link's writer writes at a level."""
        if self.basis is None or not level:
            return None
        left = len(self.layer) - level
        return self.basis.writer, Mixture(self.basis.channels, self.basis.combinations[:left])


@dataclass(frozen=True)
class RankChoice:
    """A weight as a product of two: level r > 0 is rank `ranks[r]`; `path` is its module's."""

    weight: str
    path: str
    ranks: tuple[int, ...]
    costs: tuple[float, ...]

    def levels(self, factor: float) -> Levels:
        """Level r: the weight has rank `ranks[r]`."""
        return Levels((0.0, *(factor * cost for cost in self.costs)), weight=self.weight, ranks=self.ranks)


def layer_choices(
    subject: Subject,
    probe: Subject,
    channels: Channels,
    layers: Sequence[tuple[Group, ...]],
    moments: Mapping[Call, Moments],
) -> list[LayerChoice]:
    """A choice for each layer; `probe` is the model in float64, in which linear links are looked for."""
    found = []
    for layer in layers:
        writer = linear_link(probe, channels, layer)
        basis = None
        if writer is not None and not channels.site(writer).bias_unknown:
            basis = best_basis(subject, channels, layer, writer, moments)
        order = basis.order if basis else _sparing(_order(subject, channels, layer, moments), subject, layer)
        found.append(LayerChoice(layer, order, basis))
    return found


def rank_choices(
    subject: Subject, channels: Channels, moments: Mapping[Call, Moments], shared: frozenset[str]
) -> list[RankChoice]:
    """A choice for each weight of a layer that can be split and would be smaller as two."""
    found = []
    for call, seen in moments.items():
        site = channels.site(call)
        path, _, name = site.key.rpartition(".")
        covariance = seen.covariance()
        single = site.key not in shared and len(subject.names(site.key)) == 1 and not site.bias_unknown
        if not single or name != "weight" or covariance is None or seen.count < 2 * len(covariance):
            continue
        if not seen.by_taps or not can_be_split(subject.vae.network.get_submodule(path)):
            continue
        matrix = as_matrix(subject.weight(site.key), site).flatten(1)
        most = (matrix.numel() - 1) // sum(matrix.shape)
        if most < 1:
            continue
        uncentred = torch.outer(seen.total, seen.total) / seen.count**2
        read = covariance if site.bias is not None else covariance + uncentred  # a bias takes the mean over
        by_rank = rank_costs(matrix, read, seen.fisher)
        ranks = tuple(range(most, 0, -1))
        found.append(RankChoice(site.key, path, (0, *ranks), tuple(float(by_rank[r]) for r in ranks)))
    return found


def _sparing(order: Order, subject: Subject, layer: Sequence[Group]) -> Order:
    """The order without groups that would take the last channels of a tensor, as of one branch of a concatenation."""
    left: dict[Axis, int] = {}
    kept: list[tuple[int, float]] = []
    for number, cost in zip(order.groups, order.costs, strict=True):
        entries = layer[number].entries
        for axis in entries:
            left.setdefault(axis, subject.weight(axis[0]).shape[axis[1]])
        if all(left[axis] > len(gone) for axis, gone in entries.items()):
            kept.append((number, cost))
            for axis, gone in entries.items():
                left[axis] -= len(gone)
    return Order(tuple(number for number, _ in kept), tuple(cost for _, cost in kept))


def _order(subject: Subject, channels: Channels, layer: Sequence[Group], moments: Mapping[Call, Moments]) -> Order:
    readers = []
    for call in dict.fromkeys(call for group in layer for call in group.reads):
        site, seen = channels.site(call), moments[call]
        covariance = seen.covariance()
        columns = [columns_of(group.reads.get(call, ()), seen.taps) for group in layer]
        weight = as_matrix(subject.weight(site.key), site)
        if covariance is None:
            continue
        enough = seen.count >= 2 * len(covariance)
        if seen.by_taps:
            readers.append(Reader(weight.flatten(1).double(), covariance, seen.fisher, columns, enough))
            continue
        # all taps take the same combination: their costs add up to one quadratic form in the channels
        form = root(torch.einsum("oct,op,pdt->cd", weight.double(), seen.fisher, weight.double()))
        channels_alone = [list(group.reads.get(call, ())) for group in layer]
        readers.append(Reader(form, covariance, torch.eye(len(form), dtype=form.dtype), channels_alone, enough))
    return eliminate(readers, len(layer))
