"""ONNX files of a model, in a folder that appears only once they were run on real rows."""

from __future__ import annotations

from pathlib import Path

from vaeprune.data import DataSets
from vaeprune.errors import OnnxMismatch
from vaeprune.evidence import Tolerances
from vaeprune.onnx_export import DECODER, ENCODER, OnnxErrors, export_onnx, onnx_errors
from vaeprune.posterior import VAE
from vaeprune.storage import new_folder


def export(
    vae: VAE, data: DataSets, out: Path, tolerances: Tolerances, force: bool = False
) -> tuple[OnnxErrors, tuple[Path, Path]]:
    """Write encoder.onnx and decoder.onnx into the new folder `out`, checked on the verify rows of `data`.

    Raises OnnxMismatch, with nothing written, if they differ from PyTorch by more than `tolerances.onnx` of the output
    range.
    """
    with new_folder(out, force) as folder:
        export_onnx(vae, folder)
        errors = onnx_errors(vae, folder, data.verify)
        for name, error, span in (
            (ENCODER, errors.encoder_max_abs_error, errors.encoder_range),
            (DECODER, errors.decoder_max_abs_error, errors.decoder_range),
        ):
            if not error <= tolerances.onnx * max(span, 1e-12):
                raise OnnxMismatch(
                    f"{name}: differs from PyTorch by {error:.3g}, allowed are {tolerances.onnx:.3g} of the range "
                    f"{span:.3g}",
                    "nothing was written",
                )
    return errors, (out / ENCODER, out / DECODER)
