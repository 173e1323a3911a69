"""Deployable files of a model, in a folder that appears only once they were run on real rows."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaeprune.adapters import as_vae, batches_for, element_type, measuring
from vaeprune.data import DataSets
from vaeprune.errors import ExportError, OnnxMismatch, UsageError
from vaeprune.evidence import Gate, Sampling
from vaeprune.latency import Latency, compare
from vaeprune.onnx_elbo import onnx_elbo_difference
from vaeprune.onnx_export import OPSET, OnnxErrors, export_onnx, onnx_errors
from vaeprune.onnx_figures import onnx_figures
from vaeprune.onnx_metadata import metadata_of
from vaeprune.onnx_precision import Precision, convert, refuse_precision
from vaeprune.posterior import VAE
from vaeprune.storage import new_folder
from vaeprune.torch_export import export_pt2

CALIBRATION_ROWS = 512
_REPEATS = 15


@dataclass(frozen=True)
class Limits:
    """When files of a precision are the same model.

    `outputs`: difference from PyTorch as a share of the output's range, the largest one for fp32 and the RMS for the
    others, where a pixel at an edge may be off by more. `elbo`: upper 95% bound of the loss, nats per row.
    """

    outputs: float
    elbo: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"tolerance {name}: got {value}, expected a finite number of at least 0")


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-4, 0.1),
    "fp16": Limits(1e-3, 0.1),
    "int8-dynamic": Limits(0.02, 1.0),
    "int8-static": Limits(0.02, 1.0),
}


@dataclass(frozen=True)
class Wanted:
    """What to export; see `export`."""

    precision: Precision = "fp32"
    opset: int = OPSET
    autoencoder: bool = False
    pt2: bool = False
    external: bool = False
    limits: Limits | None = None

    def __post_init__(self) -> None:
        refuse_precision(self.precision)


@dataclass(frozen=True)
class Exported:
    """What was written and how it was judged.

    `file_bytes`: of each ONNX file, its weights beside it included; `fp32_bytes`: of the same in float32. `latency`:
    encoder and decoder beside float32; empty for float32. `calibration_rows`: None where none were needed.
    """

    out: Path
    files: tuple[Path, ...]
    precision: Precision
    opset: int
    errors: OnnxErrors
    sampling: Sampling
    gates: tuple[Gate, ...]
    file_bytes: dict[str, int]
    fp32_bytes: dict[str, int]
    latency: tuple[Latency, ...] = ()
    calibration_rows: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `vaeprune export --json` prints."""
        latency = [
            {"part": one.part, "batch": one.batch, "ratio": one.ratio, "verdict": one.verdict} for one in self.latency
        ]
        return {
            "out": str(self.out),
            "files": [str(file) for file in self.files],
            "precision": self.precision,
            "opset": self.opset,
            "onnx": dataclasses.asdict(self.errors),
            "sampling": dataclasses.asdict(self.sampling),
            "gates": [gate.to_json() for gate in self.gates],
            "file_bytes": self.file_bytes,
            "fp32_bytes": self.fp32_bytes,
            "latency": latency,
            "calibration_rows": self.calibration_rows,
        }


def export(model: VAE, data: DataSets, out: Path, wanted: Wanted | None = None, force: bool = False) -> Exported:
    """Write encoder.onnx, decoder.onnx and what else is `wanted` into the new folder `out`.

    The files are run on the verify rows of `data` beside PyTorch, and int8-static is calibrated on its calibrate rows.
    Raises OnnxMismatch, with nothing written, if they differ by more than the precision's limits.
    """
    wanted, vae = wanted or Wanted(), as_vae(model, data)
    limits = wanted.limits or LIMITS[wanted.precision]
    with new_folder(out, force) as folder, tempfile.TemporaryDirectory(prefix="vaeprune-") as scratch:
        rows = None
        if wanted.precision == "fp32":
            plain, written = folder, _exported(vae, folder, wanted)
        else:
            plain = Path(scratch)
            rows = _calibration(vae, data) if wanted.precision == "int8-static" else None
            written = _converted(vae, plain, folder, wanted, rows)
        errors = onnx_errors(vae, folder, data.verify)
        sampling = onnx_elbo_difference(vae, folder, data.verify, data.seed)
        gates = _gates(errors, sampling, wanted.precision, limits)
        if wanted.pt2:
            shares = export_pt2(vae, folder, data.verify, autoencoder=wanted.autoencoder)
            gates += [Gate(f"{part}.pt2, largest", share, LIMITS["fp32"].outputs) for part, share in shares.items()]
        if not all(gate.passed for gate in gates):
            raise OnnxMismatch(tuple(gates))
        return Exported(
            out,
            tuple(out / path.name for path in sorted(folder.iterdir())),
            wanted.precision,
            wanted.opset,
            errors,
            sampling,
            tuple(gates),
            {path.stem: onnx_figures(path).file_bytes for path in written},
            {path.stem: onnx_figures(plain / path.name).file_bytes for path in written},
            compare(plain, folder, repeats=_REPEATS, memory=False).latency if plain != folder else (),
            len(rows["x"]) if rows else None,
        )


def _exported(vae: VAE, folder: Path, wanted: Wanted) -> tuple[Path, ...]:
    return export_onnx(vae, folder, opset=wanted.opset, autoencoder=wanted.autoencoder, external=wanted.external)


def _converted(
    vae: VAE, plain: Path, folder: Path, wanted: Wanted, rows: dict[str, np.ndarray[Any, Any]] | None
) -> tuple[Path, ...]:
    """Export in float32 to `plain`, and from there to `folder` in the precision that is wanted."""
    dtype = element_type(vae)[0]
    if dtype != torch.float32:
        raise ExportError(f"model: computes in {dtype}, expected torch.float32", "convert it first: model.float()")
    written, quantized = [], 0
    for source in _exported(vae, plain, wanted):
        target = folder / source.name
        read = rows["z" if source.stem == "decoder" else "x"] if rows else None
        quantized += convert(source, target, wanted.precision, metadata_of(vae), read, external=wanted.external)
        written.append(target)
    if wanted.precision.startswith("int8") and not quantized:
        others = "int8-static" if wanted.precision == "int8-dynamic" else "fp16"
        raise ExportError(
            f"model: {wanted.precision} leaves every weight in float32, since it reaches none of its layers",
            f"take --precision {others}",
        )
    return tuple(written)


def _calibration(vae: VAE, data: DataSets) -> dict[str, np.ndarray[Any, Any]]:
    """A uniform sample of calibrate rows x, and z: half samples of their posteriors, half of the prior."""
    generator = torch.Generator().manual_seed(data.seed)
    kept, ranks = torch.empty(0), torch.empty(0)
    with measuring(vae):
        for x, *_ in batches_for(vae, data.calibrate):
            kept = torch.cat([kept.to(x), x]) if len(kept) else x
            ranks = torch.cat([ranks, torch.rand(len(x), generator=generator)])
            if len(ranks) > CALIBRATION_ROWS:
                ranks, chosen = ranks.topk(CALIBRATION_ROWS)
                kept = kept[chosen]
        posterior = vae.encode(kept)
        noise = torch.randn(2, *posterior.mean.shape, generator=generator).to(posterior.mean)
        z = torch.cat([posterior.sample(noise[0]), noise[1]])
    return {"x": kept.cpu().numpy(), "z": z.cpu().numpy()}


def _gates(errors: OnnxErrors, sampling: Sampling, precision: Precision, limits: Limits) -> list[Gate]:
    gates = []
    exact = precision == "fp32"
    for part, span in (
        ("encoder", errors.encoder_range),
        ("decoder", errors.decoder_range),
        ("autoencoder", errors.decoder_range),
    ):
        found = getattr(errors, f"{part}_{'max_abs' if exact else 'rms'}_error")
        if found is not None:
            gates.append(
                Gate(f"{part}.onnx, {'largest' if exact else 'RMS'}", found / max(span, 1e-12), limits.outputs)
            )
    return [*gates, Gate("ELBO loss, upper 95% bound", sampling.ci95[1], limits.elbo)]
