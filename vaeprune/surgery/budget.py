"""Scope `budget`: the smallest network whose ELBO loss stays within so many nats.

1. Costs: curvature and second moments on calibration rows give each layer an order of elimination with predicted costs.
2. Allocation: a price per weight decides how many channels each layer gives up; predictions are corrected by measuring
   each layer alone at the level it was given.
3. Fit: the weights that stay are fitted anew, layer after layer.
4. Search: the price, then the way between the last two allocations, is bisected until the upper 95% bound of the loss
   on the select rows meets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.analysis.latents import interval
from vaeprune.data import DataSets, Rows
from vaeprune.posterior import Posterior, negative_elbo
from vaeprune.surgery.allocation import Axis, Levels, Tensors, allocate, between
from vaeprune.surgery.assembling import Chosen, left_of
from vaeprune.surgery.channels import Call, Channels, Group
from vaeprune.surgery.curvature import FitRows, fit_rows, measure
from vaeprune.surgery.elimination import Order, Reader, eliminate
from vaeprune.surgery.hidden import Hidden
from vaeprune.surgery.links import Basis, best_basis, linear_link
from vaeprune.surgery.observing import passes
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.refitting import Mixture, Refit, Removed, refit
from vaeprune.surgery.regression import as_matrix, columns_of

Aim = Literal["size", "latency"]

_SEARCH_ROWS, _FIT_ROWS = 8_000, 40_000
_FIT_BYTES = 1_500_000_000
_ALIVE = 12  # tensors of the largest size: two halves, six deep
_CORRECTIONS = 3
_PRICES = 14
_BETWEEN = 5
_SELECT_ROWS = 4_000


@dataclass(frozen=True)
class Spent:
    """The result of a search.

    `plan` is None where nothing fits into the budget. `loss`: measured on the select rows, nats per row, with its upper
    95% bound in `upper`. `size`: weights (or FLOPs) left, as a share of what there was.
    """

    plan: Plan | None
    loss: float
    upper: float
    size: float
    notes: tuple[str, ...] = ()


def spend(
    hidden: Hidden,
    sets: DataSets,
    budget: float,
    aim: Aim = "size",
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Spent:
    """Plan to give up channels of `hidden` as long as the upper 95% bound of the ELBO loss is within `budget` nats."""
    search = Search(hidden, sets, aim, progress)
    return search.result(budget)


class Search:
    """One model's costs, and the search for the smallest network within a budget."""

    def __init__(
        self,
        hidden: Hidden,
        sets: DataSets,
        aim: Aim,
        progress: Callable[[str, int, int | None], None] | None,
    ) -> None:
        self._hidden, self._progress = hidden, progress or (lambda _what, _more, _total: None)
        self._channels: Channels = hidden.channels
        self._subject, self._trial = (Subject(hidden.vae, double=False) for _ in range(2))
        keys = [site.key for sites in self._channels.sites.values() for site in sites]
        self._shared = frozenset(key for key in keys if keys.count(key) > 1)
        reads_shared = [
            any(self._site(c).key in self._shared for g in layer for c in g.reads) for layer in hidden.layers
        ]
        self.layers = [layer for layer, shared in zip(hidden.layers, reads_shared, strict=True) if not shared]
        self.left = left_of(
            self._channels,
            [
                (group, "what reads it is used several times, so no fit can be made for one use alone")
                for layer, shared in zip(hidden.layers, reads_shared, strict=True)
                if shared
                for group in layer
            ],
        )
        self._fit, self._many = self._rows(sets)
        calls = [(side, n) for side, sites in self._channels.sites.items() for n in range(len(sites))]
        self._progress("measuring costs", 0, 1)
        self._moments = measure(self._subject, self._fit, calls)
        self._progress("measuring costs", 1, 1)
        self._bases = [self._basis(layer) for layer in self.layers]
        self._orders = [
            basis.order if basis else self._order(layer) for layer, basis in zip(self.layers, self._bases, strict=True)
        ]
        self._tensors = self._sizes(aim)
        self._base = _losses(self._subject, sets.select)
        self._select = sets.select

    def result(self, budget: float) -> Spent:
        """Search, fit with more rows, and make the plan."""
        chosen, loss, upper = self._searched(budget)
        removed = self._removed(chosen)
        if not any(chosen):
            return Spent(None, 0.0, 0.0, 1.0, self._notes(Refit()))
        plan = self._plan(chosen, refit(self._subject, self._fit, self._moments, removed))
        size = self._tensors.size({axis: len(gone) for axis, gone in removed.of.items()}) / self._tensors.size({})
        return Spent(plan, loss, upper, size, ())

    def _searched(self, budget: float) -> tuple[tuple[int, ...], float, float]:
        factors = [1.0] * len(self.layers)
        price = self._price_for(budget, factors)
        for _ in range(_CORRECTIONS):
            self._correct(factors, allocate(self._levels(factors), self._tensors, price))
            price = self._price_for(budget, factors)
        levels = self._levels(factors)
        low, high = tuple([0] * len(self.layers)), None
        best = (low, 0.0, 0.0)
        factor = 2.0
        for _ in range(_PRICES):
            chosen = allocate(levels, self._tensors, price)
            if chosen in (low, high):
                break
            loss, upper = self._measured(chosen)
            if upper <= budget:
                low, best = chosen, (chosen, loss, upper)
                price *= factor
            else:
                high = chosen
                price /= factor
            factor = max(1.01, math.sqrt(factor)) if high is not None else factor
        if high is not None:
            near, far = 0.0, 1.0
            for _ in range(_BETWEEN):
                share = (near + far) / 2
                chosen = between(low, high, share)
                loss, upper = self._measured(chosen)
                if upper <= budget:
                    near, best = share, (chosen, loss, upper)
                else:
                    far = share
        return best

    def _price_for(self, budget: float, factors: Sequence[float]) -> float:
        """The price at which the predicted costs add up to the budget."""
        levels = self._levels(factors)
        low, high = 1e-12, 1e3
        for _ in range(60):
            price = math.sqrt(low * high)
            chosen = allocate(levels, self._tensors, price)
            cost = sum(layer.costs[r] for layer, r in zip(levels, chosen, strict=True))
            low, high = (price, high) if cost <= budget else (low, price)
        return low

    def _correct(self, factors: list[float], chosen: Sequence[int]) -> None:
        """Measure each layer alone at its level, and scale its predicted costs to that."""
        for number, level in enumerate(chosen):
            predicted = self._orders[number].costs[level - 1] if level else 0.0
            if predicted < 1e-3:
                continue
            alone = [level if n == number else 0 for n in range(len(chosen))]
            loss, _ = self._measured(alone)
            factors[number] = min(max(loss / predicted, 0.05), 20.0)

    def _measured(self, chosen: Sequence[int]) -> tuple[float, float]:
        """Loss and its upper 95% bound on the select rows, nats per row."""
        fitted = refit(self._subject, self._fit, self._moments, self._removed(chosen))
        with torch.no_grad():
            for key, value in (*fitted.weights.items(), *fitted.biases.items()):
                self._trial.weight(key).copy_(value)
        try:
            losses = _losses(self._trial, self._select) - self._base
        finally:
            with torch.no_grad():
                for key in (*fitted.weights, *fitted.biases):
                    self._trial.weight(key).copy_(self._subject.weight(key))
        error = losses.std().item() / math.sqrt(len(losses))
        return losses.mean().item(), interval(losses.mean().item(), error)[1]

    def _removed(self, chosen: Sequence[int]) -> Removed:
        gone: dict[Axis, set[int]] = {}
        for layer, order, level in zip(self.layers, self._orders, chosen, strict=True):
            for number in order.groups[:level]:
                for axis, indices in layer[number].entries.items():
                    gone.setdefault(axis, set()).update(indices)
        mixed = {
            basis.writer: Mixture(basis.channels, basis.combinations[: len(layer) - level])
            for layer, basis, level in zip(self.layers, self._bases, chosen, strict=True)
            if basis and level
        }
        return Removed({axis: frozenset(indices) for axis, indices in gone.items()}, self._shared, mixed)

    def _levels(self, factors: Sequence[float]) -> list[Levels]:
        levels = []
        for layer, order, factor in zip(self.layers, self._orders, factors, strict=True):
            gone: dict[Axis, list[int]] = {axis: [0] for group in layer for axis in group.entries}
            for number in order.groups:
                for axis, counts in gone.items():
                    counts.append(counts[-1] + len(layer[number].entries.get(axis, ())))
            costs = (0.0, *(factor * cost for cost in order.costs))
            levels.append(Levels(costs, {axis: tuple(counts) for axis, counts in gone.items()}))
        return levels

    def _basis(self, layer: Sequence[Group]) -> Basis | None:
        writer = linear_link(self._hidden.subject, self._channels, layer)
        if writer is None or self._site(writer).bias_unknown or self._site(writer).key in self._shared:
            return None
        return best_basis(self._subject, self._channels, layer, writer, self._moments)

    def _order(self, layer: Sequence[Group]) -> Order:
        readers = []
        for call in dict.fromkeys(call for group in layer for call in group.reads):
            site, moments = self._site(call), self._moments[call]
            covariance = moments.covariance()
            if covariance is None:
                continue
            weight = as_matrix(self._subject.weight(site.key), site).flatten(1).double()
            columns = [columns_of(group.reads.get(call, ()), moments.taps) for group in layer]
            readers.append(Reader(weight, covariance, moments.fisher, columns))
        return eliminate(readers, len(layer))

    def _sizes(self, aim: Aim) -> Tensors:
        shapes = {key: tuple(tensor.shape) for tensor, names in self._subject.aliases for key in names[:1]}
        if aim == "size":
            return Tensors(shapes, dict.fromkeys(shapes, 1.0))
        worth: dict[str, float] = {}
        for call, moments in self._moments.items():
            worth[self._site(call).key] = worth.get(self._site(call).key, 0.0) + 2.0 * moments.places
        return Tensors(shapes, worth)

    def _rows(self, sets: DataSets) -> tuple[FitRows, int]:
        recorder = Recorder()
        example = next(iter(batches_for(self._subject.vae, sets.select, 1)))
        posterior: Posterior = self._subject.run(lambda vae: vae.encode(*example), recorder)
        self._subject.run(lambda vae: vae.decode(posterior.mean, *example[1:]), recorder)
        row_bytes = max(result.numel() * result.element_size() for result in recorder.results)
        most = max(64, min(_SEARCH_ROWS, _FIT_BYTES // (_ALIVE * row_bytes)))
        rows = fit_rows(self._subject, _spread(self._hidden, sets, most), most, row_bytes, sets.seed)
        return rows, most

    def _site(self, call: Call):  # type: ignore[no-untyped-def]
        return self._channels.site(call)

    def _notes(self, fitted: Refit) -> tuple[str, ...]:
        return tuple(f"{key}: not fitted anew, {why}" for key, why in fitted.skipped.items())

    def _plan(self, chosen: Sequence[int], fitted: Refit) -> Plan:
        groups = [
            Chosen(layer[number], "cheap", "searched")
            for layer, order, level in zip(self.layers, self._orders, chosen, strict=True)
            for number in order.groups[:level]
        ]
        made = self._hidden.assembler.plan(groups, "budget", (*self._hidden.left, *self.left))
        kept: dict[Axis, list[int]] = {(s.key, s.axis): list(s.kept) for s in made.slices}
        changes: dict[str, Tensor] = {}
        for key, value in (*fitted.weights.items(), *fitted.biases.items()):
            change = value.double() - self._subject.weight(key).double()
            for axis in range(change.dim()):
                if (key, axis) in kept:
                    change = change.index_select(axis, torch.tensor(kept[key, axis], device=change.device))
            changes[key] = change.cpu()
        return replace(made, refits=self._hidden.assembler.all_names(changes))


def _losses(subject: Subject, rows: Rows) -> Tensor:
    """−ELBO of each row (n,), float64, with the same noise each time."""
    found = []
    with torch.no_grad():
        for inputs in passes(subject.vae, rows, seed=1, size=512):
            x, *condition = inputs.x
            posterior = subject.vae.encode(*inputs.x)
            z = posterior.sample(inputs.noise)
            found.append(negative_elbo(subject.vae, x, z, posterior, condition).double().cpu())
    return torch.cat(found)


def _spread(hidden: Hidden, sets: DataSets, most: int):  # type: ignore[no-untyped-def]
    """About `most` calibration rows, evenly from all of them."""
    total, seen = max(hidden.ranges.rows, 1), 0
    for batch in batches_for(hidden.vae, sets.calibrate):
        at = torch.arange(seen, seen + len(batch[0]))
        taken = (at * most) // total != ((at - 1) * most) // total
        if seen == 0:
            taken[0] = True
        seen += len(at)
        if taken.any():
            chosen = taken.to(batch[0].device)
            yield tuple(part[chosen] for part in batch)
