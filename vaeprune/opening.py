"""MODEL as a person names it: a model folder, a pythae or diffusers folder, or `path/or.module:factory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vaeprune.adapters import AdaptedVAE, adapt
from vaeprune.adapters.adapted import unwrapped
from vaeprune.adapters.checkpoint import load_checkpoint
from vaeprune.adapters.known import is_known_folder, read_known_folder
from vaeprune.adapters.reading import SPREADS, Spread
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets
from vaeprune.errors import ModelError, UsageError
from vaeprune.factory import call, import_path
from vaeprune.likelihood import Likelihood
from vaeprune.model_folder import load


@dataclass(frozen=True)
class Source:
    """What a person says of a model.

    `model`: a folder or an import path. `weights`, `arguments`: the checkpoint and keyword arguments of an import path.
    `factory`: the import path for a folder that holds a shrunk foreign model. The rest overrules what would be found.
    """

    model: str
    weights: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    factory: str | None = None
    input_shape: Sequence[int] | None = None
    spread: Spread | None = None
    likelihood: Likelihood | None = None


def open_model(source: Source, data: DataSets) -> BuiltVAE | AdaptedVAE:
    """The model a person means, in eval mode; a few rows of `data` show how a foreign one is to be read.

    Raises UsageError, ModelError or StorageError on one line, a foreign class's own words among it.
    """
    if source.spread is not None and source.spread not in SPREADS:
        raise UsageError(f"--spread: got {source.spread!r}, expected one of {', '.join(SPREADS)}")
    folder = Path(source.model)
    if ":" in source.model and not folder.exists():
        return _from_import_path(source, data)
    if source.weights or source.arguments:
        raise UsageError(f"{source.model}: --weights and --model-arg go with an import path, like my_vae.py:VAE")
    if is_known_folder(folder):
        network, likelihood = read_known_folder(folder)
        return _adapted(network, source, data, likelihood)
    return load(folder, import_path(source.factory) if source.factory else None)


def _from_import_path(source: Source, data: DataSets) -> BuiltVAE | AdaptedVAE:
    made = call(import_path(source.model), source.arguments, source.model)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{source.model}: gave a {type(made).__name__}, expected an nn.Module")
    network = unwrapped(made)
    if source.weights:
        load_checkpoint(network, source.weights)
    network.eval()
    if isinstance(network, BuiltVAE):
        return network
    vae = _adapted(network, source, data, None)
    vae.provenance = {"factory": source.model, "arguments": dict(source.arguments)}
    return vae


def _adapted(network: nn.Module, source: Source, data: DataSets, likelihood: Likelihood | None) -> AdaptedVAE:
    return adapt(
        network,
        data,
        input_shape=source.input_shape,
        spread=source.spread,
        likelihood=source.likelihood or likelihood,
    )
