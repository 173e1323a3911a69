"""Counts of several networks and how far they agree."""

from __future__ import annotations

import json

import pytest

from vaeprune.latent_counts import Count, LatentCounts, Spread

COUNTS = LatentCounts((Count("a", 9, 55, 0, 16.5), Count("b", 12, 51, 1, 17.0), Count("c", 9, 7, 0, 17.5)))


def test_spread_is_lowest_highest_and_mean():
    assert COUNTS.spread("active") == Spread(9, 12, 10)
    assert COUNTS.spread("kl") == Spread(16.5, 17.5, 17.0)
    assert COUNTS.spread("latent_size") == Spread(16, 64, 48)


@pytest.mark.parametrize(("value", "within"), [(8, False), (9, True), (10.5, True), (12, True), (13, False)])
def test_a_spread_holds_what_lies_between_its_ends(value, within):
    assert (value in COUNTS.spread("active")) is within


def test_spread_reads_as_a_range_or_as_one_number():
    assert str(COUNTS.spread("active")) == "9 to 12, mean 10"
    assert str(Spread.of([6, 6])) == "6"
    assert f"{COUNTS.spread('kl'):.2f}" == "16.50 to 17.50, mean 17.00"


def test_survives_json():
    assert LatentCounts.from_json(json.loads(json.dumps(COUNTS.to_json()))) == COUNTS
    assert COUNTS.to_json()["active"] == {"lowest": 9, "highest": 12, "mean": 10}
