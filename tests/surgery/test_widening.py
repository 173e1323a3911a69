"""The arithmetic of a widening, on literal tensors, and its way to the disk and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vaeprune.errors import PlanError
from vaeprune.storage import weights_sha256
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Slice
from vaeprune.surgery.widening import Widening, read_widening, undoing, widen, widened, write_widening


class Two(nn.Module):
    """Two linear layers that hold literal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(3, 2), nn.Linear(2, 1, bias=False)
        self.load_state_dict(
            {
                "make.weight": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
                "make.bias": torch.tensor([7.0, 8]),
                "read.weight": torch.tensor([[9.0, 10]]),
            }
        )


NETWORK = Two()
WIDENING = Widening(
    weights_sha256=weights_sha256(NETWORK.state_dict()),
    latent_size=2,
    added=1,
    slices=(
        Slice("make.weight", 0, 3, (0, 2)),
        Slice("make.bias", 0, 3, (0, 2)),
        Slice("read.weight", 1, 3, (0, 2)),
    ),
    values={
        "make.weight": torch.tensor([[0, 0, 0], [-1, -2, -3], [0, 0, 0]]).double(),
        "make.bias": torch.tensor([0, 1 / 3, 0]).double(),
    },
    attributes={"make.out_features": 3, "read.in_features": 3},
)


def test_old_entries_stand_where_they_are_kept_and_new_ones_hold_their_values_or_zero() -> None:
    wide = widen(NETWORK, WIDENING)
    assert wide.make.weight.tolist() == [[1, 2, 3], [-1, -2, -3], [4, 5, 6]]
    assert torch.equal(wide.make.bias, torch.tensor([7, 1 / 3, 8]))
    assert wide.read.weight.tolist() == [[9, 0, 10]]
    assert (wide.make.out_features, wide.read.in_features) == (3, 3)
    assert all(p.requires_grad for p in wide.parameters())


def test_the_model_itself_stays_as_it_is() -> None:
    network = Two()
    before = weights_sha256(network.state_dict())
    widen(network, WIDENING)
    assert weights_sha256(network.state_dict()) == before
    assert network.make.out_features == 2


def test_cutting_the_new_latents_out_again_gives_the_old_weights_bit_for_bit() -> None:
    wide = widen(NETWORK, WIDENING)
    plan = undoing(WIDENING, NETWORK, wide, {"seed": 0})
    assert plan.removed_latents == [2]
    back = cut(wide, plan)
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in NETWORK.state_dict().items())
    assert (back.make.out_features, back.read.in_features) == (2, 2)


def test_moments_of_an_optimiser_are_widened_by_zeros() -> None:
    moments = {key: torch.ones_like(value) for key, value in NETWORK.state_dict().items()}
    wide = widened(moments, WIDENING.slices, {})
    assert wide["make.weight"].tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert wide["read.weight"].tolist() == [[1, 0, 1]]


def test_a_tensor_is_widened_on_two_axes_at_once() -> None:
    square = (Slice("w", 0, 3, (0, 1)), Slice("w", 1, 3, (1, 2)))
    wide = widened({"w": torch.tensor([[1.0, 2], [3, 4]])}, square, {"w": torch.full((3, 3), 9.0).double()})
    assert wide["w"].tolist() == [[9, 1, 2], [9, 3, 4], [9, 9, 9]]


def test_other_weights_are_refused() -> None:
    other = Two()
    nn.init.zeros_(other.make.bias)
    with pytest.raises(PlanError) as caught:
        widen(other, WIDENING)
    assert str(caught.value) == (
        "widening: was made for other weights than these; make a new one, or load the weights it names"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"slices": (Slice("make.weight", 0, 4, (0, 1, 2)),)},
            r"widening: adds to make.weight on axes \[0\], the weights have \(2, 3\)",
        ),
        ({"slices": (Slice("gone", 0, 3, (0, 1)),)}, r"widening: adds to gone on axes \[0\], the weights have \(\)"),
        (
            {"values": {"make.weight": torch.zeros(2, 3).double()}},
            r"widening: has values of shape \(2, 3\) for make.weight, expected \(3, 3\)",
        ),
        ({"attributes": {"make.size": 3}}, "make.size: is not an integer of Two, but the plan sets it"),
    ],
)
def test_a_widening_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        widen(NETWORK, dataclasses.replace(WIDENING, **changes))


def test_a_widening_is_the_same_after_a_visit_to_the_disk(tmp_path: Path) -> None:
    write_widening(WIDENING, tmp_path)
    found = read_widening(tmp_path)
    assert found.to_json() == WIDENING.to_json()
    assert all(torch.equal(found.values[key], value) for key, value in WIDENING.values.items())
    assert torch.equal(widen(NETWORK, found).make.weight, widen(NETWORK, WIDENING).make.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, "is not a widening of format 1"),
        ({"latent_size": {"before": 3, "after": 3}}, "widens from 3 to 3 latents"),
        ({"slices": [{"key": "w", "axis": 0, "size": 2, "kept": [1, 0]}]}, "is not a complete widening"),
        ({"attributes": {"a": "3"}}, "is not a complete widening: attributes are"),
        ({"numbers": []}, "its numbers are not those in widening.safetensors"),
        ({"made_plain": None}, "is not a complete widening"),
    ],
)
def test_a_damaged_widening_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_widening(WIDENING, tmp_path)
    path = tmp_path / "widening.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PlanError, match=message):
        read_widening(path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = {"make.bias": torch.tensor([0.0, float("nan"), 0]).double()}
    write_widening(dataclasses.replace(WIDENING, values=values), tmp_path)
    with pytest.raises(PlanError, match=r"widening.safetensors: make.bias are not finite float64 numbers"):
        read_widening(tmp_path)
