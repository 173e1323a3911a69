"""MODEL as a person names it, opened; and a shrunk foreign model, opened again with its class."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import vaeprune
from foreign_models import IDLE, Family, OwnVAE, family, rows
from vaeprune.adapters import AdaptedVAE
from vaeprune.architectures import BuiltVAE
from vaeprune.errors import ModelError, StorageError, UsageError
from vaeprune.model_folder import ModelFolder, load, write_model_folder
from vaeprune.opening import Source, open_model
from vaeprune.shrinking import shrink

CODE = """
from foreign_models import OwnVAE
class VAE(OwnVAE):
    pass
def build(latent_dim=5):
    return VAE(latent_dim)
def number():
    return 7
"""


@pytest.fixture
def made() -> Family:
    return family()


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file with somebody's class."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "somebodys_vae.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("somebodys_vae", None)


@pytest.fixture
def weights(made: Family, tmp_path: Path) -> Path:
    path = tmp_path / "ckpt.pt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in made.network.state_dict().items()}}, path)
    return path


@pytest.mark.parametrize("name", ["VAE", "build"])
def test_a_class_or_function_with_weights_is_opened_in_eval_mode(
    made: Family, code: Path, weights: Path, name: str
) -> None:
    vae = open_model(Source(f"{code}:{name}", weights=weights, arguments={"latent_dim": 5}), made.data)
    assert isinstance(vae, AdaptedVAE)
    assert not vae.network.training
    assert vae.provenance == {"factory": f"{code}:{name}", "arguments": {"latent_dim": 5}}
    with torch.no_grad():
        assert torch.equal(vae.encode(made.x).mean, made.network.encode(made.x)[0])


def test_safetensors_are_opened(made: Family, code: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(made.network.state_dict(), path)
    vae = open_model(Source(f"{code}:VAE", weights=path), made.data)
    with torch.no_grad():
        assert torch.equal(vae.encode(made.x).mean, made.network.encode(made.x)[0])


def test_weights_of_another_size_name_the_keys_and_the_option(made: Family, code: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match=r"fc_mu\.weight has shape \(5, 7\), the model expects \(4, 7\).*--model-arg"):
        open_model(Source(f"{code}:VAE", weights=weights, arguments={"latent_dim": 4}), made.data)


def test_something_that_is_no_module_is_refused(made: Family, code: Path) -> None:
    with pytest.raises(ModelError, match=r"number: gave a int, expected an nn\.Module"):
        open_model(Source(f"{code}:number"), made.data)


def test_options_of_import_paths_are_refused_for_folders(made: Family, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights and --model-arg go with an import path"):
        open_model(Source(str(tmp_path), arguments={"a": 1}), made.data)


def test_an_unknown_spread_is_refused(made: Family, code: Path) -> None:
    with pytest.raises(UsageError, match="--spread: got 'precision', expected one of logvar"):
        open_model(Source(f"{code}:VAE", spread="precision"), made.data)  # type: ignore[arg-type]


def test_an_own_architecture_by_import_path_is_taken_as_it_is(tmp_path: Path, code: Path) -> None:
    code.write_text(
        "from vaeprune.architectures import DenseVAE\ndef build():\n    return DenseVAE((8,), (6,), (6,), 3)\n"
    )
    assert isinstance(open_model(Source(f"{code}:build"), family().data), BuiltVAE)


# ---- a shrunk folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign model, shrunk and written."""
    folder = tmp_path_factory.mktemp("shelf") / "small"
    shrink(family().network, rows(), folder, source="their.py:VAE")
    return folder


def test_a_shrunk_foreign_model_is_rebuilt_with_its_class(small: Path) -> None:
    vae = vaeprune.load(small, factory=OwnVAE)
    original = family()
    assert type(vae.network) is OwnVAE
    assert vae.latent_size == 3
    assert vae.network.latent_dim == 3
    with torch.no_grad():
        found = vae.encode(original.x)
        mean, logvar = original.network.encode(original.x)
    kept = [i for i in range(5) if i not in IDLE]
    torch.testing.assert_close(found.mean, mean[:, kept], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.logvar, logvar[:, kept], rtol=1e-6, atol=1e-7)


def test_its_weights_fit_their_class_built_small(small: Path) -> None:
    assert (
        OwnVAE(latent_dim=3).load_state_dict(safetensors.torch.load_file(small / "model.safetensors")).missing_keys
        == []
    )


def test_kept_latents_are_listed_for_numpy(small: Path) -> None:
    import numpy as np

    kept = json.loads((small / "plan.json").read_text())["kept_latents"]
    assert np.arange(10).reshape(2, 5)[:, kept].tolist() == [[0, 2, 4], [5, 7, 9]]
    assert "0, 2, 4" in (small / "README.md").read_text()


def test_without_its_class_the_folder_is_refused_with_what_to_say(small: Path) -> None:
    with pytest.raises(ModelError, match=r"no import path is taken from a file; name the class: --factory"):
        load(small)


def test_another_class_is_refused_with_its_keys(small: Path) -> None:
    with pytest.raises(ModelError, match=r"unexpected body\.weight"):
        load(small, factory=lambda: torch.nn.Linear(2, 2))


def test_the_smaller_model_may_be_shrunk_again(small: Path, tmp_path: Path) -> None:
    vae = load(small, factory=OwnVAE)
    done = shrink(vae, rows(), tmp_path / "smaller", remove=[2], tolerances=None, dry_run=True)
    assert done.latent_size == (3, 2)


def test_a_recorded_import_path_is_never_imported(small: Path, tmp_path: Path) -> None:
    canary, trap = tmp_path / "canary", tmp_path / "trap_module.py"
    trap.write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass VAE: pass\n")
    folder = tmp_path / "baited"
    write_model_folder(ModelFolder(load(small, factory=OwnVAE)), folder)
    entry = json.loads((folder / "config.json").read_text())
    entry["foreign"]["factory"] = f"{trap}:VAE"
    (folder / "config.json").write_text(json.dumps(entry))
    with pytest.raises(ModelError, match="no import path is taken from a file"):
        open_model(Source(str(folder)), family().data)
    assert load(folder, factory=OwnVAE).latent_size == 3
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"reading": {"encode": "__class__"}}, {"arguments": 3}, {"attributes": [1]}, {"latent_shape": [0]},
        {"input_shape": "8"}, {"attributes": {"nothing.here": 3}}, {"reading": None},
    ],
)  # fmt: skip
def test_a_damaged_entry_is_refused(change: dict[str, Any], small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    write_model_folder(ModelFolder(load(small, factory=OwnVAE)), folder)
    entry = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        entry["foreign"][key] = entry["foreign"][key] | value if key == "reading" and value else value
    (folder / "config.json").write_text(json.dumps(entry))
    with pytest.raises((ModelError, StorageError)):
        load(folder, factory=OwnVAE)
