"""Scope `budget`: the smallest network whose ELBO loss stays within so many nats.

1. Costs: curvature and second moments on calibration rows give each layer an order of elimination with predicted costs,
   each linear link its best directions, and on request each weight its best low rank.
2. Allocation: a price per weight decides how much each gives up; predictions are corrected by measuring each alone at
   the level it was given.
3. Fit: the weights that stay are fitted anew, layer after layer.
4. Search: the price, then the way between the last two allocations, is bisected until the upper 95% bound of the loss
   on the select rows, and a margin, meets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaeprune.data import DataSets
from vaeprune.posterior import VAE
from vaeprune.surgery.allocation import Levels, allocate, between
from vaeprune.surgery.hidden import Hidden
from vaeprune.surgery.plan import Left, Plan
from vaeprune.surgery.spending import Aim, Spending

_CORRECTIONS = 2
_WORTH_MEASURING = 0.03  # of the budget: what something is predicted to cost before it is measured
_TRUSTED = 20.0  # a prediction is corrected by at most this factor
_PRICES, _BETWEEN = 10, 5
_STEP = 1.6
MARGIN = 2.0  # standard errors kept back: other rows will judge, and so miss what was met here 8 times in 100

Progress = Callable[[str, int, "int | None"], None]
Levelled = tuple[int, ...]


@dataclass(frozen=True)
class Spent:
    """The result of a search: a plan, None where nothing fits into the budget.

    `loss`, `upper`: on the select rows, nats per row, and its upper 95% bound. `size`: what is left, as a share of what
    there was. `notes`: what could not be done, and why. `left`: channels that had to stay.
    """

    plan: Plan | None
    loss: float
    upper: float
    size: float
    notes: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()


class Search:
    """One model's costs, measured once, and searches for the smallest network within a budget.

    `original`: where the model itself was cut already, what losses are held against, and which latents were kept.
    """

    def __init__(
        self,
        hidden: Hidden,
        sets: DataSets,
        aim: Aim = "size",
        factorize: bool = False,
        progress: Progress | None = None,
        original: tuple[VAE, Sequence[int]] | None = None,
    ) -> None:
        self._report = progress or (lambda _what, _more, _total: None)
        self._report("measuring costs", 0, 1)
        self._spending = Spending(hidden, sets, aim, factorize, original)
        self._report("measuring costs", 1, 1)

    def within(self, budget: float) -> Spent:
        """The smallest network found whose loss is within `budget` nats per row.

        Without layers of low rank where channels alone lead further: with more choices, a greedy search may miss that.
        """
        found = self._rounding_little(budget)
        with self._spending.channels_alone() as fewer:
            alone = self._found(budget) if fewer else found
        return min(found, alone, key=lambda spent: spent.size)

    def _rounding_little(self, budget: float) -> Spent:
        while True:
            spent = self._found(budget)
            if spent.plan is None or not self._spending.kept_whole(spent.plan):
                return spent

    def _found(self, budget: float) -> Spent:
        spending = self._spending
        factors = [1.0] * len(spending.choices)
        for _ in range(_CORRECTIONS):
            self._correct(factors, budget)
        chosen = self._bisected(budget, factors)
        if not any(chosen):
            return Spent(None, 0.0, 0.0, 1.0, spending.notes, spending.left)
        loss, error = spending.loss(chosen)
        plan = spending.plan(chosen)
        return Spent(plan, loss, loss + 1.96 * error, spending.size(chosen), spending.notes, spending.left)

    def _correct(self, factors: list[float], budget: float) -> None:
        """Measure each choice alone at the level predictions give it, and scale its predicted costs to that."""
        chosen = allocate(self._levels(factors), self._spending.tensors, self._price_for(budget, factors))
        for number, level in enumerate(chosen):
            predicted = self._spending.choices[number].costs[level - 1] if level else 0.0
            if predicted <= 0 or factors[number] * predicted < _WORTH_MEASURING * budget:
                continue
            self._report("measuring layers", 1, None)
            loss, _ = self._spending.loss([level if n == number else 0 for n in range(len(chosen))])
            if not math.isfinite(loss):  # nothing of it will fit into the budget
                loss = math.inf
            factors[number] = min(max(loss / predicted, 1 / _TRUSTED), _TRUSTED)

    def _levels(self, factors: Sequence[float]) -> list[Levels]:
        return [choice.levels(factor) for choice, factor in zip(self._spending.choices, factors, strict=True)]

    def _price_for(self, budget: float, factors: Sequence[float]) -> float:
        """The price at which the predicted costs add up to the budget."""
        levels, tensors = self._levels(factors), self._spending.tensors
        low, high = 1e-12, 1e3
        for _ in range(50):
            price = math.sqrt(low * high)
            chosen = allocate(levels, tensors, price)
            cost = sum(layer.costs[r] for layer, r in zip(levels, chosen, strict=True))
            low, high = (price, high) if cost <= budget else (low, price)
        return low

    def _bisected(self, budget: float, factors: Sequence[float]) -> Levelled:
        """The last allocation on the way from nothing to too much whose measured loss is within the budget."""
        levels, tensors = self._levels(factors), self._spending.tensors
        price, step = self._price_for(budget, factors), _STEP
        low: Levelled = (0,) * len(levels)
        high: Levelled | None = None
        known: dict[Levelled, bool] = {low: True}
        for _ in range(_PRICES):
            chosen = allocate(levels, tensors, price)
            if chosen in known and high is not None:
                break
            if known.setdefault(chosen, self._fits(chosen, budget)):
                low, price = chosen, price * step
            else:
                high, price = chosen, price / step
            if high is not None and any(low):
                step = math.sqrt(step)
        if high is None:
            return low
        near, far = 0.0, 1.0
        best = low
        for _ in range(_BETWEEN):
            share = (near + far) / 2
            chosen = between(low, high, share)
            if self._fits(chosen, budget):
                near, best = share, chosen
            else:
                far = share
        return best

    def _fits(self, chosen: Levelled, budget: float) -> bool:
        self._report("searching", 1, None)
        loss, error = self._spending.loss(chosen)
        return loss + (1.96 + MARGIN) * error <= budget
