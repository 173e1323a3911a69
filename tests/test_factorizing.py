"""`shrink(..., factorize=True)`: layers become two of low rank, in the plan, the folder and the ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vaeprune
from trained import sets, trained_dense
from vaeprune import cut, shrink
from vaeprune.architectures.low_rank import ranks_of
from vaeprune.errors import PlanError, UsageError
from vaeprune.shrinking import Shrunk
from vaeprune.surgery.budget import Search, Spent
from vaeprune.surgery.cut import cut_state_dict
from vaeprune.surgery.plan import read_plan

BUDGET = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shrunk, Path]:
    out = tmp_path_factory.mktemp("factorized") / "small"
    return shrink(trained_dense(), sets(), out, budget=BUDGET, factorize=True), out


def test_factorized_layers_pass_every_gate_and_are_smaller_than_channels_alone(folder: tuple[Shrunk, Path]) -> None:
    found, _ = folder
    alone = shrink(trained_dense(), sets(), budget=BUDGET, dry_run=True)
    assert ranks_of(found.model)
    assert found.evidence.passed
    assert found.evidence.exact.max_relative_error <= 1e-5
    assert found.evidence.exact.float64_max_relative_error <= 1e-10
    assert found.parameters[1] < alone.parameters[1]
    assert found.parameters[1] == sum(t.numel() for t in found.model.state_dict().values())


def test_where_a_search_with_low_rank_finds_less_channels_alone_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = shrink(trained_dense(), sets(), budget=BUDGET, dry_run=True)
    monkeypatch.setattr(Search, "_rounding_little", lambda *_: Spent(None, 0.0, 0.0, 1.0))  # as if it had found nothing
    found = shrink(trained_dense(), sets(), budget=BUDGET, factorize=True, dry_run=True)
    assert found.parameters[1] == alone.parameters[1] < alone.parameters[0]
    assert not found.plan.factors


def test_the_folder_loads_again_and_its_plan_gives_the_same_weights(folder: tuple[Shrunk, Path]) -> None:
    found, out = folder
    again = vaeprune.load(out)
    replayed = cut(trained_dense(), read_plan(out))
    for other in (again, replayed):
        assert other.state_dict().keys() == found.model.state_dict().keys()
        assert all(torch.equal(value, found.model.state_dict()[key]) for key, value in other.state_dict().items())
    assert json.loads((out / "config.json").read_text())["architecture"]["ranks"] == ranks_of(found.model)


def test_a_state_dict_alone_is_not_factorized(folder: tuple[Shrunk, Path]) -> None:
    found, _ = folder
    with pytest.raises(PlanError, match="two layers each; apply it to the module with cut"):
        cut_state_dict(trained_dense().state_dict(), found.plan)


def test_the_original_keeps_its_layers(folder: tuple[Shrunk, Path]) -> None:
    assert not ranks_of(trained_dense())


def test_factorizing_without_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="factorize: costs something, so it needs a budget"):
        shrink(trained_dense(), sets(), factorize=True)
