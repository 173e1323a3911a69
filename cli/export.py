"""`vaeprune export`: files to deploy, run on real rows before they appear."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import OnnxMismatch, UsageError

from . import options as o
from .groups import takes
from .output import note, print_gates, print_json, show

if TYPE_CHECKING:
    from vaeprune.exporting import Exported, Wanted


class Precision(str, Enum):
    """In what numbers the files compute."""

    fp32 = "fp32"
    fp16 = "fp16"
    dynamic = "int8-dynamic"
    static = "int8-static"


@dataclass(frozen=True)
class Files:
    """What to write, and when it is the same model."""

    precision: Annotated[
        Precision, typer.Option("--precision", help="What the weights are held in; int8-static is calibrated on DATA.")
    ] = Precision.fp32
    opset: Annotated[int, typer.Option("--opset", help="ONNX operators of this version.")] = 20
    autoencoder: Annotated[
        bool, typer.Option("--autoencoder", help="Also autoencoder.onnx, x to x_hat along the mean path.")
    ] = False
    pt2: Annotated[bool, typer.Option("--pt2", help="Also .pt2 files of torch.export, in float32.")] = False
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Weights in files beside the graphs, as above 2 GB in any case.")
    ] = False
    onnx_tolerance: Annotated[
        float | None,
        typer.Option(
            "--onnx-tolerance",
            help="Difference from PyTorch, share of the output's range: the largest for fp32 (0.0001), "
            "RMS for fp16 (0.001) and int8 (0.02).",
        ),
    ] = None
    max_elbo_loss: Annotated[
        float | None,
        typer.Option("--max-elbo-loss", help="Upper 95% bound of the ELBO loss in nats per row; 0.1, and 1 for int8."),
    ] = None

    def wanted(self) -> Wanted:
        """The library's form."""
        from vaeprune.exporting import LIMITS, Limits, Wanted

        usual = LIMITS[self.precision.value]
        limits = Limits(
            usual.outputs if self.onnx_tolerance is None else self.onnx_tolerance,
            usual.elbo if self.max_elbo_loss is None else self.max_elbo_loss,
        )
        return Wanted(
            self.precision.value,
            self.opset,
            autoencoder=self.autoencoder,
            pt2=self.pt2,
            external=self.external_data,
            limits=limits,
        )


@takes(o.Reading, Files)
def export(
    model: o.Model,
    reading: o.Reading,
    files: Files,
    out: Annotated[Path, typer.Option("--out", help="The folder to write the files into.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Rows to check on; the training data if left out.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Use only the first N rows of each split.")] = None,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Write files to deploy, checked on real rows.

    encoder.onnx takes x and gives mu and logvar; decoder.onnx takes z and gives x_hat. If they differ from the model by
    more than the precision allows, nothing is written.
    """
    from vaeprune.exporting import export as export_folder
    from vaeprune.model_folder import training_data

    wanted = files.wanted()
    named = data or training_data(Path(model))
    if not named:
        raise UsageError("--data: is missing, and the model does not say what it was trained on")
    sets = o.Rows(named, data_dir=data_dir, rows=rows).open(input_range=reading.input_range)
    vae = o.open_model(model, reading, sets, o.Device.cpu, quiet)
    try:
        exported = export_folder(vae, sets, out, wanted, force)
    except OnnxMismatch as error:
        note(f"vaeprune: {error}")
        if json:
            print_json({"out": None, "gates": [gate.to_json() for gate in error.gates]})
        else:
            print_gates(error.gates)
        return 1
    if json:
        print_json(exported.to_json())
    else:
        _print(exported, named)
    return 0


def _print(exported: Exported, data: str) -> None:
    calibrated = f", calibrated on {exported.calibration_rows} rows" if exported.calibration_rows else ""
    show(f"{exported.precision}, opset {exported.opset}{calibrated}, beside PyTorch on rows of {data}")
    print_gates(exported.gates)
    low, high = exported.sampling.ci95
    show(
        f"ELBO: {-exported.sampling.elbo_difference:+.4f} nats per row (95%: {-high:+.4f} to {-low:+.4f}), "
        "positive = the files are better"
    )
    if exported.latency:
        show(f"\n{'beside fp32':20}{'bytes':>12}{'ratio':>8}")
        for part, size in exported.file_bytes.items():
            show(f"{part + '.onnx':20}{size:>12,}{size / exported.fp32_bytes[part]:>8.3f}")
        show("\nlatency, time / time of fp32, one thread:")
        for one in exported.latency:
            show(f"    {one.part}, batch {one.batch}: {one.ratio:.3f}, {one.verdict}")
    show("\nfiles:")
    for file in exported.files:
        show(f"    {file}  {file.stat().st_size:,} bytes")
