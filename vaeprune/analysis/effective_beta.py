"""By how much the training weighed the KL, read off the trained weights.

Where training has come to rest on −log p(x | z) + beta·KL, both derivatives by the encoder's output vanish on average:

    by ln sigma_i²:          E[sigma_i eps_i g_i] = beta (1 − E[sigma_i²])
    by the scale of mu_i:    −E[mu_i g_i] = beta E[mu_i²]

with g = −d log p(x | z) / dz at z = mu + sigma·eps (the reparametrisation of Kingma and Welling 2014, section 2.4), so
that each latent gives beta twice without the objective being known. The first is sigma_i² = 1 / (1 + [JᵀFJ]_ii / beta)
averaged over rows, with the true second derivative in place of the decoder's Jacobian J and the Fisher information F.
The difference of both is the variance law: where a mean cannot scale freely (BatchNorm), the two disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from vaeprune.analysis.latents import Interval, interval

_CLEAR = 3.0  # standard errors away from 0


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means over rows, with its 95% interval (delta method)."""

    value: float
    ci95: Interval

    @property
    def known(self) -> bool:
        """Whether rows were enough to tell it from 0 and from everything."""
        half = (self.ci95[1] - self.ci95[0]) / 2
        return math.isfinite(self.value) and half * _CLEAR < 2 * abs(self.value)


@dataclass(frozen=True)
class EffectiveBeta:
    """The weight of the KL that the latents' variances (`by_variance`) and their means (`by_mean`) rest at.

    Both are 1 for the ELBO. `latents`: the first for each latent alone. Units: KL's nats per nat of −log p(x | z), as
    the model's likelihood counts them.
    """

    by_variance: Ratio
    by_mean: Ratio
    latents: tuple[Ratio, ...]

    @property
    def agrees(self) -> bool:
        """Whether variances and means tell the same, as at rest they do: within a factor of two, or of their errors."""
        a, b = self.by_variance, self.by_mean
        if a.value > 0 and b.value > 0 and abs(math.log(a.value / b.value)) < math.log(2):
            return True
        return a.ci95[0] < b.ci95[1] and b.ci95[0] < a.ci95[1]


def effective_beta(pull: Tensor, deficit: Tensor, mean_pull: Tensor, mean_square: Tensor) -> EffectiveBeta:
    """Both estimates from rows (N, D), summed over positions where latents are maps.

    pull: sigma_i eps_i g_i. deficit: 1 − sigma_i². mean_pull: −mu_i g_i. mean_square: mu_i².
    """
    return EffectiveBeta(
        _ratio(pull.sum(1), deficit.sum(1)),
        _ratio(mean_pull.sum(1), mean_square.sum(1)),
        tuple(_ratio(pull[:, i], deficit[:, i]) for i in range(pull.shape[1])),
    )


def _ratio(above: Tensor, below: Tensor) -> Ratio:
    """E[above] / E[below] of rows (N,)."""
    n, scale = len(above), below.mean().item()
    if n < 2 or scale == 0:
        return Ratio(math.nan, (-math.inf, math.inf))
    value = above.mean().item() / scale
    error = (above - value * below).std().item() / math.sqrt(n) / abs(scale)
    return Ratio(value, interval(value, error))
