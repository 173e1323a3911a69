"""What a budget buys, on small networks trained for a moment."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn

from planted import assert_untouched, convolutional, rows, snapshot
from trained import sets, small_tiles, trained_dense
from vaeprune.analysis import analyze
from vaeprune.architectures import BuiltVAE, DenseVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import UsageError
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
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
