"""What every VAE of the benchmarks' own derives from the rest of the protocol."""

from __future__ import annotations

from torch import Tensor, nn


class OwnVAE(nn.Module):
    """Vector latents, and a decoder that gives means."""

    @property
    def latent_size(self) -> int:
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_size,)

    @property
    def network(self) -> nn.Module:
        return self

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decode_parameters(z)
