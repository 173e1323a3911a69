"""What every VAE of this package shares: shapes, likelihood, and how its weights start."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vaeprune.architectures.low_rank import ranks_of
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

Initialisation = Literal["glorot", "torch"]


_MOST_WEIGHTS = 2**61  # of one layer: torch counts their bytes in 63 bits


class BuiltVAE(nn.Module):
    """A VAE of vector latents that knows the config it could be built from.

    The config is read off the live layers, so it stays true after surgery. None of them takes a condition; the
    parameter is there for the protocol.
    """

    name: ClassVar[str]

    def __init__(self, input_shape: tuple[int, ...], likelihood: Likelihood) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.likelihood = likelihood
        self.provenance: dict[str, Any] = {}

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self.latent_size,)

    @property
    def network(self) -> nn.Module:
        """The module whose state dict a plan speaks of: this one."""
        return self

    def architecture(self) -> dict[str, Any]:
        """The config entry that builds this module: name, shapes and widths, and ranks of layers that are pairs."""
        ranks = ranks_of(self)
        return self.widths() | ({"ranks": ranks} if ranks else {})

    def widths(self) -> dict[str, Any]:
        """The config entry without ranks."""
        raise NotImplementedError

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """q(z | x) of rows x (B, *input_shape); mean and logvar are (B, D)."""
        raise NotImplementedError

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        """Logits (Bernoulli) or mean (Gaussian) of p(x | z), (B, *input_shape), for z (B, D)."""
        raise NotImplementedError

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z], (B, *input_shape), for z (B, D)."""
        return self.likelihood.mean(self.decode_parameters(z, *condition))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction, mean, logvar) with a sampled z; the habit of PyTorch's own VAE example."""
        posterior = self.encode(x)
        z = posterior.sample(torch.randn_like(posterior.mean))
        return self.decode(z), posterior.mean, posterior.logvar


def initialise(model: nn.Module, how: Initialisation, seed: int) -> None:
    """Draw all weights anew, in place.

    "glorot": Glorot-uniform weights and zero biases, as Keras (the paper's tool) starts.
    "torch": every layer's own default. Seeded without touching the global generator.
    """
    if how not in ("glorot", "torch"):
        raise ModelError(f"initialisation: got {how!r}, expected 'glorot' or 'torch'")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators, too
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                layer.reset_parameters()
                if how == "glorot":
                    nn.init.xavier_uniform_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)


def positive_sizes(values: Any, where: str) -> tuple[int, ...]:
    """Check a list of layer widths or image sizes; raises ModelError on anything but positive integers."""
    good = isinstance(values, (list, tuple)) and all(type(v) is int and 0 < v < 2**31 for v in values)
    if not good or any(a * b >= _MOST_WEIGHTS for a, b in itertools.pairwise(values)):
        raise ModelError(f"{where}: got {values!r:.80}, expected a list of positive whole numbers")
    return tuple(values)
