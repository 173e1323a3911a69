"""What a budget buys, on small networks trained for a moment."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import pytest
import torch
from torch import nn

from planted import assert_untouched, convolutional, rows, snapshot
from trained import sets, small_tiles, trained_dense
from vaeprune.analysis import analyze
from vaeprune.architectures import BuiltVAE, DenseVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import UsageError
from vaeprune.surgery.allocation import Levels, Tensors
from vaeprune.surgery.budget import MARGIN, Search, Spent
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Left, Plan
from vaeprune.surgery.scopes import Planner, planner, refuse_budget
from vaeprune.verification import elbo_difference, verify

BUDGETS = (0.3, 1.0, 3.0, 8.0)


def ready(vae: BuiltVAE, data: DataSets) -> Planner:
    return planner(vae, data, analyze(vae, data, ablate="none"), hidden=True, budget=1.0)


@functools.cache
def dense_planner() -> Planner:
    return ready(trained_dense(), sets())


@functools.cache
def within(budget: float) -> Plan:
    made = dense_planner().within(budget)
    assert made is not None
    return made


def weights(vae: nn.Module) -> int:
    return sum(parameter.numel() for parameter in vae.parameters())


def small(budget: float) -> BuiltVAE:
    return cut(trained_dense(), within(budget))


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_loss_on_the_select_rows_is_within_the_budget(budget: float) -> None:
    made = within(budget)
    assert made.scope == "budget"
    assert made.data["budget"] == budget
    assert made.refits
    kept = torch.tensor(made.kept_latents)
    found = elbo_difference(trained_dense(), small(budget), sets().select, kept, seed=1)
    assert found.elbo_difference < budget


def test_a_larger_budget_never_gives_a_larger_network() -> None:
    sizes = [weights(trained_dense()), *(weights(small(budget)) for budget in BUDGETS)]
    assert all(a > b for a, b in itertools.pairwise(sizes))


def test_a_budget_takes_more_than_what_is_constant() -> None:
    exact = dense_planner().exact
    assert exact is not None
    assert weights(small(BUDGETS[0])) < weights(cut(trained_dense(), exact))


def test_no_nats_buy_only_what_is_constant() -> None:
    assert dense_planner().within(0.0) is dense_planner().exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_cut_is_exact(dtype: torch.dtype) -> None:
    vae = cut(trained_dense(), dense_planner().exact).to(dtype) if dtype == torch.float64 else trained_dense()
    data = as_data(small_tiles().to(dtype)) if dtype == torch.float64 else sets()
    made = ready(vae, data).within(2.0) if dtype == torch.float64 else within(3.0)
    evidence = verify(vae, cut(vae, made), data, made)
    assert evidence.exact.max_relative_error <= (1e-10 if dtype == torch.float64 else 1e-5)
    assert evidence.exact.float64_max_relative_error <= 1e-10


def test_the_gates_of_a_budget_are_exact_and_the_elbo() -> None:
    evidence = verify(trained_dense(), small(3.0), sets(), within(3.0))
    names = [gate.name for gate in evidence.gates]
    assert names == ["exact", "exact in float64", "ELBO loss, upper 95% bound"]
    assert evidence.gates[-1].limit == 3.0
    assert evidence.mean_path.max_abs_error > 0


def test_a_plan_made_again_gives_the_same_weights() -> None:
    again = ready(trained_dense(), sets()).within(1.0)
    expected = small(1.0).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in cut(trained_dense(), again).state_dict().items())


def test_a_budget_without_end_leaves_one_channel_in_each_layer() -> None:
    found = cut(trained_dense(), dense_planner().within(1e4))
    sizes = [layer.out_features for layer in found.modules() if isinstance(layer, nn.Linear)]
    assert min(sizes) >= 1
    assert max(sizes[:2]) <= 2
    assert all(value.isfinite().all() for value in found.state_dict().values())


def test_the_model_stays_as_it_is() -> None:
    vae = trained_dense()
    before = snapshot(vae)
    data = as_data(small_tiles()[:400])
    ready(vae, data).within(1.0)
    assert_untouched(vae, before)


def test_too_few_rows_are_said_and_do_not_fail() -> None:
    """Some sixty rows cannot tell 48 units apart."""
    data = as_data(small_tiles()[:110])
    made = ready(trained_dense(), data)
    found = made.within(20.0)
    assert any("not fitted anew" in note and "rows are too few for" in note for note in made.notes), made.notes
    assert verify(trained_dense(), cut(trained_dense(), found), data, found).exact.max_relative_error <= 1e-5


def test_a_network_of_one_unit_a_layer_has_nothing_to_give() -> None:
    vae = DenseVAE((1, 14, 14), (1,), (1,), 1).eval()
    with torch.no_grad():
        for layer in (vae.encoder[0], vae.decoder[0]):
            layer.bias.fill_(3.0)
    assert ready(vae, as_data(small_tiles()[:400])).within(5.0) is None


# ---- the search, on costs that are known


@dataclass(frozen=True)
class Known:
    """Units of one tensor: each is predicted to cost `costs`, and costs `truly` times that."""

    key: str
    costs: tuple[float, ...]
    truly: float = 1.0

    def levels(self, factor: float) -> Levels:
        counts = tuple(range(len(self.costs) + 1))
        return Levels((0.0, *(factor * cost for cost in self.costs)), {(self.key, 0): counts})


class KnownSpending:
    """Whose losses are what its choices truly cost, with a standard error of `error`."""

    notes, left = ("a note",), (Left("w", 2, "a reason"),)

    def __init__(self, choices: list[Known], error: float = 0.0) -> None:
        self.choices, self.error = choices, error
        sizes = {choice.key: (len(choice.costs) + 1,) for choice in choices}
        self.tensors = Tensors(sizes, dict.fromkeys(sizes, 1.0))
        self.measured: list[tuple[int, ...]] = []

    def loss(self, chosen: Sequence[int]) -> tuple[float, float]:
        self.measured.append(tuple(chosen))
        costs = (c.truly * c.costs[level - 1] for c, level in zip(self.choices, chosen, strict=True) if level)
        return sum(costs), self.error

    def size(self, chosen: Sequence[int]) -> float:
        whole = sum(len(choice.costs) + 1 for choice in self.choices)
        return 1 - sum(chosen) / whole

    def plan(self, chosen: Sequence[int]) -> tuple[int, ...]:
        return tuple(chosen)

    def kept_whole(self, _plan: object) -> bool:
        return False

    @contextlib.contextmanager
    def channels_alone(self) -> Iterator[bool]:
        yield False


Report = tuple[str, int, "int | None"]


def searched(monkeypatch: pytest.MonkeyPatch, spending: KnownSpending, limit: float) -> tuple[Spent, list[Report]]:
    reports: list[Report] = []
    monkeypatch.setattr("vaeprune.surgery.budget.Spending", lambda *_: spending)
    search = Search(None, None, progress=lambda *report: reports.append(report))
    return search.within(limit), reports


def rising(count: int, first: float = 0.05) -> tuple[float, ...]:
    """The more is gone, the more costs the next."""
    return tuple(first * (n + 1) ** 2 for n in range(count))


def test_predictions_that_are_wrong_are_corrected_by_what_each_layer_costs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are predicted to cost the same, but units of the second cost a twelfth of those of the first."""
    spending = KnownSpending([Known("a", rising(30), 3.0), Known("b", rising(30), 0.25)])
    found, _ = searched(monkeypatch, spending, 2.0)
    assert found.plan == (1, 12)
    assert found.loss == found.upper == pytest.approx(0.15 + 1.8)
    assert found.size == pytest.approx(1 - 13 / 62)
    assert (found.notes, found.left) == (spending.notes, spending.left)


@pytest.mark.parametrize("truly", [math.nan, math.inf])
def test_a_layer_whose_loss_is_no_number_is_left_alone(monkeypatch: pytest.MonkeyPatch, truly: float) -> None:
    spending = KnownSpending([Known("a", rising(30), truly), Known("b", rising(30), 0.25)])
    assert searched(monkeypatch, spending, 2.0)[0].plan == (0, 12)


def test_where_nothing_fits_into_the_budget_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    spending = KnownSpending([Known("a", rising(3, 1.0)), Known("b", rising(3, 1.0))])
    found, _ = searched(monkeypatch, spending, 0.5)
    assert found == Spent(None, 0.0, 0.0, 1.0, spending.notes, spending.left)


@pytest.mark.parametrize("error", [0.1, 0.5])
def test_the_upper_bound_holds_95_times_in_100_and_has_a_margin_to_the_budget(
    monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    spending = KnownSpending([Known("a", rising(40, 0.01)), Known("b", rising(40, 0.02))], error)
    found, _ = searched(monkeypatch, spending, 8.0)
    assert found.upper == pytest.approx(found.loss + NormalDist().inv_cdf(0.975) * error, abs=1e-4)
    assert 8.0 - 0.5 <= found.upper + MARGIN * error <= 8.0


def test_progress_counts_every_measurement_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spending = KnownSpending([Known("a", rising(30), 3.0), Known("b", rising(30), 0.25), Known("c", rising(2, 1e-5))])
    _, reports = searched(monkeypatch, spending, 2.0)
    costs = [(more, total) for what, more, total in reports if what == "measuring costs"]
    assert {total for _, total in costs} == {sum(more for more, _ in costs)}
    alone = sum(more for what, more, _ in reports if what == "measuring layers")
    looked = sum(more for what, more, _ in reports if what == "searching")
    assert alone
    assert alone + looked == len(spending.measured) - 1  # the last is that of the result
    assert all(sum(level > 0 for level in chosen) == 1 for chosen in spending.measured[:alone])
    assert not any(chosen[2] for chosen in spending.measured[:alone])  # too cheap to be worth it


@pytest.mark.slow
def test_latency_is_spent_on_other_layers_than_size() -> None:
    vae = convolutional([], 3, channels=5)
    data = as_data(rows(500, vae.input_shape))
    made = {aim: ready(vae, data).within(4.0, aim) for aim in ("size", "latency")}
    smaller = {aim: cut(vae, plan) for aim, plan in made.items()}
    assert made["size"].slices != made["latency"].slices
    costs = {aim: (weights(net), flops(net)) for aim, net in smaller.items()}
    per_weight = {aim: products / size for aim, (size, products) in costs.items()}
    assert per_weight["latency"] < per_weight["size"]
    for aim, plan in made.items():
        assert verify(vae, smaller[aim], data, plan).exact.float64_max_relative_error <= 1e-10


def flops(vae: BuiltVAE) -> int:
    """Multiplications of one row."""
    total = 0

    def count(layer: nn.Module, _inputs: object, result: torch.Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * (result.numel() // result.shape[1])

    hooks = [m.register_forward_hook(count) for m in vae.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    with torch.no_grad():
        vae.decode(vae.encode(torch.zeros(1, *vae.input_shape)).mean)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("budget", [float("nan"), -0.1, float("inf"), float("-inf")])
def test_a_budget_that_is_no_number_of_nats_is_refused(budget: float) -> None:
    with pytest.raises(UsageError) as error:
        refuse_budget(budget)
    assert str(error.value) == f"budget: got {budget}, expected a finite number of nats, at least 0"


@pytest.mark.parametrize("budget", [None, 0, 0.0, 1, 2.5])
def test_a_number_of_nats_is_taken(budget: float | None) -> None:
    refuse_budget(budget)
