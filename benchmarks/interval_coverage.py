"""How often the 95% interval of a variance holds the true variance, over a thousand repetitions each.

Asked for: 93 to 97% for Gaussian and bimodal means from 500 rows on, and for maps with correlated positions. For
lognormal and rare-mode means the coverage is measured, and the verdict must be mixed rather than wrong: the last two
columns are, among repetitions of an idle latent (variance 0.005) and of one in use (0.02), the share that the encoder's
figures alone would call active and inactive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.planted_networks import MARGINALS, draw
from vaeprune.analysis import Moments, Thresholds
from vaeprune.analysis.latents import Latent, latents_of
from vaeprune.analysis.verdict import judge, rare
from vaeprune.posterior import Posterior

REPETITIONS = 1000
ROWS = (30, 100, 500, 2_000, 10_000)
ASKED = (0.93, 0.97)
MAP_ROWS = (500, 2_000)
SIDE = 6
CORRELATIONS = (0.0, 0.5, 0.95)
_AT_ONCE = 100


def main() -> None:
    print(f"{REPETITIONS} repetitions; E σ² of a gaussian ln σ² beside; asked for: {ASKED[0]:.0%} to {ASKED[1]:.0%}")
    print(f"{'mean':26}{'rows':>8}{'covered':>9}{'below':>8}{'above':>8}{'σ²':>8}  {'asked':6}{'idle active':>13}"
          f"{'used inactive':>15}")  # fmt: skip
    for marginal in MARGINALS:
        for rows in ROWS:
            asked = marginal in ("gaussian", "bimodal") and rows >= 500
            _show(marginal, rows, _vectors(marginal, rows), asked, _called(marginal, rows))
    for correlation in CORRELATIONS:
        for rows in MAP_ROWS:
            _show(f"map {SIDE}×{SIDE}, correlation {correlation}", rows, _maps(correlation, rows), True, None)


def _vectors(marginal: str, rows: int) -> list[Latent]:
    """Latents of variance 1, each a repetition."""
    generator = torch.Generator().manual_seed(rows)
    found: list[Latent] = []
    for _ in range(0, REPETITIONS, _AT_ONCE):
        logvar = 0.3 * torch.randn(rows, _AT_ONCE, generator=generator)
        found += _latents(draw(marginal, (rows, _AT_ONCE), generator), logvar)
    return found


def _maps(correlation: float, rows: int) -> list[Latent]:
    """Channels of variance 1; neighbouring positions correlate, all positions of an image share a part."""
    generator = torch.Generator().manual_seed(rows)
    found: list[Latent] = []
    for _ in range(0, REPETITIONS, _AT_ONCE):
        own = torch.randn(rows, _AT_ONCE, SIDE, SIDE, generator=generator)
        shared = torch.randn(rows, _AT_ONCE, 1, 1, generator=generator)
        mean = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        found += _latents(mean, 0.3 * torch.randn(rows, _AT_ONCE, 1, 1, generator=generator).expand_as(mean))
    return found


def _latents(mean: Tensor, logvar: Tensor) -> list[Latent]:
    return latents_of(Moments.of(Posterior(mean, logvar)))


def _called(marginal: str, rows: int) -> tuple[float, float]:
    """Shares of idle latents (0.005) called active and of used ones (0.02) called inactive by the encoder alone."""
    generator = torch.Generator().manual_seed(rows + 1)
    wrong = []
    for variance, verdict in ((0.005, "active"), (0.02, "inactive")):
        mean = torch.cat([draw(marginal, (rows, _AT_ONCE), generator, variance / 9) for _ in range(10)], 1)
        latents = _latents(math.sqrt(variance) * mean, torch.full_like(mean, math.log(1 - variance)))
        wrong.append(sum(_moves_or_rests(latent, verdict) for latent in latents) / len(latents))
    return wrong[0], wrong[1]


def _moves_or_rests(latent: Latent, verdict: str) -> bool:
    limits = Thresholds()
    if verdict == "active":
        return latent.variance_ci95[0] > limits.variance and not rare(latent, limits)
    return judge(latent, limits).verdict == "inactive"


def _show(name: str, rows: int, latents: list[Latent], asked: bool, called: tuple[float, float] | None) -> None:
    n = len(latents)
    below = sum(la.variance_ci95[1] < 1 for la in latents) / n
    above = sum(la.variance_ci95[0] > 1 for la in latents) / n
    sigma2 = math.exp(0.3**2 / 2)
    held = sum(la.posterior_variance_ci95[0] <= sigma2 <= la.posterior_variance_ci95[1] for la in latents) / n
    covered = 1 - below - above
    word = "" if not asked else "yes" if ASKED[0] <= covered <= ASKED[1] else "NO"
    told = "" if called is None else f"{called[0]:13.1%}{called[1]:15.1%}"
    print(f"{name:26}{rows:8,}{covered:9.1%}{below:8.1%}{above:8.1%}{held:8.1%}  {word:6}{told}", flush=True)
