"""What a precision costs: the ELBO of ONNX files beside that of the PyTorch model, row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vaeprune.adapters import as_vae, element_type
from vaeprune.data import Rows
from vaeprune.evidence import Sampling
from vaeprune.likelihood import Likelihood
from vaeprune.onnx_export import DECODER, ENCODER
from vaeprune.onnx_running import OnnxFile
from vaeprune.posterior import VAE, Posterior
from vaeprune.verification import elbo_difference

_LEAST_PROBABILITY = 2.0**-24  # nearer to 1 float32 has no number, so what x_hat says of a pixel ends there


def onnx_elbo_difference(model: VAE, folder: str | Path, rows: Rows, seed: int = 0) -> Sampling:
    """How much worse the ELBO of a folder's ONNX files is than the model's, in nats per row, with its 95% interval.

    Both are scored by x_hat, since that is what `decoder.onnx` gives: a Bernoulli's probabilities are held 2⁻²⁴ away
    from 0 and 1, and both get the same noise. Raises ExportError if a file is missing or does not run.
    """
    vae, folder = as_vae(model), Path(folder)
    encoder, decoder = OnnxFile(folder / ENCODER), OnnxFile(folder / DECODER)
    dtype, device = element_type(vae)

    def encode(x: Tensor) -> Posterior:
        return Posterior(*(torch.from_numpy(part).to(device, dtype) for part in encoder(x)))

    def decode(z: Tensor) -> Tensor:
        return torch.from_numpy(decoder(z)[0]).to(device, dtype)

    a, b = _ScoredByMean(vae, vae.encode, vae.decode), _ScoredByMean(vae, encode, decode)
    return elbo_difference(a, b, rows, torch.arange(vae.latent_size), seed)


class _ScoredByMean:
    """A VAE whose rows are scored by E[x | z], with an encoder and a decoder of its own."""

    def __init__(self, vae: VAE, encode: Callable[[Tensor], Posterior], decode: Callable[[Tensor], Tensor]) -> None:
        self._encode, self._decode = encode, decode
        self.network = vae.network
        self.latent_size, self.latent_shape, self.input_shape = vae.latent_size, vae.latent_shape, vae.input_shape
        self.likelihood = Likelihood(vae.likelihood.kind, "mean", vae.likelihood.scale)

    def encode(self, x: Tensor, *_condition: Tensor) -> Posterior:
        return self._encode(x)

    def decode(self, z: Tensor, *_condition: Tensor) -> Tensor:
        return self._decode(z)

    def decode_parameters(self, z: Tensor, *_condition: Tensor) -> Tensor:
        mean = self._decode(z)
        return mean.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY) if self.likelihood.kind == "bernoulli" else mean
