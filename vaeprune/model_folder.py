"""Model folders: config.json, model.safetensors, history.json, README.md, and what a shrink adds to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters.adapted import AdaptedVAE
from vaeprune.adapters.copying import make_plain, replace_tensors, set_attributes
from vaeprune.adapters.reading import Reading
from vaeprune.architectures import BuiltVAE, build
from vaeprune.architectures.base import positive_sizes
from vaeprune.architectures.low_rank import checked_ranks, ranks_of, split_layers
from vaeprune.errors import ModelError, StorageError, in_markdown
from vaeprune.factory import call
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
from vaeprune.unreplaced import unreplaced

FORMAT = 1
CONFIG, WEIGHTS, HISTORY, CARD = "config.json", "model.safetensors", "history.json", "README.md"
TRAINING_STATE = "training_state.safetensors"
_MOST_GROWTH = 16  # times the weights of a network: what a folder of it may hold where latents were added
_KEYS = {"format", "architecture", "foreign", "likelihood", "training", "shrunk"}


@dataclass(frozen=True)
class ModelFolder:
    """A VAE with where it comes from.

    `training`: how it was trained, or None. `shrunk`: from which latents it was cut, or None.
    `state`: what resuming its training needs, or empty. An AdaptedVAE's `provenance` has its import path and arguments,
    which are kept as information only, and the sizes to set on it.
    """

    vae: BuiltVAE | AdaptedVAE
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
                "architecture": None if isinstance(model.vae, AdaptedVAE) else model.vae.architecture(),
                "foreign": _foreign_entry(model.vae) if isinstance(model.vae, AdaptedVAE) else None,
                "likelihood": model.vae.likelihood.to_json(),
                "training": model.training,
                "shrunk": model.shrunk,
            },
        )
        write_tensors(folder / WEIGHTS, model.vae.network.state_dict())
        if model.history.epochs:
            write_json(folder / HISTORY, model.history.to_json())
        if model.state:
            write_tensors(folder / TRAINING_STATE, model.state)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")
        if more:
            more(folder)


def read_model_folder(folder: Path, factory: Callable[..., Any] | None = None) -> ModelFolder:
    """Read and check everything, then build; nothing in the folder is executed.

    A shrunk foreign model needs its class or function again, as `factory`. Raises StorageError or ModelError: missing
    or damaged files, an unknown format, weights of another shape, NaN, a folder that is replaced meanwhile.
    """
    with unreplaced(folder):
        return _read(folder, factory)


def _read(folder: Path, factory: Callable[..., Any] | None) -> ModelFolder:
    config = _read_config(folder)
    likelihood = Likelihood.from_json(config["likelihood"])
    vae: BuiltVAE | AdaptedVAE
    if config["architecture"] is None:
        vae = _rebuilt(config.get("foreign"), likelihood, factory, folder)
    else:
        vae = _built(config["architecture"], likelihood, folder)
    vae.requires_grad_(True).eval()
    history, state = History(), {}
    if (folder / HISTORY).exists():
        entry = read_json(folder / HISTORY, "training history", most_bytes=None)  # a long trace may be large
        history = History.from_json(entry, str(folder / HISTORY))
    if (folder / TRAINING_STATE).exists():
        where = folder / TRAINING_STATE
        state = read_tensors(where, lambda found: _refuse_too_much(vae.network, found, where))
    vae.provenance |= {"training": config.get("training"), "shrunk": config.get("shrunk"), "history": history}
    return ModelFolder(vae, config.get("training"), config.get("shrunk"), history, state)


def training_data(folder: Path) -> str | None:
    """The data a model folder says it was trained on; never an import path, which a file may not name."""
    if not (folder / CONFIG).is_file():
        return None
    name = (_read_config(folder).get("training") or {}).get("data")
    return name if isinstance(name, str) and ":" not in name else None


def load(folder: str | Path, factory: Callable[..., Any] | None = None) -> BuiltVAE | AdaptedVAE:
    """The VAE in a model folder, in eval mode; `factory` builds a foreign one. Raises StorageError or ModelError."""
    return read_model_folder(Path(folder), factory).vae


def _built(architecture: Any, likelihood: Likelihood, folder: Path) -> BuiltVAE:
    with torch.device("meta"):  # a config that lies about sizes must not allocate them
        vae = build(architecture, likelihood)
    expected = vae.state_dict()
    tensors = read_tensors(folder / WEIGHTS, lambda found: check_state_dict(expected, found, folder / WEIGHTS))
    refuse_non_finite(tensors, folder / WEIGHTS)
    vae.load_state_dict(tensors, assign=True)
    return vae


def _foreign_entry(vae: AdaptedVAE) -> dict[str, Any]:
    return {
        "factory": vae.provenance.get("factory"),
        "arguments": vae.provenance.get("arguments") or {},
        "attributes": vae.provenance.get("attributes") or {},
        "made_plain": list(vae.provenance.get("made_plain") or ()),
        "ranks": ranks_of(vae.network),
        "reading": vae.reading.to_json(),
        "input_shape": list(vae.input_shape),
        "latent_shape": list(vae.latent_shape),
    }


def _rebuilt(entry: Any, likelihood: Likelihood, factory: Callable[..., Any] | None, folder: Path) -> AdaptedVAE:
    """A foreign module at its original size, given the smaller tensors and sizes it had when it was written."""
    where = folder / CONFIG
    wanted = {"factory", "arguments", "attributes", "made_plain", "reading", "input_shape", "latent_shape"}
    if not isinstance(entry, dict) or set(entry) - {"ranks"} != wanted:
        raise StorageError(f"{where}: does not say how to read its foreign model", "restore it from its source")
    if factory is None:
        known = f" (it was made by {entry['factory']})" if entry["factory"] else ""
        raise ModelError(
            f"{folder}: holds weights for somebody's own class{known}, and no import path is taken from a file",
            "name the class: --factory path/to/file.py:Name, or load(folder, factory=Name)",
        )
    arguments, attributes = entry["arguments"], entry["attributes"]
    if not isinstance(arguments, dict) or not isinstance(attributes, dict):
        raise StorageError(f"{where}: its arguments or attributes are damaged", "restore it from its source")
    network = call(factory, arguments, getattr(factory, "__name__", "factory"))
    if not isinstance(network, nn.Module):
        raise ModelError(f"factory: gave a {type(network).__name__}, expected an nn.Module")
    if entry["made_plain"]:
        make_plain(network)
    ranks = checked_ranks(entry.get("ranks", {}), f"{where}: foreign")
    if ranks:  # the sizes of layers that are split next
        set_attributes(network, attributes)
        attributes = {}
    split_layers(network, ranks)
    tensors = read_tensors(folder / WEIGHTS, lambda found: _refuse_unfit(network, found, folder / WEIGHTS))
    refuse_non_finite(tensors, folder / WEIGHTS)
    replace_tensors(network, tensors, attributes)
    shapes = [positive_sizes(entry[name], f"{where}: {name}") for name in ("input_shape", "latent_shape")]
    vae = AdaptedVAE(network, Reading.from_json(entry["reading"]), likelihood, shapes[0], shapes[1])
    vae.provenance = {name: entry[name] for name in ("factory", "arguments", "attributes", "made_plain")}
    return vae


def _refuse_unfit(network: nn.Module, found: dict[str, Tensor], where: Path) -> None:
    """A cut changes sizes, neither names nor axes."""
    own = network.state_dict()
    check_state_dict(
        {k: found[k] if k in found and found[k].dim() == v.dim() else v for k, v in own.items()}, found, where
    )
    _refuse_too_much(network, found, where)


def _refuse_too_much(network: nn.Module, found: dict[str, Tensor], where: Path) -> None:
    """Nothing that is kept of a network is of another order of size, whatever the file's header promises."""
    full, promised = (sum(value.numel() for value in tensors.values()) for tensors in (network.state_dict(), found))
    if promised > max(_MOST_GROWTH * full, 1 << 20):
        raise ModelError(
            f"{where}: promises {promised:,} numbers, where the whole {type(network).__name__} has {full:,}",
            "restore it from its source",
        )


def describe(vae: BuiltVAE | AdaptedVAE) -> str:
    """A VAE's architecture in a phrase: widths from input to output, or its class, and likelihood."""
    if isinstance(vae, AdaptedVAE):
        shape = "x".join(map(str, vae.latent_shape))
        name = in_markdown(type(vae.network).__name__)
        return f"A {name} with latents of shape {shape}, {vae.likelihood.kind} likelihood"
    entry = vae.architecture()
    encoder, decoder = (
        entry.get(f"{side}_widths", entry.get(f"{side}_channels", [])) for side in ("encoder", "decoder")
    )
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
    types = sorted({str(value.dtype) for value in found.values() if value.is_floating_point()})
    if len(types) > 1:
        problems.append(f"its tensors are of {' and '.join(types)}, expected one type")
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
