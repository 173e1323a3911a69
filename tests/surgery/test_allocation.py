"""The levels of all layers at a price, against every combination of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeprune.surgery.allocation import Levels, State, Tensors, allocate, between, state_at


@st.composite
def networks(draw: st.DrawFn, layers: int | None = None) -> tuple[list[Levels], Tensors]:
    """A chain of dense layers: layer n writes rows of tensor n and is read by columns of tensor n + 1."""
    count = layers or draw(st.integers(1, 3))
    widths = draw(st.lists(st.integers(2, 5), min_size=count + 2, max_size=count + 2))
    shapes = {f"w{n}": (widths[n + 1], widths[n]) for n in range(count + 1)}
    found = []
    for n in range(count):
        steps = draw(st.lists(st.floats(0, 10), min_size=widths[n + 1] - 1, max_size=widths[n + 1] - 1))
        costs = (0.0, *itertools.accumulate(steps))
        counts = tuple(range(widths[n + 1]))
        found.append(Levels(costs, {(f"w{n}", 0): counts, (f"w{n + 1}", 1): counts}))
    return found, Tensors(shapes, dict.fromkeys(shapes, 1.0))


def value(layers: list[Levels], tensors: Tensors, price: float, chosen: tuple[int, ...]) -> float:
    costs = sum(layer.costs[level] for layer, level in zip(layers, chosen, strict=True))
    return costs + price * tensors.size(state_at(layers, chosen))


def everything(layers: list[Levels]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(layer.costs)) for layer in layers)))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(network=networks(layers=1), price=st.floats(1e-3, 3))
def test_one_layer_gets_the_best_level_there_is(network: tuple[list[Levels], Tensors], price: float) -> None:
    layers, tensors = network
    chosen = allocate(layers, tensors, price)
    best = min(value(layers, tensors, price, each) for each in everything(layers))
    assert value(layers, tensors, price, chosen) == pytest.approx(best, rel=1e-12)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(network=networks(), price=st.floats(1e-3, 3))
def test_no_layer_alone_can_do_better(network: tuple[list[Levels], Tensors], price: float) -> None:
    layers, tensors = network
    chosen = allocate(layers, tensors, price)
    found = value(layers, tensors, price, chosen)
    for number, layer in enumerate(layers):
        for level in range(len(layer.costs)):
            other = (*chosen[:number], level, *chosen[number + 1 :])
            assert found <= value(layers, tensors, price, other) + 1e-9


@settings(max_examples=60, derandomize=True, deadline=None)
@given(network=networks())
def test_nothing_smaller_is_as_cheap_in_one_layer_at_any_price(network: tuple[list[Levels], Tensors]) -> None:
    """What a price finds for one layer is on the frontier of cost and size."""
    layers, tensors = network
    for price in (0.01, 0.1, 1.0):
        chosen = allocate(layers[:1], tensors, price)
        cost, size = layers[0].costs[chosen[0]], tensors.size(state_at(layers[:1], chosen))
        for (level,) in everything(layers[:1]):
            smaller = tensors.size(state_at(layers[:1], (level,))) < size
            assert not (smaller and layers[0].costs[level] < cost)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(network=networks(layers=1), prices=st.tuples(st.floats(1e-3, 3), st.floats(1e-3, 3)))
def test_a_higher_price_never_gives_a_larger_layer(
    network: tuple[list[Levels], Tensors], prices: tuple[float, float]
) -> None:
    layers, tensors = network
    low, high = (allocate(layers, tensors, price)[0] for price in sorted(prices))
    assert low <= high


def test_a_step_that_does_not_pay_by_itself_is_looked_past() -> None:
    shapes = {"w": (4,)}
    layer = Levels((0.0, 5.0, 5.1, 5.2), {("w", 0): (0, 1, 2, 3)})
    assert allocate([layer], Tensors(shapes, {"w": 1.0}), 2.0) == (3,)


def test_a_layer_is_worth_less_once_its_neighbour_is_thin() -> None:
    """One entry of the middle axis is worth 10 weights, and 2 once the other axis has lost 8 of its 10."""
    tensors = Tensors({"w": (10, 10)}, {"w": 1.0})
    free = Levels((0.0,) * 9, {("w", 0): tuple(range(9))})
    dear = Levels((0.0, 5.0), {("w", 1): (0, 1)})
    assert allocate([dear], tensors, 1.0) == (1,)
    assert allocate([free, dear], tensors, 1.0) == (8, 0)


def test_size_counts_what_is_left_by_what_it_is_worth() -> None:
    tensors = Tensors({"a": (4, 3), "b": (5,)}, {"a": 2.0, "b": 1.0})
    assert tensors.size(State({}, {})) == 2 * 12 + 5
    assert tensors.size(State({("a", 0): 1, ("a", 1): 2, ("b", 0): 5}, {})) == 2 * 3 * 1


def test_the_same_axis_may_be_in_two_layers() -> None:
    one = Levels((0.0, 1.0), {("w", 0): (0, 2)})
    other = Levels((0.0, 1.0, 2.0), {("w", 0): (0, 1, 2)})
    assert state_at([one, other], (1, 2)).gone == {("w", 0): 4}


def test_between_goes_from_one_allocation_to_the_other() -> None:
    assert between((0, 4), (8, 2), 0.0) == (0, 4)
    assert between((0, 4), (8, 2), 0.5) == (4, 3)
    assert between((0, 4), (8, 2), 1.0) == (8, 2)


# ---- ranks


def test_a_weight_of_low_rank_counts_as_two() -> None:
    tensors = Tensors({"w": (6, 5, 3, 3)}, {"w": 1.0}, {"w": 0})
    assert tensors.size(State({}, {"w": 2})) == 2 * 6 + 2 * 5 * 9
    assert tensors.size(State({("w", 0): 1, ("w", 1): 2}, {"w": 2})) == 2 * 5 + 2 * 3 * 9


@settings(max_examples=60, derandomize=True, deadline=None)
@given(network=networks(), price=st.floats(1e-3, 3), data=st.data())
def test_ranks_and_channels_of_one_weight_are_settled_together(
    network: tuple[list[Levels], Tensors], price: float, data: st.DataObject
) -> None:
    layers, tensors = network
    shape = tensors.shapes["w0"]
    tensors = Tensors(tensors.shapes, tensors.worth, dict.fromkeys(tensors.shapes, 0))
    ranks = (0, *range(min(shape) - 1, 0, -1))
    steps = data.draw(st.lists(st.floats(0, 10), min_size=len(ranks) - 1, max_size=len(ranks) - 1))
    layers = [*layers, Levels((0.0, *itertools.accumulate(steps)), weight="w0", ranks=ranks)]
    chosen = allocate(layers, tensors, price)
    found = value(layers, tensors, price, chosen)
    for number, layer in enumerate(layers):
        for level in range(len(layer.costs)):
            other = (*chosen[:number], level, *chosen[number + 1 :])
            assert found <= value(layers, tensors, price, other) + 1e-9
    assert state_at(layers, chosen).ranks == ({"w0": ranks[chosen[-1]]} if chosen[-1] else {})
