"""What training minimises: −log p(x | z) plus a weighted penalty on the posterior, in nats per row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaeprune.errors import TrainingError
from vaeprune.posterior import VAE, Posterior

Penalty = Literal["full", "quadratic", "none"]


class Loss(NamedTuple):
    """The parts of the loss of each row (B,), in nats, and the posterior they came from.

    `total` is what is minimised; `reconstruction` and `kl` are unweighted.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    posterior: Posterior


@dataclass(frozen=True)
class Objective:
    """Asperti's objective and the variants of sections III, IV and VI.

    `penalty`: "full" is KL(q ‖ N(0, I)) of eq. (6); "quadratic" only its ½mu²; "none" leaves it out.
    `beta`: weight of the penalty (Higgins et al. 2017).
    `sampling`: False decodes the mean instead of a sample.
    """

    penalty: Penalty = "full"
    beta: float = 1.0
    sampling: bool = True

    def __post_init__(self) -> None:
        if self.penalty not in ("full", "quadratic", "none"):
            raise TrainingError(f"kl: got {self.penalty!r}, expected full, quadratic or none")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise TrainingError(f"beta: got {self.beta}, expected a finite number of at least 0")

    def __call__(
        self, vae: VAE, x: Tensor, noise: Tensor, *condition: Tensor, kl_weights: Tensor | None = None
    ) -> Loss:
        """The loss of rows x (B, ...) under their conditions.

        noise (B, *latent_shape) is the standard normal draw of the reparametrisation. `kl_weights` (D,): a further
        weight of each latent's penalty, as while the KL of new latents is warmed up; all 1 if None.
        """
        posterior = vae.encode(x, *condition)
        z = posterior.sample(noise) if self.sampling else posterior.mean
        reconstruction = _nats(vae, x, vae.decode_parameters(z, *condition))
        per_latent = posterior.kl()
        kl = per_latent.flatten(1).sum(1)
        penalty = self._penalty(posterior, per_latent, kl_weights)
        return Loss(reconstruction + penalty, reconstruction, kl, posterior)

    def _penalty(self, posterior: Posterior, kl: Tensor, weights: Tensor | None) -> Tensor:
        if self.penalty == "none":
            return torch.zeros_like(kl.flatten(1)[:, 0])
        terms, factor = (kl, self.beta) if self.penalty == "full" else (posterior.mean.square(), self.beta * 0.5)
        if weights is not None:
            terms = terms * weights.to(terms).view(-1, *[1] * (terms.dim() - 2))
        return factor * terms.flatten(1).sum(1)


def _nats(vae: VAE, x: Tensor, parameters: Tensor) -> Tensor:
    """-log p(x | z) of each row; NaN where the decoder gave NaN, which torch's binary cross-entropy refuses."""
    if vae.likelihood.kind == "bernoulli" and vae.likelihood.output == "mean" and parameters.isnan().any():
        return parameters.flatten(1).sum(1)
    return vae.likelihood.nats(x, parameters)
