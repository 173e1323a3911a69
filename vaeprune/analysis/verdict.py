"""active, inactive or mixed: from 95% intervals, and from what the decoder does."""

from __future__ import annotations

import dataclasses
import math

from vaeprune.analysis.latents import Latent, Thresholds
from vaeprune.analysis.moments import USED
from vaeprune.posterior import INACTIVE_VARIANCE

_HALF = 0.5  # a latent whose sigma² is below carries at least ½ ln 2 nats
WEAK = 0.5 * math.log(2)  # nats: worth less than a latent of that sigma²
_RARE = 6.0  # standard deviations: no Gaussian reaches as far within a billion rows


def plainly_active(latent: Latent, limits: Thresholds) -> bool:
    """Whether the encoder's side leaves no doubt that the latent carries something."""
    return latent.variance_ci95[0] > limits.variance and latent.posterior_variance_ci95[1] < _HALF


def rare(latent: Latent, limits: Thresholds) -> bool:
    """Whether few rows use the latent and the others do not: one row's KL is ½ nat above the mean KL, or more.

    Beside that its variance is an idle latent's, or its mean goes beyond six standard deviations.
    """
    far = latent.largest_deviation > _RARE * math.sqrt(latent.variance)
    still = latent.variance_ci95[1] < min(limits.variance, INACTIVE_VARIANCE)
    return latent.kl_max - latent.kl > USED and (far or still)


def judge(latent: Latent, limits: Thresholds) -> Latent:
    """The latent with its verdict and, where it is mixed, the reason in words.

    Inactive: each of four limits is cleared by its whole interval (variance, sigma², cost of fixing it, noise), and no
    row uses it. Active: the variance is clearly above its limit and so is the cost of fixing it; a latent whose sigma²
    is an idle one's must be worth ½ ln 2 nats, too. Without the decoder, verdicts rest on the encoder alone.
    """
    cost = latent.ablation_cost_ci95
    quiet = latent.variance_ci95[1] < limits.variance
    vague = latent.posterior_variance_ci95[0] > limits.posterior_variance
    moving = latent.variance_ci95[0] > limits.variance
    free = cost is None or cost[1] < limits.ablation
    deaf = latent.noise_reaction_ci95 is None or latent.noise_reaction_ci95[1] < limits.noise
    if quiet and vague and free and deaf and not rare(latent, limits):
        return _with(latent, "inactive", "" if cost else "provisional: the decoder was not tried")
    if cost is None:
        if plainly_active(latent, limits):
            return _with(latent, "active", "provisional: the decoder was not tried")
        if rare(latent, limits):
            return _with(latent, "mixed", f"{_rare_reason(latent)}; the decoder was not tried")
        return _with(latent, "mixed", "not clear of the thresholds, and the decoder was not tried")
    sharp = latent.posterior_variance_ci95[1] < limits.posterior_variance
    if moving and cost[0] > limits.ablation and (sharp or cost[0] > WEAK):
        return _with(latent, "active", "")
    if rare(latent, limits):
        return _with(latent, "mixed", f"{_rare_reason(latent)}; worth {_nats(latent)} on average")
    if quiet and vague:
        return _with(latent, "mixed", _still_reason(latent, deaf, limits))
    if moving and free and deaf and latent.kl > WEAK:
        dead = f"encoder-live, decoder-dead: its KL is {latent.kl:.2g} nats, and fixing it costs {_nats(latent)}"
        return _with(latent, "mixed", dead)
    if cost[1] < 0:
        return _with(
            latent, "mixed", f"harmful: fixing it makes a row {-(latent.ablation_cost or 0.0):.2g} nats cheaper"
        )
    return _with(latent, "mixed", _undecided(latent, limits) or f"weak: worth {_nats(latent)}")


def _still_reason(latent: Latent, deaf: bool, limits: Thresholds) -> str:
    """Why a latent whose encoder looks idle is mixed."""
    if not deaf:
        return f"encoder-dead, decoder-live: noise in it moves the output by {latent.noise_reaction:.1%} RMS"
    low, high = latent.ablation_cost_ci95 or (math.nan, math.nan)
    if low > limits.ablation:
        return f"encoder-dead, but fixing it costs {_nats(latent)}"
    return f"undecided: fixing it costs {_nats(latent)} (95%: {low:.2g} to {high:.2g}), the limit {limits.ablation:g}"


def _undecided(latent: Latent, limits: Thresholds) -> str:
    """Which interval lies on both sides of its limit; empty where none does."""
    low, high = latent.variance_ci95
    if low <= limits.variance <= high:
        return (
            f"undecided: variance {latent.variance:.2g} (95%: {low:.2g} to {high:.2g}), the limit is "
            f"{limits.variance:g}; worth {_nats(latent)}"
        )
    if high < limits.variance:
        return f"undecided: still, but its mean σ² is {latent.posterior_variance:.2g}; worth {_nats(latent)}"
    low, high = latent.ablation_cost_ci95 or (math.nan, math.nan)
    if low <= limits.ablation and high > WEAK:
        return f"undecided: worth {_nats(latent)} (95%: {low:.2g} to {high:.2g})"
    return ""


def _rare_reason(latent: Latent) -> str:
    share = latent.used_share
    by = "few rows stand out"  # where the mean KL is above ½ nat, too, it cannot tell rows apart
    if share is not None and latent.kl < USED:
        by = f"used by {100 * share:.2g}% of the data"
    return f"rare: {by}, where its KL reaches {latent.kl_max:.2g} nats"


def _nats(latent: Latent) -> str:
    return f"{latent.ablation_cost:.2g} nats"


def _with(latent: Latent, verdict: str, reason: str) -> Latent:
    return dataclasses.replace(latent, verdict=verdict, reason=reason)  # type: ignore[arg-type]
