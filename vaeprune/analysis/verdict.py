"""active, inactive or mixed: from 95% intervals, and from what the decoder does."""

from __future__ import annotations

import dataclasses
import math

from vaeprune.analysis.latents import Latent, Thresholds
from vaeprune.analysis.moments import USED
from vaeprune.posterior import INACTIVE_VARIANCE

_HALF = 0.5  # a latent whose sigma² is below carries at least ½ ln 2 nats
WEAK = 0.5 * math.log(2)  # nats: worth less than a latent of that sigma²
_AWAY = 3.0  # prior standard deviations: where a mode that no row has shown might lie
_WIDER = 1.5  # a 95% interval so many times wider holds 99.67%
_RARE = 6.0  # standard deviations: a Gaussian goes beyond twice in a billion rows


def plainly_active(latent: Latent, limits: Thresholds) -> bool:
    """Whether the encoder's side leaves no doubt that the latent carries something."""
    return latent.variance_ci95[0] > limits.variance and latent.posterior_variance_ci95[1] < _HALF


def clear(latent: Latent, limits: Thresholds) -> bool:
    """Whether variance and sigma² each lie on one side of their limit, with intervals half as wide again (99.7%)."""
    pairs = (
        (latent.variance, latent.variance_ci95, limits.variance),
        (latent.posterior_variance, latent.posterior_variance_ci95, limits.posterior_variance),
    )
    return all(v - _WIDER * (v - low) > limit or v + _WIDER * (high - v) < limit for v, (low, high), limit in pairs)


def rare(latent: Latent, limits: Thresholds) -> bool:
    """Whether few rows use the latent and the others do not: one row's KL is ½ nat above the mean KL, or more.

    Beside that its variance is an idle latent's, or its mean goes beyond six standard deviations.
    """
    far = latent.largest_deviation > _RARE * math.sqrt(latent.variance)
    still = latent.variance_ci95[1] < min(limits.variance, INACTIVE_VARIANCE)
    return latent.kl_max - latent.kl > USED and (far or still)


def noise_limit(limits: Thresholds, rows: int | None) -> float:
    """How loud noise in an inactive latent may be, as a share of the output's range, after so many calibrate rows.

    With 95% a use by more than 3/n of the data would have been seen. Of modes three units away as much would add 27/n
    to the variance. Where that is above the variance's limit, the encoder cannot vouch for the latent alone, and the
    decoder must be the deafer the fewer the rows.
    """
    if rows is None:
        return limits.noise
    return limits.noise * min(1.0, limits.variance * rows / (3 * _AWAY**2))


def judge(latent: Latent, limits: Thresholds, rows: int | None = None) -> Latent:
    """The latent with its verdict and, where it is mixed, the reason in words; `rows`: behind its moments, None: many.

    Inactive: each of four limits is cleared by its whole interval (variance, sigma², cost of fixing it, noise), and no
    row uses it. Active: the variance is clearly above its limit and so is the cost of fixing it; a latent whose sigma²
    is an idle one's must be worth ½ ln 2 nats, too. Without the decoder, verdicts rest on the encoder alone.
    """
    untried = latent.ablation_cost_ci95 is None
    provisional = "provisional: the decoder was not tried" if untried else ""
    idle = _rests(latent, limits) and _free(latent, limits) and _deaf(latent, noise_limit(limits, rows))
    if idle and not rare(latent, limits):
        return dataclasses.replace(latent, verdict="inactive", reason=provisional)
    if plainly_active(latent, limits) if untried else _needed(latent, limits):
        return dataclasses.replace(latent, verdict="active", reason=provisional)
    reason = _reason_untried(latent, limits) if untried else _reason(latent, limits, rows)
    return dataclasses.replace(latent, verdict="mixed", reason=reason)


def _rests(latent: Latent, limits: Thresholds) -> bool:
    """Whether the encoder's side is an idle latent's."""
    quiet = latent.variance_ci95[1] < limits.variance
    return quiet and latent.posterior_variance_ci95[0] > limits.posterior_variance


def _free(latent: Latent, limits: Thresholds) -> bool:
    return latent.ablation_cost_ci95 is None or latent.ablation_cost_ci95[1] < limits.ablation


def _deaf(latent: Latent, limit: float) -> bool:
    return latent.noise_reaction_ci95 is None or latent.noise_reaction_ci95[1] < limit


def _needed(latent: Latent, limits: Thresholds) -> bool:
    """Whether a tried latent moves, and fixing it costs."""
    cost = (latent.ablation_cost_ci95 or (math.nan, math.nan))[0]
    sharp = latent.posterior_variance_ci95[1] < limits.posterior_variance
    return latent.variance_ci95[0] > limits.variance and cost > limits.ablation and (sharp or cost > WEAK)


def _reason_untried(latent: Latent, limits: Thresholds) -> str:
    if rare(latent, limits):
        return f"{_rare_reason(latent)}; the decoder was not tried"
    return "not clear of the thresholds, and the decoder was not tried"


def _reason(latent: Latent, limits: Thresholds, rows: int | None) -> str:
    """Why a tried latent is neither idle nor needed."""
    free, deaf = _free(latent, limits), _deaf(latent, limits.noise)
    if rare(latent, limits):
        return f"{_rare_reason(latent)}; worth {_nats(latent)} on average"
    if _rests(latent, limits):
        return _reason_at_rest(latent, limits, rows, free, deaf)
    if latent.variance_ci95[0] > limits.variance and free and deaf and latent.kl > WEAK:
        return f"encoder-live, decoder-dead: its KL is {latent.kl:.2g} nats, and fixing it costs {_nats(latent)}"
    if latent.ablation_cost is not None and latent.ablation_cost_ci95 and latent.ablation_cost_ci95[1] < 0:
        return f"harmful: fixing it makes a row {-latent.ablation_cost:.2g} nats cheaper"
    return _undecided(latent, limits) or f"weak: worth {_nats(latent)}"


def _reason_at_rest(latent: Latent, limits: Thresholds, rows: int | None, free: bool, deaf: bool) -> str:
    """Why a latent whose encoder looks idle is mixed."""
    if not deaf:
        return f"encoder-dead, decoder-live: noise in it moves the output by {latent.noise_reaction:.1%} RMS"
    low, high = latent.ablation_cost_ci95 or (math.nan, math.nan)
    if low > limits.ablation:
        return f"encoder-dead, but fixing it costs {_nats(latent)}"
    if free:
        heard = f"noise in it moves the output by {latent.noise_reaction:.2%} RMS"
        return f"undecided: {rows} rows cannot rule out rare use, and {heard}"
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
