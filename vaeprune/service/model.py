"""A folder's encoder.onnx and decoder.onnx in onnxruntime, checked on a row before anything is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaeprune.errors import ModelError, StorageError
from vaeprune.onnx_figures import first_line, onnx_pair
from vaeprune.onnx_input import OnnxInput, onnx_input
from vaeprune.service.npy import Array

_OUTPUTS = {"encoder": ("mu", "logvar"), "decoder": ("x_hat",)}


@dataclass(frozen=True)
class OnnxPart:
    """One ONNX file, loaded. `takes`: its input; `gives`: the names of the outputs that are read, in order."""

    path: Path
    session: Any
    takes: OnnxInput
    gives: tuple[str, ...]

    def __call__(self, rows: Array) -> list[Array]:
        """The outputs for rows (B, *row_shape), as float32."""
        value = np.ascontiguousarray(rows, self.takes.dtype)
        outputs = self.session.run(list(self.gives), {self.takes.name: value})
        return [np.asarray(output, np.float32) for output in outputs]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata properties of the file."""
        return dict(self.session.get_modelmeta().custom_metadata_map)


@dataclass(frozen=True)
class OnnxModel:
    """Both files of a folder, known to fit each other."""

    folder: Path
    encoder: OnnxPart
    decoder: OnnxPart

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one x, without the batch."""
        return self.encoder.takes.row_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one z, without the batch: (D,), or (D, *positions) where latents are maps."""
        return self.decoder.takes.row_shape

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return self.latent_shape[0]

    @property
    def metadata(self) -> dict[str, str]:
        """Of the decoder, whose latents are what is told about; the encoder's where it has none."""
        return self.decoder.metadata or self.encoder.metadata


def open_model(folder: Path, threads: int) -> OnnxModel:
    """Load a folder's pair and run both files on a row of zeros.

    Raises StorageError where files are missing, ModelError where they do not load, run, or fit each other.
    """
    try:
        files = onnx_pair(folder)
    except StorageError as error:
        if (folder / "config.json").is_file():
            hint = f"export it first: vaeprune export {folder} --out FOLDER, then name FOLDER"
            raise StorageError(f"{folder}: holds a PyTorch model without ONNX files", hint) from error
        raise
    encoder, decoder = (_part(path, threads, _OUTPUTS[path.stem]) for path in files)
    model = OnnxModel(folder, encoder, decoder)
    x, z = (np.zeros((1, *part.takes.row_shape), np.float32) for part in (encoder, decoder))
    mean, logvar = _tried(encoder, x)
    (x_hat,) = _tried(decoder, z)
    for name, found, path, wanted, other in (
        ("mu", mean, encoder.path, z, decoder.path),
        ("logvar", logvar, encoder.path, z, decoder.path),
        ("x_hat", x_hat, decoder.path, x, encoder.path),
    ):
        if found.shape != wanted.shape:
            raise ModelError(
                f"{path}: gives {name} of shape {found.shape[1:]}, but {other.name} takes {wanted.shape[1:]}",
                "export both from one model",
            )
    return model


def _part(path: Path, threads: int, names: Sequence[str]) -> OnnxPart:
    import onnxruntime  # the heaviest import of the service, after everything cheap was checked

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # threads that spin while they wait take the core from the one that reads requests
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error
    found = [output.name for output in session.get_outputs()]
    if len(found) != len(names):
        raise ModelError(f"{path}: gives {', '.join(found)}, expected {' and '.join(names)}")
    gives = tuple(names) if set(names) == set(found) else tuple(found)
    return OnnxPart(path, session, onnx_input(session, path), gives)


def _tried(part: OnnxPart, rows: Array) -> list[Array]:
    try:
        return part(rows)
    except Exception as error:
        raise ModelError(f"{part.path}: onnxruntime fails on a row of zeros: {first_line(error)}") from error
