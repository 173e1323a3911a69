"""active, inactive or mixed: from 95% intervals, and from what the decoder does."""

from __future__ import annotations

import dataclasses

from vaeprune.analysis.latents import Latent, Thresholds

_PLAINLY_ACTIVE_POSTERIOR_VARIANCE = 0.5  # a latent below carries at least ½ ln 2 nats


def plainly_active(latent: Latent, limits: Thresholds) -> bool:
    """Whether the encoder's side alone leaves no doubt that the latent is in use."""
    return (
        latent.variance_ci95[0] > limits.variance
        and latent.posterior_variance_ci95[1] < _PLAINLY_ACTIVE_POSTERIOR_VARIANCE
    )


def judge(latent: Latent, limits: Thresholds) -> Latent:
    """The latent with its verdict and, where it is mixed, the reason in words."""
    quiet = latent.variance_ci95[1] < limits.variance
    vague = latent.posterior_variance_ci95[0] > limits.posterior_variance
    moving = latent.variance_ci95[0] > limits.variance
    free = latent.ablation_cost_ci95 is None or latent.ablation_cost_ci95[1] < limits.ablation
    deaf = latent.noise_reaction is None or latent.noise_reaction < limits.noise
    unmeasured = latent.ablation_cost is None
    if quiet and vague and free and deaf:
        return _with(latent, "inactive", "provisional: the decoder was not tried" if unmeasured else "")
    if moving and plainly_active(latent, limits) and unmeasured:
        return _with(latent, "active", "")
    if moving and not free and latent.ablation_cost_ci95 and latent.ablation_cost_ci95[0] > 0:
        return _with(latent, "active", "")
    return _with(latent, "mixed", _reason(latent, quiet and vague, free, deaf, limits))


def _reason(latent: Latent, encoder_dead: bool, free: bool, deaf: bool, limits: Thresholds) -> str:
    if latent.ablation_cost is None:
        return "not clear of the thresholds, and the decoder was not tried"
    if encoder_dead and not deaf:
        return f"encoder-dead, decoder-live: noise in it moves the output by {latent.noise_reaction:.1%} RMS"
    if encoder_dead:
        return f"encoder-dead, but fixing it costs {latent.ablation_cost:.3g} nats"
    if free and deaf:
        return f"encoder-live, decoder-dead: fixing it costs {latent.ablation_cost:.2g} nats"
    if latent.variance_ci95[1] < limits.variance and latent.largest_deviation > 1:
        return f"rare: |mu - mean| reaches {latent.largest_deviation:.2g} while the variance is {latent.variance:.2g}"
    return f"weak: worth {latent.ablation_cost:.3g} nats"


def _with(latent: Latent, verdict: str, reason: str) -> Latent:
    return dataclasses.replace(latent, verdict=verdict, reason=reason)  # type: ignore[arg-type]
