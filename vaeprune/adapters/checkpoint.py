"""Foreign weights: safetensors or `torch.load(weights_only=True)`, found inside the usual wrappers, fitted to a module.

Nothing is ever unpickled beyond tensors and plain containers, and nothing in a checkpoint is executed.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.errors import ModelError, StorageError
from vaeprune.storage import read_tensors, refuse_non_finite

WRAPPERS = ("state_dict", "model_state_dict", "model", "model_states", "net", "module", "weights")
_UNREADABLE = (  # what torch's unpickler raises on bytes that it does not expect
    RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
    ArithmeticError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
PREFIXES = ("model.", "module.", "_orig_mod.", "net.", "vae.")


Choose = Callable[[dict[str, Tensor]], Collection[str]]


def read_checkpoint(path: Path, choose: Choose | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint file. Raises StorageError if it cannot be read without running code.

    `choose` sees names, types and shapes before any value is read; it may raise, or name those that are wanted.
    """
    if not path.is_file():
        raise StorageError(f"{path}: no such file, expected a checkpoint")
    if path.suffix == ".safetensors":
        return read_tensors(path, choose)
    _refuse_compressed(path)
    if choose:
        choose(_unpickled(path, "meta"))
    return _unpickled(path, "cpu")


def _unpickled(path: Path, device: str) -> dict[str, Tensor]:
    """Tensors and plain containers alone; on "meta" no value is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of protocols that torch does not write
            found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise StorageError(
            f"{path}: holds more than tensors, and a checkpoint is never unpickled: {_what_else(error)}",
            "save the state dict alone: torch.save(model.state_dict(), path)",
        ) from error
    except _UNREADABLE as error:
        raise StorageError(f"{path}: is not a readable checkpoint: {_first_line(error)}") from error
    return unwrapped(found, path)


def _what_else(error: pickle.UnpicklingError) -> str:
    """What torch found there, without its words on how to load it all the same."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Weights only load failed", "(1)", "(2)"))]
    return told[0].partition(" Please use ")[0].rstrip(".") if told else type(error).__name__


def _refuse_compressed(path: Path) -> None:
    """torch never compresses what it saves, so a file that expands was made to. Raises StorageError."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise StorageError(f"{path}: is not a readable checkpoint: {error}") from error
    if expanded > path.stat().st_size:
        raise StorageError(
            f"{path}: its {path.stat().st_size:,} bytes expand to {expanded:,}, expected a file as torch.save writes it"
        )


def unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside the usual wrappers, nested ones too. Raises StorageError."""
    while isinstance(found, Mapping):
        tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            if not tensors:
                break
            return tensors
        found = inner
    keys = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else type(found).__name__
    raise StorageError(f"{path}: holds no state dict, got {keys}", "save model.state_dict()")


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Put a checkpoint file into a module of the same shapes; what does not fit is refused before a value is read.

    Raises as `read_checkpoint` and `load_into`.
    """

    def wanted(found: dict[str, Tensor]) -> set[str]:
        fitting = {id(value) for value in _fitted(network, found, path).values()}
        return {name for name, value in found.items() if id(value) in fitting}

    load_into(network, read_checkpoint(path, wanted), path)


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Put weights into a module of the same shapes; prefixes that all keys share are stripped.

    Raises ModelError listing all missing, unexpected and mismatched keys at once; nothing is loaded then.
    """
    fitted = _fitted(network, tensors, path)
    refuse_non_finite(fitted, path)
    network.load_state_dict(fitted)


def _fitted(network: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    expected = network.state_dict()
    fitted = _without_prefixes(dict(tensors), expected)
    problems = [f"missing {key}" for key in expected if key not in fitted]
    problems += [f"unexpected {key}" for key in fitted if key not in expected]
    mismatched = [k for k in expected if k in fitted and expected[k].shape != fitted[k].shape]
    problems += [
        f"{k} has shape {tuple(fitted[k].shape)}, the model expects {tuple(expected[k].shape)}" for k in mismatched
    ]
    if problems:
        raise ModelError(f"{path}: does not fit the model: {'; '.join(problems)}", _hint(mismatched))
    return fitted


def _hint(mismatched: list[str]) -> str:
    return "pass the sizes it was trained with as --model-arg" if mismatched else "is it the checkpoint of this class?"


def _without_prefixes(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrappers' prefixes for as long as that makes more keys fit; other parts of a wrapper are left out."""
    best = tensors
    for prefix in PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if inner:
            inner = _without_prefixes(inner, expected)
            if len(inner.keys() & expected.keys()) > len(best.keys() & expected.keys()):
                best = inner
    return best


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
