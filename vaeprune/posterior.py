"""The approximate posterior q(z | x) = N(mean, exp(logvar)), its divergence from N(0, I), and the VAE protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vaeprune.likelihood import Likelihood

# An inactive latent has Var_x[mu] below the one (Burda et al. 2015) and E_x[sigma²] above the other (Asperti).
INACTIVE_VARIANCE = 0.01
INACTIVE_POSTERIOR_VARIANCE = 0.8


class Posterior(NamedTuple):
    """A diagonal Gaussian over the latents of each row.

    mean, logvar: (B, D), or (B, C, H, W) where each latent is a map; logvar is ln sigma².
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """z = mean + sigma·noise (the reparametrisation trick); noise has the shape of the mean."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL(q(z | x) ‖ N(0, I)) of each row and latent, in nats; the shape of the mean.

        Asperti eq. (6): ½(mu² + sigma² − ln sigma² − 1).
        """
        return 0.5 * (self.mean.square() + self.logvar.exp() - self.logvar - 1)


def negative_elbo(vae: VAE, x: Tensor, z: Tensor, posterior: Posterior, condition: Sequence[Tensor] = ()) -> Tensor:
    """−ELBO of each row x (B, ...) in nats (B,), with one sample z of its `posterior`.

    Kingma and Welling 2014, eq. (3); the KL is unweighted whatever the model was trained by.
    """
    nats = vae.likelihood.nats(x, vae.decode_parameters(z, *condition))
    return nats + posterior.kl().flatten(1).sum(1)


@runtime_checkable
class VAE(Protocol):
    """What the rest of the package asks of a model; an nn.Module that has these is enough.

    Conditions of a conditional VAE follow x and z as further positional tensors.
    """

    @property
    def latent_size(self) -> int:
        """Number of latents D (channels, where latents are maps)."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of z without the batch: (D,) or (C, H, W)."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row as `encode` takes it."""
        ...

    @property
    def likelihood(self) -> Likelihood:
        """What `decode_parameters` returns and how a row is scored."""
        ...

    @property
    def network(self) -> nn.Module:
        """The module whose state dict a plan speaks of: the model itself unless it is wrapped."""
        ...

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """q(z | x) of each row."""
        ...

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z] of each row, on the data's scale."""
        ...

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        """What the decoder computes before the likelihood makes a mean of it: logits, or the mean."""
        ...


def count_weights(vae: VAE) -> int:
    """Number of weights, BatchNorm's running statistics included (as Keras counts them)."""
    tensors = vae.network.state_dict().values()
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
