"""Budgets and fine-tuning on the whole road: what is written, what is judged, and what is left out."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from planted import assert_untouched, dense, rows, snapshot
from trained import sets, small_tiles, trained_dense
from vaeprune.data import as_data
from vaeprune.errors import PlanError, UsageError, VerificationFailed
from vaeprune.evidence import Evidence, Tolerances
from vaeprune.model_folder import load
from vaeprune.recovering import Recovery, Tried, deepest_within, next_price
from vaeprune.shrinking import Shrunk, Wanted, shrink
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan, read_plan
from vaeprune.verification import verify

BUDGET = 4.0
WIDE = Tolerances(output=10.0, elbo=1e6, onnx=1.0)


# ---- a budget without fine-tuning


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    out = tmp_path_factory.mktemp("spent") / "small"
    return shrink(trained_dense(), sets(), out, budget=BUDGET, source="models/tiles")


def test_the_folder_holds_a_network_within_the_budget(spent: Shrunk) -> None:
    assert spent.plan.scope == "budget"
    assert spent.evidence.passed
    assert spent.evidence.sampling.ci95[1] <= BUDGET
    assert spent.evidence.exact.max_relative_error <= 1e-5
    assert spent.evidence.fair is None
    assert spent.parameters[1] < 0.7 * spent.parameters[0]
    assert load(spent.out).architecture() == spent.model.architecture()


def test_json_holds_what_was_spent(spent: Shrunk) -> None:
    entry = json.loads(json.dumps(spent.to_json(), allow_nan=False))
    assert entry["scope"] == "budget"
    assert entry["removed_channels"] == len(spent.plan.channels) > 0
    assert entry["parameters"]["after"] == spent.parameters[1]
    assert entry["evidence"]["gates"][-1]["name"] == "ONNX decoder"
    assert {"out", "latent_size", "removed_latents", "advice", "left", "notes"} <= entry.keys()


def test_the_card_names_the_budget(spent: Shrunk) -> None:
    card = (spent.out / "README.md").read_text()
    assert f"a budget of {BUDGET:g} nats of ELBO per row" in card
    assert "Removed hidden channels: " in card
    assert "fine-tuned" not in card


def test_the_plan_gives_the_same_weights_to_the_bit(spent: Shrunk) -> None:
    again = cut(trained_dense(), read_plan(spent.out)).state_dict()
    replayed = shrink(trained_dense(), sets(), replay=read_plan(spent.out))
    for key, value in load(spent.out).state_dict().items():
        assert torch.equal(value, again[key])
        assert torch.equal(value, replayed.model.state_dict()[key])
    assert replayed.evidence.gates == tuple(g for g in spent.evidence.gates if not g.name.startswith("ONNX"))


def test_the_evidence_can_be_had_again(spent: Shrunk) -> None:
    again = verify(trained_dense(), load(spent.out), sets(), read_plan(spent.out), onnx=spent.out)
    assert again.passed
    assert again.sampling == spent.evidence.sampling
    assert Evidence.from_json(json.loads((spent.out / "evidence.json").read_text())) == spent.evidence


def test_the_onnx_files_compute_the_small_network(spent: Shrunk) -> None:
    x = small_tiles()[:7]
    small = load(spent.out)
    sessions = [
        onnxruntime.InferenceSession(spent.out / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    ]
    mu, logvar = sessions[0].run(None, {"x": x.numpy()})
    (x_hat,) = sessions[1].run(None, {"z": mu})
    with torch.no_grad():
        posterior = small.encode(x)
        np.testing.assert_allclose(mu, posterior.mean, atol=1e-4)
        np.testing.assert_allclose(logvar, posterior.logvar, atol=1e-4)
        np.testing.assert_allclose(x_hat, small.decode(posterior.mean), atol=1e-4)


def test_other_weights_cannot_be_cut_by_it(spent: Shrunk) -> None:
    with pytest.raises(PlanError, match="other weights"):
        shrink(dense([], input_shape=(1, 14, 14)), sets(), replay=read_plan(spent.out))


def test_a_gate_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeprune.shrinking.export_onnx", lambda _, folder: (folder / "encoder.onnx").write_bytes(b""))
    monkeypatch.setattr("vaeprune.verification.onnx_errors", lambda *_: None)
    monkeypatch.setattr("vaeprune.evidence.EXACT_TOLERANCE", {torch.float32: -1.0, torch.float64: -1.0})
    with pytest.raises(VerificationFailed) as error:
        shrink(trained_dense(), sets(), tmp_path / "out", budget=BUDGET)
    assert error.value.result.plan.scope == "budget"
    assert list(tmp_path.iterdir()) == []


def test_no_nats_are_the_exact_plan() -> None:
    nothing = shrink(trained_dense(), sets(), budget=0.0)
    exact = shrink(trained_dense(), sets())
    assert nothing.plan.scope == exact.plan.scope == "network"
    assert nothing.plan.slices == exact.plan.slices
    assert nothing.evidence == exact.evidence


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"budget": math.nan}, "budget: got nan, expected a finite number of nats, at least 0"),
        ({"budget": -1.0}, "budget: got -1.0, expected a finite number of nats, at least 0"),
        ({"budget": math.inf}, "budget: got inf, expected a finite number of nats, at least 0"),
        ({"scope": "latents", "budget": 1.0}, "budget: pays for hidden channels, but the scope is 'latents'"),
        ({"scope": "budget"}, "scope: got 'budget', expected 'latents' or 'network'"),
        ({"aim": "speed"}, "aim: got 'speed', expected 'size' or 'latency'"),
        ({"recover_epochs": -1}, "recover-epochs: got -1, expected at least 0"),
        ({"fair": True}, "fair: the original can only be trained as long if recover-epochs is more than 0"),
    ],
    ids=str,
)
def test_wishes_that_make_no_sense_are_refused_before_any_work(
    wanted: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaeprune.shrinking.as_data", None)
    with pytest.raises(UsageError) as error:
        shrink(trained_dense(), sets(), **wanted)
    assert str(error.value).startswith(told)
    with pytest.raises(UsageError):
        Wanted(**wanted)


# ---- with fine-tuning


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    out = tmp_path_factory.mktemp("recovered") / "small"
    before = snapshot(trained_dense())
    result = shrink(trained_dense(), sets(), out, budget=BUDGET, recover_epochs=1, fair=True, source="models/tiles")
    assert_untouched(trained_dense(), before)
    return result


def test_nothing_is_exact_after_fine_tuning_and_the_same_epochs_are_given(recovered: Shrunk) -> None:
    assert recovered.evidence.exact is None
    assert recovered.evidence.fair is not None
    assert recovered.evidence.fair != recovered.evidence.sampling
    names = [gate.name for gate in recovered.evidence.gates]
    assert names == ["ELBO loss, upper 95% bound, same epochs", "ONNX encoder", "ONNX decoder"]
    assert recovered.evidence.gates[0].measured == recovered.evidence.fair.ci95[1] <= BUDGET
    assert recovered.plan.data["budget"] == BUDGET
    written = json.loads((recovered.out / "evidence.json").read_text())
    assert written["exact"] is None
    assert written["fair"].keys() == {"elbo_difference", "ci95"}
    assert Evidence.from_json(written) == recovered.evidence


def test_fine_tuning_lets_the_cut_go_deeper(recovered: Shrunk, spent: Shrunk) -> None:
    assert recovered.parameters[1] <= spent.parameters[1]


def test_the_card_says_that_the_plan_alone_does_not_make_the_weights(recovered: Shrunk) -> None:
    card = " ".join((recovered.out / "README.md").read_text().split())
    assert "fine-tuned for 1 epoch" in card
    assert "weights cannot be made from `plan.json` alone" in card
    config = json.loads((recovered.out / "config.json").read_text())
    assert config["shrunk"]["recovered_epochs"] == 1


def test_the_weights_are_not_those_of_the_plan(recovered: Shrunk) -> None:
    plain = cut(trained_dense(), read_plan(recovered.out)).state_dict()
    tuned = load(recovered.out).state_dict()
    assert plain.keys() == tuned.keys()
    assert all(plain[key].shape == tuned[key].shape for key in plain)
    assert not any(torch.equal(plain[key], tuned[key]) for key in plain if key.endswith("weight"))


@pytest.mark.parametrize(
    ("within", "beyond", "price"),
    [
        (Tried(3.0, 0.5), None, 6.0),  # further on, as if the loss grew with the price
        (Tried(3.0, 0.01), None, 9.0),  # but no more than three times as deep
        (Tried(1.0), Tried(4.0, 1.3), 2.0),  # the cut without recovery was not measured with it
        (Tried(2.0, 0.7), Tried(4.0, 1.3), 3.0),  # on the line between both
        (Tried(2.0, 0.7), Tried(4.0, math.inf), 8**0.5),
        (Tried(2.0, 0.999), Tried(4.0, 1.3), 2.14),  # no closer than a training is worth
        (Tried(2.0, 0.7), Tried(2.1, 1.3), None),
    ],
)
def test_the_next_cut_to_try_lies_where_the_loss_should_meet_the_budget(
    within: Tried, beyond: Tried | None, price: float | None
) -> None:
    found = next_price(within, beyond, 1.0)
    assert found == (price if price is None else pytest.approx(price))


def test_latents_alone_can_be_recovered() -> None:
    result = shrink(dense([1, 4]), rows(), scope="latents", recover_epochs=1, tolerances=WIDE)
    assert result.evidence.exact is None
    assert result.evidence.fair is None
    assert result.plan.removed_latents == [1, 4]


def test_a_cut_that_is_not_exact_is_refused_before_it_is_fine_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeprune.evidence.EXACT_TOLERANCE", {torch.float32: 0.0, torch.float64: 0.0})
    monkeypatch.setattr("vaeprune.recovering.recover", None)
    with pytest.raises(VerificationFailed) as error:
        shrink(dense([1, 4], listening=1e-3), rows(), scope="latents", recover_epochs=1, tolerances=WIDE)
    assert {gate.name for gate in error.value.evidence.failed_gates} <= {"exact", "exact in float64"}


def test_a_dry_run_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaeprune.recovering.recover", None)
    result = shrink(trained_dense(), sets(), budget=BUDGET, recover_epochs=1, fair=True, dry_run=True)
    assert result.model is None
    assert result.plan.scope == "budget"


# ---- how deep


class Ladder:
    """A planner whose plan for a price is named after it; `steps` notes what was asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self.steps = plan, []

    def within(self, budget: float, *_: object) -> Plan:
        self.steps.append(budget)
        return self._plan.__class__(**{**vars(self._plan), "data": {"price": budget, "seed": 0}})


class Loses(Recovery):
    """A recovery after which a plan loses a share of its price."""

    share = 0.5

    def loss(self, made: Plan) -> float:
        return self.share * made.data["price"]


@functools.cache
def some_plan() -> Plan:
    return Plan("", "budget", 2, (), (), {}, {"seed": 0})


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_deepest_price_whose_recovered_network_fits_is_found(share: float) -> None:
    ladder, recovery = Ladder(some_plan()), Loses(None, None, 1)
    recovery.share = share
    found = deepest_within(ladder, 2.0, "size", False, recovery, None)
    fitting = [price for price in ladder.steps if share * price <= 2.0]
    assert found.data["price"] == max(fitting)
    assert found.data["budget"] == 2.0
    assert len(ladder.steps) <= 6


def test_where_nothing_deeper_fits_the_plain_plan_stays() -> None:
    recovery = Loses(None, None, 1)
    recovery.share = 100.0
    found = deepest_within(Ladder(some_plan()), 2.0, "size", False, recovery, None)
    assert (found.data["price"], found.data["budget"]) == (2.0, 2.0)


def test_without_fine_tuning_the_price_is_the_budget() -> None:
    ladder = Ladder(some_plan())
    for recovery in (None, Loses(None, None, 0)):
        assert deepest_within(ladder, 2.0, "size", False, recovery, None).data["price"] == 2.0
    assert ladder.steps == [2.0, 2.0]


def test_the_original_is_trained_only_if_asked_and_only_once() -> None:
    vae, data = dense([1, 4]), as_data(rows())
    assert Recovery(vae, data, 1).original is None
    fair = Recovery(vae, data, 1, fair=True)
    assert fair.original is fair.original is not None
    assert not torch.equal(fair.original.output.weight, vae.output.weight)
