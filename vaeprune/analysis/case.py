"""What a diagnosis rests on, and what it is made of."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vaeprune.analysis.causes import CAUSES, Cause
from vaeprune.analysis.effective_beta import Ratio
from vaeprune.analysis.latents import Latent
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import Structure
from vaeprune.analysis.symptoms import Symptoms
from vaeprune.likelihood import Likelihood
from vaeprune.training.history import History

LAW = (0.75, 1.33)
ALIKE = math.log(1.35)  # a measured weight and the one a cause predicts
UNIT = "nats of −log p(x | z) for a nat of KL"


@dataclass(frozen=True)
class Finding:
    """A cause: `named` if something settles it, else one of those consistent with the numbers.

    `evidence`: what was measured, seen or stated. `remedy`: what to change in one's own code.
    """

    cause: Cause
    named: bool
    evidence: str
    remedy: str

    @property
    def title(self) -> str:
        """The cause in a phrase."""
        return CAUSES[self.cause].title


@dataclass(frozen=True)
class Case:
    """All that a diagnosis rests on. `symptoms` is None where there is no decoder to run.

    `record`: what the model folder says it was trained by. `stated`: what its author says. `history`: how it went.
    """

    latents: Sequence[Latent]
    likelihood: Likelihood
    structure: Structure
    symptoms: Symptoms | None = None
    record: StatedObjective | None = None
    stated: StatedObjective | None = None
    history: History = dataclasses.field(default_factory=History)

    @property
    def collapsed(self) -> bool:
        """Whether all latents are inactive."""
        return all(latent.verdict == "inactive" for latent in self.latents)

    @property
    def law(self) -> float:
        """Median of Var mu + E sigma²."""
        return statistics.median(latent.variance_law for latent in self.latents)

    @property
    def law_broken(self) -> bool:
        """Whether that is far from 1, its value for a VAE at rest whose latents may scale freely."""
        return not LAW[0] < self.law < LAW[1]

    @property
    def beta(self) -> Ratio | None:
        """The measured weight, where rows were enough to tell."""
        found = self.symptoms.beta.by_variance if self.symptoms and self.symptoms.beta else None
        return found if found and found.known and found.value > 0 else None

    def predicted(self, objective: StatedObjective) -> float | None:
        """The weight an objective amounts to, in this model's nats."""
        if not self.symptoms or (objective.error == "squared" and self.likelihood.kind == "bernoulli"):
            return None
        scale = self.likelihood.scale if self.likelihood.kind == "gaussian" else 1.0
        return objective.effective_beta(self.symptoms.pixels, len(self.latents), self.symptoms.positions, scale)

    @property
    def expected(self) -> float | None:
        """The weight there should be: as stated, as recorded, or the ELBO's."""
        objective = self.stated or self.record
        return self.predicted(objective) if objective else 1.0

    def near(self, weight: float) -> bool:
        """Whether a weight is the measured one within a third, or within its interval."""
        beta = self.beta
        if beta is None or weight <= 0:
            return False
        return abs(math.log(beta.value / weight)) < ALIKE or beta.ci95[0] <= weight <= beta.ci95[1]


def finding(cause: Cause, evidence: str, named: bool = True, remedy: str | None = None) -> Finding:
    return Finding(cause, named, evidence, CAUSES[cause].remedy if remedy is None else remedy)


def amount(beta: Ratio) -> str:
    low, high = beta.ci95
    return f"{beta.value:.3g} (95%: {low:.3g} to {high:.3g})"
