"""Deployable files: `encoder.onnx` (x → mu, logvar) and `decoder.onnx` (z → x_hat), and a check of what they compute.

The batch is dynamic and nothing in the files is random: sampling is left to whoever runs them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaeprune.adapters import as_vae, batches_for, measuring
from vaeprune.data import Rows
from vaeprune.errors import ExportError, UsageError
from vaeprune.onnx_figures import first_line
from vaeprune.onnx_metadata import metadata_of
from vaeprune.onnx_running import OnnxFile
from vaeprune.onnx_saving import save_onnx
from vaeprune.parts import Part, parts_of
from vaeprune.posterior import VAE

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 20  # stated, so that a new torch does not change the files
_OLDEST_OPSET = 11  # what the oldest runtimes in use take; whether a model can be written in it, the exporter says
_CHECKED_ROWS = 1000
_BATCHES = (1, 100)


@dataclass(frozen=True)
class OnnxErrors:
    """Largest differences between the ONNX files and PyTorch on real rows.

    `encoder_max_abs_error` over mu and logvar; `encoder_range`, `decoder_range`: the spans of PyTorch's outputs.
    """

    encoder_max_abs_error: float
    decoder_max_abs_error: float
    encoder_range: float
    decoder_range: float


def export_onnx(
    model: VAE,
    folder: str | Path,
    *,
    opset: int = OPSET,
    autoencoder: bool = False,
    external: bool = False,
) -> tuple[Path, ...]:
    """Write `encoder.onnx` and `decoder.onnx` into an existing folder; the model stays as it is.

    Inputs x (B, *input_shape) and z (B, *latent_shape) have a dynamic batch. `autoencoder`: also `autoencoder.onnx`,
    x → x_hat along the mean path, decode(mu). `external`: weights beside the graph in a file of their own, as they are
    in any case above 2 GB. Raises ExportError with what torch's exporter said, or if it cannot write that `opset`.
    Check the files with `onnx_errors` before relying on them.
    """
    vae, folder = as_vae(model), Path(folder)
    _refuse_opset(opset)
    metadata, written = metadata_of(vae), []
    with measuring(vae):
        for part in parts_of(vae, autoencoder):
            path = folder / f"{part.name}.onnx"
            save_onnx(_exported(part, opset), path, metadata, external=external)
            written.append(path)
    return tuple(written)


def onnx_errors(model: VAE, folder: str | Path, rows: Rows) -> OnnxErrors:
    """Run both files in onnxruntime on up to 1,000 of `rows`, one at a time and in batches, beside PyTorch.

    Single rows are checked on the first 20. Raises ExportError if a file is missing or does not run.
    """
    vae, folder = as_vae(model), Path(folder)
    encoder, decoder = OnnxFile(folder / ENCODER), OnnxFile(folder / DECODER)
    encoded, decoded = _Difference(), _Difference()
    with measuring(vae):
        for size in _BATCHES:
            seen = 0
            for x, *_ in batches_for(vae, rows, size):
                posterior = vae.encode(x)
                mu, logvar = encoder(x)
                encoded.see(posterior.mean, mu)
                encoded.see(posterior.logvar, logvar)
                decoded.see(vae.decode(posterior.mean), decoder(posterior.mean)[0])
                seen += len(x)
                if seen >= (_CHECKED_ROWS if size > 1 else 20):
                    break
    return OnnxErrors(encoded.largest, decoded.largest, encoded.span, decoded.span)


class _Difference:
    """Largest difference and span of a reference, over batches."""

    def __init__(self) -> None:
        self.largest, self._low, self._high = 0.0, math.inf, -math.inf

    def see(self, reference: Tensor, found: np.ndarray[Any, Any]) -> None:
        expected = reference.float().cpu().numpy()
        if expected.shape != found.shape:
            raise ExportError(f"ONNX: output has shape {found.shape}, PyTorch gives {expected.shape}")
        difference = float(np.abs(expected - found).max())
        self.largest = max(self.largest, difference if math.isfinite(difference) else math.inf)
        self._low, self._high = min(self._low, float(expected.min())), max(self._high, float(expected.max()))

    @property
    def span(self) -> float:
        return self._high - self._low


def _refuse_opset(opset: int) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise UsageError(f"opset: got {opset}, expected {_OLDEST_OPSET} to {newest}", f"the usual one is {OPSET}")


def _exported(part: Part, opset: int) -> Any:
    """An `onnx_ir.Model` of one part."""
    file = f"{part.name}.onnx"
    with _quiet_exporter():
        try:
            program: Any = torch.onnx.export(
                part.module,
                (part.example,),
                dynamo=True,
                input_names=[part.input],
                output_names=list(part.outputs),
                dynamic_shapes=part.dynamic_shapes,
                opset_version=opset,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"{file}: torch's exporter failed: {first_line(error)}") from error
    found = program.model.opset_imports.get("")
    if found != opset:
        raise ExportError(f"{file}: torch's exporter gave opset {found}, expected {opset}", "take a later --opset")
    return program.model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter logs and warns about its own internals; errors still come through as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
