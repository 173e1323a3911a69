"""Numbers of channels, and which runs tell them apart."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeprune.surgery.codes import apart, bits_for, compatible, patterns


def reached(truth: Tensor, marks: Tensor) -> Tensor:
    """(runs, columns): which columns the marked channels reach; truth (channels, columns)."""
    return (marks.double() @ truth.double()) > 0


@st.composite
def truths(draw: st.DrawFn) -> Tensor:
    channels, columns = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    chosen = draw(st.lists(st.booleans(), min_size=channels * columns, max_size=channels * columns))
    return torch.tensor(chosen).view(channels, columns)


def test_each_bit_has_a_run_for_either_value() -> None:
    assert patterns(4, 2).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]


def test_bits_that_number_so_many_channels() -> None:
    assert [bits_for([width]) for width in (1, 2, 3, 4, 5, 256, 257)] == [1, 1, 2, 2, 3, 8, 9]
    assert bits_for([3, 100, 7]) == 7


@settings(max_examples=100, derandomize=True, deadline=None)
@given(truth=truths())
def test_channels_that_reach_a_column_are_never_missing(truth: Tensor) -> None:
    found = compatible(reached(truth, patterns(len(truth), bits_for([len(truth)]))), len(truth))
    assert not (truth & ~found).any()
    alone = truth.sum(0) <= 1
    assert torch.equal(found[:, alone], truth[:, alone])


@settings(max_examples=100, derandomize=True, deadline=None)
@given(truth=truths(), more=truths())
def test_runs_that_keep_channels_apart_show_which_of_the_candidates_reach_what(truth: Tensor, more: Tensor) -> None:
    candidates = truth.clone()
    rows, columns = min(len(truth), len(more)), min(truth.shape[1], more.shape[1])
    candidates[:rows, :columns] |= more[:rows, :columns]
    runs = apart(candidates)
    marks = torch.zeros(int(runs.max()) + 1, len(truth), dtype=torch.bool)
    marks[runs, torch.arange(len(truth))] = True
    assert torch.equal(candidates & reached(truth, marks)[runs], truth)


def test_a_layer_viewed_as_maps_needs_as_many_runs_as_a_map_has_places() -> None:
    candidates = torch.eye(6, dtype=torch.bool).repeat_interleave(4, 0)  # channel c is place c % 4 of map c // 4
    assert apart(candidates).tolist() == [0, 1, 2, 3] * 6


def test_channels_that_may_all_reach_one_column_are_disturbed_one_by_one() -> None:
    assert apart(torch.ones(5, 2, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
    assert apart(torch.zeros(3, 2, dtype=torch.bool)).tolist() == [0, 0, 0]
