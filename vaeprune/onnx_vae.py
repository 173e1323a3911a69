"""An ONNX pair seen through the VAE protocol, so that pictures can be drawn of what was deployed, without its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.errors import ExportError
from vaeprune.likelihood import Likelihood
from vaeprune.onnx_figures import onnx_pair
from vaeprune.onnx_metadata import likelihood_in
from vaeprune.onnx_running import OnnxFile
from vaeprune.posterior import Posterior

_TYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}


class OnnxVAE(nn.Module):
    """`encoder.onnx` and `decoder.onnx` of a folder, run by onnxruntime on the CPU.

    A row is scored by `likelihood`, else as the files say, else by `otherwise`; `x_hat` is a mean.
    Raises StorageError or ExportError if the pair is incomplete, damaged, or not one that `export` writes.
    """

    def __init__(
        self,
        folder: Path,
        likelihood: Likelihood | None = None,
        otherwise: Likelihood = Likelihood("gaussian", "mean"),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self._encoder, self._decoder = (OnnxFile(path) for path in onnx_pair(folder))
        self.input_shape, dtype = _taken(self._encoder)
        self.latent_shape, _ = _taken(self._decoder)
        if len(self._encoder.outputs) != 2 or len(self._decoder.outputs) != 1:
            raise ExportError(f"{folder}: expected an encoder that gives mu and logvar, and a decoder that gives x_hat")
        self.likelihood = likelihood or likelihood_in(self._encoder.metadata) or otherwise
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
        mean, logvar = self._encoder(x)
        return Posterior(torch.from_numpy(mean), torch.from_numpy(logvar))

    def decode_parameters(self, z: Tensor, *_condition: Tensor) -> Tensor:
        """E[x | z], (B, *input_shape), for z (B, *latent_shape)."""
        (found,) = self._decoder(z)
        return torch.from_numpy(found).reshape(-1, *self.input_shape)

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """The same."""
        return self.decode_parameters(z, *condition)


def _taken(file: OnnxFile) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape, without the batch, and type of the one input of a file."""
    inputs = file.inputs
    if len(inputs) != 1:
        raise ExportError(f"{file.path}: takes {len(inputs)} inputs, expected one", "conditions are not exported")
    shape, kind = inputs[0].shape[1:], inputs[0].type
    if kind not in _TYPES or not shape or not all(isinstance(size, int) for size in shape):
        raise ExportError(
            f"{file.path}: takes {kind} of shape {inputs[0].shape}, expected floats of a shape known but for B"
        )
    return tuple(shape), _TYPES[kind]
