"""Diagnoses on the command line: what is printed, `--objective`, and commands that run as they are printed."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from vaeprune import load
from vaeprune.architectures import initialise
from vaeprune.architectures.dense import DenseVAE
from vaeprune.data import training_images
from vaeprune.model_folder import ModelFolder, write_model_folder
from vaeprune.training import Objective, Options, train

DIAGNOSIS = {"effective_beta", "effective_beta_ci95", "expected_beta", "symptoms", "findings", "blocking"}
LINEAR = '''
import torch
from torch import nn

LAMBDA = torch.tensor([9.0, 4.0, 2.0])


class Linear(nn.Module):
    """The best linear VAE of rows with these variances for an observation variance of `noise`."""

    def __init__(self, noise=1.0, learned=False):
        super().__init__()
        self.head, self.back = nn.Linear(5, 6), nn.Linear(3, 5)
        size = (LAMBDA - noise).sqrt()
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            self.head.weight[:3, :3] = torch.diag(size / LAMBDA)
            self.head.bias[3:] = (noise / LAMBDA).log()
            self.back.weight[:3] = torch.diag(size)
        if learned:
            self.log_s = nn.Parameter(torch.tensor(noise).log() / 2)

    def encode(self, x):
        return self.head(x).chunk(2, 1)

    def decode(self, z):
        return self.back(z)
'''


@pytest.fixture
def linear() -> str:
    """The import path of a linear VAE that is at its optimum on the rows in x.npy."""
    Path("linear_vae.py").write_text(LINEAR)
    rows = np.random.default_rng(0).normal(size=(3000, 5)) * np.sqrt([9.0, 4.0, 2.0, 0.1, 0.05])
    np.save("x.npy", rows.astype(np.float32))
    return "linear_vae.py:Linear"


def words_of(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program == "vaeprune"
    return words


def test_json_has_the_diagnosis(vaeprune, linear):
    found = vaeprune("analyze", linear, "--data", "x.npy", "--json").json["diagnosis"]
    assert found.keys() >= DIAGNOSIS
    assert found["effective_beta"] == pytest.approx(1, rel=0.15)
    assert (found["symptoms"], found["findings"]) == ([], [])


def test_weight_of_the_kl_is_printed_and_nothing_else_where_all_is_well(vaeprune, linear):
    out = vaeprune("analyze", linear, "--data", "x.npy").out
    assert "effective β: these latents rest at a KL's weight of 1." in out or "weight of 0.9" in out
    assert "diagnosis:" not in out


def test_causes_are_printed_with_what_to_change(vaeprune, linear):
    ran = vaeprune("analyze", linear, "--data", "x.npy", "--model-arg", "noise=0.33")
    assert "diagnosis:\n    a nat of KL weighs 0.3" in ran.out
    assert "  may be: the KL is averaged over latents\n    by: a nat of KL weighs 0.3" in ran.out
    assert "    change: sum the KL over latents and average over the batch only" in ran.out
    stated = vaeprune(
        "analyze", linear, "--data", "x.npy", "--model-arg", "noise=0.33", "--objective", "kl=latent-mean"
    )
    assert "  cause: the KL is averaged over latents\n    by: stated: kl=latent-mean" in stated.out
    assert "advice: retrain: the KL is averaged over latents" in stated.out


def test_senseless_objective_is_refused_before_anything_is_read(refused):
    error = refused(
        "analyze", "nowhere", "--data", "nothing.npy", "--objective", "kl=mean", told=["--objective: kl is"]
    )
    assert error["type"] == "UsageError"


def test_scale_goes_with_a_gaussian_only(refused, linear):
    words = ["analyze", linear, "--data", "x.npy", "--scale", 0.5, "--likelihood", "bernoulli"]
    refused(*words, told=["--scale: goes with the gaussian likelihood only"])


def test_learned_variance_leads_to_an_analysis_with_that_scale(vaeprune, linear):
    learned = ["--model-arg", "noise=0.05", "--model-arg", "learned=true"]
    found = vaeprune("analyze", linear, "--data", "x.npy", *learned, "--json").json
    (finding,) = found["diagnosis"]["findings"]
    assert (finding["cause"], finding["named"]) == ("learned-variance", True)
    assert found["advice"]["action"] == "refuse"
    words = words_of(found["advice"]["command"])
    assert words[words.index("--scale") + 1].startswith("0.22")
    again = vaeprune(*words, "--json")
    assert again.code == 0, again.err
    assert again.json["diagnosis"]["findings"] == []
    assert again.json["diagnosis"]["effective_beta"] == pytest.approx(1, rel=0.15)


def test_strangers_network_that_is_all_active_is_to_be_grown(vaeprune, linear):
    advice = vaeprune("analyze", linear, "--data", "x.npy", "--json").json["advice"]
    assert (advice["action"], advice["latent_size"]) == ("grow", 5)  # as many as a row has values
    words = words_of(advice["command"])
    assert words == ["grow", linear, "--data", "x.npy", "--latent", "5", "--out", "linear_vae-5"]
    pytest.importorskip("vaeprune.cli.grow", reason="this version has no grow")
    ran = vaeprune(*words)
    assert ran.code == 0, ran.err


def test_training_without_the_kl_leads_to_one_with_it(vaeprune, refused_model, rows):
    advice = vaeprune("analyze", refused_model, "--data", rows, "--json").json["advice"]
    assert (advice["action"], advice["latent_size"]) == ("refuse", None)
    assert "its record says kl 'none'" in advice["reason"]
    words = words_of(advice["command"])
    assert "--kl" not in words
    assert vaeprune(*words).code == 0
    assert load("no-kl-again").provenance["training"]["kl"] == "full"


@pytest.fixture
def annealing_model(recipe, rows, tmp_path) -> Path:
    """A training whose weight of the KL rose from epoch to epoch, with its history and state."""
    images = training_images(str(rows), rows=recipe.rows)
    vae = DenseVAE((1, 28, 28), (32, 16), (16, 32), 4)
    initialise(vae, "glorot", 0)
    so_far = None
    for epoch in range(1, 6):
        options = Options(epoch, 16, objective=Objective(beta=0.1 * epoch))
        done = train(vae, images, options, resume=so_far)
        vae, so_far = done.vae, (done.history, done.state)
    record = dataclasses.replace(recipe, epochs=5, batch_size=16).to_json()
    write_model_folder(ModelFolder(vae, record, None, done.history, done.state), tmp_path / "annealing")
    return tmp_path / "annealing"


def test_history_whose_weight_was_still_rising_leads_to_training_on(vaeprune, annealing_model, rows):
    found = vaeprune("analyze", annealing_model, "--data", rows, "--json").json
    (finding,) = found["diagnosis"]["findings"]
    assert (finding["cause"], finding["named"]) == ("annealing", True)
    assert "its history: the weight rose from 0.1 to 0.5 over 5 epochs" in finding["evidence"]
    assert found["advice"]["action"] == "retrain"
    words = words_of(found["advice"]["command"])
    assert words == ["train", "--resume", "--out", str(annealing_model), "--epochs", "8"]
    assert vaeprune(*words).code == 0
    assert torch.isfinite(load(annealing_model).mean_head.weight).all()
