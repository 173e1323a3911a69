"""Folders of well-known libraries: pythae models and diffusers' AutoencoderKL. Their files are data; classes come from
the installed library, by a list kept here, never by a path found in a file."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vaeprune.adapters.checkpoint import load_checkpoint
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.errors import ModelError, StorageError
from vaeprune.factory import own_words
from vaeprune.likelihood import Likelihood
from vaeprune.storage import read_json

_PYTHAE = {
    "VAEConfig": "VAE", "BetaVAEConfig": "BetaVAE", "DisentangledBetaVAEConfig": "DisentangledBetaVAE",
    "BetaTCVAEConfig": "BetaTCVAE", "FactorVAEConfig": "FactorVAE", "INFOVAE_MMD_Config": "INFOVAE_MMD",
    "IWAEConfig": "IWAE", "MSSSIM_VAEConfig": "MSSSIM_VAE",
}  # fmt: skip
_REFUSED = {
    "VAMPConfig": "its prior is learned", "VAE_IAF_Config": "its posterior is a flow",
    "VAE_LinNF_Config": "its posterior is a flow", "HVAEConfig": "its posterior is a Hamiltonian flow",
    "SVAEConfig": "its posterior is not Gaussian", "PoincareVAEConfig": "its latent space is not Euclidean",
    "RHVAEConfig": "its posterior is a Hamiltonian flow", "PVAEConfig": "its latent space is not Euclidean",
    "VQVAEConfig": "its latents are discrete", "HRQVAEConfig": "its latents are discrete",
    "AEConfig": "it is an autoencoder without a posterior", "RAE_L2_Config": "it has no posterior",
    "RAE_GP_Config": "it has no posterior", "WAE_MMD_Config": "it has no posterior",
    "Adversarial_AE_Config": "no KL keeps its posterior near N(0, I)",
}  # fmt: skip


def is_known_folder(folder: Path) -> bool:
    """Whether this looks like a folder of pythae or diffusers."""
    return (folder / "model_config.json").is_file() or _diffusers_config(folder) is not None


def read_known_folder(folder: Path) -> tuple[nn.Module, Likelihood | None]:
    """The model in the folder, and its likelihood where its config tells it.

    Raises ModelError for models whose latents are not Gaussian with an N(0, I) prior, or where the library is missing.
    """
    if (folder / "model_config.json").is_file():
        return _pythae(folder)
    return _diffusers(folder), Likelihood("gaussian", "mean")


def _pythae(folder: Path) -> tuple[nn.Module, Likelihood]:
    entry = read_json(folder / "model_config.json", "pythae model's config")
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise _unknown(folder, name)
    if name in _REFUSED:
        raise ModelError(f"{folder}: {name} cannot be analysed: {_REFUSED[name]}")
    if name not in _PYTHAE:
        raise _unknown(folder, name)
    custom = [n for n in ("encoder.pkl", "decoder.pkl") if (folder / n).exists()]
    if custom:
        raise StorageError(
            f"{folder}: its {', '.join(custom)} are pickled code, which is never unpickled",
            "name a function that builds the model instead: path/to/file.py:build --weights model.pt",
        )
    library = _library("pythae.models", "pythae")
    arguments = {k: v for k, v in entry.items() if k not in ("name", "custom_architectures", "uses_default_encoder",
                                                             "uses_default_decoder")}  # fmt: skip
    if isinstance(arguments.get("input_dim"), list):
        arguments["input_dim"] = tuple(arguments["input_dim"])
    with own_words(str(folder)):
        network: nn.Module = getattr(library, _PYTHAE[name])(getattr(library, name)(**arguments))
    load_checkpoint(network, folder / "model.pt")
    bernoulli = entry.get("reconstruction_loss") == "bce"
    return network, Likelihood("bernoulli", "mean") if bernoulli else Likelihood("gaussian", "mean")


def _unknown(folder: Path, name: object) -> ModelError:
    where = folder / "model_config.json"
    return ModelError(f"{where}: got the model {name!r:.60}, expected one of {', '.join(_PYTHAE)}")


def _diffusers(folder: Path) -> nn.Module:
    library = _library("diffusers", "diffusers")
    config = {k: v for k, v in (_diffusers_config(folder) or {}).items() if not k.startswith("_")}
    with own_words(str(folder)):
        network: nn.Module = library.AutoencoderKL(**config)
    load_checkpoint(network, folder / "diffusion_pytorch_model.safetensors")
    return network


def _diffusers_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    entry = read_json(path, "config") if path.is_file() else None
    return entry if isinstance(entry, dict) and entry.get("_class_name") == "AutoencoderKL" else None


def _library(module: str, package: str) -> ModuleType:
    import_torchvision("datasets")  # these libraries import it, and may not be able to by themselves
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(f"a {package} model needs {package}: {error}", f"pip install {package}") from error
