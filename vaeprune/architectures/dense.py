"""The dense VAE of the paper's sections IV and V: fully connected layers with ReLU between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vaeprune.architectures.base import BuiltVAE, positive_sizes
from vaeprune.architectures.low_rank import LowRank
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior


class DenseVAE(BuiltVAE):
    """input → encoder widths → (mean, logvar) → decoder widths → input.

    The paper's "784-256-32-24-16" has encoder_widths [256, 32, 24], decoder_widths [24, 32, 256] and
    latent_size 16. The two sides are named apart because a shrunk network is not symmetric.
    """

    name = "dense"

    def __init__(
        self,
        input_shape: Sequence[int],
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        latent_size: int,
        likelihood: Likelihood | None = None,
    ) -> None:
        shape = positive_sizes(input_shape, "input_shape")
        encoder = positive_sizes(encoder_widths, "encoder_widths")
        decoder = positive_sizes(decoder_widths, "decoder_widths")
        (latents,) = positive_sizes([latent_size], "latent_size")
        super().__init__(shape, likelihood or Likelihood())
        size = math.prod(shape)
        positive_sizes((size, *encoder, latents), "input_shape and encoder_widths")
        positive_sizes((latents, *decoder, size), "decoder_widths and input_shape")
        self.encoder = _stack((size, *encoder))
        self.mean_head = nn.Linear((size, *encoder)[-1], latents)
        self.logvar_head = nn.Linear((size, *encoder)[-1], latents)
        self.decoder = _stack((latents, *decoder))
        self.output = nn.Linear((latents, *decoder)[-1], size)

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return self.mean_head.out_features

    def widths(self) -> dict[str, Any]:
        """The config entry that builds this module."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "encoder_widths": [m.out_features for m in self.encoder if isinstance(m, (nn.Linear, LowRank))],
            "decoder_widths": [m.out_features for m in self.decoder if isinstance(m, (nn.Linear, LowRank))],
            "latent_size": self.latent_size,
        }

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """q(z | x) of rows x (B, *input_shape); mean and logvar are (B, D)."""
        h = self.encoder(x.flatten(1))
        return Posterior(self.mean_head(h), self.logvar_head(h))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        """Logits or mean of p(x | z), (B, *input_shape), for z (B, D)."""
        rows: Tensor = self.output(self.decoder(z))
        return rows.view(-1, *self.input_shape)


def _stack(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers)
