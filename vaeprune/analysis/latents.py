"""What is known of each latent, and the limits it is judged by."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from vaeprune.analysis.moments import Moments
from vaeprune.errors import UsageError
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE, INACTIVE_VARIANCE

Verdict = Literal["active", "inactive", "mixed"]
NORMAL_95 = 1.959963984540054

Interval = tuple[float, float]


@dataclass(frozen=True)
class Thresholds:
    """Limits of the verdicts.

    `variance`: an inactive latent's Var_x[mu] lies below (Burda et al. 2015).
    `posterior_variance`: and its E_x[sigma²] above (Asperti).
    `ablation`: fixing it costs less than this, in nats per row.
    `noise`: replacing noise by a constant changes the output by less than this, as a share of its range (RMS).
    """

    variance: float = INACTIVE_VARIANCE
    posterior_variance: float = INACTIVE_POSTERIOR_VARIANCE
    ablation: float = 0.05
    noise: float = 0.01

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"threshold {name}: got {value}, expected a positive finite number")


@dataclass(frozen=True)
class Latent:
    """Statistics and verdict of one latent.

    `variance` is Var_x[mu], `posterior_variance` E_x[sigma²], each with its 95% interval; `kl` the mean KL in nats
    per row (summed over positions where latents are maps) and `kl_max` the largest; `largest_deviation` is the largest
    |mu − E mu|.
    `ablation_cost`, in nats per row, and `noise_reaction`, a share of the output's range, each with its interval, are
    None where they were not measured. `used_share`: the share of rows whose KL is more than ½ nat, with its interval.
    """

    index: int
    mean: float
    variance: float
    variance_ci95: Interval
    posterior_variance: float
    posterior_variance_ci95: Interval
    kl: float
    kl_max: float
    largest_deviation: float
    ablation_cost: float | None = None
    ablation_cost_ci95: Interval | None = None
    noise_reaction: float | None = None
    verdict: Verdict = "mixed"
    reason: str = ""
    noise_reaction_ci95: Interval | None = None
    used_share: float | None = None
    used_share_ci95: Interval | None = None

    @property
    def variance_law(self) -> float:
        """Var mu + E sigma²: 1 where the latent's scale is free and training has come to rest."""
        return self.variance + self.posterior_variance

    def to_json(self) -> dict[str, Any]:
        """All fields, tuples as lists."""
        return dataclasses.asdict(self) | {"variance_law": self.variance_law}


def latents_of(moments: Moments) -> list[Latent]:
    """The statistics of each latent, not yet judged."""
    n = moments.count
    variance, error = moments.variance.tolist(), moments.variance_error.tolist()
    deviation = (moments.high - moments.mean).maximum(moments.mean - moments.low).tolist()
    sigma2, sigma2_squares = (t.tolist() for t in moments.sigma2)
    used = moments.used.tolist()
    latents = []
    for i in range(len(variance)):
        sigma2_error = math.sqrt(sigma2_squares[i] / n / max(n - 1, 1))
        latents.append(
            Latent(
                index=i,
                mean=moments.mean[i].item(),
                variance=variance[i],
                variance_ci95=variance_interval(variance[i], error[i], n),
                posterior_variance=sigma2[i],
                posterior_variance_ci95=interval(sigma2[i], sigma2_error, least=0.0, quantile=quantile(n)),
                kl=moments.kl[0][i].item(),
                kl_max=moments.kl_high[i].item(),
                largest_deviation=deviation[i],
                used_share=used[i] / n,
                used_share_ci95=share_interval(used[i], n),
            )
        )
    return latents


def interval(value: float, error: float, least: float = -math.inf, quantile: float = NORMAL_95) -> Interval:
    """95% interval of a mean whose standard error is known; `quantile` where the error itself was estimated."""
    return max(least, value - quantile * error), value + quantile * error


def variance_interval(variance: float, error: float, n: int) -> Interval:
    """95% interval of a variance from `n` rows, given its standard error from the fourth moment.

    A sample variance is skewed, and its error is small where it came out small itself. So the upper end is taken on
    the logarithm's scale (delta method), the lower one on the variance's own: each is the more cautious of the two.
    """
    if not variance > 0:
        return max(0.0, variance), variance
    reach = quantile(n) * error
    return max(0.0, variance - reach), variance * math.exp(reach / variance)


def share_interval(hits: float, n: int) -> Interval:
    """95% interval of a share of `n` rows (Wilson 1927); without a hit it ends near 3.8/n."""
    z2 = NORMAL_95**2
    centre = (hits + z2 / 2) / (n + z2)
    reach = NORMAL_95 / (n + z2) * math.sqrt(hits * (n - hits) / n + z2 / 4)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def quantile(n: int) -> float:
    """97.5% quantile of Student's t for a mean of `n` rows, within 0.3% from ten rows on.

    Abramowitz and Stegun 26.7.5, an expansion about the normal quantile.
    """
    z, free = NORMAL_95, max(n - 1, 1)
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
