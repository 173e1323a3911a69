"""The parts of a VAE that are deployed, each a module with one input and a free batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters import element_type
from vaeprune.posterior import VAE


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


class _Autoencoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(x).mean)


@dataclass(frozen=True)
class Part:
    """A module with the names of its input and outputs, and two rows of zeros to trace it with."""

    name: str
    module: nn.Module
    input: str
    outputs: tuple[str, ...]
    example: Tensor

    @property
    def dynamic_shapes(self) -> Any:
        """The batch is free, as `torch.export` is told."""
        return ({0: torch.export.Dim("batch")},)

    def from_bytecode(self) -> Part:
        """The same as a graph read off the bytecode: there `len(x)` does not fix the batch, as it does where it is run.

        Raises what `torch.export.export` raises.
        """
        graph = torch.export.export(self.module, (self.example,), dynamic_shapes=self.dynamic_shapes, strict=True)
        module = graph.module(check_guards=False)
        module.training = False  # such a module knows no eval(); what it computes is settled
        return replace(self, module=module)


def parts_of(vae: VAE, autoencoder: bool = False) -> tuple[Part, ...]:
    """Encoder (x → mu, logvar), decoder (z → x_hat) and, if asked for, the autoencoder (x → decode(mu))."""
    dtype, device = element_type(vae)
    x = torch.zeros(2, *vae.input_shape, dtype=dtype, device=device)
    z = torch.zeros(2, *vae.latent_shape, dtype=dtype, device=device)
    parts = [
        Part("encoder", _Encoder(vae).eval(), "x", ("mu", "logvar"), x),
        Part("decoder", _Decoder(vae).eval(), "z", ("x_hat",), z),
    ]
    if autoencoder:
        parts.append(Part("autoencoder", _Autoencoder(vae).eval(), "x", ("x_hat",), x))
    return tuple(parts)
