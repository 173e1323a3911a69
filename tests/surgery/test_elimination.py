"""The order and cost of removals, against the least-squares optimum computed afresh for every set."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeprune.surgery.elimination import Reader, eliminate


def positive(size: int, generator: torch.Generator) -> Tensor:
    """A well-conditioned positive definite matrix."""
    root = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64)
    return root @ root.T / (3 * size)


def reader(
    columns: Sequence[Sequence[int]], outputs: int = 3, spare: int = 0, seed: int = 0, **options: bool
) -> Reader:
    """A weight that reads `columns`, and `spare` further columns that stay."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(map(len, columns)) + spare
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    return Reader(weight, positive(size, generator), positive(outputs, generator), columns, **options)


def cost(of: Reader, gone: Collection[int]) -> float:
    """½ tr(F (W − W') S (W − W')ᵀ), W' the best weight whose columns of the groups `gone` are 0."""
    lost = {column for group in gone for column in of.columns[group]}
    rest = [column for column in range(of.weight.shape[1]) if column not in lost]
    best = torch.zeros_like(of.weight)
    if of.compensated:
        within = of.covariance[rest][:, rest]
        best[:, rest] = torch.linalg.solve(within, of.covariance[rest] @ of.weight.T).T
    else:
        best[:, rest] = of.weight[:, rest]
    missing = of.weight - best
    return 0.5 * float((of.fisher @ missing @ of.covariance * missing).sum())


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Reader], int]:
    """One or two weights that read groups of one to three columns each; a weight need not read every group."""
    groups = draw(st.integers(2, 5))
    readers = []
    for _ in range(draw(st.integers(1, 2))):
        sizes = draw(st.lists(st.integers(0, 3), min_size=groups, max_size=groups).filter(any))
        columns, start = [], 0
        for size in sizes:
            columns.append(range(start, start + size))
            start += size
        made = reader(columns, draw(st.integers(1, 4)), draw(st.integers(0, 2)), draw(st.integers(0, 10_000)))
        readers.append(made)
    return readers, groups


@settings(max_examples=60, derandomize=True, deadline=None)
@given(problem=problems())
def test_every_cost_is_that_of_the_best_weights_without_what_went(problem: tuple[list[Reader], int]) -> None:
    readers, groups = problem
    order = eliminate(readers, groups)
    assert len(set(order.groups)) == len(order.groups) == len(order.costs) == groups - 1
    for count, predicted in enumerate(order.costs, 1):
        expected = sum(cost(each, order.groups[:count]) for each in readers)
        assert predicted == pytest.approx(expected, rel=2e-4, abs=1e-6)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(problem=problems())
def test_at_every_step_the_cheapest_group_goes(problem: tuple[list[Reader], int]) -> None:
    readers, groups = problem
    order = eliminate(readers, groups)
    for count in range(groups - 1):
        gone = order.groups[:count]
        after = {
            group: sum(cost(each, [*gone, group]) for each in readers) for group in range(groups) if group not in gone
        }
        assert after[order.groups[count]] <= min(after.values()) * (1 + 1e-3) + 1e-6


def test_costs_never_fall() -> None:
    order = eliminate([reader([[i] for i in range(12)], 5)], 12)
    assert all(a <= b for a, b in itertools.pairwise(order.costs))


def test_costs_of_several_readers_add_up() -> None:
    first, second = reader([[0], [1]], seed=1), reader([[0], [1]], seed=2)
    both = eliminate([first, second], 2)
    assert both.costs[0] == pytest.approx(min(cost(first, [g]) + cost(second, [g]) for g in (0, 1)), rel=1e-4)


def test_a_channel_that_another_one_repeats_is_free() -> None:
    one = reader([[0], [1], [2]], spare=0)
    copy = torch.tensor([0, 1, 1])  # column 2 always reads what column 1 does
    one.covariance = one.covariance[copy][:, copy]
    order = eliminate([one], 3)
    assert order.groups[0] in (1, 2)
    assert order.costs[0] < 1e-4 < order.costs[1]


def test_without_compensation_what_stays_keeps_its_weights() -> None:
    one = reader([[0, 3], [1, 4], [2, 5]], compensated=False)
    order = eliminate([one], 3)
    first, second = order.groups
    assert order.costs[0] == pytest.approx(cost(one, [first]), rel=1e-4)
    alone = cost(one, [second])
    assert order.costs[1] == pytest.approx(order.costs[0] + alone, rel=1e-4)


def test_groups_that_cost_nearly_the_same_are_told_apart() -> None:
    weight = torch.tensor([[1 + 1e-9, 1.0, 3.0]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    order = eliminate([Reader(weight, eye, eye[:1, :1], [[0], [1], [2]], compensated=False)], 3)
    assert order.groups == (1, 0)
    assert order.costs[1] - order.costs[0] == pytest.approx(order.costs[0] * (1 + 1e-9) ** 2, rel=1e-12)


def test_what_nothing_reads_goes_first_and_for_nothing() -> None:
    order = eliminate([reader([[0], [], [1, 2]])], 3)
    assert order.groups[0] == 1
    assert order.costs[0] == 0


def test_a_single_group_stays() -> None:
    assert eliminate([reader([[0]])], 1).groups == ()


def test_a_dead_covariance_does_not_break_it() -> None:
    one = reader([[0], [1], [2]])
    one.covariance = torch.zeros(3, 3, dtype=torch.float64)
    order = eliminate([one], 3)
    assert all(c == pytest.approx(0, abs=1e-20) for c in order.costs)
