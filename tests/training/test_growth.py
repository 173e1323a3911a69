"""When the KL of added latents weighs how much, and which of them came alive."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vaeprune.errors import TrainingError
from vaeprune.training.growth import CameAlive, Growth, came_alive, kl_weights, last_growth
from vaeprune.training.history import Epoch

GROWTH = Growth(latents=2, epoch=8, warm_up=4.0)


@pytest.mark.parametrize(("epochs", "weight"), [(0, 0), (8, 0), (9, 0.25), (10.5, 0.625), (12, 1), (99, 1)])
def test_the_weight_rises_linearly_from_the_growth_on(epochs: float, weight: float) -> None:
    assert GROWTH.weight(epochs) == weight


def test_without_warm_up_the_weight_is_one_from_the_start() -> None:
    assert Growth(2, 8, 0.0).weight(8) == 1


def test_only_new_latents_are_weighted_and_only_while_they_warm_up() -> None:
    weights = kl_weights((GROWTH,), 5, 9)
    assert weights is not None
    assert weights.tolist() == [1, 1, 0.25, 0.25, 0.25]
    assert kl_weights((GROWTH,), 5, 12) is None
    assert kl_weights((), 5, 0) is None


def test_of_two_growths_the_later_one_says_what_its_latents_weigh() -> None:
    weights = kl_weights((GROWTH, Growth(latents=3, epoch=10, warm_up=2.0)), 5, 11)
    assert weights is not None
    assert torch.equal(weights, torch.tensor([1, 1, 0.75, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": 0}, "growth: latents is 0, expected at least 1"),
        ({"epoch": -1}, "growth: epoch is -1, expected at least 0"),
        ({"warm_up": -1.0}, "warm-up: got -1.0 epochs, expected a finite number of at least 0"),
        ({"warm_up": float("nan")}, "warm-up: got nan epochs, expected a finite number of at least 0"),
    ],
)
def test_a_growth_that_makes_no_sense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        dataclasses.replace(GROWTH, **changes)
    assert str(caught.value) == message


def test_a_growth_is_the_same_after_json() -> None:
    assert Growth.from_json(dataclasses.asdict(GROWTH)) == GROWTH


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"latents": 2, "epoch": 8},
        {"latents": 2.0, "epoch": 8, "warm_up": 1},
        {"latents": 2, "epoch": 8, "warm_up": "1"},
    ],
)
def test_a_damaged_growth_is_refused(entry: object) -> None:
    with pytest.raises(TrainingError, match=r"^growth: got "):
        Growth.from_json(entry)


@pytest.mark.parametrize("record", [5, 0.5, "ten", {"latents": 4}])
def test_a_record_of_growths_that_is_no_list_is_refused(record: object) -> None:
    with pytest.raises(TrainingError, match="expected a list"):
        last_growth({"grown": record})
    assert last_growth({"grown": []}) is None


def test_what_came_alive_counts_new_latents_alone() -> None:
    last = Epoch(12, 1.0, 1.0, 0.0, (0.0, 1.0, 0.9, 0.04, 0.001), (1.0, 0.1, 0.1, 0.96, 0.5))
    training = {"grown": [dataclasses.asdict(GROWTH)]}
    found = came_alive(training, last)
    assert found == CameAlive(new=3, alive=2, weight=1.0)
    assert found.words() == "2 of 3 new latents came alive (67%)"
    assert came_alive({"grown": []}, last) is None
    assert came_alive(None, last) is None


def test_while_the_kl_is_warmed_up_the_count_is_said_to_be_early() -> None:
    last = Epoch(9, 1.0, 1.0, 0.0, (1.0, 1.0, 1.0), (0.1, 0.1, 0.1))
    found = came_alive({"grown": [dataclasses.asdict(GROWTH)]}, last)
    assert found is not None
    assert found.words() == (
        "1 of 1 new latents came alive (100%); their KL is weighted by 0.25 so far, so more may go idle yet"
    )
