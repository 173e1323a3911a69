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
from torch import Tensor, nn

from vaeprune.adapters import as_vae, batches_for, element_type, measuring
from vaeprune.data import Rows
from vaeprune.errors import ExportError
from vaeprune.posterior import VAE

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
_CHECKED_ROWS = 1000
_BATCHES = (1, 100)


class _Encoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(x)
        return posterior.mean, posterior.logvar


class _Decoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


@dataclass(frozen=True)
class OnnxErrors:
    """Largest differences between the ONNX files and PyTorch on real rows.

    `encoder_max_abs_error` over mu and logvar; `encoder_range`, `decoder_range`: the spans of PyTorch's outputs.
    """

    encoder_max_abs_error: float
    decoder_max_abs_error: float
    encoder_range: float
    decoder_range: float


def export_onnx(model: VAE, folder: str | Path) -> tuple[Path, Path]:
    """Write `encoder.onnx` and `decoder.onnx` into an existing folder; the model stays as it is.

    Inputs x (B, *input_shape) and z (B, *latent_shape) have a dynamic batch. Raises ExportError with what torch's
    exporter said. Check the files with `onnx_errors` before relying on them.
    """
    vae, folder = as_vae(model), Path(folder)
    dtype, device = element_type(vae)
    x = torch.zeros(2, *vae.input_shape, dtype=dtype, device=device)
    z = torch.zeros(2, *vae.latent_shape, dtype=dtype, device=device)
    with measuring(vae):
        _write(_Encoder(vae), x, folder / ENCODER, "x", ["mu", "logvar"])
        _write(_Decoder(vae), z, folder / DECODER, "z", ["x_hat"])
    return folder / ENCODER, folder / DECODER


def onnx_errors(model: VAE, folder: str | Path, rows: Rows) -> OnnxErrors:
    """Run both files in onnxruntime on up to 1,000 of `rows`, one at a time and in batches, beside PyTorch.

    Single rows are checked on the first 20. Raises ExportError if a file is missing or does not run.
    """
    vae, folder = as_vae(model), Path(folder)
    encoder, decoder = session_of(folder / ENCODER), session_of(folder / DECODER)
    encoded, decoded = _Difference(), _Difference()
    with measuring(vae):
        for size in _BATCHES:
            seen = 0
            for x, *_ in batches_for(vae, rows, size):
                posterior = vae.encode(x)
                mu, logvar = run_session(encoder, x, folder / ENCODER)
                encoded.see(posterior.mean, mu)
                encoded.see(posterior.logvar, logvar)
                decoded.see(vae.decode(posterior.mean), run_session(decoder, posterior.mean, folder / DECODER)[0])
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


def _write(module: nn.Module, example: Tensor, path: Path, name: str, outputs: list[str]) -> None:
    module.eval()
    with _quiet_exporter():
        try:
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[name],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"{path.name}: torch's exporter failed: {_first_line(error)}") from error
    random = sorted({node.op_type for node in program.model.graph} & _RANDOM)
    if random:
        raise ExportError(
            f"{path.name}: contains random operators {', '.join(random)}",
            "make encode and decode deterministic in eval mode",
        )
    program.save(path)


def session_of(path: Path) -> Any:
    """An ONNX file in onnxruntime, on the CPU. Raises ExportError."""
    import onnxruntime  # heavy, and only needed here

    if not path.is_file():
        raise ExportError(f"{path}: no such file, expected an ONNX model", "run `vaeprune export`")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from error


def run_session(session: Any, value: Tensor, path: Path) -> list[np.ndarray[Any, Any]]:
    """All outputs for `value` (B, ...) as the one input; `path` names the file in errors. Raises ExportError."""
    try:
        outputs: list[np.ndarray[Any, Any]] = session.run(None, {session.get_inputs()[0].name: value.cpu().numpy()})
    except Exception as error:
        raise ExportError(f"{path}: onnxruntime fails at batch {len(value)}: {_first_line(error)}") from error
    return outputs


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch's exporter logs and warns about its own internals; errors still come through as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
