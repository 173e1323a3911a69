"""`vaeprune export`: ONNX files, run on real rows before they appear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaeprune.errors import OnnxMismatch, UsageError

from . import options as o
from .groups import takes
from .output import note, print_json, show


@takes(o.Reading)
def export(
    model: o.Model,
    reading: o.Reading,
    out: Annotated[Path, typer.Option("--out", help="The folder to write encoder.onnx and decoder.onnx into.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Rows to check on; the training data if left out.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Use only the first N rows of each split.")] = None,
    onnx_tolerance: Annotated[
        float, typer.Option("--onnx-tolerance", help="ONNX against PyTorch, share of the output's range.")
    ] = 1e-4,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Write ONNX files, checked on real rows.

    encoder.onnx takes x and gives mu and logvar; decoder.onnx takes z and gives x_hat.
    """
    from vaeprune.evidence import Tolerances
    from vaeprune.exporting import export as export_folder
    from vaeprune.model_folder import training_data

    tolerances = Tolerances(onnx=onnx_tolerance)
    named = data or training_data(Path(model))
    if not named:
        raise UsageError("--data: is missing, and the model does not say what it was trained on")
    sets = o.Rows(named, data_dir=data_dir, rows=rows).open(input_range=reading.input_range)
    vae = o.open_model(model, reading, sets, o.Device.cpu, quiet)
    try:
        errors, files = export_folder(vae, sets, out, tolerances, force)
    except OnnxMismatch as error:
        note(f"vaeprune: {error}")
        return 1
    if json:
        found = {
            "encoder_max_abs_error": errors.encoder_max_abs_error,
            "decoder_max_abs_error": errors.decoder_max_abs_error,
        }
        print_json({"out": str(out), "files": [str(f) for f in files], "onnx": found})
        return 0
    show(
        f"largest difference from PyTorch on rows of {named}: encoder {errors.encoder_max_abs_error:.3g}, "
        f"decoder {errors.decoder_max_abs_error:.3g}"
    )
    for file in files:
        show(f"    {file}  {file.stat().st_size:,} bytes")
    return 0
