"""`sample`, `reconstruct` and `traverse`: sheets whose pixels are what the models compute."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foreign_models import rows as noise
from vaeprune import load
from vaeprune.data import tiles

CODE = """
from foreign_models import OwnVAE

class VAE(OwnVAE):
    pass
"""


def pixels(name):
    return np.asarray(Image.open(name))


def cell(sheet, columns, row, column, side=28):
    """One picture of a sheet of one panel, at its own size."""
    factor = sheet.shape[1] // (columns * (side + 1))
    small = sheet[::factor, ::factor]
    return small[row * (side + 1) : row * (side + 1) + side, column * (side + 1) : column * (side + 1) + side, 0]


def as_pixels(pictures):
    return (pictures.double().clamp(0, 1) * 255).round().byte().numpy()


def test_samples_are_the_models_of_seeded_noise(vaeprune, idle_model):
    ran = vaeprune("sample", idle_model, "--count", 6, "--columns", 4, "--seed", 3, "--out", "s.png")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"s.png: 6 samples of {idle_model}; model\n"
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = as_pixels(load(idle_model).decode(z))
    sheet = pixels("s.png")
    assert np.array_equal(cell(sheet, 4, 0, 1), expected[1, 0])
    assert np.array_equal(cell(sheet, 4, 1, 1), expected[5, 0])
    first = Path("s.png").read_bytes()
    vaeprune("sample", idle_model, "--count", 6, "--columns", 4, "--seed", 3, "--out", "s.png", "--force")
    assert Path("s.png").read_bytes() == first
    vaeprune("sample", idle_model, "--count", 6, "--columns", 4, "--seed", 4, "--out", "s.png", "--force")
    assert Path("s.png").read_bytes() != first


def test_inactive_latents_at_zero_change_nothing(vaeprune, idle_model, rows):
    ran = vaeprune("sample", idle_model, "--zero-inactive", "--data", rows, "--out", "s.png", "--json")
    assert ran.json["panels"] == ["model", "inactive held", "difference x 1"]
    assert ran.json["largest_difference"] == 0
    assert "inactive on" in ran.err
    assert ": 1, 4" in ran.err


def test_before_and_after_get_the_same_noise(vaeprune, idle_model, shrunk):
    ran = vaeprune("sample", idle_model, "--against", shrunk, "--count", 4, "--columns", 2, "--out", "s.png", "--json")
    assert ran.json["panels"][:2] == ["before", "after"]
    assert ran.json["largest_difference"] < 1e-4
    both = vaeprune("sample", idle_model, "--against", shrunk, "--zero-inactive", "--out", "t.png", "--json").json
    assert both["panels"][0] == "before, inactive held"


def test_reconstructions_stand_below_their_rows(vaeprune, idle_model, shrunk, rows):
    words = ["reconstruct", idle_model, "--data", rows, "--count", 3, "--columns", 3, "--out", "r.png"]
    ran = vaeprune(*words, "--against", shrunk, "--json")
    assert ran.json["panels"][:3] == ["original", "before", "after"]
    assert ran.json["count"] == 3
    sheet = pixels("r.png")
    original = torch.from_numpy(cell(sheet, 3, 0, 2).copy())
    assert any(np.array_equal(original, row) for row in tiles(600, seed=5).numpy())
    with torch.no_grad():
        vae = load(idle_model)
        expected = as_pixels(vae.decode(vae.encode(original[None, None].float() / 255).mean))
    assert np.array_equal(cell(sheet, 3, 1, 2), expected[0, 0])


def test_a_traversal_has_a_row_for_each_latent_and_says_how_far_it_moves(vaeprune, idle_model, rows):
    words = ["traverse", idle_model, "--data", rows, "--steps", 5]
    ran = vaeprune(*words, "--out", "t.png", "--json")
    assert ran.json["latents"] == [0, 1, 2, 3, 4, 5]
    assert max(ran.json["moves"]["1"], ran.json["moves"]["4"]) < 1e-6
    assert min(ran.json["moves"][i] for i in "0235") > 0.01
    sheet = pixels("t.png")
    assert np.array_equal(cell(sheet, 5, 1, 0), cell(sheet, 5, 1, 4))
    assert not np.array_equal(cell(sheet, 5, 0, 0), cell(sheet, 5, 0, 4))
    assert vaeprune(*words, "--out", "u.png", "--latents", "4,0", "--json").json["latents"] == [4, 0]


def test_a_traversal_before_and_after_a_cut_is_the_same(vaeprune, idle_model, shrunk, rows):
    words = ["traverse", idle_model, "--against", shrunk, "--data", rows, "--steps", 3, "--out", "t.png"]
    ran = vaeprune(*words, "--json")
    assert ran.code == 0, ran
    assert ran.json["panels"][:2] == ["before", "after"]
    assert 0 < ran.json["largest_difference"] < 1e-4


@pytest.mark.slow
def test_an_onnx_pair_draws_what_its_model_draws(vaeprune, shrunk, rows, desk):
    for name in ("encoder.onnx", "decoder.onnx"):
        (desk / "pair").mkdir(exist_ok=True)
        shutil.copy(shrunk / name, desk / "pair" / name)
    for words in (["sample"], ["reconstruct", "--data", rows], ["traverse", "--data", rows]):
        for model in (shrunk, "pair"):
            ran = vaeprune(words[0], model, *words[1:], "--out", f"{Path(model).name}.png", "--force")
            assert ran.code == 0, ran
        difference = np.abs(pixels("pair.png").astype(int) - pixels(f"{shrunk.name}.png").astype(int))
        assert difference.max() <= 1
    ran = vaeprune("sample", "pair", "--zero-inactive", "--data", rows, "--out", "z.png")
    assert "inactive on" in ran.err
    assert vaeprune("traverse", "pair", "--from-prior", "--out", "prior.png").code == 0


def test_a_foreign_model_of_vectors_is_drawn_as_lines_and_that_is_said(vaeprune, desk, monkeypatch):
    from test_foreign import theirs  # the class whose weights these are

    monkeypatch.setattr(sys, "path", list(sys.path))
    (desk / "their_own.py").write_text(CODE)
    torch.save({"model_state_dict": theirs().state_dict()}, desk / "ckpt.pt")
    np.save(desk / "rows.npy", noise().numpy())
    for command in ("sample", "reconstruct", "traverse"):
        ran = vaeprune(
            command, "their_own.py:VAE", "--weights", "ckpt.pt", "--data", "rows.npy", "--out", f"{command}.png"
        )
        assert ran.code == 0, ran
        assert "rows of shape (8,) are no pictures, so the 8 values of a row are drawn as a line" in ran.err
        assert pixels(f"{command}.png").std() > 1
    sys.modules.pop("their_own", None)


def test_what_cannot_be_drawn_is_refused_on_one_line(refused, idle_model, shrunk, busy_model, rows, copied, desk):
    refused("sample", "nowhere", "--out", "s.png", told=["nowhere: no such model folder"])
    refused("sample", "m.py:VAE", "--out", "s.png", told=["--data: is missing"])
    refused("traverse", idle_model, "--data", rows, "--latents", "9", "--out", "t.png", told=["from 0 to 5"])
    refused(
        "sample", idle_model, "--against", busy_model, "--out", "s.png", told=["which latents it kept is not known"]
    )
    Path("s.png").write_text("mine")
    refused("sample", idle_model, "--out", "s.png", told=["s.png: already exists"])
