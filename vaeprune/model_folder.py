"""Model folders: config.json, model.safetensors, history.json, README.md, and what a shrink adds to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaeprune.architectures import BuiltVAE, build
from vaeprune.errors import ModelError, StorageError
from vaeprune.likelihood import Likelihood
from vaeprune.storage import (
    new_folder,
    read_json,
    read_tensors,
    refuse_non_finite,
    write_json,
    write_tensors,
)
from vaeprune.training import History

FORMAT = 1
CONFIG, WEIGHTS, HISTORY, CARD = "config.json", "model.safetensors", "history.json", "README.md"
TRAINING_STATE = "training_state.safetensors"
_KEYS = {"format", "architecture", "likelihood", "training", "shrunk"}


@dataclass(frozen=True)
class ModelFolder:
    """A VAE with where it comes from.

    `training`: how it was trained, or None. `shrunk`: from which latents it was cut, or None.
    `state`: what resuming its training needs, or empty.
    """

    vae: BuiltVAE
    training: dict[str, Any] | None = None
    shrunk: dict[str, Any] | None = None
    history: History = field(default_factory=History)
    state: dict[str, Tensor] = field(default_factory=dict)


def write_model_folder(
    model: ModelFolder,
    target: Path,
    card: str | None = None,
    *,
    force: bool = False,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder, whole or not at all; `more` may put further files into it before it appears.

    Raises StorageError if the target exists and `force` is false, or cannot be written.
    """
    with new_folder(target, force) as folder:
        write_json(
            folder / CONFIG,
            {
                "format": FORMAT,
                "architecture": model.vae.architecture(),
                "likelihood": model.vae.likelihood.to_json(),
                "training": model.training,
                "shrunk": model.shrunk,
            },
        )
        write_tensors(folder / WEIGHTS, model.vae.state_dict())
        if model.history.epochs:
            write_json(folder / HISTORY, model.history.to_json())
        if model.state:
            write_tensors(folder / TRAINING_STATE, model.state)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")
        if more:
            more(folder)


def read_model_folder(folder: Path) -> ModelFolder:
    """Read and check everything, then build; nothing in the folder is executed.

    Raises StorageError or ModelError: missing or damaged files, an unknown format, weights of another shape, NaN.
    """
    config = _read_config(folder)
    tensors = read_tensors(folder / WEIGHTS)
    with torch.device("meta"):  # a config that lies about sizes must not allocate them
        vae = build(config["architecture"], Likelihood.from_json(config["likelihood"]))
    check_state_dict(vae.state_dict(), tensors, folder / WEIGHTS)
    refuse_non_finite(tensors, folder / WEIGHTS)
    vae.load_state_dict(tensors, assign=True)
    vae.requires_grad_(True).eval()
    history, state = History(), {}
    if (folder / HISTORY).exists():
        history = History.from_json(read_json(folder / HISTORY, "training history"), str(folder / HISTORY))
    if (folder / TRAINING_STATE).exists():
        state = read_tensors(folder / TRAINING_STATE)
    vae.provenance = {"training": config.get("training"), "shrunk": config.get("shrunk")}
    return ModelFolder(vae, config.get("training"), config.get("shrunk"), history, state)


def load(folder: str | Path) -> BuiltVAE:
    """The VAE in a model folder, in eval mode. Raises StorageError or ModelError."""
    return read_model_folder(Path(folder)).vae


def describe(vae: BuiltVAE) -> str:
    """A VAE's architecture in a phrase: widths from input to output, and likelihood."""
    entry = vae.architecture()
    encoder, decoder = (entry.get(f"{side}_widths") or entry[f"{side}_channels"] for side in ("encoder", "decoder"))
    sizes = "-".join(map(str, (*encoder, f"{entry['latent_size']} latents", *decoder)))
    return f"A {entry['name']} VAE, {sizes}, {vae.likelihood.kind} likelihood"


def check_state_dict(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path | str) -> None:
    """Raise ModelError listing all missing, unexpected and mismatched tensors at once."""
    problems = [f"missing {key}" for key in expected.keys() - found.keys()]
    problems += [f"unexpected {key}" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected.keys() & found.keys()
        if found[key].shape != expected[key].shape
    ]
    problems += [
        f"{key} is {found[key].dtype}, expected a floating point type"
        for key in expected.keys() & found.keys()
        if expected[key].is_floating_point() and not found[key].is_floating_point()
    ]
    if problems:
        raise ModelError(
            f"{where}: does not fit its config: {'; '.join(sorted(problems))}", "restore both from one source"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise StorageError(f"{folder}: no such model folder", "make one with `vaeprune train`, or check the path")
    config = read_json(folder / CONFIG, "model's config")
    if not isinstance(config, dict) or "format" not in config:
        raise StorageError(f"{folder / CONFIG}: is not a model's config")
    if config["format"] != FORMAT:
        raise StorageError(
            f"{folder / CONFIG}: got format {config['format']!r}, this version reads format {FORMAT}",
            "use the version of vaeprune that wrote it",
        )
    if set(config) - _KEYS or {"architecture", "likelihood"} - set(config):
        raise StorageError(f"{folder / CONFIG}: got the keys {sorted(config)}, expected {sorted(_KEYS)}")
    for key in ("training", "shrunk"):
        if not isinstance(config.get(key), (dict, type(None))):
            raise StorageError(f"{folder / CONFIG}: {key} is {config[key]!r:.60}, expected an object or null")
    return config
