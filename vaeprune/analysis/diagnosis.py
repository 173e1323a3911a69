"""Why a network's latents look as they do, where that is not simply that a trained VAE uses them or does not.

Numbers alone give the weight of the KL that the training amounts to, and the causes consistent with them. One is named
only where something settles it: the training's record, what its author states, or a fact seen in the running model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vaeprune.analysis.case import Case, Finding, amount
from vaeprune.analysis.consistent import consistent
from vaeprune.analysis.latents import Interval, Latent
from vaeprune.analysis.settled import learned_scale, settled
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import Structure, look
from vaeprune.analysis.symptoms import Symptoms, examine
from vaeprune.data import Rows
from vaeprune.posterior import VAE
from vaeprune.training.growth import last_growth
from vaeprune.training.history import History


@dataclass(frozen=True)
class Diagnosis:
    """What the numbers say of the training.

    `effective_beta`: the weight of the KL per nat of −log p(x | z) that the latents rest at, None where rows were not
    enough to tell; `expected_beta`: the one that the record or the statement amounts to, else 1, the ELBO's; None
    where there is none. `symptoms`: what is not as in a VAE at rest. `findings`: named causes if there are any, else
    consistent ones; none where all is well. `blocking`: whether the symptoms forbid a cut, as a collapse, a deaf
    decoder, a broken variance law and a KL at a floor do, and another weight of the KL alone does not.
    `learned_scale`: s of the observation where it was found to be learned.
    """

    effective_beta: float | None = None
    effective_beta_ci95: Interval | None = None
    expected_beta: float | None = 1.0
    symptoms: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    blocking: bool = False
    learned_scale: float | None = None

    @property
    def named(self) -> tuple[Finding, ...]:
        """The causes that something settles."""
        return tuple(finding for finding in self.findings if finding.named)

    @property
    def weight(self) -> float | None:
        """The effective weight of the KL as a share of the expected one."""
        if self.effective_beta is None or not self.expected_beta:
            return None
        return self.effective_beta / self.expected_beta

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
            entry["blocking"],
            entry["learned_scale"],
        )


@dataclass(frozen=True)
class Observed:
    """What was seen of the running model; `symptoms` is None where there is no decoder to run."""

    structure: Structure
    symptoms: Symptoms | None


def observe(vae: VAE, rows: Rows, seed: int = 0, decodes: bool = True) -> Observed:
    """Run a few rows through `vae`, which is left as it was.

    Call it before anything in inference mode: a module might keep a table from there that no gradient can flow past.
    """
    flags = [(module, module.training) for module in vae.network.modules()]
    try:
        vae.network.eval()
        return Observed(look(vae, rows, decodes), examine(vae, rows, seed) if decodes else None)
    finally:
        for module, training in flags:
            module.training = training


def case_of(vae: VAE, latents: Sequence[Latent], observed: Observed, stated: StatedObjective | None = None) -> Case:
    """What was seen, beside what the model's folder records of its training and what its author states."""
    provenance = getattr(vae, "provenance", None) or {}
    return Case(
        latents,
        vae.likelihood,
        observed.structure,
        observed.symptoms,
        StatedObjective.from_record(provenance.get("training")),
        stated,
        provenance.get("history") or History(),
        last_growth(provenance.get("training")),
    )


def diagnose(case: Case) -> Diagnosis:
    """Symptoms, and the causes named or consistent. See docs/diagnosis.md for what each rests on."""
    symptoms = tuple(_symptoms(case))
    findings = _once(settled(case))
    if symptoms and not any(finding.named for finding in findings):
        findings = _once([*findings, *consistent(case)])
    beta, found, scale = case.beta, case.symptoms, learned_scale(case)
    return Diagnosis(
        effective_beta=beta.value if beta else None,
        effective_beta_ci95=beta.ci95 if beta else None,
        expected_beta=case.expected,
        symptoms=symptoms,
        findings=tuple(findings),
        blocking=bool(
            case.collapsed or case.law_broken or case.floor or (found and (found.unsampled or not found.heard))
        ),
        learned_scale=scale[1] if scale else None,
    )


def _symptoms(case: Case) -> Iterator[str]:
    """What is not as in a VAE at rest, in words."""
    found, size = case.symptoms, len(case.latents)
    if found and not found.heard:
        yield "no output of the decoder moves when z does"
    if case.collapsed:
        yield f"the encoder gives the prior for every row in all {size} latents: the posterior has collapsed"
    if case.law_broken:
        yield f"the variance law is broken: the median of Var mu + E sigma² is {case.law:.3g}, at rest it is 1"
    if case.floor:
        yield f"{case.floor[1]} of {size} latents stand at the same least KL of {case.floor[0]:.3g} nats"
    if found and found.unsampled:
        yield f"decoding a sample costs {found.sampled - found.at_mean:.3g} nats more than decoding its mean"
    if found and case.collapsed and found.worse_than_constant:
        yield f"the ELBO lies {found.cost:.3g} nats below that of the mean row without any latent"
    if case.off and case.beta:
        yield f"{amount(case.beta)}, expected was {case.expected:.3g}"


def _once(findings: Sequence[Finding] | Iterator[Finding]) -> list[Finding]:
    """The first finding of each cause."""
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.cause, finding)
    return list(first.values())
