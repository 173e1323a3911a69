from __future__ import annotations

import json
from typing import Any

import pytest

from vaeprune.errors import StorageError
from vaeprune.training import Epoch, History, TracePoint

EPOCHS = (
    Epoch(1, 120.5, 110.25, 10.25, (0.5, 0.001), (0.25, 0.875)),
    Epoch(2, 100.0, 80.0, 20.0, (0.75, 0.0001), (0.125, 1.0)),
)
HISTORY = History(EPOCHS, (TracePoint(1, (1.0, 0.5), (0.5, 1.0)), TracePoint(101, (0.25, 0.5), (0.5, 2.0))))


def entry() -> dict[str, Any]:
    """A sound history as JSON gives it."""
    return json.loads(json.dumps(HISTORY.to_json()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("history", [HISTORY, History(EPOCHS), History()])
def test_a_history_comes_back_from_json(history: History) -> None:
    assert History.from_json(json.loads(json.dumps(history.to_json())), "h") == history


def test_json_of_a_history_is_what_readers_rely_on() -> None:
    assert History(EPOCHS[:1]).to_json() == {
        "format": 1,
        "epochs": [
            {
                "epoch": 1,
                "loss": 120.5,
                "reconstruction": 110.25,
                "kl": 10.25,
                "variance": (0.5, 0.001),
                "posterior_variance": (0.25, 0.875),
            }
        ],
        "trace": [],
    }


@pytest.mark.parametrize(
    ("variance", "posterior_variance", "n_inactive"),
    [
        ((0.0099,), (0.81,), 1),
        ((0.01,), (0.81,), 0),
        ((0.0099,), (0.8,), 0),
        ((0.9, 0.0), (0.1, 1.0), 1),
        ((0.0, 0.0), (1.0, 1.1), 2),
    ],
)
def test_inactive_is_a_small_variance_with_a_wide_posterior(
    variance: tuple[float, ...], posterior_variance: tuple[float, ...], n_inactive: int
) -> None:
    assert Epoch(1, 1.0, 1.0, 0.0, variance, posterior_variance).n_inactive == n_inactive


@pytest.mark.parametrize("wrong", [None, [], "history", {}, {"format": 2, "epochs": [], "trace": []}])
def test_another_format_is_refused(wrong: object) -> None:
    with pytest.raises(StorageError) as caught:
        History.from_json(wrong, "m/history.json")
    assert caught.value.message == "m/history.json: is not a training history of format 1"


@pytest.mark.parametrize("key", ["epochs", "trace"])
@pytest.mark.parametrize("value", [None, {}, 3, "x"])
def test_what_should_be_a_list_of_entries_is_refused_otherwise(key: str, value: object) -> None:
    with pytest.raises(StorageError) as caught:
        History.from_json(entry() | {key: value}, "h")
    assert caught.value.message == f"h: got {type(value).__name__}, expected a list of entries"


@pytest.mark.parametrize("value", [None, [], 3, {}, {"epoch": 1}])
def test_an_entry_with_other_keys_is_refused(value: object) -> None:
    with pytest.raises(StorageError) as caught:
        History.from_json(entry() | {"epochs": [value]}, "h")
    assert caught.value.message == (
        f"h: got {value!r}, expected the keys epoch, loss, reconstruction, kl, variance, posterior_variance"
    )
    with pytest.raises(StorageError, match=r"expected the keys step, variance, posterior_variance$"):
        History.from_json(entry() | {"trace": [value]}, "h")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", None),
        ("loss", "1.0"),
        ("loss", True),
        ("loss", float("inf")),
        ("loss", float("nan")),
        pytest.param("loss", 10**400, id="loss beyond floats"),
        ("variance", [0.1, None]),
        ("variance", [0.1, float("nan")]),
        ("posterior_variance", [[0.1], 0.2]),
    ],
)
def test_what_should_be_numbers_is_refused_otherwise(key: str, value: object) -> None:
    wrong = entry()
    wrong["epochs"][1][key] = value
    with pytest.raises(StorageError, match=f"h: {key} holds .* expected finite numbers"):
        History.from_json(wrong, "h")


@pytest.mark.parametrize(("key", "value"), [("loss", [1.0]), ("epoch", [1]), ("variance", 0.5)])
def test_a_number_for_a_list_or_a_list_for_a_number_is_refused(key: str, value: object) -> None:
    wrong = entry()
    wrong["epochs"][0][key] = value
    with pytest.raises(StorageError, match=f"h: {key} holds .* expected (int|float|tuple)"):
        History.from_json(wrong, "h")


def test_an_epoch_that_is_no_whole_number_is_refused() -> None:
    wrong = entry()
    wrong["epochs"][0]["epoch"] = 1.5
    with pytest.raises(StorageError, match=r"h: epoch holds 1\.5"):
        History.from_json(wrong, "h")


@pytest.mark.parametrize("key", ["epochs", "trace"])
def test_latents_that_are_not_equally_many_are_refused(key: str) -> None:
    wrong = entry()
    wrong[key][0]["posterior_variance"] = [0.5, 0.5, 0.5]
    with pytest.raises(StorageError):
        History.from_json(wrong, "h")


def test_a_hostile_entry_is_shown_in_one_short_line() -> None:
    with pytest.raises(StorageError) as caught:
        History.from_json(entry() | {"epochs": ["\x1b[2J\n" * 1000]}, "h")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
