"""Folders of pythae and diffusers: opened where the posterior is Gaussian, refused by name where it is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreign_models import quietly
from vaeprune.adapters.known import is_known_folder, read_known_folder
from vaeprune.errors import ModelError, StorageError, VaepruneError


@pytest.fixture(scope="module")
def pythae() -> Any:
    return quietly(lambda: pytest.importorskip("pythae.models"))


@pytest.fixture
def saved(pythae: Any, tmp_path: Path) -> Path:
    """A real pythae VAE, saved as pythae saves it."""
    model = pythae.VAE(pythae.VAEConfig(input_dim=(1, 4, 4), latent_dim=3, reconstruction_loss="bce"))
    quietly(lambda: model.save(str(tmp_path / "vae")))
    return tmp_path / "vae"


def config_only(folder: Path, entry: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(entry))
    return folder


def test_a_pythae_folder_gives_its_class_weights_and_likelihood(pythae: Any, saved: Path) -> None:
    network, likelihood = read_known_folder(saved)
    assert type(network) is pythae.VAE
    assert (likelihood.kind, likelihood.output) == ("bernoulli", "mean")
    state = torch.load(saved / "model.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("name", ["BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "IWAE", "INFOVAE_MMD"])
def test_relatives_with_a_gaussian_posterior_are_opened(pythae: Any, name: str, tmp_path: Path) -> None:
    config = getattr(pythae, f"{name}_Config" if name == "INFOVAE_MMD" else f"{name}Config")
    model = getattr(pythae, name)(config(input_dim=(1, 4, 4), latent_dim=2))
    quietly(lambda: model.save(str(tmp_path / "m")))
    assert type(read_known_folder(tmp_path / "m")[0]) is type(model)


def test_vamp_is_refused_for_its_learned_prior(pythae: Any, tmp_path: Path) -> None:
    model = pythae.VAMP(pythae.VAMPConfig(input_dim=(1, 4, 4), latent_dim=2, number_components=3))
    quietly(lambda: model.save(str(tmp_path / "vamp")))
    with pytest.raises(ModelError, match="VAMPConfig cannot be analysed: its prior is learned"):
        read_known_folder(tmp_path / "vamp")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("VAE_IAF_Config", "its posterior is a flow"),
        ("SVAEConfig", "not Gaussian"),
        ("VQVAEConfig", "discrete"),
        ("AEConfig", "without a posterior"),
    ],
)
def test_models_of_another_kind_are_refused_with_the_reason(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{name} cannot be analysed: .*{words}"):
        read_known_folder(config_only(tmp_path / "m", {"name": name}))


@pytest.mark.parametrize("entry", [{"name": "os.system"}, {"name": 3}, {}, [1], {"name": ["VAEConfig"]}])
def test_a_name_that_is_not_on_the_list_imports_nothing(entry: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_config\.json: got the model .*, expected one of VAE"):
        read_known_folder(config_only(tmp_path / "m", entry))


def test_a_pickled_encoder_is_refused_and_never_unpickled(saved: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Boobytrap:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    (saved / "encoder.pkl").write_bytes(pickle.dumps(Boobytrap()))
    with pytest.raises(StorageError, match=r"its encoder\.pkl are pickled code, which is never unpickled"):
        read_known_folder(saved)
    assert not canary.exists()


def test_a_real_custom_encoder_is_refused(pythae: Any, tmp_path: Path) -> None:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseEncoder

    class Own(BaseEncoder):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.mean, self.spread = nn.Linear(16, 2), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Any:
            h = x.flatten(1)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.spread(h))

    model = pythae.VAE(pythae.VAEConfig(input_dim=(1, 4, 4), latent_dim=2), encoder=Own())
    quietly(lambda: model.save(str(tmp_path / "own")))
    with pytest.raises(StorageError, match="never unpickled"):
        read_known_folder(tmp_path / "own")


def test_a_canary_in_the_weights_never_runs(saved: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Boobytrap:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    torch.save({"model_state_dict": Boobytrap()}, saved / "model.pt")
    with pytest.raises(StorageError, match="never unpickled"):
        read_known_folder(saved)
    assert not canary.exists()


def test_arguments_the_library_does_not_take_are_told_in_its_words(saved: Path) -> None:
    entry = json.loads((saved / "model_config.json").read_text())
    config_only(saved, entry | {"latent_dim": "many"})
    with pytest.raises(VaepruneError, match="latent_dim"):
        read_known_folder(saved)


def test_a_folder_without_weights_is_refused(saved: Path) -> None:
    (saved / "model.pt").unlink()
    with pytest.raises(StorageError, match=r"model\.pt: no such file"):
        read_known_folder(saved)


def test_folders_are_known_by_their_config(tmp_path: Path) -> None:
    assert not is_known_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert is_known_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert not is_known_folder(tmp_path)


def test_diffusers_weights_in_pickle_are_not_read(tmp_path: Path) -> None:
    quietly(lambda: pytest.importorskip("diffusers").AutoencoderKL)
    small = {"_class_name": "AutoencoderKL", "block_out_channels": [4], "norm_num_groups": 2, "latent_channels": 2}
    (tmp_path / "config.json").write_text(json.dumps(small))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(StorageError, match=r"diffusion_pytorch_model\.safetensors: no such file"):
        read_known_folder(tmp_path)
