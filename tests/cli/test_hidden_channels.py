"""`shrink` on hidden channels: what it says where nothing can go, or where rows are too few for a fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from trained import small_tiles, trained_dense
from vaeprune.architectures import initialise
from vaeprune.architectures.dense import DenseVAE
from vaeprune.model_folder import ModelFolder, write_model_folder


def _written(folder: Path, hidden: int, latents: int, bias: float) -> Path:
    vae = DenseVAE((1, 28, 28), (hidden,), (hidden,), latents)
    initialise(vae, "glorot", 3)
    with torch.no_grad():
        vae.encoder[0].bias.fill_(bias)
        vae.decoder[0].bias.fill_(bias)
        vae.mean_head.weight *= 3
        vae.logvar_head.bias.fill_(-3.0)
    write_model_folder(ModelFolder(vae, None), folder)
    return folder


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unit a layer and one latent, all of them in use: nothing can ever be taken out of it."""
    return _written(tmp_path_factory.mktemp("narrow") / "model", 1, 1, 3.0)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More units than a few rows can tell apart."""
    return _written(tmp_path_factory.mktemp("wide") / "model", 96, 2, 0.0)


@pytest.fixture(scope="module")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network whose units are worth something, and its rows."""
    folder = tmp_path_factory.mktemp("trained")
    np.save(folder / "rows.npy", small_tiles().numpy())
    write_model_folder(ModelFolder(trained_dense(), None), folder / "model")
    return folder / "model", folder / "rows.npy"


@pytest.mark.parametrize("options", [(), ("--budget", 2)], ids=["network", "budget"])
def test_a_model_with_no_removable_unit_is_left_with_the_reasons(vaeprune, narrow_model, rows, desk, options):
    ran = vaeprune("shrink", narrow_model, "--data", rows, "--out", "smaller", "--json", *options)
    assert ran.code == 0
    found = ran.json
    assert (found["out"], found["removed_channels"], found["evidence"]) == (None, 0, None)
    assert found["parameters"]["before"] == found["parameters"]["after"] > 0
    reasons = {entry["weight"]: entry["reason"] for entry in found["left"]}
    for weight in ("encoder.0.weight", "decoder.0.weight"):
        assert reasons[weight] == f"{weight} has only one channel"
    assert list(desk.iterdir()) == []


def test_a_model_with_no_removable_unit_is_told_in_words(vaeprune, narrow_model, rows, desk):
    ran = vaeprune("shrink", narrow_model, "--data", rows, "--out", "smaller")
    assert ran.code == 0
    assert "nothing to cut, so nothing was written\n\nwhy hidden channels stay:\n" in ran.out
    assert "    encoder.0.weight: 1, encoder.0.weight has only one channel" in ran.out.splitlines()
    assert list(desk.iterdir()) == []


def test_rows_too_few_for_a_fit_are_said_by_weight(vaeprune, trained_model, desk):
    """Some fifty calibration rows cannot tell 48 units apart."""
    model, rows = trained_model
    ran = vaeprune("shrink", model, "--data", rows, "--rows", 94, "--budget", 1.5, "--dry-run", "--json")
    assert ran.code == 0
    skipped = [note for note in ran.json["notes"] if "not fitted anew" in note]
    assert skipped, ran.json["notes"]
    told = re.compile(r"\S+\.weight: not fitted anew, \d+ rows are too few for \d+ inputs")
    assert all(told.fullmatch(note) for note in skipped), skipped
    assert set(skipped) <= set(ran.err.splitlines())
    assert list(desk.iterdir()) == []


def test_a_failed_gate_of_a_budget_leaves_nothing_written(vaeprune, wide_model, rows, desk):
    words = ("--data", rows, "--out", "small", "--budget", 0.2, "--onnx-tolerance", 0, "--json")
    ran = vaeprune("shrink", wide_model, *words)
    assert ran.code == 1
    assert ran.json["out"] is None
    assert ran.json["removed_channels"] > 0
    failed = [gate["name"] for gate in ran.json["evidence"]["gates"] if not gate["passed"]]
    assert any("onnx" in name.lower() for name in failed), failed
    assert list(desk.iterdir()) == []
