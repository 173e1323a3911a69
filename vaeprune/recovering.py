"""A budget spent with fine-tuning afterwards: how deep to cut so that the recovered network is within it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vaeprune.data import DataSets
from vaeprune.recovery import recover
from vaeprune.surgery.budget import MARGIN
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.scopes import Own, Planner, Progress
from vaeprune.surgery.spending import Aim
from vaeprune.verification import elbo_difference

Step = Callable[[Any], None]
_DEEPER = 3.0  # the first try: two epochs regain about two thirds of what a cut costs
_TRIES = 4
_STEP = 1.07  # prices closer to each other than that are not worth a training


@dataclass
class Recovery:
    """Fine-tuning for `epochs` with the model's own objective; 0 for none.

    `fair`: the original is trained as long, too, and is what results are held against (`original`).
    """

    model: Own
    sets: DataSets
    epochs: int
    fair: bool = False
    on_step: Step | None = None
    _original: Own | None = field(default=None, repr=False)

    @property
    def original(self) -> Own | None:
        """The original after the same epochs, None unless asked for."""
        if self.fair and self._original is None:
            self._original = recover(self.model, self.sets, self.epochs, on_step=self.on_step)
        return self._original

    def of(self, smaller: Own) -> Own:
        """The smaller model after its epochs."""
        training = self.model.provenance.get("training")
        return recover(smaller, self.sets, self.epochs, training=training, on_step=self.on_step)

    def loss(self, made: Plan) -> float:
        """Upper 95% bound of the ELBO loss on the select rows once the plan's model is recovered, nats per row.

        With the margin that a search keeps, since other rows will judge.
        """
        recovered = self.of(cut(self.model, made))
        kept = torch.tensor(made.kept_latents)
        found = elbo_difference(self.original or self.model, recovered, self.sets.select, kept)
        return found.ci95[1] + MARGIN * (found.ci95[1] - found.elbo_difference) / 1.96


def deepest_within(
    made: Planner, budget: float, aim: Aim, factorize: bool, recovery: Recovery | None, progress: Progress | None
) -> Plan | None:
    """The plan within `budget`; with recovery, the deepest tried whose recovered model is within it."""
    plain = made.within(budget, aim, factorize, progress)
    if recovery is None or not recovery.epochs or plain is None or plain.scope != "budget":
        return plain
    best, within, beyond = plain, Tried(budget), None
    price: float | None = budget * _DEEPER
    for _ in range(_TRIES):
        deeper = None if price is None else made.within(price, aim, factorize, progress)
        if price is None or deeper is None:
            break
        tried = Tried(price, recovery.loss(deeper))
        if tried.loss <= budget:
            best, within = deeper, tried
        else:
            beyond = tried
        price = next_price(within, beyond, budget)
    return _for(best, budget)


@dataclass(frozen=True)
class Tried:
    """A cut as deep as `price` allows without recovery, and what it loses with it; NaN where that was not measured."""

    price: float
    loss: float = math.nan


def next_price(within: Tried, beyond: Tried | None, budget: float) -> float | None:
    """How deep to cut next, between the deepest that was within the budget and what was not; None if that is no use.

    Where both are measured, as if the loss were a line between them: recovery regains part of it whatever the depth, so
    the line does not go through 0. Where one is not, halfway in the logarithm; while all was within, further on.
    """
    low = within.price * _STEP
    if beyond is None:
        return min(max(within.price * budget / max(within.loss, budget / _DEEPER), low), within.price * _DEEPER)
    high = beyond.price / _STEP
    if low >= high:
        return None
    if math.isnan(within.loss) or not math.isfinite(beyond.loss):
        return math.sqrt(within.price * beyond.price)
    share = (budget - within.loss) / (beyond.loss - within.loss)
    return min(max(within.price + share * (beyond.price - within.price), low), high)


def _for(made: Plan, budget: float) -> Plan:
    """The plan, marked with the budget that judges its recovered model."""
    return replace(made, data={**made.data, "budget": budget})
