"""The command line on other people's models: the whole road, and every bad input on one line with their own words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreign_models import class_conditional, family, idle_columns, idle_rows, quietly
from foreign_models import rows as noise
from planted import randomise

CODE = """
from foreign_models import ClassConditionalVAE, OwnVAE

class VAE(OwnVAE):
    pass

class Conditional(ClassConditionalVAE):
    pass

def raises():
    raise RuntimeError("no such licence")

def exits():
    raise SystemExit("goodbye")

def prints(latent_dim=5):
    print("hello from the factory")
    return VAE(latent_dim)

def number():
    return 7

def needs(latent_dim):
    return VAE(latent_dim)

def data():
    import torch
    x = torch.rand(300, 8, generator=torch.Generator().manual_seed(0))
    return [{"image": x[i : i + 50], "label": torch.arange(i, i + 50) % 3} for i in range(0, 300, 50)]
"""


@pytest.fixture(autouse=True)
def code(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """their.py in the working directory, with the weights and rows that go with it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (desk / "their_vae.py").write_text(CODE)
    torch.save({"model_state_dict": theirs().state_dict()}, desk / "ckpt.pt")
    np.save(desk / "rows.npy", noise().numpy())
    yield
    sys.modules.pop("their_vae", None)


def theirs() -> Any:
    """A network whose means are scaled so that Var mu + E sigma² = 1, as at rest."""
    network = family().network
    with torch.no_grad():
        mean, logvar = network.encode(noise())
        variance = mean.var(0)
        scale = torch.where(variance > 1e-6, ((1 - logvar.exp().mean(0)) / variance.clamp_min(1e-6)).sqrt(), 1.0)
        network.fc_mu.weight *= scale[:, None]
        network.fc_mu.bias *= scale
    return network


THEIRS = ("their_vae.py:VAE", "--weights", "ckpt.pt", "--model-arg", "latent_dim=5", "--data", "rows.npy")


def test_analyze_finds_the_idle_latents_and_says_what_was_assumed(vaeprune: Any) -> None:
    ran = vaeprune("analyze", *THEIRS, "--json")
    assert ran.code == 0
    found = [latent["index"] for latent in ran.json["latents"] if latent["verdict"] == "inactive"]
    assert found == [1, 3]
    assert (
        "posterior: VAE.encode gives the mean at result[0]" in ran.err
        or "posterior" in vaeprune("analyze", *THEIRS).err
    )


def test_assumptions_are_on_stderr_and_quiet_silences_them(vaeprune: Any) -> None:
    assert "input: rows of shape (8,) are given as (8,)" in vaeprune("analyze", *THEIRS).err
    assert vaeprune("analyze", *THEIRS, "--quiet").err == ""


def test_the_suggested_command_has_the_options_that_were_given(vaeprune: Any) -> None:
    command = vaeprune("analyze", *THEIRS, "--json").json["advice"]["command"]
    for word in ("their_vae.py:VAE", "--weights ckpt.pt", "--model-arg latent_dim=5", "--data rows.npy"):
        assert word in command


def test_shrink_verify_and_encode_run_on_an_import_path(vaeprune: Any, desk: Path) -> None:
    ran = vaeprune("shrink", *THEIRS, "--out", "small", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["removed_latents"] == [1, 3]
    assert ran.json["evidence"]["exact"]["max_relative_error"] <= 1e-5
    assert (desk / "small" / "encoder.onnx").exists()
    again = vaeprune("verify", "their_vae.py:VAE", "small", *THEIRS[1:], "--json")
    assert again.code == 0, again.err
    assert again.json["passed"] is True
    encoded = vaeprune("encode", "small", "--factory", "their_vae.py:VAE", "--data", "rows.npy", "--out", "z.npy")
    assert encoded.code == 0, encoded.err
    with torch.no_grad():
        mean = theirs().encode(noise())[0][:, [0, 2, 4]]
    np.testing.assert_allclose(np.load(desk / "z.npy"), mean.numpy(), rtol=1e-5, atol=1e-6)
    config = json.loads((desk / "small" / "config.json").read_text())
    assert config["foreign"]["factory"] == "their_vae.py:VAE"


def test_a_conditional_model_takes_its_condition_from_the_data(vaeprune: Any, desk: Path) -> None:
    torch.save(class_conditional().network.state_dict(), desk / "conditional.pt")
    ran = vaeprune(
        "analyze", "their_vae.py:Conditional", "--weights", "conditional.pt", "--data", "their_vae.py:data",
        "--condition", "label", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["n_inactive"] == 2


def test_what_a_factory_prints_is_not_on_stdout(vaeprune: Any) -> None:
    ran = vaeprune("analyze", "their_vae.py:prints", *THEIRS[1:], "--json")
    assert ran.code == 0
    assert ran.json["latent_size"] == 5
    assert "hello from the factory" in ran.err


def test_a_given_spread_is_used(vaeprune: Any) -> None:
    ran = vaeprune("analyze", *THEIRS, "--spread", "logstd", "--json")
    assert ran.code == 0
    plain = vaeprune("analyze", *THEIRS, "--json")
    first, second = (r.json["latents"][0]["posterior_variance"] for r in (ran, plain))
    assert first < 0.5 * second


# ---- bad input


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", ["RuntimeError: no such licence", "their_vae.py:11"]),
        ("exits", ["it called exit: goodbye", "their_vae.py:14"]),
        ("number", ["gave a int, expected an nn.Module"]),
        ("Nothing", ["has no class or function 'Nothing'", "VAE"]),
        ("needs", ["missing 1 required positional argument: 'latent_dim'"]),
    ],
)
def test_a_factory_that_does_not_give_a_module(refused: Any, name: str, told: list[str]) -> None:
    refused("analyze", f"their_vae.py:{name}", "--data", "rows.npy", told=told)


def test_a_missing_argument_names_the_option_and_their_file(refused: Any) -> None:
    refused("analyze", "their_vae.py:needs", "--data", "rows.npy", told=["latent_dim", "--model-arg", "their_vae.py"])


def test_weights_of_another_class(refused: Any, desk: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), desk / "other.pt")
    refused(
        "analyze", "their_vae.py:VAE", "--weights", "other.pt", "--data", "rows.npy",
        told=["other.pt: does not fit the model", "missing body.weight", "unexpected weight"],
    )  # fmt: skip


def test_weights_of_another_size(refused: Any) -> None:
    refused(
        "analyze", "their_vae.py:VAE", "--weights", "ckpt.pt", "--model-arg", "latent_dim=4", "--data", "rows.npy",
        told=["fc_mu.weight has shape (5, 7), the model expects (4, 7)", "--model-arg"],
    )  # fmt: skip


def test_rows_of_a_shape_the_model_rejects(refused: Any, desk: Path) -> None:
    np.save(desk / "wide.npy", noise(9).numpy())
    refused(
        "analyze", *THEIRS[:-1], "wide.npy",
        told=["no posterior can be read", "RuntimeError", "foreign_models.py:", "--input-shape"],
    )  # fmt: skip


def test_a_file_that_is_not_there(refused: Any) -> None:
    refused("analyze", "nowhere.py:VAE", "--data", "rows.npy", told=["nowhere.py: no such file"])


def test_a_file_that_does_not_compile(refused: Any, desk: Path) -> None:
    (desk / "crooked_vae.py").write_text("class VAE(:\n")
    refused("analyze", "crooked_vae.py:VAE", "--data", "rows.npy", told=["SyntaxError", "crooked_vae.py, line 1"])


def test_a_malformed_argument(refused: Any) -> None:
    refused("analyze", "their_vae.py:VAE", "--model-arg", "5", "--data", "rows.npy", told=["expected name=value"])


def test_weights_that_are_not_there(refused: Any) -> None:
    refused("analyze", *THEIRS[:2], "gone.pt", *THEIRS[3:], told=["gone.pt: no such file"])


@pytest.mark.parametrize("shape", ["a,b", "0,3", "-8", ""])
def test_a_shape_that_is_none(refused: Any, shape: str) -> None:
    refused("analyze", *THEIRS, f"--input-shape={shape}", told=["--input-shape"])


@pytest.mark.parametrize("span", ["1,0", "a,b", "1", "0,1,2", "nan,1", "0,inf"])
def test_a_range_that_is_none(refused: Any, span: str) -> None:
    refused("analyze", *THEIRS, "--input-range", span, told=["--input-range"])


def test_a_checkpoint_with_a_canary_never_runs_it(refused: Any, desk: Path) -> None:
    canary = desk / "canary"

    class Boobytrap:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    torch.save({"state_dict": Boobytrap()}, desk / "bad.pt")
    refused("analyze", *THEIRS[:2], "bad.pt", *THEIRS[3:], told=["bad.pt: holds more than tensors"])
    assert not canary.exists()


def test_a_cut_that_is_impossible_is_refused_and_the_analysis_still_works(
    vaeprune: Any, refused: Any, desk: Path
) -> None:
    (desk / "mixing_vae.py").write_text(
        "from foreign_models import OwnVAE, Reader\n"
        "class Mixing(Reader):\n"
        "    def forward(self, z):\n"
        "        return super().forward(z.softmax(1))\n"
        "def build():\n"
        "    return OwnVAE(5, reader=Mixing)\n"
    )
    words = ("mixing_vae.py:build", "--weights", "ckpt.pt", "--data", "rows.npy")
    assert vaeprune("analyze", *words).code == 0
    refused("shrink", *words, "--remove", "1", "--out", "small", "--quiet", told=["softmax in reader"])


def test_a_pythae_folder_is_shrunk_and_what_it_became_verified_without_naming_a_class(
    vaeprune: Any, tmp_path: Path
) -> None:
    models = quietly(lambda: pytest.importorskip("pythae.models"))
    model = quietly(lambda: models.VAE(models.VAEConfig(input_dim=(1, 6, 6), latent_dim=5)))
    randomise(model, 0)
    idle_rows(model.encoder.embedding, (1, 3), ())
    idle_rows(model.encoder.log_var, (), (1, 3), live=(0, 2, 4))
    idle_columns(model.decoder.layers[0][0].weight, 1, (1, 3))
    theirs, small, page, rows = (str(tmp_path / name) for name in ("theirs", "small", "page.html", "rows.npy"))
    quietly(lambda: model.save(theirs))
    np.save(rows, noise(1, 6, 6, count=600))
    data = ("--data", rows)
    ran = vaeprune("shrink", theirs, *data, "--out", small, "--scope", "latents", "--quiet")
    assert ran.code == 0, ran.err
    for command in ("verify", theirs, small), ("report", theirs, "--against", small, "--out", page):
        ran = vaeprune(*command, *data, "--json", "--quiet")
        assert ran.code == 0, ran.err
        found = json.loads(ran.out)
        gates = found["evidence"]["gates"] if "evidence" in found else found["gates"]
        assert all(gate["passed"] for gate in gates)
        assert any("exact" in gate["name"] for gate in gates)
