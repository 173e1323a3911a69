"""Why a network's latents look as they do, where that is not simply that a trained VAE uses them or does not.

Numbers alone give the weight of the KL that the training amounts to, and the causes consistent with them. One is named
only where something settles it: the training's record, what its author states, or a fact seen in the running model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vaeprune.analysis.case import UNIT, Case, Finding, amount
from vaeprune.analysis.consistent import consistent
from vaeprune.analysis.latents import Interval
from vaeprune.analysis.settled import settled


@dataclass(frozen=True)
class Diagnosis:
    """What the numbers say of the training.

    `effective_beta`: the weight of the KL per nat of −log p(x | z) that the latents rest at, None where rows were not
    enough to tell; `expected_beta`: the one that the record or the statement amounts to, else 1, the ELBO's; None
    where there is none. `symptoms`: what is not as in a VAE at rest. `findings`: named causes if there are any, else
    consistent ones; none where all is well.
    """

    effective_beta: float | None = None
    effective_beta_ci95: Interval | None = None
    expected_beta: float | None = 1.0
    symptoms: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def named(self) -> tuple[Finding, ...]:
        """The causes that something settles."""
        return tuple(finding for finding in self.findings if finding.named)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Diagnosis:
        """Read back what `to_json` wrote."""
        ci95 = entry["effective_beta_ci95"]
        return cls(
            entry["effective_beta"],
            None if ci95 is None else (ci95[0], ci95[1]),
            entry["expected_beta"],
            tuple(entry["symptoms"]),
            tuple(Finding(**finding) for finding in entry["findings"]),
        )


def diagnose(case: Case) -> Diagnosis:
    """Symptoms, and the causes named or consistent. See docs/diagnosis.md for what each rests on."""
    symptoms = tuple(_symptoms(case))
    findings = _once(settled(case))
    if not findings and symptoms:
        findings = _once(consistent(case))
    beta = case.beta
    return Diagnosis(
        effective_beta=beta.value if beta else None,
        effective_beta_ci95=beta.ci95 if beta else None,
        expected_beta=case.expected,
        symptoms=symptoms,
        findings=tuple(findings),
    )


def _symptoms(case: Case) -> Iterator[str]:
    """What is not as in a VAE at rest, in words."""
    found, size = case.symptoms, len(case.latents)
    if found and not found.heard:
        yield "no output of the decoder moves when z does"
    if case.collapsed:
        yield f"all {size} latents are inactive: the posterior has collapsed"
    if case.law_broken:
        yield f"the variance law is broken: the median of Var mu + E sigma² is {case.law:.3g}, at rest it is 1"
    if found and case.collapsed and found.worse_than_constant:
        yield f"the ELBO lies {found.cost:.3g} nats below that of the mean row without any latent"
    if case.beta and case.expected is not None and not case.near(case.expected):
        yield f"the KL weighs {amount(case.beta)} {UNIT}, expected was {case.expected:.3g}"


def _once(findings: Sequence[Finding] | Iterator[Finding]) -> list[Finding]:
    """The first finding of each cause."""
    return list({finding.cause: finding for finding in reversed(list(findings))}.values())[::-1]
