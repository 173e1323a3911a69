"""Where a disturbance shows in a run: row by row, channel by channel, and refused where rows cannot be told apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, rows
from vaeprune.errors import TraceError
from vaeprune.surgery.disturbing import Disturbed, Isolated, by_channel, differs, growth_of
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Unknown
from vaeprune.surgery.trace import FINITE_CHANGES
from vaeprune.surgery.undisturbed import undisturbed

NAN = float("nan")
FUNCTION = Unknown("bilinear", ("pairs.weight",))


def with_nan(shape: tuple[int, ...], *where: tuple[int, ...]) -> Tensor:
    value = torch.zeros(shape)
    for place in where:
        value[place] = NAN
    return value


# ---- which rows


def test_a_function_that_mixes_channels_is_noted_with_the_rows_that_reach_it() -> None:
    watch = Isolated(Recorder(), 3)
    watch.mixed("softmax", with_nan((3, 4), (1, 2)), "head")
    assert {name: found.tolist() for name, found in watch.mixers.items()} == {"softmax in head": [False, True, False]}
    watch.mixed("softmax", with_nan((3, 4), (2, 0)), "head")
    watch.mixed("softmax", torch.zeros(3, 4), "body")
    watch.mixed("softmax", torch.zeros(3, 4, dtype=torch.long), "body")
    assert {name: found.tolist() for name, found in watch.mixers.items()} == {"softmax in head": [False, True, True]}


@pytest.mark.parametrize("value", [with_nan((4, 3), (1, 2)), torch.tensor(NAN)], ids=["no batch", "a number"])
def test_what_has_no_row_for_each_of_the_batch_may_be_of_any_row(value: Tensor) -> None:
    watch = Isolated(Recorder(), 3)
    watch.mixed("layer_norm", value, "head")
    watch.unknown(FUNCTION, with_nan((4, 2), (0, 0)), "head")
    assert watch.mixers["layer_norm in head"].all()
    ((_, found),) = watch.unknowns
    assert found.all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(with_nan((3, 4), (1, 2)), [False, True, False], id="rows first"),
        pytest.param(with_nan((3, 4, 2), (2, 2, 1)), [False, False, True], id="maps"),
        pytest.param(with_nan((4, 3), (2, 0)), [True, False, False], id="rows last"),
        pytest.param(with_nan((3, 3), (0, 1)), [True, False, False], id="square"),
        pytest.param(with_nan((2, 3, 3), (0, 0, 1)), [True, True, True], id="two dimensions of that size"),
    ],
)
def test_a_call_that_is_not_understood_is_noted_with_the_rows_reaching_it(value: Tensor, expected: list[bool]) -> None:
    watch = Isolated(Recorder(), 3)
    assert watch.unknown(FUNCTION, value, "head") is value
    ((name, found),) = watch.unknowns
    assert name == "bilinear with pairs.weight in head"
    assert found.tolist() == expected


def test_every_tensor_that_comes_out_of_a_call_is_looked_at() -> None:
    watch = Isolated(Recorder(), 2)
    watch.unknown(FUNCTION, (torch.zeros(2, 2), with_nan((2, 2), (1, 1)), torch.zeros(2, dtype=torch.long)), "head")
    ((_, found),) = watch.unknowns
    assert found.tolist() == [False, True]


# ---- what a weight reads


def recorded(operand: Tensor) -> Recorder:
    """A run in which the first layer reads `operand`."""
    subject, seen = Subject(PlainVAE(), double=False), Recorder()
    subject.run(lambda vae: vae.body(operand), seen)
    return seen


def test_what_reads_one_row_for_all_the_batch_is_followed_only_row_by_row() -> None:
    """Three rows of its own, whatever the batch: as where the model looks its input up in a table."""
    table = rows(3, (5,))
    seen = recorded(table)
    (site,) = seen.sites
    alone = Isolated(seen, 1)
    assert torch.equal(alone.operand(0, site, table), table)
    moved = table.clone()
    moved[2, 3] += 1
    assert torch.equal(alone.operand(0, site, moved), table)
    assert alone.reached[0].tolist() == [[False, False, False, True, False]]
    with pytest.raises(TraceError) as error:
        Isolated(seen, 2).operand(0, site, table)
    assert error.value.message == (
        "body.weight: what it reads, of shape (3, 5), does not keep the batch of 2 rows in its first dimension"
    )


def test_a_weight_that_reads_one_row_whatever_the_batch_is_refused() -> None:
    seen = recorded(rows(1, (5,)))
    (site,) = seen.sites
    with pytest.raises(TraceError, match=r"of shape \(1, 5\), does not keep the batch of 2 rows"):
        Isolated(seen, 2).operand(0, site, rows(1, (5,)))


def test_weights_that_are_reached_in_another_order_are_refused() -> None:
    seen, elsewhere = recorded(rows(1, (5,))), Recorder()
    Subject(PlainVAE(), double=False).run(lambda vae: vae.mean(rows(1, (6,))), elsewhere)
    for call, site in ((1, seen.sites[0]), (0, elsewhere.sites[0])):
        with pytest.raises(TraceError, match="is reached in another order or shape when the input changes"):
            Isolated(seen, 1).operand(call, site, rows(1, (5,)))


# ---- what is changed


@pytest.mark.parametrize("change", FINITE_CHANGES)
def test_each_channel_changes_by_another_amount_and_none_by_less_than_was_asked(change: float) -> None:
    seen = recorded(rows(1, (5,)))
    (site,) = seen.sites
    probe = Disturbed(seen, 2, {0: torch.tensor([[True] * 6, [False, True] * 3])}, change)
    value = torch.zeros(2, 6, dtype=torch.float64)
    found = probe.result(0, site, value) / change
    assert (found[0] >= 1).all()
    assert min(abs(a - b) for a, b in itertools.combinations(found[0].tolist(), 2)) > 0.05
    assert torch.equal(found[1], torch.where(torch.tensor([False, True] * 3), found[0], 0.0))
    assert probe.result(1, site, value) is value


# ---- what grows with the batch


class Passing(nn.Module):
    """z (4) → 6 → 5, with a scale on z, and on something else that `more` makes."""

    def __init__(self, more: object) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(4))
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)
        self.more = more

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(z * self.s))) + self.more(self, z)


@pytest.mark.parametrize(
    ("more", "by_rows", "unbatched"),
    [
        pytest.param(lambda m, z: (z * m.s).sum(1, keepdim=True), True, [], id="all of it"),
        pytest.param(lambda m, z: (z.new_ones(3, 4) * m.s).sum(), False, [], id="not what passes a scale"),
        pytest.param(lambda m, z: m.first(z.new_ones(1, 4)).sum(), False, [2], id="not what a weight reads"),
        pytest.param(lambda m, z: m.first(z.repeat(2, 1)).sum(), False, [2], id="by two rows each"),
    ],
)
def test_rows_are_told_apart_only_where_all_grows_with_the_batch(
    more: object, by_rows: bool, unbatched: list[int]
) -> None:
    rest = undisturbed(Subject(PlainVAE(Passing(more)), (rows(2, (5,)),)))
    growth = growth_of(rest.subject, rest.decode, rest.decoding)
    assert growth.by_rows is by_rows
    assert sorted(growth.unbatched) == unbatched


# ---- tensors


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_rounding_is_no_difference_and_a_nan_is(dtype: torch.dtype, rounding: float) -> None:
    before = torch.tensor([100.0, 1.0, 0.0, -3.0], dtype=dtype)
    assert not differs(before, before).any()
    assert not differs(before + 10 * rounding, before).any()
    moved = before.clone()
    moved[1] += 1000 * rounding
    moved[2] = NAN
    assert differs(moved, before).tolist() == [False, True, True, False]
    assert not differs(torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)).any()
    assert differs(torch.full((2,), 1e-300, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)).sum() == 0


@pytest.mark.parametrize(
    ("mask", "dim", "rows", "expected"),
    [
        pytest.param([[True, False], [False, False]], 1, 2, [[True, False], [False, False]], id="rows"),
        pytest.param([[[False, True], [False, False]]] * 2, 1, 2, [[True, False]] * 2, id="maps"),
        pytest.param([[[False, True], [False, False]]] * 2, -1, 2, [[False, True]] * 2, id="channels last"),
        pytest.param([True, False], 1, 2, [[True], [False]], id="a number a row"),
        pytest.param([True, False, False], 0, 1, [[True, False, False]], id="one row without a batch"),
        pytest.param([False, False, True], 1, 1, [[True]], id="one row without channels"),
        pytest.param([False, False, True], -2, 1, [[True]], id="one row without channels, from the end"),
        pytest.param([[True, False], [False, False]], 1, 1, [[True, False]], id="one row that became two"),
    ],
)
def test_marks_are_gathered_by_row_and_channel(
    mask: list[object], dim: int, rows: int, expected: list[list[bool]]
) -> None:
    assert by_channel(torch.tensor(mask), dim, rows).tolist() == expected


@pytest.mark.parametrize("mask", [torch.tensor(True), torch.ones(3, 2, dtype=torch.bool)], ids=["a number", "3 rows"])
def test_marks_without_a_row_for_each_of_the_batch_are_refused(mask: Tensor) -> None:
    with pytest.raises(TraceError) as error:
        by_channel(mask, 1, 2)
    assert error.value.message == (
        f"a tensor of shape {tuple(mask.shape)} does not keep the batch of 2 rows in its first dimension"
    )
