"""Each ready-made model's card, against the model itself: its losses, its idle latents, its own shrink measured."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from vaeprune.training_run import Recipe

MODELS = Path(__file__).parents[2] / "models"
NAMES = ("tiles-dense", "tiles-conv", "mnist-dense", "mnist-conv")
ROUNDED = {"exact, relative, float32": 1e-5, "exact, relative, float64": 1e-10}
CLOSE = {  # relative, absolute: another machine rounds differently, and no more than that
    "KL of the calibrate rows, nats": (1e-3, 0.0),
    "mean path, largest difference": (0.05, 1e-5),
    "prior samples, RMS difference": (0.05, 1e-5),
    "ELBO loss and its 95% interval, nats per row": (0.05, 2e-3),
}


def card_of(name):
    return (MODELS / name / "README.md").read_text(encoding="utf-8")


def table_of(card):
    """The rows of the card's table, by name."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", card, flags=re.MULTILINE)
    return dict(rows)


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


@pytest.fixture(scope="module")
def write_cards():
    """The script that wrote the cards, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("write_cards", MODELS / "write_cards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_card_tells_command_seed_data_and_final_losses_as_they_are_recorded(name):
    card, folder = card_of(name), MODELS / name
    recipe = Recipe.from_json(json.loads((folder / "config.json").read_text())["training"], name)
    assert f"    {recipe.command(name)}\n" in card
    assert f"--seed {recipe.seed}" in card
    assert f"--data {recipe.data}" in card
    last = json.loads((folder / "history.json").read_text())["epochs"][-1]
    assert last["epoch"] == recipe.epochs
    words = " ".join(card.split())
    assert f"its loss is {last['loss']:.2f} nats per row" in words
    assert f"reconstruction {last['reconstruction']:.2f}, KL {last['kl']:.2f}" in words
    idle = sum(v < 0.01 and s > 0.8 for v, s in zip(last["variance"], last["posterior_variance"], strict=True))
    assert f"Of its {len(last['variance'])} latents {idle} have a variance below 0.01" in words


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_a_few_megabytes_at_most(name):
    assert sum(file.stat().st_size for file in (MODELS / name).iterdir()) < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_card_says_of_its_own_shrink_is_measured_again(name, write_cards, request):
    data_dir = request.getfixturevalue("mnist_folder") if name.startswith("mnist") else None
    told = table_of(card_of(name))
    found = write_cards.figures(MODELS / name, write_cards.measured(MODELS / name, data_dir))
    assert list(told) == list(found)
    assert told["all checks"] == "passed"
    for key, value in found.items():
        if key in ROUNDED:
            assert max(*numbers(value), *numbers(told[key])) <= ROUNDED[key]
        elif key in CLOSE:
            relative, absolute = CLOSE[key]
            assert numbers(value) == pytest.approx(numbers(told[key]), rel=relative, abs=absolute), key
        else:
            assert value == told[key], key


def test_real_rows_are_named_by_the_environment(mnist_folder):
    assert mnist_folder == Path(os.environ["VAEPRUNE_DATA_DIR"])
