"""Two plans, one after the other, as one: the same weights, the same reference, the same on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hidden_models import HiddenVAE, convolutional, dense, sets_of
from planted import planned
from vaeprune.errors import PlanError
from vaeprune.surgery.composing import composed
from vaeprune.surgery.cut import cut
from vaeprune.surgery.hidden import constant_channels, examine, plan_network
from vaeprune.surgery.plan import Plan, read_plan, write_plan


def latents_then_hidden(vae: HiddenVAE) -> tuple[Plan, Plan, HiddenVAE]:
    """The two plans, and what they give one after the other."""
    first = planned(vae, [1])
    once = cut(vae, first)
    second = plan_network(examine(once, sets_of(once)))
    assert second is not None
    return first, second, cut(once, second)


def assert_bit_equal(found: nn.Module, expected: nn.Module, but: dict[str, float] | None = None) -> None:
    """Weights; `but`: by how much a few may differ, relative to their largest value."""
    state = found.state_dict()
    assert list(state) == list(expected.state_dict())
    for key, value in expected.state_dict().items():
        assert state[key].shape == value.shape, key
        allowed = (but or {}).get(key, 0.0)
        assert ((state[key] - value).abs() <= allowed * value.abs().max()).all(), key


@pytest.mark.parametrize("build", [dense, convolutional])
def test_one_plan_does_what_two_do(build: Callable[[], HiddenVAE]) -> None:
    vae = build()
    first, second, expected = latents_then_hidden(vae)
    made = composed(first, second)
    found = cut(vae, made)
    both = set(first.bias_changes) & set(second.bias_changes)
    assert_bit_equal(found, expected, dict.fromkeys(both, 4e-16))  # two additions in one
    assert found.latent_size == expected.latent_size == 2
    for path, module in expected.named_modules():
        for name, value in vars(module).items():
            assert type(value) is not int or vars(found.get_submodule(path))[name] == value, f"{path}.{name}"


def test_what_the_plans_say_is_in_terms_of_the_original() -> None:
    vae = dense()
    first, second, _ = latents_then_hidden(vae)
    made = composed(first, second)
    assert made.weights_sha256 == first.weights_sha256 != second.weights_sha256
    assert (made.scope, made.latent_size, made.removed_latents) == ("network", 3, [1])
    assert {(c.weight, c.channel) for c in made.channels} == {
        ("encoder.0.weight", 1),
        ("encoder.0.weight", 4),
        ("decoder.0.weight", 2),
        ("decoder.2.weight", 0),
    }
    assert made.held["decoder.2.weight", 1][2] == 1
    assert len({(s.key, s.axis) for s in made.slices}) == len(made.slices)
    for part in made.slices:
        assert vae.state_dict()[part.key].shape[part.axis] == part.size


def test_an_integer_set_twice_has_its_last_value() -> None:
    first, second, _ = latents_then_hidden(convolutional())
    made = composed(first, second)
    assert made.attributes["decoder.hidden"] == 5
    assert made.attributes["decoder.first.in_features"] == 2
    assert made.attributes["decoder.first.out_features"] == 20


def test_hidden_then_hidden_counts_channels_as_the_original_does() -> None:
    vae = dense()
    hidden = examine(vae, sets_of(vae))
    everything = plan_network(hidden)
    constant, _ = constant_channels(hidden)
    assert len(constant) == 4
    first = hidden.assembler.plan(constant[:1], "network")
    once = cut(vae, first)
    second = plan_network(examine(once, sets_of(once)))
    made = composed(first, second)
    assert {(c.weight, c.channel) for c in made.channels} == {(c.weight, c.channel) for c in everything.channels}
    assert {(s.key, s.axis): s for s in made.slices} == {(s.key, s.axis): s for s in everything.slices}
    assert_bit_equal(cut(vae, made), cut(once, second), dict.fromkeys(made.bias_changes, 1e-15))


def test_latents_after_hidden_channels_are_counted_as_the_original_does() -> None:
    vae = dense()
    first = plan_network(examine(vae, sets_of(vae)))
    once = cut(vae, first)
    second = planned(once, [0])
    twice = cut(once, second)
    third = planned(twice, [0])
    made = composed(composed(first, second), third)
    assert made.removed_latents == [0, 1]
    assert_bit_equal(cut(vae, made), cut(twice, third), dict.fromkeys(made.bias_changes, 1e-15))


def test_weights_fitted_anew_are_cut_no_further() -> None:
    first, second, _ = latents_then_hidden(dense())
    refits = {"mean.bias": torch.zeros(2, dtype=torch.float64)}
    with pytest.raises(PlanError, match="fitted anew are cut no further"):
        composed(replace(first, refits=refits), second)


def test_refits_of_the_second_plan_are_kept() -> None:
    vae = dense()
    first, second, expected = latents_then_hidden(vae)
    change = torch.randn(expected.mean.weight.shape, dtype=torch.float64)
    made = composed(first, replace(second, refits={"mean.weight": change}))
    found = cut(vae, made)
    assert torch.allclose(found.mean.weight - expected.mean.weight, change, rtol=0, atol=1e-12)


def test_constants_and_changes_that_are_spread_keep_every_digit() -> None:
    """The second plan's vectors are shorter where the first took channels out of the same axis."""
    first, second, _ = latents_then_hidden(dense())
    axis = ("decoder.0.weight", 1)
    assert [s.kept for s in first.slices if (s.key, s.axis) == axis] == [(0, 2)]
    third = torch.tensor([1 / 3, float("nan")], dtype=torch.float64)
    change = {"mean.bias": torch.tensor([1 / 3, 1e-12], dtype=torch.float64)}
    made = composed(first, replace(second, held={axis: third}, bias_changes=change))
    assert made.held[axis].dtype == made.bias_changes["mean.bias"].dtype == torch.float64
    assert made.held[axis][0] == 1 / 3
    assert made.held[axis][1:].isnan().all()
    assert made.bias_changes["mean.bias"].tolist() == [1 / 3, 0.0, 1e-12]


# ---- on disk


def full_plan() -> Plan:
    first, second, _ = latents_then_hidden(dense())
    return composed(first, replace(second, refits={"mean.bias": torch.full((2,), 1 / 3, dtype=torch.float64)}))


def test_nothing_is_lost_on_the_disk(tmp_path: Path) -> None:
    made = full_plan()
    write_plan(made, tmp_path)
    found = read_plan(tmp_path)
    assert found.to_json() == made.to_json()
    for name in ("removals", "slices", "channels", "left", "made_plain", "scope", "latent_size", "weights_sha256"):
        assert getattr(found, name) == getattr(made, name), name
    assert (dict(found.attributes), dict(found.data)) == (dict(made.attributes), dict(made.data))
    for name in ("bias_changes", "held", "refits"):
        before, after = getattr(made, name), getattr(found, name)
        assert after.keys() == before.keys()
        assert before, name
        for key, value in before.items():
            assert after[key].dtype == torch.float64
            assert torch.allclose(after[key], value, rtol=0, atol=0, equal_nan=True), (name, key)


def _changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(numbers: dict[str, Tensor]) -> None:
        key = next(key for key in numbers if key.startswith(name))
        numbers[key] = change(numbers[key])

    return apply


def _with(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def _renamed(name: str, to: str) -> Callable[[dict[str, Tensor]], None]:
    def apply(numbers: dict[str, Tensor]) -> None:
        numbers[to] = numbers.pop(next(key for key in numbers if key.startswith(name)))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_changed("held:", _with(float("inf"))), id="an infinite held constant"),
        pytest.param(_changed("refit:", _with(float("nan"))), id="NaN in a refit"),
        pytest.param(_changed("bias:", _with(float("nan"))), id="NaN in a bias change"),
        pytest.param(_changed("bias:", lambda t: t.float()), id="float32"),
        pytest.param(_changed("held:", lambda t: t[None]), id="a matrix of held constants"),
        pytest.param(_renamed("held:", "held:x:decoder.2.weight"), id="an axis that is no number"),
        pytest.param(_renamed("held:", "held:7"), id="held without a weight"),
        pytest.param(_renamed("held:", "held:-1:decoder.2.weight"), id="an axis from the end"),
        pytest.param(_renamed("bias:", "bios:mean.bias"), id="an unknown kind"),
        pytest.param(_renamed("refit:", "mean.bias"), id="no kind"),
        pytest.param(_renamed("refit:", "refit:logvar.bias"), id="another name"),
        pytest.param(lambda numbers: numbers.pop(next(iter(numbers))), id="one missing"),
        pytest.param(lambda numbers: numbers.update({"bias:x": torch.zeros(1).double()}), id="one too many"),
    ],
)
@pytest.mark.parametrize("announced", [False, True], ids=["alone", "and announced so"])
def test_damaged_numbers_are_refused(
    damage: Callable[[dict[str, Tensor]], None], announced: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_plan(full_plan(), tmp_path)
    path = tmp_path / "plan.safetensors"
    numbers = load_file(path)
    damage(numbers)
    save_file(numbers, path)
    if announced:
        harmless = ("another name", "one missing", "one too many")
        if any(name in request.node.callspec.id for name in harmless):
            return  # a plan that says so itself is another plan
        entry = json.loads((tmp_path / "plan.json").read_text())
        entry["numbers"] = sorted(numbers)
        (tmp_path / "plan.json").write_text(json.dumps(entry))
    with pytest.raises(PlanError) as error:
        read_plan(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
