"""One plan for a scope: latents first, then hidden channels that are constant, then what a budget of nats pays for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from vaeprune.adapters import AdaptedVAE
from vaeprune.analysis import Analysis
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets
from vaeprune.errors import ModelError, TraceError, UsageError
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.budget import Search
from vaeprune.surgery.composing import composed
from vaeprune.surgery.cut import cut
from vaeprune.surgery.firing import Fired, fired
from vaeprune.surgery.hidden import Hidden, constant_channels, examine, fitting_plan
from vaeprune.surgery.plan import Left, Plan
from vaeprune.surgery.planning import chosen_latents, plan
from vaeprune.surgery.spending import Aim

Progress = Callable[[str, int, "int | None"], None]
Own = BuiltVAE | AdaptedVAE
_LATENTS_SHARE = 0.1  # of a budget: a latent saves few weights, so most of it is better spent on hidden channels


@dataclass
class Planner:
    """Plans for one model on one data set; what was traced and measured is kept, so that further budgets cost less.

    `exact` is the plan without a budget, None if nothing can go. `fired`: channels taken for constant that were not on
    the verify rows. `notes`: what could not be done, and why.
    """

    vae: Own
    sets: DataSets
    exact: Plan | None = None
    fired: tuple[Fired, ...] = ()
    notes: list[str] = field(default_factory=list)
    left: tuple[Left, ...] = ()
    _hidden: Hidden | None = None
    _searches: dict[tuple[Aim, bool], Search] = field(default_factory=dict)

    def within(
        self, budget: float, aim: Aim = "size", factorize: bool = False, progress: Progress | None = None
    ) -> Plan | None:
        """The plan that takes out the most for up to `budget` nats per row; `exact` if nothing more fits into it."""
        if self._hidden is None or not budget:  # nothing that costs anything fits into no nats at all
            return self.exact
        unbatched = self._hidden.channels.unbatched
        if unbatched:
            note = f"no budget is spent: rows of what {', '.join(sorted(unbatched))} reads cannot be told apart"
            self.notes += [note] if note not in self.notes else []
            return self.exact
        if (aim, factorize) not in self._searches:
            original = None if self.exact is None else (self.vae, self.exact.kept_latents)
            self._searches[aim, factorize] = Search(self._hidden, self.sets, aim, factorize, progress, original)
        spent = self._searches[aim, factorize].within(budget)
        self.notes += [note for note in spent.notes if note not in self.notes]
        whole = self.exact
        if spent.plan is not None:
            whole = spent.plan if whole is None else composed(whole, spent.plan)
        return whole if whole is None else replace(whole, data={**whole.data, "budget": budget})


def planner(
    vae: Own,
    sets: DataSets,
    analysis: Analysis,
    *,
    hidden: bool,
    budget: float | None = None,
    keep: Collection[int] = (),
    remove: Collection[int] = (),
    progress: Progress | None = None,
) -> Planner:
    """Make the plan without a budget: the idle latents, and with `hidden` the constant hidden channels.

    What cannot be followed stays and is noted, as long as anything can be done; else the first reason is raised
    (TraceError). `budget`: get ready for budgets about as large, and let mixed latents go that cost next to nothing.
    """
    found = Planner(vae, sets)
    refused: TraceError | ModelError | None = None
    cheap = cheap_latents(analysis, budget or 0.0, keep)
    for also in [cheap, []] if cheap else [[]]:
        if found.exact is not None or not chosen_latents(analysis, keep, [*remove, *also]):
            continue
        try:
            found.exact = plan(vae, analysis, sets, keep=keep, remove=[*remove, *also])
        except TraceError as error:
            if not hidden or (remove and not also):  # what was asked for by number is not left out with a note
                raise
            refused = error
            found.notes.append(f"latents {'that cost little ' if also else ''}stay: {error.message}")
    if hidden:
        try:
            _constants(found, budget is not None, progress)
        except (TraceError, ModelError) as error:
            refused = refused or error
            found.notes.append(f"hidden channels stay: {error.message}")
    if refused and found.exact is None and found._hidden is None:
        raise refused
    return found


def cheap_latents(analysis: Analysis, budget: float, keep: Collection[int] = ()) -> list[int]:
    """Mixed latents that may go for a small share of `budget` nats per row, the cheapest first.

    One that is fixed costs its ablation, and saves the KL that was spent on it. One latent always stays.
    """
    mixed = [latent for latent in analysis.latents if latent.verdict == "mixed" and latent.index not in keep]
    costs = {latent.index: latent.ablation_cost - latent.kl for latent in mixed if latent.ablation_cost is not None}
    chosen: list[int] = []
    spent = 0.0
    for index in sorted(costs, key=costs.__getitem__):
        spent += max(costs[index], 0.0)
        if spent <= _LATENTS_SHARE * budget and len(chosen) + 1 < len(analysis.latents) - len(
            analysis.indices("inactive")
        ):
            chosen.append(index)
    return sorted(chosen) if budget else []


def _constants(found: Planner, search: bool, progress: Progress | None) -> None:
    model = found.vae if found.exact is None else cut(found.vae, found.exact)
    report = progress or (lambda _what, _more, _total: None)
    count = found.sets.calibrate.count
    examined = examine(model, found.sets, lambda rows: report("watching hidden channels", rows, count))
    chosen, more_left = constant_channels(examined)
    made = fitting_plan(examined, chosen, more_left) if chosen else None
    found.left = (*examined.left, *more_left) if made is None else made.left
    if made is not None:
        kept = {(c.weight, c.channel) for c in made.channels}
        observed = [c for c in chosen if c.evidence != "proved" and _weights_of(examined, c) <= kept]
        found.fired = fired(examined, observed, found.sets.verify)
        found.exact = made if found.exact is None else composed(found.exact, made)
        if search:
            examined = examine(cut(model, made), found.sets)
    found._hidden = examined


def _weights_of(examined: Hidden, choice: Chosen) -> set[tuple[str, int]]:
    return {
        (examined.channels.site(call).key, channel)
        for call, channels in choice.group.writes.items()
        for channel in channels
    }


def refuse_budget(budget: float | None) -> None:
    """Raise UsageError if a budget is no number of nats."""
    if budget is not None and not (budget >= 0 and budget < float("inf")):
        raise UsageError(f"budget: got {budget}, expected a finite number of nats, at least 0")
