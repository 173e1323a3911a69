"""A layer that loses too many digits as two stays one."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from trained import sets, trained_dense
from vaeprune.analysis import analyze
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.rounding import pair_that_rounds, rounding
from vaeprune.surgery.scopes import Planner, planner

BUDGET = 2.0


def ready() -> Planner:
    return planner(trained_dense(), sets(), analyze(trained_dense(), sets(), ablate="none"), hidden=True, budget=BUDGET)


@functools.cache
def factorized() -> Plan:
    found = ready().within(BUDGET, factorize=True)
    assert found is not None
    assert found.factors
    assert not found.removals
    return found


def sheared(made: Plan, path: str) -> Plan:
    """The same product by factors whose large entries cancel."""
    down, up = made.factors[path]
    mixing = torch.eye(len(down), dtype=down.dtype) + 1e6 * torch.diag(torch.ones(len(down) - 1, dtype=down.dtype), 1)
    return replace(made, factors={**made.factors, path: (torch.linalg.solve(mixing, down), up @ mixing)})


def test_balanced_pairs_round_no_more_than_the_exact_check_allows() -> None:
    assert pair_that_rounds(trained_dense(), factorized(), sets().select) is None
    assert 0 < rounding(trained_dense(), factorized(), sets().select) < 1e-5


def test_the_pair_whose_entries_cancel_is_named() -> None:
    wide = [path for path, (down, _) in factorized().factors.items() if len(down) > 1]  # one alone cannot cancel
    assert wide
    for path in wide:
        made = sheared(factorized(), path)
        assert rounding(trained_dense(), made, sets().select) > 1e-5
        assert pair_that_rounds(trained_dense(), made, sets().select) == path


def test_a_layer_that_rounds_too_much_as_two_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = factorized().factors
    monkeypatch.setattr("vaeprune.surgery.rounding._SHARE", 0.0)  # nothing rounds as little as that
    planned = ready()
    found = planned.within(BUDGET, factorize=True)
    assert found is not None
    assert not found.factors
    alone = ready().within(BUDGET)
    assert alone is not None
    sizes = [sum(t.numel() for t in cut(trained_dense(), made).state_dict().values()) for made in (found, alone)]
    assert sizes[0] == sizes[1]
    said = "stays one layer, as two it rounds more than the exact check allows"
    assert {f"{path}: {said}" for path in usual} <= set(planned.notes)


def test_a_planner_that_was_asked_without_ranks_takes_them_when_asked_again() -> None:
    again = ready()
    without = again.within(BUDGET)
    assert without is not None
    assert not without.factors
    with_ranks = again.within(BUDGET, factorize=True)
    assert with_ranks is not None
    assert with_ranks.factors.keys() == factorized().factors.keys()
