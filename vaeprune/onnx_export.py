"""Deployable files: `encoder.onnx` (x → mu, logvar) and `decoder.onnx` (z → x_hat), and a check of what they compute.

The batch is dynamic and nothing in the files is random: sampling is left to whoever runs them.
"""

from __future__ import annotations

import math
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
from vaeprune.quiet import quiet

ENCODER, DECODER, AUTOENCODER = "encoder.onnx", "decoder.onnx", "autoencoder.onnx"
OPSET = 20  # stated, so that a new torch does not change the files
_OLDEST_OPSET = 11  # what the oldest runtimes in use take; whether a model can be written in it, the exporter says
_BATCHES = {1: 20, 100: 1000}  # rows that are checked at each batch size


@dataclass(frozen=True)
class OnnxErrors:
    """Differences between the ONNX files and PyTorch on real rows, largest and root-mean-square.

    Those of the encoder over mu and logvar; `encoder_range`, `decoder_range`: the spans of PyTorch's outputs. The
    autoencoder's are None where there is no `autoencoder.onnx`.
    """

    encoder_max_abs_error: float
    decoder_max_abs_error: float
    encoder_range: float
    decoder_range: float
    encoder_rms_error: float | None = None
    decoder_rms_error: float | None = None
    autoencoder_max_abs_error: float | None = None
    autoencoder_rms_error: float | None = None


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
            save_onnx(_free_of_batch(part, opset), path, metadata, external=external)
            written.append(path)
    return tuple(written)


def onnx_errors(model: VAE, folder: str | Path, rows: Rows) -> OnnxErrors:
    """Run the files in onnxruntime on up to 1,000 of `rows`, one at a time and in batches, beside PyTorch.

    Single rows are checked on the first 20. Raises ExportError if a file is missing or does not run.
    """
    vae, folder = as_vae(model), Path(folder)
    encoder, decoder = OnnxFile(folder / ENCODER), OnnxFile(folder / DECODER)
    whole = OnnxFile(folder / AUTOENCODER) if (folder / AUTOENCODER).exists() else None
    encoded, decoded, rebuilt = Difference(), Difference(), Difference()
    with measuring(vae):
        for x in checked_batches(vae, rows):
            posterior = vae.encode(x)
            mu, logvar = encoder(x)
            encoded.see(posterior.mean, mu)
            encoded.see(posterior.logvar, logvar)
            x_hat = vae.decode(posterior.mean)
            decoded.see(x_hat, decoder(posterior.mean)[0])
            if whole:
                rebuilt.see(x_hat, whole(x)[0])
    return OnnxErrors(
        encoded.largest,
        decoded.largest,
        encoded.span,
        decoded.span,
        encoded.rms,
        decoded.rms,
        rebuilt.largest if whole else None,
        rebuilt.rms if whole else None,
    )


def checked_batches(vae: VAE, rows: Rows) -> Iterator[Tensor]:
    """The batches that a file is checked on: 20 rows one at a time, then 1,000 in hundreds."""
    for size, enough in _BATCHES.items():
        seen = 0
        for x, *_ in batches_for(vae, rows, size):
            yield x
            seen += len(x)
            if seen >= enough:
                break


class Difference:
    """Largest and mean square difference from a reference, and the reference's span, over batches."""

    def __init__(self) -> None:
        self.largest, self._low, self._high = 0.0, math.inf, -math.inf
        self._squares, self._count = 0.0, 0

    def see(self, reference: Tensor, found: np.ndarray[Any, Any]) -> None:
        """One more batch. Raises ExportError for another shape."""
        expected = reference.float().cpu().numpy()
        if expected.shape != found.shape:
            raise ExportError(f"ONNX: output has shape {found.shape}, PyTorch gives {expected.shape}")
        differences = np.abs(expected - found)
        difference = float(differences.max())
        self.largest = max(self.largest, difference if math.isfinite(difference) else math.inf)
        self._squares += float(np.square(differences, dtype=np.float64).sum())
        self._count += differences.size
        self._low, self._high = min(self._low, float(expected.min())), max(self._high, float(expected.max()))

    @property
    def rms(self) -> float:
        """Root of the mean square; infinite where something was not finite."""
        return math.sqrt(self._squares / self._count) if math.isfinite(self._squares) else math.inf

    @property
    def span(self) -> float:
        """The reference's largest value less its smallest."""
        return self._high - self._low


def _refuse_opset(opset: int) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise UsageError(f"opset: got {opset}, expected {_OLDEST_OPSET} to {newest}", f"the usual one is {OPSET}")


def _free_of_batch(part: Part, opset: int) -> Any:
    """An `onnx_ir.Model` of one part. Where the batch is fixed the exporter says nothing."""
    found = _exported(part, opset)
    if isinstance(found.graph.inputs[0].shape[0], int):
        try:
            part = part.from_bytecode()
        except Exception as error:
            what = f"{part.name}.onnx: the batch is fixed to {len(part.example)}: {first_line(error)}"
            raise ExportError(what) from error
        found = _exported(part, opset)
    return found


def _exported(part: Part, opset: int) -> Any:
    """An `onnx_ir.Model` of one part."""
    file = f"{part.name}.onnx"
    with quiet("torch", "torch.onnx", "torch.export", "onnxscript"):  # what came out is checked, not read in a log
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
            raise ExportError(f"{file}: torch's exporter failed: {first_line(error.__cause__ or error)}") from error
    found = program.model.opset_imports.get("")
    if found != opset:
        raise ExportError(f"{file}: torch's exporter gave opset {found}, expected {opset}", "take a later --opset")
    return program.model
