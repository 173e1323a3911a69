"""`grow`: nothing changes, a folder appears from which training goes on, and new latents come alive."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vaeprune
from foreign_models import OwnVAE, plant, rows
from vaeprune.adapters import AdaptedVAE, adapt
from vaeprune.architectures import BuiltVAE, DenseVAE, initialise
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ModelError, StorageError, TrainingError, UsageError
from vaeprune.growing import grow
from vaeprune.model_folder import ModelFolder, load, read_model_folder, write_model_folder
from vaeprune.surgery.widening import read_widening, widen
from vaeprune.training import Growth
from vaeprune.training.growth import came_alive
from vaeprune.training_run import Recipe, resume, run

ROWS = 600


def four_factors(count: int = ROWS) -> Tensor:
    """Pictures of 4×4 pixels, each quarter bright or dark by itself: four things to know."""
    bright = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    picture = bright.repeat_interleave(2, 1).repeat_interleave(2, 2).float()
    return 0.05 + 0.9 * picture


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    np.save(folder / "rows.npy", four_factors().numpy())
    return folder


@pytest.fixture(scope="module")
def small(shelf: Path) -> Path:
    """Two latents after 40 epochs, too few for the data."""
    recipe = Recipe(
        str(shelf / "rows.npy"),
        hidden=(16,),
        latent=2,
        epochs=40,
        batch_size=32,
        learning_rate=5e-3,
        initialisation="torch",
    )
    run(recipe, shelf / "small")
    return shelf / "small"


@pytest.fixture(scope="module")
def sets() -> DataSets:
    return as_data(four_factors())


@pytest.fixture(scope="module")
def wide(shelf: Path, small: Path, sets: DataSets) -> Path:
    """The same with four."""
    grow(small, 4, sets, shelf / "wide", warm_up=5.0)
    return shelf / "wide"


def test_everything_is_as_it_was_and_undone_bit_for_bit(small: Path, sets: DataSets) -> None:
    model = load(small)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grown = grow(model, 4, sets)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kept = grown.preserved
    assert kept.passed
    assert kept.undone
    assert kept.decoded == kept.anywhere <= 1e-6
    x, z = four_factors(50)[:, None], 50 * torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = model.encode(x), grown.model.encode(x)
        torch.testing.assert_close(b.mean[:, :2], a.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b.logvar[:, :2], a.logvar, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grown.model.decode(z), model.decode(z[:, :2]), rtol=1e-6, atol=1e-7)
    assert grown.latent_size == (2, 4)


def test_the_folder_holds_the_wider_model_the_widening_and_how_training_goes_on(small: Path, wide: Path) -> None:
    folder = read_model_folder(wide)
    assert folder.vae.latent_size == 4
    assert folder.training is not None
    assert folder.training["grown"] == [{"latents": 2, "epoch": 40, "warm_up": 5.0}]
    assert folder.training["latent"] == 4
    assert folder.history == read_model_folder(small).history
    widening = read_widening(wide)
    again = widen(load(small), widening)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in folder.vae.state_dict().items())
    old = read_model_folder(small).state
    assert torch.equal(folder.state["exp_avg:mean_head.weight"][:2], old["exp_avg:mean_head.weight"])
    assert not folder.state["exp_avg:mean_head.weight"][2:].any()
    assert torch.equal(folder.state["generator"], old["generator"])
    card = (wide / "README.md").read_text()
    assert "# A VAE grown from 2 to 4 latents" in card
    assert "the KL of latents 2 to 3 is weighted from 0 to 1 over the first 5 epochs" in card


def test_a_grown_training_is_resumed_to_the_bit_and_its_new_latents_come_alive(wide: Path, tmp_path: Path) -> None:
    once, twice = (Path(shutil.copytree(wide, tmp_path / name)) for name in ("once", "twice"))
    whole = resume(once, {"epochs": 80})
    resume(twice, {"epochs": 43})  # in the middle of the warm-up
    parts = resume(twice, {"epochs": 80})
    assert all(torch.equal(v, parts.vae.state_dict()[k]) for k, v in whole.vae.state_dict().items())
    last = whole.history.epochs[-1]
    found = came_alive(whole.vae.provenance["training"], last)
    assert found is not None
    assert (found.new, found.weight) == (2, 1.0)
    assert found.alive == sum(value <= 0.8 for value in last.posterior_variance[2:])
    assert found.alive > 0
    assert whole.history.epochs[39].loss - last.loss > 0.5
    card = (once / "README.md").read_text()
    assert f"Grown: {found.words()}." in card
    assert "vaeprune grow once-2 --latent 4 --warm-up 5 --out once" in card


def test_without_the_training_state_the_optimiser_starts_anew(small: Path, sets: DataSets, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(small, tmp_path / "bare"))
    (bare / "training_state.safetensors").unlink()
    grown = grow(bare, 3, sets, tmp_path / "wide")
    assert grown.resumable is None
    assert not any(v.any() for k, v in grown.state.items() if k != "generator")
    assert len(resume(tmp_path / "wide", {"epochs": 41}).history.epochs) == 41


def test_a_grown_model_can_be_grown_again(wide: Path, sets: DataSets, tmp_path: Path) -> None:
    grow(wide, 5, sets, tmp_path / "wider", warm_up=2.0)
    training = read_model_folder(tmp_path / "wider").training
    recipe = Recipe.from_json(training, "wider")
    assert recipe.grown == (Growth(2, 40, 5.0), Growth(4, 40, 2.0))
    assert recipe.command("m") == (
        f"vaeprune train --data {recipe.data} --hidden 16 --latent 2 --init torch --epochs 40 --batch-size 32 "
        "--learning-rate 0.005 --seed 0 --out m-4-2 && vaeprune grow m-4-2 --latent 4 --warm-up 5 --out m-4 && "
        "vaeprune grow m-4 --latent 5 --warm-up 2 --out m"
    )


def test_a_model_that_records_no_training_is_widened_and_not_resumed(
    small: Path, sets: DataSets, tmp_path: Path
) -> None:
    vae = load(small)
    assert isinstance(vae, BuiltVAE)
    write_model_folder(ModelFolder(vae), tmp_path / "bare")
    grown = grow(tmp_path / "bare", 3, sets, tmp_path / "wide")
    assert grown.preserved.passed
    assert grown.resumable == "the model does not record a training"
    assert (
        "Its training is not resumed here: the model does not record a training."
        in (tmp_path / "wide" / "README.md").read_text()
    )
    with pytest.raises(StorageError, match="does not record a training that could be resumed"):
        resume(tmp_path / "wide", {"epochs": 50})


def test_a_model_without_history_is_widened_and_not_resumed(small: Path, sets: DataSets, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(small, tmp_path / "bare"))
    (bare / "history.json").unlink()
    assert grow(bare, 3, sets).resumable == "there is no history of its training"
    grow(bare, 3, sets, tmp_path / "wide")
    with pytest.raises(TrainingError, match="was saved without its training state"):
        resume(tmp_path / "wide", {"epochs": 50})


def test_a_foreign_model_is_grown_into_a_folder_that_loads_with_its_class(tmp_path: Path) -> None:
    data = as_data(rows())
    vae = adapt(plant(OwnVAE(), ()), data)
    grown = grow(vae, 8, data, tmp_path / "wide")
    assert grown.resumable == "models of one's own class are trained by one's own code"
    read = load(tmp_path / "wide", OwnVAE)
    assert isinstance(read, AdaptedVAE)
    assert read.latent_size == 8
    assert read.network.latent_dim == 8
    again = OwnVAE(8)
    again.load_state_dict(grown.model.network.state_dict())
    card = (tmp_path / "wide" / "README.md").read_text()
    assert "weight the KL of latents 5 to 7 by min(1, epoch / 2)" in card


@pytest.mark.parametrize(
    ("latent_size", "message"),
    [
        (2, "latent: got 2, the model has 2 already; ask for more; `vaeprune shrink` makes it smaller"),
        (-1, "latent: got -1, the model has 2 already; ask for more; `vaeprune shrink` makes it smaller"),
        (
            10**12,
            (
                "latent: got 1000000000000, which is more than the 16 values of a row can use; take at most 16; "
                "twice 2 is a usual next step"
            ),
        ),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(
    small: Path, sets: DataSets, tmp_path: Path, latent_size: int, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        grow(small, latent_size, sets, tmp_path / "wide")
    assert str(caught.value) == message
    assert not (tmp_path / "wide").exists()


def test_a_folder_in_the_way_and_a_warm_up_below_zero_are_refused_first(small: Path, tmp_path: Path) -> None:
    nowhere: Any = "no such data"
    (tmp_path / "wide").mkdir()
    with pytest.raises(StorageError, match="wide: already exists"):
        grow(small, 4, nowhere, tmp_path / "wide")
    with pytest.raises(TrainingError, match="warm-up: got -1 epochs"):
        grow(small, 4, nowhere, warm_up=-1)


def test_latents_that_were_cut_out_as_idle_are_not_put_back(small: Path, sets: DataSets) -> None:
    vae = load(small)
    vae.provenance["shrunk"] = {"latent_size": 6, "kept_latents": [0, 3]}
    with pytest.raises(ModelError) as caught:
        grow(vae, 4, sets)
    assert str(caught.value) == (
        "model: was shrunk from 6 to 2 latents since the others were idle, so new ones would be idle, too; grow the "
        "model it was shrunk from, if all of its latents were active"
    )


def test_a_model_of_which_only_hidden_units_were_cut_is_widened(small: Path, sets: DataSets) -> None:
    vae = load(small)
    vae.provenance["shrunk"] = {"latent_size": 2, "kept_latents": [0, 1]}
    assert grow(vae, 3, sets).resumable == "it was shrunk"


def test_a_damaged_record_of_a_growth_is_refused(wide: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wide, tmp_path / "wide"))
    config = json.loads((folder / "config.json").read_text())
    config["training"]["grown"] = [{"latents": 0, "epoch": 1, "warm_up": 1}]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match="its training records a growth: latents is 0"):
        resume(folder, {"epochs": 50})


def test_the_result_is_said_in_json(small: Path, sets: DataSets) -> None:
    entry = json.loads(json.dumps(grow(small, 4, sets).to_json()))
    assert entry["latent_size"] == {"before": 2, "after": 4}
    assert entry["new_latents"] == [2, 3]
    assert entry["preserved"]["passed"] is True
    assert (entry["resumable"], entry["why_not_resumable"], entry["out"]) == (True, None, None)


def test_grow_is_public_and_a_failed_check_never_passes() -> None:
    assert vaeprune.grow is grow
    kept = vaeprune.growing.Preserved(5, 0.0, 0.0, 0.0, float("nan"), True, 1e-5)  # type: ignore[attr-defined]
    assert not kept.passed
    assert not dataclasses.replace(kept, anywhere=0.0, undone=False).passed
    assert dataclasses.replace(kept, anywhere=0.0).passed
    assert isinstance(DenseVAE((4,), [3], [3], 1), BuiltVAE)


@pytest.mark.parametrize("large", [1e20, 1e30])
def test_a_model_that_decodes_to_nan_is_not_grown(large: float, tmp_path: Path) -> None:
    vae = DenseVAE((12,), (8,), (8,), 3)
    initialise(vae, "glorot", 0)
    with torch.no_grad():
        vae.encoder[0].weight[-1, -1] = vae.mean_head.weight[0, 0] = large
    with pytest.raises(ModelError, match=r"^model: decodes to NaN or infinity on "):
        grow(vae, 5, np.random.default_rng(0).random((300, 12), np.float32), tmp_path / "wide")
    assert list(tmp_path.iterdir()) == []
