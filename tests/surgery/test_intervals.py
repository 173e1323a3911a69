"""Arithmetic of intervals: ends that are no numbers say nothing, and 0 times anything is 0."""

from __future__ import annotations

import math

import pytest
import torch

from vaeprune.surgery.intervals import Interval, between, by_channel, corners, rounded, unbounded, widened

INFINITY = math.inf


def ends(box: Interval) -> tuple[list[float], list[float]]:
    return box.lower.tolist(), box.upper.tolist()


def box(lower: list[float], upper: list[float]) -> Interval:
    return Interval(torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64))


def test_ends_that_are_no_numbers_or_on_the_wrong_side_say_nothing() -> None:
    found = between(
        torch.tensor([INFINITY, math.nan, -INFINITY, 1.0]), torch.tensor([-INFINITY, math.nan, INFINITY, 2.0])
    )
    assert ends(found) == ([-INFINITY, -INFINITY, -INFINITY, 1.0], [INFINITY, INFINITY, INFINITY, 2.0])


def test_each_end_is_moved_outwards() -> None:
    assert ends(widened(box([-1.0, 0.0], [2.0, 0.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1.0]))) == (
        [-1.5, 0.0],
        [2.25, 1.0],
    )
    assert ends(rounded(box([-4.0, 0.0], [2.0, 0.0]), 0.5, 1.0)) == ([-6.5, -0.5], [3.5, 0.5])
    assert ends(rounded(box([-4.0, 0.0], [2.0, 0.0]), 0.5, 0.0)) == ([-6.0, 0.0], [3.0, 0.0])


def test_a_product_takes_the_least_and_the_greatest_corner() -> None:
    found = corners(
        torch.mul,
        box([-2.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.0, 1.0]),
        box([-5.0, -1.0, -INFINITY, 2.0], [4.0, 6.0, INFINITY, INFINITY]),
    )
    assert ends(found) == ([-15.0, -2.0, 0.0, 0.0], [12.0, 12.0, 0.0, INFINITY])


@pytest.mark.parametrize("dim", [1, -3])
def test_a_channel_is_bounded_over_all_rows_and_places(dim: int) -> None:
    lower = torch.tensor([[[[1.0, -2.0]], [[5.0, 6.0]]], [[[0.0, 3.0]], [[4.0, 7.0]]]])
    assert ends(by_channel(Interval(lower, lower + 10), dim)) == ([-2.0, 4.0], [13.0, 17.0])


def test_without_rows_nothing_is_known() -> None:
    empty = torch.zeros(0, 2, dtype=torch.float64)
    assert ends(by_channel(Interval(empty, empty), 1)) == ([-INFINITY] * 2, [INFINITY] * 2)
    assert ends(unbounded(torch.zeros(1, dtype=torch.float32))) == ([-INFINITY], [INFINITY])
