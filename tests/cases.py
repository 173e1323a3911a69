"""Numbers made by hand for a diagnosis: a network at rest by default, whatever else a test wants to see."""

from __future__ import annotations

from typing import Any

from vaeprune.analysis import Latent
from vaeprune.analysis.case import Case
from vaeprune.analysis.effective_beta import EffectiveBeta, Ratio
from vaeprune.analysis.structure import Structure
from vaeprune.analysis.symptoms import Symptoms
from vaeprune.likelihood import Likelihood

GAUSSIAN = Likelihood("gaussian", "mean", 1.0)


def latent(
    index: int = 0, variance: float = 0.5, sigma2: float = 0.5, kl: float = 0.6, verdict: str = "active"
) -> Latent:
    """One latent with narrow intervals."""
    moves, spreads = (0.95 * variance, 1.05 * variance), (0.98 * sigma2, 1.01 * sigma2)
    return Latent(index, 0.0, variance, moves, sigma2, spreads, kl, 4 * kl, 3.0, verdict=verdict)


def latents(count: int = 4, **same: Any) -> list[Latent]:
    """So many alike, each with a KL of its own unless it is given."""
    return [latent(i, **{"kl": 0.6 + 0.2 * i} | same) for i in range(count)]


def collapsed(count: int = 4, kl: float = 0.01) -> list[Latent]:
    """All of them idle."""
    return latents(count, variance=0.001, sigma2=0.99, kl=kl, verdict="inactive")


def ratio(value: float, within: float = 0.05) -> Ratio:
    """A ratio whose interval reaches that share of it to both sides."""
    return Ratio(value, (value - within * abs(value), value + within * abs(value)))


def weighing(by_variance: float, by_mean: float | None = None, within: float = 0.05) -> EffectiveBeta:
    """A weight of the KL that means and variances tell alike, unless told otherwise."""
    return EffectiveBeta(ratio(by_variance, within), ratio(by_variance if by_mean is None else by_mean, within), ())


def symptoms(beta: float | EffectiveBeta | None = 1.0, **changes: Any) -> Symptoms:
    """10 pixels; 10 nats to gain over the mean row, most of which are gained."""
    numbers: dict[str, Any] = {
        "rows": 400, "pixels": 10, "positions": 1, "sampled": 4.0, "at_mean": 3.0, "constant": 10.0, "floor": 0.0,
        "cost": -4.0, "cost_error": 0.1, "leading_eigenvalue": 3.0, "squared_error": 0.5, "heard": True,
    }  # fmt: skip
    return Symptoms(beta=weighing(beta) if isinstance(beta, float) else beta, **numbers | changes)


def case(found: list[Latent] | None = None, seen: Symptoms | None = None, **more: Any) -> Case:
    """Four latents in use, a Gaussian of s = 1 and a weight of 1."""
    parts = {"likelihood": GAUSSIAN, "structure": Structure()} | more
    return Case(latents() if found is None else found, symptoms=symptoms() if seen is None else seen, **parts)
