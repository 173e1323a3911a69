"""`vaeprune train`: the folder it writes, its recipe, Ctrl-C and resuming to the bit."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaeprune.cli.__main__ import run

from interrupting import interrupting
from vaeprune import training_run
from vaeprune.errors import TrainingError
from vaeprune.storage import read_tensors
from vaeprune.training_run import Recipe

FILES = {"README.md", "config.json", "history.json", "model.safetensors", "training_state.safetensors"}
SMALL = ("--hidden", "16,8", "--latent", 4)
BATCHES = 3  # of 128 in the 60% of 600 rows


def bits(folder: Path) -> dict[str, bytes]:
    """Every tensor of a training, weights and state, as bytes; and its history."""
    tensors = read_tensors(folder / "model.safetensors") | read_tensors(folder / "training_state.safetensors")
    as_bytes = {name: value.numpy().tobytes() for name, value in tensors.items()}
    return as_bytes | {"history": (folder / "history.json").read_bytes()}


def epochs_in(folder: Path) -> int:
    return len(json.loads((folder / "history.json").read_text())["epochs"])


def test_writes_a_model_folder_and_one_line(vaeprune, rows, desk):
    ran = vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "new")
    assert ran.code == 0
    assert {p.name for p in Path("new").iterdir()} == FILES
    assert [p.name for p in desk.iterdir()] == ["new"]
    last = json.loads(Path("new/history.json").read_text())["epochs"][-1]
    assert ran.out == (
        f"new: 2 epochs, loss {last['loss']:.2f} nats per row (reconstruction {last['reconstruction']:.2f}, "
        f"KL {last['kl']:.2f}), 0 of 4 latents inactive\n"
    )


def test_off_a_terminal_each_epoch_is_a_plain_line_on_stderr(vaeprune, rows):
    err = vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "new").err
    assert [line.split()[:3:2] for line in err.splitlines()] == [["epoch", "loss"], ["epoch", "loss"]]
    assert "\x1b" not in err
    assert "\r" not in err


def test_quiet_keeps_stderr_empty(vaeprune, rows):
    ran = vaeprune("train", "--data", rows, *SMALL, "--epochs", 1, "--out", "new", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("new: 1 epochs, loss ")


def test_json_is_one_object_of_the_last_epoch(vaeprune, rows):
    ran = vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "new", "--json")
    last = json.loads(Path("new/history.json").read_text())["epochs"][-1]
    shares = {key: last[key] for key in ("loss", "reconstruction", "kl")}
    assert ran.json == {"out": "new", "epochs": 2, **shares, "n_inactive": 0}
    assert ran.err == ""


def test_loss_is_reconstruction_plus_kl_and_falls(training):
    first, last = json.loads((training / "history.json").read_text())["epochs"]
    assert last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(last["reconstruction"] + last["kl"], rel=1e-6)


def test_same_seed_same_bytes_other_seed_other_bytes(vaeprune, rows, training):
    again = ("train", "--data", rows, *SMALL, "--epochs", 2)
    vaeprune(*again, "--out", "same")
    vaeprune(*again, "--out", "other", "--seed", 1)
    assert bits(Path("same")) == bits(training)
    assert bits(Path("other")) != bits(training)


def test_discarded_state_leaves_a_finished_model_without_it(vaeprune, rows, training, refused):
    vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "new", "--discard-state")
    assert {p.name for p in Path("new").iterdir()} == FILES - {"training_state.safetensors"}
    assert Path("new/model.safetensors").read_bytes() == (training / "model.safetensors").read_bytes()
    refused(
        "train", "--resume", "--out", "new", "--epochs", 3,
        told=["new: was saved without its training state, so its training cannot be resumed"],
    )  # fmt: skip


def test_existing_folder_needs_force(vaeprune, rows, training, copied, refused):
    model = copied(training)
    again = ("train", "--data", rows, *SMALL, "--epochs", 1, "--out", model)
    refused(*again, told=[f"{model}: already exists; choose another name or pass --force to replace it"])
    assert vaeprune(*again, "--force").code == 0
    assert epochs_in(model) == 1


def test_force_does_not_replace_a_folder_of_something_else(rows, desk, refused):
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("all of it")
    refused(
        "train", "--data", rows, *SMALL, "--epochs", 1, "--out", "thesis", "--force",
        told=["thesis: is not empty and not a model folder"],
    )  # fmt: skip


def test_rows_are_the_first_of_the_data(vaeprune, rows):
    vaeprune("train", "--data", rows, *SMALL, "--epochs", 1, "--out", "a", "--rows", 100)
    assert json.loads(Path("a/config.json").read_text())["training"]["rows"] == 100


def test_trace_is_recorded_every_k_minibatches(vaeprune, rows):
    vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "new", "--trace-every", 2)
    trace = json.loads(Path("new/history.json").read_text())["trace"]
    assert [point["step"] for point in trace] == [1, 3, 5]


# --- the recipe and its command


ELABORATE = Recipe(
    data="rows", rows=60, hidden=(12, 9), latent=3, likelihood="gaussian", scale=0.5, initialisation="torch",
    kl="quadratic", beta=2.5, sampling=False, epochs=1, batch_size=16, learning_rate=3e-5, trace_every=2, seed=7,
)  # fmt: skip
CONVOLUTIONAL = Recipe(data="rows", rows=40, architecture="convolutional", latent=2, epochs=1, beta=0.1)


@pytest.mark.parametrize("recipe", [ELABORATE, CONVOLUTIONAL], ids=["elaborate", "convolutional"])
def test_command_of_a_recipe_trains_by_that_recipe(vaeprune, rows, recipe):
    recipe = dataclasses.replace(recipe, data=str(rows))
    program, *words = shlex.split(recipe.command("new"))
    assert program == "vaeprune"
    assert vaeprune(*words).code == 0
    assert json.loads(Path("new/config.json").read_text())["training"] == json.loads(json.dumps(recipe.to_json()))


def test_model_card_quotes_the_command(training):
    (line,) = [text for text in (training / "README.md").read_text().splitlines() if text.startswith("    vaeprune")]
    known = json.loads((training / "config.json").read_text())["training"]
    assert line.strip() == Recipe.from_json(known, "here").command(training.name)


finite = st.floats(1e-8, 1e8)
recipes = st.builds(
    Recipe,
    data=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
    rows=st.none() | st.integers(1, 10**6),
    architecture=st.just("dense"),
    hidden=st.lists(st.integers(1, 999), min_size=1).map(tuple),
    latent=st.integers(1, 10**4),
    likelihood=st.sampled_from(["bernoulli", "gaussian"]),
    scale=finite,
    initialisation=st.sampled_from(["glorot", "torch"]),
    kl=st.sampled_from(["full", "quadratic", "none"]),
    beta=finite,
    sampling=st.booleans(),
    epochs=st.integers(1, 10**4),
    batch_size=st.integers(2, 10**4),
    learning_rate=finite,
    trace_every=st.integers(0, 10**4),
    seed=st.integers(0, 2**31),
)


@settings(deadline=None, max_examples=60)
@given(recipe=recipes)
def test_command_of_any_recipe_parses_to_the_same_recipe(recipe):
    found = []

    def catch(recipe, *_, **__):
        found.append(recipe)
        raise TrainingError("caught")

    with patch.object(training_run, "run", catch):
        run(shlex.split(recipe.command("new"))[1:])
    assert found == [recipe]


# --- resuming


def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(vaeprune, rows, training, copied):
    vaeprune("train", "--data", rows, *SMALL, "--epochs", 3, "--out", "whole")
    halves = copied(training)
    ran = vaeprune("train", "--resume", "--out", halves, "--epochs", 3)
    assert ran.code == 0
    assert bits(halves) == bits(Path("whole"))
    assert json.loads((halves / "config.json").read_text())["training"]["epochs"] == 3


def test_resuming_a_finished_training_is_refused(training, refused):
    error = refused("train", "--resume", "--out", training, told=["epochs: 2 are done already, got 2"])
    assert error == {
        "type": "TrainingError",
        "message": "epochs: 2 are done already, got 2",
        "hint": "ask for more with --epochs",
    }


def test_resuming_with_another_setting_is_refused(training, refused):
    told = f"--resume: beta is 1.0 in {training}, got 2.0; leave it out"
    refused("train", "--resume", "--out", training, "--epochs", 3, "--beta", 2, told=[told])


def test_resuming_with_the_same_setting_is_allowed(vaeprune, rows, training, copied):
    ran = vaeprune("train", "--resume", "--out", copied(training), "--epochs", 3, "--data", rows, *SMALL)
    assert ran.code == 0


def test_resuming_a_shrunk_model_is_refused(shrunk, refused):
    refused("train", "--resume", "--out", shrunk, "--epochs", 9, told=[f"{shrunk}: was shrunk"])


def test_resuming_what_is_not_there_is_refused(refused):
    refused("train", "--resume", "--out", "nowhere", told=["nowhere: no such model folder"])


def test_resuming_a_model_that_was_not_trained_here_is_refused(other_idle_model, refused):
    told = f"{other_idle_model}: does not record a training that could be resumed"
    refused("train", "--resume", "--out", other_idle_model, told=[told])


@pytest.mark.parametrize(
    "entry",
    [{"epochs": "three"}, {"hidden": ["wide"]}, {"beta": None}, {"learning_rate": []}, {"seed": {}}, {"data": 5}],
    ids=lambda entry: next(iter(entry)),
)
def test_resuming_from_a_damaged_record_is_refused(training, changed_config, refused, entry):
    known = json.loads((training / "config.json").read_text())["training"]
    model = changed_config(training, training=known | entry)
    refused("train", "--resume", "--out", model, "--batch-size", 128)


def test_resuming_from_a_damaged_state_is_refused(training, copied, refused):
    import safetensors.torch

    model = copied(training)
    state = read_tensors(model / "training_state.safetensors")
    safetensors.torch.save_file(state | {"generator": state["generator"][:3]}, model / "training_state.safetensors")
    refused("train", "--resume", "--out", model, "--epochs", 3, told=["training state"])


# --- Ctrl-C


def test_ctrl_c_keeps_the_last_finished_epoch_and_resume_completes_it(vaeprune, rows, desk):
    command = ("train", "--data", rows, *SMALL, "--epochs", 3)
    vaeprune(*command, "--out", "whole")
    with interrupting(step=2 * BATCHES + 2):
        ran = vaeprune(*command, "--out", "stopped", "--quiet")
    assert (ran.code, ran.out) == (130, "")
    assert "stopped holds the last finished epoch" in ran.err
    assert ran.err.splitlines()[-1] == "interrupted"
    assert sorted(p.name for p in desk.iterdir()) == ["stopped", "whole"]
    assert epochs_in(Path("stopped")) == 2
    assert vaeprune("train", "--resume", "--out", "stopped").code == 0
    assert bits(Path("stopped")) == bits(Path("whole"))


def test_ctrl_c_in_the_first_epoch_leaves_nothing(vaeprune, rows, desk):
    with interrupting(step=2):
        ran = vaeprune("train", "--data", rows, *SMALL, "--epochs", 3, "--out", "stopped", "--json")
    assert (ran.code, ran.out, ran.err.split()) == (130, "", ["interrupted"])
    assert list(desk.iterdir()) == []


def test_command_shown_after_ctrl_c_resumes(vaeprune, rows):
    with interrupting(step=BATCHES + 1):
        ran = vaeprune("train", "--data", rows, *SMALL, "--epochs", 2, "--out", "my model")
    (shown,) = [line for line in ran.err.splitlines() if "go on with: " in line]
    words = shlex.split(shown.partition("go on with: ")[2])
    assert vaeprune(*words[1:]).code == 0
    assert epochs_in(Path("my model")) == 2


def test_ctrl_c_before_the_first_new_epoch_claims_nothing_of_the_old_folder(vaeprune, rows, training, copied):
    model = copied(training)
    with interrupting(step=1):
        ran = vaeprune("train", "--data", rows, *SMALL, "--seed", 9, "--epochs", 5, "--out", model, "--force")
    assert ran.code == 130
    assert bits(model) == bits(training)
    assert "last finished epoch" not in ran.err  # the folder is the old training's, and --resume would go on with that


@pytest.mark.slow
def test_ctrl_c_of_a_process_exits_130_and_leaves_a_whole_folder(vaeprune, rows, desk):
    words = ["train", "--data", str(rows), *map(str, SMALL), "--epochs", "100000", "--out", "stopped"]
    started = subprocess.Popen(
        [sys.executable, "-m", "vaeprune.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in started.stderr:
        if line.startswith("epoch   3"):
            break
    time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert [p.name for p in desk.iterdir()] == ["stopped"]
    done = epochs_in(Path("stopped"))
    assert done >= 3
    vaeprune("train", "--resume", "--out", "stopped", "--epochs", done + 1)
    vaeprune("train", "--data", rows, *SMALL, "--epochs", done + 1, "--out", "whole")
    assert bits(Path("stopped")) == bits(Path("whole"))


# --- a loss that explodes


def test_exploding_loss_is_one_line_and_keeps_nothing_broken(vaeprune, rows, desk):
    ran = vaeprune("train", "--data", rows, *SMALL, "--learning-rate", 1e30, "--epochs", 3, "--out", "new", "--quiet")
    assert ran.code == 2
    assert "the loss became" in ran.err
    assert "lower --learning-rate" in ran.err
    assert len(ran.err.splitlines()) == 1
    if Path("new").exists():
        assert vaeprune("encode", "new", "--data", rows, "--out", "z.npy").code == 0
