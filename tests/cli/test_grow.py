"""`vaeprune grow`: more latents, the same outputs, and training that goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foreign_models import family
from foreign_models import rows as noise
from vaeprune import load

CODE = """
from foreign_models import OwnVAE, Reader

class VAE(OwnVAE):
    pass

class Literal(Reader):
    def forward(self, z):
        return super().forward(z.reshape(-1, 5))

def literal():
    return OwnVAE(reader=Literal)
"""


def test_the_wider_model_computes_the_same_and_training_goes_on(vaeprune, training):
    ran = vaeprune("grow", training, "--latent", 6, "--out", "wide", "--warm-up", 0.5, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert found["latent_size"] == {"before": 4, "after": 6}
    assert found["new_latents"] == [4, 5]
    assert (found["model"], found["out"], found["warm_up_epochs"]) == (str(training), "wide", 0.5)
    assert found["resumable"] is True
    kept = found["preserved"]
    assert kept["passed"] is True
    assert kept["undone"] is True
    assert max(kept[name] for name in ("mean", "logvar", "decoded", "anywhere")) <= kept["limit"] == 1e-5
    narrow, wide = load(training), load("wide")
    z = 9 * torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(wide.decode(z), narrow.decode(z[:, :4]), rtol=1e-5, atol=1e-6)
    went_on = vaeprune("train", "--resume", "--out", "wide", "--epochs", 3, "--json")
    assert went_on.code == 0, went_on
    assert went_on.json["epochs"] == 3
    assert went_on.json["grown"].keys() == {"new_latents", "alive", "kl_weight"}
    assert (went_on.json["grown"]["new_latents"], went_on.json["grown"]["kl_weight"]) == (2, 1.0)


def test_text_says_what_was_checked_and_what_to_run_next(vaeprune, training):
    ran = vaeprune("grow", training, "--latent", 5, "--out", "wide")
    assert (ran.code, ran.err) == (0, "")
    first, same, undone, advice, command = ran.out.splitlines()
    assert first.startswith(f"wide: {training} with 5 latents instead of 4, ")
    assert same.startswith("means and logvars of the old latents, and what any z decodes to, on ")
    assert undone == "cutting the new latents out again gives the old weights: bit for bit"
    assert advice == (
        "Train it on with `vaeprune train --resume`: the KL of latent 4 is weighted from 0 to 1 over the first 2 "
        "epochs."
    )
    assert command == "    vaeprune train --resume --out wide --epochs 4"
    went_on = vaeprune("train", "--resume", "--out", "wide", "--epochs", 3)
    assert went_on.code == 0, went_on
    assert " of 1 new latents came alive (" in went_on.out.splitlines()[-1]
    assert "; their KL is weighted by 0.5 so far, so more may go idle yet" in went_on.out.splitlines()[-1]


def test_before_it_is_trained_on_the_diagnosis_is_that_it_was_grown(vaeprune, training, rows):
    assert vaeprune("grow", training, "--latent", 5, "--out", "wide", "--quiet").code == 0
    ran = vaeprune("analyze", "wide", "--data", rows, "--json")
    finding, *_ = ran.json["diagnosis"]["findings"]
    assert (finding["cause"], finding["named"]) == ("grown", True)
    told = "its record says that latents from 4 on were added; the weight of their KL is 0 so far"
    assert finding["evidence"] == told
    assert ran.json["advice"]["action"] == "retrain"
    assert ran.json["advice"]["command"].startswith("vaeprune train --resume --out wide --epochs ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--latent", 4), "latent: got 4, the model has 4 already; ask for more; `vaeprune shrink` makes it smaller"),
        (("--latent", 10**9), "latent: got 1000000000, which is more than the 784 values of a row can use"),
        (("--latent", 8, "--warm-up", -1), "warm-up: got -1.0 epochs, expected a finite number of at least 0"),
        (("--latent", 8, "--warm-up", "nan"), "warm-up: got nan epochs, expected a finite number of at least 0"),
        (("--latent", 8, "--seed", -1), "--seed: got -1, expected a whole number from 0 to 2^63"),
        (("--latent", "many"), "Invalid value for '--latent'"),
        ((), "Missing option '--latent'"),
    ],
)
def test_what_makes_no_sense_is_refused(busy_model, refused, words, told):
    refused("grow", busy_model, "--out", "wide", *words, told=[told])


def test_an_existing_folder_is_refused(busy_model, refused):
    Path("wide").mkdir()
    refused("grow", busy_model, "--latent", 8, "--out", "wide", told=["wide: already exists"])


def test_a_model_that_does_not_say_its_data_wants_them_named(vaeprune, other_idle_model, rows, refused):
    told = "--data: is missing, and the model does not say what it was trained on"
    refused("grow", other_idle_model, "--latent", 8, "--out", "wide", told=[told])
    ran = vaeprune("grow", other_idle_model, "--latent", 8, "--out", "wide", "--data", rows)
    assert ran.code == 0, ran
    assert "Its training is not resumed here: the model does not record a training." in ran.out
    refused("train", "--resume", "--out", "wide", told=["wide: does not record a training that could be resumed"])


def test_a_shrunk_model_is_refused(shrunk, rows, refused):
    told = "model: was shrunk from 6 to 4 latents since the others were idle"
    refused("grow", shrunk, "--latent", 8, "--out", "wide", "--data", rows, told=[told])


@pytest.fixture
def theirs(desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (desk / "their_grown.py").write_text(CODE)
    torch.save({"model_state_dict": family().network.state_dict()}, desk / "ckpt.pt")
    np.save(desk / "rows.npy", noise().numpy())
    yield ("their_grown.py:VAE", "--weights", "ckpt.pt", "--model-arg", "latent_dim=5", "--data", "rows.npy")
    sys.modules.pop("their_grown", None)


def test_a_class_of_ones_own_is_grown_and_told_what_warm_up_it_needs(vaeprune, theirs):
    ran = vaeprune("grow", *theirs, "--latent", 7, "--out", "wide", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert "weight the KL of latents 5 to 6 by min(1, epoch / 2)" in ran.out
    import their_grown

    grown = load("wide", their_grown.VAE)
    built = their_grown.VAE(7)
    built.load_state_dict(grown.network.state_dict())
    assert grown.latent_size == 7


def test_a_size_written_into_the_code_is_refused_with_its_line(theirs, refused):
    told = ["after the widening the model no longer runs", "return super().forward(z.reshape(-1, 5))"]
    words = ("their_grown.py:literal", "--data", "rows.npy", "--latent", 7, "--out", "wide", "--quiet")
    refused("grow", *words, told=told)
