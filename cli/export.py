"""`vaeprune export`: ONNX files, run on real rows before they appear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaeprune.errors import UsageError

from . import options as o
from .output import print_json


def export(
    model: o.Model,
    out: Annotated[Path, typer.Option("--out", help="The folder to write encoder.onnx and decoder.onnx into.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Rows to check the files on; the training data if left out."),
    ] = None,
    data_dir: o.DataDir = None,
    rows: o.Rows = None,
    onnx_tolerance: o.OnnxTolerance = 1e-4,
    force: o.Force = False,
    json: o.Json = False,
) -> int:
    """Write ONNX files, checked on real rows.

    encoder.onnx takes x and gives mu and logvar; decoder.onnx takes z and gives x_hat.
    """
    from vaeprune.exporting import export as export_folder

    vae = o.open_model(model, o.Device.cpu)
    named = data or str((vae.provenance.get("training") or {}).get("data") or "")
    if not named:
        raise UsageError("--data: is missing, and the model does not say what it was trained on")
    sets = o.open_rows(named, None, data_dir, 0, rows)
    errors, files = export_folder(vae, sets, out, onnx_tolerance, force)
    if json:
        found = {
            "encoder_max_abs_error": errors.encoder_max_abs_error,
            "decoder_max_abs_error": errors.decoder_max_abs_error,
        }
        print_json({"out": str(out), "files": [str(f) for f in files], "onnx": found})
        return 0
    print(
        f"largest difference from PyTorch on rows of {named}: encoder {errors.encoder_max_abs_error:.3g}, "
        f"decoder {errors.decoder_max_abs_error:.3g}"
    )
    for file in files:
        print(f"    {file}  {file.stat().st_size:,} bytes")
    return 0
