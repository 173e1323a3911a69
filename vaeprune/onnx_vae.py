"""An ONNX pair seen through the VAE protocol, so that pictures can be drawn of what was deployed, without its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.errors import ExportError
from vaeprune.likelihood import Likelihood
from vaeprune.onnx_export import run_session, session_of
from vaeprune.onnx_figures import onnx_pair
from vaeprune.posterior import Posterior

_TYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}


class OnnxVAE(nn.Module):
    """`encoder.onnx` and `decoder.onnx` of a folder, run by onnxruntime on the CPU.

    The files do not say how a row is scored: `likelihood`'s decoder output is a mean, which is what `x_hat` is.
    Raises StorageError or ExportError if the pair is incomplete, damaged, or not one that `export` writes.
    """

    def __init__(self, folder: Path, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        self._paths = onnx_pair(folder)
        self._encoder, self._decoder = (session_of(path) for path in self._paths)
        self.input_shape, dtype = _taken(self._encoder, self._paths[0])
        self.latent_shape, _ = _taken(self._decoder, self._paths[1])
        if len(self._encoder.get_outputs()) != 2 or len(self._decoder.get_outputs()) != 1:
            raise ExportError(f"{folder}: expected an encoder that gives mu and logvar, and a decoder that gives x_hat")
        self.likelihood = likelihood or Likelihood("gaussian", "mean")
        if self.likelihood.output != "mean":
            raise ExportError(f"{folder}: its decoder gives means, so a likelihood of logits does not fit it")
        # it has no weights of its own: an empty one tells the type that its rows must have
        self.element = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        self.provenance: dict[str, Any] = {}

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return self.latent_shape[0]

    @property
    def network(self) -> nn.Module:
        """This module, which holds no weights."""
        return self

    def encode(self, x: Tensor, *_condition: Tensor) -> Posterior:
        """q(z | x) of rows x (B, *input_shape)."""
        mean, logvar = run_session(self._encoder, x, self._paths[0])
        return Posterior(torch.from_numpy(mean), torch.from_numpy(logvar))

    def decode_parameters(self, z: Tensor, *_condition: Tensor) -> Tensor:
        """E[x | z], (B, *input_shape), for z (B, *latent_shape)."""
        (found,) = run_session(self._decoder, z, self._paths[1])
        return torch.from_numpy(found).reshape(-1, *self.input_shape)

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """The same."""
        return self.decode_parameters(z, *condition)


def _taken(session: Any, path: Path) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape, without the batch, and type of the one input of a file."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ExportError(f"{path}: takes {len(inputs)} inputs, expected one", "conditions are not exported")
    shape, kind = inputs[0].shape[1:], inputs[0].type
    if kind not in _TYPES or not shape or not all(isinstance(size, int) for size in shape):
        raise ExportError(
            f"{path}: takes {kind} of shape {inputs[0].shape}, expected floats of a shape known but for B"
        )
    return tuple(shape), _TYPES[kind]
