"""From a config entry to a module, refusing whatever the entry does not mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vaeprune.architectures.base import BuiltVAE
from vaeprune.architectures.convolutional import ConvolutionalVAE
from vaeprune.architectures.dense import DenseVAE
from vaeprune.architectures.low_rank import checked_ranks, split_layers
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood

_CLASSES: dict[str, type[BuiltVAE]] = {c.name: c for c in (DenseVAE, ConvolutionalVAE)}


def architecture_from_json(entry: object) -> tuple[type[BuiltVAE], dict[str, Any]]:
    """Class and arguments a config entry stands for; raises ModelError on unknown names or arguments."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if not isinstance(entry, Mapping) or not isinstance(name, str) or name not in _CLASSES:
        raise ModelError(f"architecture: got {name!r:.80}, expected one of {', '.join(sorted(_CLASSES))}")
    built = _CLASSES[name]
    arguments = {key: value for key, value in entry.items() if key != "name"}
    signature = inspect.signature(built.__init__).parameters
    known = set(signature) - {"self", "likelihood"}
    required = {name for name in known if signature[name].default is inspect.Parameter.empty}
    if set(arguments) - known or required - set(arguments):
        raise ModelError(
            f"architecture {built.name}: got {sorted(arguments)}, expected {sorted(required)}"
            f" and optionally {sorted(known - required)}"
        )
    return built, arguments


def build(architecture: object, likelihood: Likelihood) -> BuiltVAE:
    """Build the VAE a config entry describes; its weights are whatever the layers start with."""
    ranks: dict[str, int] = {}
    if isinstance(architecture, Mapping) and "ranks" in architecture:
        ranks = checked_ranks(architecture["ranks"], "architecture")
        architecture = {key: value for key, value in architecture.items() if key != "ranks"}
    built, arguments = architecture_from_json(architecture)
    vae = built(**arguments, likelihood=likelihood)
    split_layers(vae, ranks)
    return vae
