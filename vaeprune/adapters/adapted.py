"""A foreign module seen through the VAE protocol."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters.reading import Reading, follow, logvar_of
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior


class AdaptedVAE(nn.Module):
    """Somebody's module with the VAE protocol around it; the module itself is `network`, and is not changed.

    `assumptions`: in words, what was found out about it. `provenance`: where it comes from.
    """

    def __init__(
        self,
        network: nn.Module,
        reading: Reading,
        likelihood: Likelihood,
        input_shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        assumptions: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._network = network
        self.reading = reading
        self.likelihood = likelihood
        self.input_shape = input_shape
        self.latent_shape = latent_shape
        self.assumptions = assumptions
        self.provenance: dict[str, Any] = {}

    @property
    def network(self) -> nn.Module:
        """The foreign module; a plan speaks of its state dict."""
        return self._network

    @property
    def latent_size(self) -> int:
        """Number of latents D; channels, where latents are maps."""
        return self.latent_shape[0]

    def with_network(self, network: nn.Module, latent_size: int) -> AdaptedVAE:
        """The same reading of another module, which has `latent_size` latents."""
        shape = (latent_size, *self.latent_shape[1:])
        other = AdaptedVAE(network, self.reading, self.likelihood, self.input_shape, shape, self.assumptions)
        other.provenance = dict(self.provenance)
        return other

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """q(z | x) of rows x (B, *input_shape)."""
        reading = self.reading
        found = getattr(self._network, reading.encode)(x, *condition[: reading.conditions[0]])
        mean, spread = follow(found, reading.mean), follow(found, reading.spread)
        if reading.mean == reading.spread:
            mean, spread = mean.chunk(2, 1)
        return Posterior(mean, logvar_of(spread, reading.kind))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        """What the module's decoder gives for z (B, *latent_shape), in the shape of the input."""
        reading = self.reading
        if reading.decode is None:
            raise ModelError(
                f"{type(self._network).__name__}: has no decoder that could be called with z",
                "give it a method decode(z)",
            )
        found = follow(getattr(self._network, reading.decode)(z, *condition[: reading.conditions[1]]), reading.output)
        return found.reshape(-1, *self.input_shape)  # type: ignore[no-any-return]

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z], (B, *input_shape)."""
        return self.likelihood.mean(self.decode_parameters(z, *condition))


def unwrapped(network: nn.Module) -> nn.Module:
    """The module inside torch.compile and (Distributed)DataParallel wrappers."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def element_type_of(network: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Floating point type and device of a module's first weight."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")
