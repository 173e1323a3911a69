from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vaeprune import training_run
from vaeprune.architectures import ConvolutionalVAE, DenseVAE
from vaeprune.data import MemoryRows
from vaeprune.errors import DataError, ModelError, StorageError, TrainingError, UsageError, VaepruneError
from vaeprune.likelihood import Likelihood
from vaeprune.model_folder import ModelFolder, read_model_folder, write_model_folder
from vaeprune.storage import read_tensors
from vaeprune.training import Objective, Options, Trained, train
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe, resume, run

FILES = ["README.md", "config.json", "history.json", "model.safetensors", "training_state.safetensors"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A dense network of a few hundred weights on some 30 rows."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 3, 4), dtype=np.float32))
    return Recipe(str(tmp_path / "x.npy"), hidden=(7, 5), latent=2, epochs=3, batch_size=8, learning_rate=0.01)


@pytest.fixture
def convolutional(tmp_path: Path) -> Recipe:
    """The paper's channels on pictures of 17x17 pixels."""
    x = np.random.default_rng(0).integers(0, 256, (24, 17, 17), dtype=np.uint8)
    np.save(tmp_path / "c.npy", x)
    return Recipe(str(tmp_path / "c.npy"), architecture="convolutional", latent=3, epochs=3, batch_size=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def assert_same(a: Path, b: Path) -> None:
    """The two trainings ended with the same bits."""
    for name in ("model.safetensors", "training_state.safetensors"):
        x, y = read_tensors(a / name), read_tensors(b / name)
        assert x.keys() == y.keys()
        assert not [k for k in x if not torch.equal(x[k], y[k])]
    assert json.loads((a / "history.json").read_text()) == json.loads((b / "history.json").read_text())


class Interrupt:
    """Ctrl-C in the callback of one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, done: Trained) -> None:
        if len(done.history.epochs) == self.epoch:
            raise KeyboardInterrupt


# Recipes


def test_a_recipe_makes_the_dense_network_it_names() -> None:
    vae = Recipe("x", hidden=(256, 32, 24)).network((28, 28))
    assert isinstance(vae, DenseVAE)
    assert vae.architecture() == {
        "name": "dense",
        "input_shape": [1, 28, 28],
        "encoder_widths": [256, 32, 24],
        "decoder_widths": [24, 32, 256],
        "latent_size": 16,
    }
    assert vae.likelihood == Likelihood("bernoulli", "logits", 1.0)


def test_a_recipe_makes_the_papers_convolutional_network() -> None:
    vae = Recipe("x", architecture="convolutional", likelihood="gaussian", scale=0.5, latent=4).network((28, 28))
    assert isinstance(vae, ConvolutionalVAE)
    assert vae.architecture()["encoder_channels"] == [16, 32, 32, 32, 32, 32, 32, 32]
    assert (vae.latent_size, vae.input_shape) == (4, (1, 28, 28))
    assert vae.likelihood == Likelihood("gaussian", "mean", 0.5)


@pytest.mark.parametrize(("row", "image"), [((12,), (12,)), ((3, 4), (1, 3, 4)), ((3, 4, 5), (3, 4, 5))])
def test_the_network_takes_rows_as_they_are_and_pictures_with_a_channel(
    row: tuple[int, ...], image: tuple[int, ...]
) -> None:
    assert Recipe("x", hidden=(3,)).network(row).input_shape == image


def test_a_recipe_gives_the_options_of_the_loop() -> None:
    recipe = Recipe(
        "x", kl="quadratic", beta=2.0, sampling=False, epochs=7, batch_size=9, learning_rate=0.1, seed=3, trace_every=5
    )
    assert recipe.options() == Options(7, 9, 0.1, Objective("quadratic", 2.0, False), 3, 5)


def test_a_recipe_comes_back_from_its_provenance_entry() -> None:
    recipe = Recipe("x", rows=5, hidden=(3, 4), scale=0.25, likelihood="gaussian", sampling=False, seed=9)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "m") == recipe


@pytest.mark.parametrize(
    "entry", [None, {}, {"data": "x"}, {"data": "x", "hidden": 3}, {"data": "x", "hidden": [3], "evil": 1}]
)
def test_an_entry_that_is_no_recipe_is_refused(entry: dict[str, Any] | None) -> None:
    with pytest.raises(StorageError) as caught:
        Recipe.from_json(entry, "m")
    assert caught.value.message == "m: does not record a training that could be resumed"


def test_the_command_of_a_recipe_names_what_is_not_usual() -> None:
    recipe = Recipe("my x.npy", hidden=(8, 4), latent=3, sampling=False, learning_rate=0.01, initialisation="torch")
    assert recipe.command("out") == (
        "vaeprune train --data 'my x.npy' --hidden 8,4 --latent 3 --init torch --no-sampling --epochs 40 "
        "--learning-rate 0.01 --seed 0 --out out"
    )
    assert Recipe("tiles", architecture="convolutional", hidden=(1,)).command("o") == (
        "vaeprune train --data tiles --arch convolutional --latent 16 --epochs 40 --seed 0 --out o"
    )


# Running


def test_a_run_is_the_training_loop_on_the_training_rows(tmp_path: Path, recipe: Recipe) -> None:
    trained = run(recipe, tmp_path / "model")
    rows = training_run.training_images(recipe.data)
    assert 20 < rows.count < 40
    expected = train(recipe.network((3, 4)), rows, recipe.options())
    read = read_model_folder(tmp_path / "model")
    for name, value in expected.vae.state_dict().items():
        assert torch.equal(trained.vae.state_dict()[name], value)
        assert torch.equal(read.vae.state_dict()[name], value)
    assert read.history == expected.history
    assert Recipe.from_json(read.training, "m") == recipe
    assert sorted(contents(tmp_path / "model")) == FILES


def test_the_folder_is_whole_after_each_epoch(tmp_path: Path, recipe: Recipe) -> None:
    seen = []

    def look(done: Trained) -> None:
        read = read_model_folder(tmp_path / "model")
        assert all(torch.equal(v, done.vae.state_dict()[k]) for k, v in read.vae.state_dict().items())
        seen.append(len(read.history.epochs))
        assert sorted(contents(tmp_path / "model")) == FILES
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "x.npy"]

    run(recipe, tmp_path / "model", on_epoch=look)
    assert seen == [1, 2, 3]


def test_the_model_card_says_how_it_was_made_and_what_came_out(tmp_path: Path, recipe: Recipe) -> None:
    trained = run(recipe, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    last = trained.history.epochs[-1]
    assert recipe.command("model") in card
    assert "A dense VAE, 7-5-2 latents-5-7, bernoulli likelihood; " in card
    assert f"{sum(p.numel() for p in trained.vae.parameters())} weights" in card
    assert f"After 3 epochs its loss is {last.loss:.2f} nats per row" in card
    assert f"Of its 2 latents {last.n_inactive} have a variance" in card


def test_a_name_in_a_card_is_no_html(tmp_path: Path, recipe: Recipe) -> None:
    evil = tmp_path / "<img src=x onerror=alert(1)> [a](b).npy"
    shutil.copy(recipe.data, evil)
    run(dataclasses.replace(recipe, data=str(evil)), tmp_path / "model")
    heading, *_, command = (tmp_path / "model" / "README.md").read_text().splitlines()[:5]
    assert heading.endswith(r"/&lt;img src=x onerror=alert(1)&gt; \[a\](b).npy")
    assert command.startswith("    vaeprune train")  # as code, which is shown as it stands


def test_a_network_without_hidden_layers_can_be_trained(tmp_path: Path, recipe: Recipe) -> None:
    run(dataclasses.replace(recipe, hidden=()), tmp_path / "model")
    assert read_model_folder(tmp_path / "model").vae.architecture()["encoder_widths"] == []


def test_the_state_is_discarded_on_request_after_the_last_epoch_only(tmp_path: Path, recipe: Recipe) -> None:
    kept = []
    state = tmp_path / "model" / "training_state.safetensors"
    run(recipe, tmp_path / "model", keep_state=False, on_epoch=lambda _: kept.append(state.exists()))
    assert kept == [True, True, False]
    with pytest.raises(TrainingError) as caught:
        resume(tmp_path / "model", {"epochs": 9})
    assert caught.value.message == (
        f"{tmp_path / 'model'}: was saved without its training state, so its training cannot be resumed"
    )


def test_only_the_first_rows_are_trained_on_when_asked(tmp_path: Path, recipe: Recipe) -> None:
    run(dataclasses.replace(recipe, rows=20, epochs=1), tmp_path / "model")
    rows = training_run.training_images(recipe.data, rows=20)
    expected = train(recipe.network((3, 4)), rows, dataclasses.replace(recipe, epochs=1).options())
    assert read_model_folder(tmp_path / "model").history == expected.history


def test_tiles_need_no_file(tmp_path: Path) -> None:
    run(Recipe("tiles", rows=100, hidden=(4,), latent=2, epochs=1), tmp_path / "model")
    assert read_model_folder(tmp_path / "model").vae.input_shape == (1, 28, 28)


@pytest.mark.mnist
def test_mnist_is_read_from_the_folder_named(tmp_path: Path, mnist_folder: Path) -> None:
    recipe = Recipe("mnist", rows=200, hidden=(4,), latent=2, epochs=1)
    trained = run(recipe, tmp_path / "model", folder=mnist_folder)
    raw = (mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16 : 16 + 200 * 784]
    x = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(200, 28, 28)
    expected = train(recipe.network((28, 28)), MemoryRows("mnist", x), recipe.options())
    assert trained.history == expected.history


# Resuming


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_two_epochs_and_one_more_are_three_to_the_bit(
    tmp_path: Path, recipe: Recipe, convolutional: Recipe, architecture: str
) -> None:
    recipe = dataclasses.replace(recipe if architecture == "dense" else convolutional, trace_every=2)
    run(recipe, tmp_path / "whole")
    run(dataclasses.replace(recipe, epochs=2), tmp_path / "model")
    resume(tmp_path / "model", {"epochs": 3})
    assert_same(tmp_path / "model", tmp_path / "whole")
    assert contents(tmp_path / "model")["config.json"] == contents(tmp_path / "whole")["config.json"]


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupt_keeps_the_finished_epoch_and_can_be_resumed(
    tmp_path: Path, recipe: Recipe, convolutional: Recipe, architecture: str, epoch: int
) -> None:
    recipe = recipe if architecture == "dense" else convolutional
    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "model", on_epoch=Interrupt(epoch))
    assert len(read_model_folder(tmp_path / "model").history.epochs) == epoch
    resume(tmp_path / "model", {})
    assert_same(tmp_path / "model", tmp_path / "whole")


def test_an_interrupt_in_the_middle_of_an_epoch_keeps_the_one_before(tmp_path: Path, recipe: Recipe) -> None:
    def stop(step: Step) -> None:
        if (step.epoch, step.batch) == (2, 2):
            raise KeyboardInterrupt

    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "model", on_step=stop)
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 1
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "model", {}, on_step=stop)
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 1
    resume(tmp_path / "model", {})
    assert_same(tmp_path / "model", tmp_path / "whole")


def test_an_interrupt_in_the_first_epoch_leaves_nothing(tmp_path: Path, recipe: Recipe) -> None:
    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "model", on_step=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_more_epochs_are_the_only_change_a_resumed_training_takes(tmp_path: Path, recipe: Recipe) -> None:
    run(recipe, tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(UsageError) as caught:
        resume(tmp_path / "model", {"epochs": 5, "batch_size": 16})
    assert str(caught.value) == f"--resume: batch_size is 8 in {tmp_path / 'model'}, got 16; leave it out"
    assert contents(tmp_path / "model") == before
    resume(tmp_path / "model", {"epochs": 4, "batch_size": 8, "hidden": (7, 5)})
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 4


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path, recipe: Recipe) -> None:
    run(recipe, tmp_path / "model")
    before = contents(tmp_path / "model")
    with pytest.raises(TrainingError, match="epochs: 3 are done already, got 3"):
        resume(tmp_path / "model", {})
    assert contents(tmp_path / "model") == before


def test_a_shrunk_model_cannot_be_resumed(tmp_path: Path, recipe: Recipe) -> None:
    trained = run(recipe, tmp_path / "model")
    model = ModelFolder(trained.vae, recipe.to_json(), {"removed": [1]}, trained.history, trained.state)
    write_model_folder(model, tmp_path / "shrunk")
    with pytest.raises(TrainingError, match="shrunk: was shrunk, so its training cannot be resumed"):
        resume(tmp_path / "shrunk", {"epochs": 9})


def test_a_model_from_elsewhere_cannot_be_resumed(tmp_path: Path) -> None:
    write_model_folder(ModelFolder(DenseVAE((4,), [3], [3], 2)), tmp_path / "model")
    with pytest.raises(StorageError, match="model: does not record a training that could be resumed"):
        resume(tmp_path / "model", {"epochs": 9})
    with pytest.raises(StorageError, match="nothing: no such model folder"):
        resume(tmp_path / "nothing", {})


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": "9"},
        {"batch_size": 8.5},
        {"batch_size": None},
        {"learning_rate": "fast"},
        {"seed": [1]},
        {"hidden": ["a"]},
        {"data": 7},
        {"beta": None},
        {"rows": "all"},
        {"kl": ["full"]},
    ],
)
def test_a_damaged_recipe_is_one_line_of_error(tmp_path: Path, recipe: Recipe, changes: dict[str, Any]) -> None:
    run(dataclasses.replace(recipe, epochs=1), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["training"] = recipe.to_json() | changes
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    before = contents(tmp_path / "model")
    with pytest.raises(VaepruneError):
        resume(tmp_path / "model", {})
    assert contents(tmp_path / "model") == before


def test_resuming_through_a_symbolic_link_is_refused_before_the_first_step(tmp_path: Path, recipe: Recipe) -> None:
    run(recipe, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    steps: list[Step] = []
    with pytest.raises(StorageError, match="link: is a symbolic link"):
        resume(tmp_path / "link", {"epochs": 4}, on_step=steps.append)
    assert not steps


def test_an_import_path_in_a_config_is_never_followed(tmp_path: Path, recipe: Recipe) -> None:
    """Whoever resumes the training in a folder from elsewhere must not run that folder's code."""
    run(dataclasses.replace(recipe, epochs=1), tmp_path / "model")
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'canary')!r}).touch()\ndef rows(): return []\n"
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["training"]["data"] = f"{tmp_path / 'evil.py'}:rows"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(VaepruneError):
        resume(tmp_path / "model", {"epochs": 2})
    assert not (tmp_path / "canary").exists()


# What goes wrong


def test_a_loss_that_is_no_number_keeps_the_last_epoch(tmp_path: Path, recipe: Recipe) -> None:
    def spoil(done: Trained) -> None:
        if len(done.history.epochs) == 2:
            with torch.no_grad():
                done.vae.mean_head.weight.fill_(math.nan)  # type: ignore[union-attr]

    with pytest.raises(TrainingError) as caught:
        run(recipe, tmp_path / "model", on_epoch=spoil)
    assert str(caught.value) == (
        "epoch 3, minibatch 1: the loss became nan; lower --learning-rate; the last finished epoch is kept"
    )
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 2
    resume(tmp_path / "model", {})
    run(recipe, tmp_path / "whole")
    assert_same(tmp_path / "model", tmp_path / "whole")


@pytest.mark.parametrize("batch_size", [8, 50])
def test_a_training_that_diverges_is_one_line_of_error(tmp_path: Path, recipe: Recipe, batch_size: int) -> None:
    recipe = dataclasses.replace(recipe, learning_rate=1e30, batch_size=batch_size)
    with pytest.raises(TrainingError, match="epoch 1"):
        run(recipe, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_existing_folder_is_refused_before_the_first_step(tmp_path: Path, recipe: Recipe) -> None:
    run(recipe, tmp_path / "model")
    before = contents(tmp_path / "model")
    steps: list[Step] = []
    with pytest.raises(StorageError, match="model: already exists"):
        run(recipe, tmp_path / "model", on_step=steps.append)
    assert not steps
    assert contents(tmp_path / "model") == before


def test_force_replaces_a_model_folder_only_after_the_first_epoch(tmp_path: Path, recipe: Recipe) -> None:
    run(recipe, tmp_path / "model")
    before = contents(tmp_path / "model")

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "model", force=True, on_step=stop)
    assert contents(tmp_path / "model") == before
    run(dataclasses.replace(recipe, epochs=1), tmp_path / "model", force=True)
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 1


def test_force_refuses_a_folder_of_other_things_before_the_first_step(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    steps: list[Step] = []
    with pytest.raises(StorageError, match="photos: is not empty and not a model folder"):
        run(recipe, tmp_path / "photos", force=True, on_step=steps.append)
    assert not steps
    assert contents(tmp_path / "photos") == {"cat.png": b"cat"}


def test_a_folder_that_appears_during_the_first_epoch_is_not_replaced(tmp_path: Path, recipe: Recipe) -> None:
    def others_are_faster(step: Step) -> None:
        if step.epoch == step.batch == 1:
            write_model_folder(ModelFolder(DenseVAE((4,), [], [], 5)), tmp_path / "model")

    with pytest.raises(StorageError):
        run(recipe, tmp_path / "model", on_step=others_are_faster)
    assert read_model_folder(tmp_path / "model").vae.latent_size == 5


def test_a_full_disk_in_a_later_epoch_keeps_the_one_before(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training_run.write_model_folder

    def full(model: ModelFolder, target: Path, card: str | None = None, **options: Any) -> None:
        def fail(_: Path) -> None:
            raise OSError(28, "No space left on device")

        real(model, target, card, **options, more=fail if len(model.history.epochs) == 2 else None)

    monkeypatch.setattr(training_run, "write_model_folder", full)
    with pytest.raises(StorageError, match="model: cannot be written: No space left on device"):
        run(recipe, tmp_path / "model")
    assert len(read_model_folder(tmp_path / "model").history.epochs) == 1


def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(ModelError, match="architecture: got 'transformer'"):
        run(dataclasses.replace(recipe, architecture="transformer"), tmp_path / "model")
    with pytest.raises(ModelError, match="with 17 to 32 pixels a side"):
        run(dataclasses.replace(recipe, architecture="convolutional"), tmp_path / "model")
    with pytest.raises(DataError, match="no such file"):
        run(dataclasses.replace(recipe, data="nothing.npy"), tmp_path / "model")
    with pytest.raises(TrainingError, match="batch_size: got 1, expected at least 2"):
        run(dataclasses.replace(recipe, batch_size=1), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("rows", [1, 0, -3])
def test_too_few_rows_are_one_line_of_error(tmp_path: Path, recipe: Recipe, rows: int) -> None:
    with pytest.raises(VaepruneError):
        run(dataclasses.replace(recipe, rows=rows), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rows_the_likelihood_cannot_give_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32))
    with pytest.raises(ModelError, match=r"the Bernoulli likelihood expects \[0, 1\]"):
        run(recipe, tmp_path / "model")


def test_the_networks_start_depends_on_the_recipe_alone() -> None:
    def start(**changes: Any) -> Tensor:
        torch.rand(1)
        return Recipe("x", hidden=(4,), **changes).network((6,)).mean_head.weight  # type: ignore[union-attr,return-value]

    assert torch.equal(start(), start())
    assert not torch.equal(start(), start(seed=1))
    assert not torch.equal(start(), start(initialisation="torch"))
