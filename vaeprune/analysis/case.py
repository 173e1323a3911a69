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
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE, INACTIVE_VARIANCE
from vaeprune.training.growth import Growth
from vaeprune.training.history import History

LAW = (0.5, 2.0)  # a network of 25 epochs, some nats away from rest, has 1.48
_SOME_KL = 0.02  # nats: above what an idle latent has
_TOLD_BY = 1e-2  # nats in all: a posterior that has collapsed further holds residue of its training, and no weight
ALIKE = math.log(1.35)  # a measured weight and the one a cause predicts


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
    `growth`: the latents that were added last, if any were.
    """

    latents: Sequence[Latent]
    likelihood: Likelihood
    structure: Structure
    symptoms: Symptoms | None = None
    record: StatedObjective | None = None
    stated: StatedObjective | None = None
    history: History = dataclasses.field(default_factory=History)
    growth: Growth | None = None

    @property
    def collapsed(self) -> bool:
        """Whether the encoder gives the prior for every row, in all latents."""
        return all(
            latent.verdict == "inactive"
            or (
                latent.variance_ci95[1] < INACTIVE_VARIANCE
                and latent.posterior_variance_ci95[0] > INACTIVE_POSTERIOR_VARIANCE
            )
            for latent in self.latents
        )

    @property
    def floor(self) -> tuple[float, int] | None:
        """The KL at which several latents stand that have the least of it, and how many: free bits leave them there.

        Latents that are used alike have about as much KL, too; but then the KL weighs what it should.
        """
        if self.expected is not None and self.near(self.expected):
            return None
        least = min(latent.kl for latent in self.latents)
        at = sum(latent.kl < 1.03 * least for latent in self.latents)
        return (least, at) if least > _SOME_KL and at >= max(3, len(self.latents) / 3) else None

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
        """The measured weight, where rows were enough to tell and the network is not one that has not come to rest."""
        if self.structure.untouched or (self.collapsed and self.symptoms and self.symptoms.worse_than_constant):
            return None
        if self.collapsed and sum(latent.kl for latent in self.latents) < _TOLD_BY:
            return None
        both = self.symptoms.beta if self.symptoms else None
        if both is None or not both.by_variance.known or both.by_variance.value <= 0:
            return None
        # a collapsed posterior has means of size 0, and means that something holds do not tell it
        held = self.collapsed or self.law_broken or self.structure.normalised is not None
        return both.by_variance if held or both.agrees else None

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

    @property
    def known_weight(self) -> float | None:
        """The weight as stated or recorded; None where nothing tells it, or the latents are not pulled to the prior."""
        weight = self.expected if self.stated or self.record else None
        return weight if weight else None

    def near(self, weight: float, within: float = ALIKE) -> bool:
        """Whether a weight is the measured one within a third, or within its interval."""
        beta = self.beta
        if beta is None or weight <= 0:
            return False
        return abs(math.log(beta.value / weight)) < within or beta.ci95[0] <= weight <= beta.ci95[1]

    @property
    def off(self) -> bool:
        """Whether the measured weight is clearly not the expected one; training may stop short of rest by a third."""
        return self.beta is not None and self.expected is not None and not self.near(self.expected, math.log(1.5))


def finding(cause: Cause, evidence: str, named: bool = True, remedy: str | None = None) -> Finding:
    """A finding with the usual remedy of its cause, or one that knows more."""
    return Finding(cause, named, evidence, CAUSES[cause].remedy if remedy is None else remedy)


def amount(beta: Ratio) -> str:
    """What the KL was found to weigh, with its interval, in words."""
    low, high = beta.ci95
    return f"a nat of KL weighs {beta.value:.3g} of −log p(x | z) (95%: {low:.3g} to {high:.3g})"
