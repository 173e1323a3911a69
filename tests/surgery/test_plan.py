import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from planted import dense, planned
from vaeprune.errors import PlanError, StorageError
from vaeprune.surgery.plan import ChannelRemoval, Left, Plan, Removal, Slice, read_plan, write_plan

PLAN = Plan(
    weights_sha256="ab" * 32,
    scope="latents",
    latent_size=4,
    removals=(Removal(3, 0.0, "mixed", "asked for"), Removal(1, -0.25, "inactive", "observed on 60 samples")),
    slices=(Slice("mean.weight", 0, 4, (0, 2)), Slice("decoder.0.weight", 1, 4, (0, 2))),
    attributes={"mean.out_features": 2},
    data={"name": "array", "seed": 7},
    bias_changes={"decoder.0.bias": torch.tensor([1 / 3, -1e-300, 1e300], dtype=torch.float64)},
    channels=(
        ChannelRemoval("decoder.0.weight", 0, 5, "constant", "observed constant on 60 samples", 1 / 3),
        ChannelRemoval("decoder.0.weight", 0, 6, "unread", "proved"),
    ),
    left=(Left("mean.weight", 4, "it is a latent"),),
    held={("decoder.2.weight", 1): torch.tensor([float("nan"), 0.5], dtype=torch.float64)},
    refits={"decoder.2.weight": torch.tensor([[1.0, -2.0]], dtype=torch.float64)},
)
NUMBERS = ["bias:decoder.0.bias", "held:1:decoder.2.weight", "refit:decoder.2.weight"]


def assert_equal(found: Plan, expected: Plan) -> None:
    assert found.to_json() == expected.to_json()
    assert found.slices == expected.slices
    assert found.removals == expected.removals
    assert (found.channels, found.left) == (expected.channels, expected.left)
    numbers = found.numbers()
    assert numbers.keys() == expected.numbers().keys()
    for key, value in expected.numbers().items():
        assert numbers[key].dtype == torch.float64
        assert torch.equal(numbers[key].isnan(), value.isnan()), key
        assert torch.equal(numbers[key].nan_to_num(), value.nan_to_num()), key


def test_removed_and_kept_latents_part_all_latents_in_ascending_order() -> None:
    assert PLAN.removed_latents == [1, 3]
    assert PLAN.kept_latents == [0, 2]


def test_a_plan_is_the_same_after_a_visit_to_the_disk(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    assert_equal(read_plan(tmp_path), PLAN)
    assert_equal(read_plan(tmp_path / "plan.json"), PLAN)


def test_a_plan_made_for_a_network_survives_the_disk(tmp_path: Path) -> None:
    made = planned(dense(idle=[1, 4], listening=1e-3), [1, 4])
    assert made.bias_changes["decoder.0.bias"].abs().max() > 0
    write_plan(made, tmp_path)
    assert_equal(read_plan(tmp_path), made)


def test_plan_json_is_plain_and_complete(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text()) == {
        "format": 2,
        "weights_sha256": "ab" * 32,
        "scope": "latents",
        "latent_size": {"before": 4, "after": 2},
        "kept_latents": [0, 2],
        "removals": [
            {"latent": 3, "constant": 0.0, "verdict": "mixed", "evidence": "asked for"},
            {"latent": 1, "constant": -0.25, "verdict": "inactive", "evidence": "observed on 60 samples"},
        ],
        "slices": [
            {"key": "mean.weight", "axis": 0, "size": 4, "kept": [0, 2]},
            {"key": "decoder.0.weight", "axis": 1, "size": 4, "kept": [0, 2]},
        ],
        "channels": [
            {
                "weight": "decoder.0.weight",
                "axis": 0,
                "channel": 5,
                "kind": "constant",
                "evidence": "observed constant on 60 samples",
                "deviation": 1 / 3,
            },
            {
                "weight": "decoder.0.weight",
                "axis": 0,
                "channel": 6,
                "kind": "unread",
                "evidence": "proved",
                "deviation": None,
            },
        ],
        "left": [{"weight": "mean.weight", "channels": 4, "reason": "it is a latent"}],
        "numbers": NUMBERS,
        "attributes": {"mean.out_features": 2},
        "made_plain": [],
        "data": {"name": "array", "seed": 7},
    }


# ---- damaged files


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        place: Any = entry
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        *(
            pytest.param(_drop(key), id=f"no {key}")
            for key in (
                "format",
                "weights_sha256",
                "scope",
                "latent_size",
                "kept_latents",
                "removals",
                "slices",
                "channels",
                "left",
                "numbers",
                "made_plain",
                "attributes",
                "data",
            )
        ),
        pytest.param(_set("format", to=3), id="a later format"),
        pytest.param(_set("format", to=1), id="an earlier format"),
        pytest.param(_set("weights_sha256", to=12), id="a number for the weights"),
        pytest.param(_set("scope", to=None), id="no scope"),
        pytest.param(_set("latent_size", to=4), id="a bare latent size"),
        pytest.param(_set("latent_size", "before", to="4"), id="text for the latent size"),
        pytest.param(_set("latent_size", "before", to=True), id="a boolean latent size"),
        pytest.param(_set("latent_size", "before", to=3), id="too few latents"),
        pytest.param(_set("kept_latents", to=[0, 1]), id="kept latents that contradict the removals"),
        pytest.param(_set("kept_latents", to="02"), id="text for the kept latents"),
        pytest.param(_set("removals", to={}), id="removals that are no list"),
        pytest.param(_set("removals", 0, to=3), id="a removal that is no object"),
        pytest.param(_set("removals", 0, "latent", to=1), id="one latent removed twice"),
        pytest.param(_set("removals", 0, "latent", to=-1), id="a negative latent"),
        pytest.param(_set("removals", 0, "latent", to=4), id="a latent past the end"),
        pytest.param(_set("removals", 0, "latent", to=3.0), id="a fractional latent"),
        pytest.param(_set("removals", 0, "constant", to="0"), id="text for a constant"),
        pytest.param(_set("removals", 0, "constant", to=True), id="a boolean constant"),
        pytest.param(_set("removals", 0, "constant", to=None), id="no constant"),
        pytest.param(_set("removals", 0, "verdict", to=1), id="a number for a verdict"),
        pytest.param(_set("slices", to=None), id="no slices"),
        pytest.param(_set("slices", 0, to=[]), id="a slice that is no object"),
        pytest.param(_set("slices", 0, "kept", to=[]), id="a slice that keeps nothing"),
        pytest.param(_set("slices", 0, "kept", to=[2, 0]), id="a slice out of order"),
        pytest.param(_set("slices", 0, "kept", to=[0, 0]), id="a slice that keeps one entry twice"),
        pytest.param(_set("slices", 0, "kept", to=[0, 4]), id="a slice past the end"),
        pytest.param(_set("slices", 0, "kept", to=[-1, 0]), id="a slice before the start"),
        pytest.param(_set("slices", 0, "kept", to=[0.0, 2.0]), id="a slice of fractions"),
        pytest.param(_set("slices", 0, "kept", to=2), id="a bare kept index"),
        pytest.param(_set("slices", 0, "axis", to=-1), id="an axis from the end"),
        pytest.param(_set("slices", 0, "axis", to="0"), id="text for an axis"),
        pytest.param(_set("slices", 0, "key", to=0), id="a number for a key"),
        pytest.param(_set("attributes", to=["mean.out_features"]), id="a list of attributes"),
        pytest.param(_set("attributes", "mean.out_features", to="2"), id="text for an attribute"),
        pytest.param(_set("attributes", "mean.out_features", to=True), id="a boolean attribute"),
        pytest.param(_set("numbers", to=NUMBERS[1:]), id="a bias change that is not announced"),
        pytest.param(_set("numbers", to=[*NUMBERS, "refit:x"]), id="a refit that is missing"),
        pytest.param(_set("numbers", to=None), id="nothing announced"),
        pytest.param(_set("channels", to={}), id="channels that are no list"),
        pytest.param(_set("channels", 0, to=5), id="a channel that is no object"),
        pytest.param(_set("channels", 0, "channel", to="5"), id="text for a channel"),
        pytest.param(_set("channels", 0, "axis", to=True), id="a boolean axis of a channel"),
        pytest.param(_set("channels", 0, "weight", to=None), id="a channel of no weight"),
        pytest.param(_set("channels", 0, "kind", to=1), id="a number for a kind"),
        pytest.param(_set("channels", 0, "evidence", to=None), id="no evidence"),
        pytest.param(_set("channels", 0, "deviation", to="0"), id="text for a deviation"),
        pytest.param(_set("left", to=None), id="nothing left"),
        pytest.param(_set("left", 0, "channels", to="4"), id="text for a number of channels"),
        pytest.param(_set("left", 0, "reason", to=0), id="a number for a reason"),
        pytest.param(_set("made_plain", to="mean"), id="text for what was made plain"),
        pytest.param(_set("made_plain", to=[1]), id="a number for what was made plain"),
        pytest.param(_set("data", to=[]), id="data that are no object"),
        pytest.param(_set("data", "seed", to="seven"), id="text for the seed"),
        pytest.param(_set("data", "seed", to=None), id="no seed"),
        pytest.param(_set("data", "seed", to=-1), id="a negative seed"),
    ],
)
def test_a_damaged_plan_is_refused_by_name(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"plan"', "{}"])
def test_json_that_is_no_plan_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    save_file({}, tmp_path / "plan.safetensors")
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(path) in str(error.value)


def test_a_constant_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    """JSON has no infinity, but 1e999 becomes one."""
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace("-0.25", "-1e999"))
    with pytest.raises(PlanError, match=r"plan\.json"):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1', "{'format': 1}", '{"format": NaN}', "[" * 100_000])
def test_text_that_is_not_json_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(StorageError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: is not valid JSON")
    assert error.value.hint == "restore the plan from its source"


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        read_plan(tmp_path)
    assert str(error.value) == f"{tmp_path / 'plan.json'}: no such file, expected the plan"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.json"
    entry = json.loads(path.read_text())
    del entry["scope"]
    path.write_text(json.dumps(entry))
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(error.value) == f"{path}: is not a complete plan: 'scope'; restore it from its source"


def test_a_plan_that_removes_unknown_latents_says_which(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"latent": 3', '"latent": 9'))
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(error.value) == f"{path}: removes latents [1, 9] of 4"


# ---- the numbers beside it


def test_a_plan_without_its_numbers_is_refused(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(PlanError) as error:
        read_plan(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'plan.json'}: its numbers are gone: {tmp_path / 'plan.safetensors'}: no such file, "
        "expected safetensors"
    )


def test_a_plan_with_truncated_numbers_is_refused(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PlanError, match=r"plan\.json: its numbers are gone: .*plan\.safetensors"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([1.0, float("nan"), 0.0], dtype=torch.float64),
        torch.tensor([1.0, float("inf"), 0.0], dtype=torch.float64),
        torch.zeros(3),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(1, 3, dtype=torch.float64),
        torch.tensor(0.0, dtype=torch.float64),
    ],
    ids=["NaN", "infinity", "float32", "integers", "a matrix", "a scalar"],
)
def test_numbers_that_are_no_finite_float64_vectors_are_refused(numbers: torch.Tensor, tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    path = tmp_path / "plan.safetensors"
    save_file(PLAN.numbers() | {"bias:decoder.0.bias": numbers}, path)
    with pytest.raises(PlanError) as error:
        read_plan(tmp_path)
    assert str(error.value) == f"{path}: bias:decoder.0.bias are not finite float64 numbers of the expected shape"


def test_numbers_of_another_plan_are_refused(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path)
    save_file({"bias:output.bias": torch.zeros(3, dtype=torch.float64)}, tmp_path / "plan.safetensors")
    with pytest.raises(PlanError) as error:
        read_plan(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'plan.json'}: its numbers are not those in plan.safetensors; restore both from one source"
    )
