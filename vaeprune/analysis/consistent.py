"""Causes that the numbers alone allow; none of them is settled by that."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vaeprune.analysis.case import UNIT, Case, Finding, amount, finding
from vaeprune.analysis.symptoms import Symptoms

_NO_KL = 0.02


def consistent(case: Case) -> Iterator[Finding]:
    """Causes that the numbers allow, the likelier first."""
    found = case.symptoms
    if found is None:
        yield from _without_decoder(case)
        return
    if case.collapsed:
        yield from _of_collapse(case, found)
    elif case.law_broken:
        yield from _of_broken_law(case, found)
    yield from _of_weight(case, found)


def _without_decoder(case: Case) -> Iterator[Finding]:
    if case.collapsed:
        yield finding("pixel-mean", "all latents are inactive; there is no decoder to measure more by", named=False)
        yield finding("untrained", "there is no decoder to tell by", named=False)
    elif case.law_broken:
        yield finding("no-kl", f"Var mu + E sigma² has the median {case.law:.3g}", named=False)


def _of_collapse(case: Case, found: Symptoms) -> Iterator[Finding]:
    if found.worse_than_constant:
        evidence = f"−ELBO is {found.cost:.3g} nats more than that of the mean row, which any training reaches first"
        yield finding("untrained", evidence, named=False)
        return
    least = found.leading_eigenvalue
    if least <= (case.expected or 1.0):
        evidence = f"the strongest direction of the rows pays for a weight of up to {least:.3g} only"
        yield finding("no-structure", evidence, named=False)
        return
    above = f"a collapse at rest needs a weight of at least {least:.3g} {UNIT}"
    weights = _pixel_means(case, found)
    # a collapsed posterior tells its weight by sigma² alone, so a factor of three is left to it
    likely = [
        w for w in weights if w > least / 1.35 and (case.beta is None or abs(math.log(case.beta.value / w)) < 1.1)
    ]
    if likely:
        yield finding("pixel-mean", f"{above}; averaging makes it {likely[0]:.3g}", named=False)
    measured = f", measured {amount(case.beta)}" if case.beta else ""
    yield finding("beta", f"{above}{measured}", named=False)
    if case.stated or case.record:
        yield finding("early-collapse", f"{above}, expected was {case.expected or 1:.3g}", named=False)


def _pixel_means(case: Case, found: Symptoms) -> list[float]:
    """The weights that averaging the reconstruction over pixels makes: of nats, of squared errors, with the KL, too."""
    weights = [float(found.pixels)]
    if case.likelihood.kind == "gaussian":
        weights.append(found.pixels / (2 * case.likelihood.scale**2))
    return weights + [w / (len(case.latents) * found.positions) for w in weights]


def _of_broken_law(case: Case, found: Symptoms) -> Iterator[Finding]:
    beta = found.beta
    law = f"Var mu + E sigma² has the median {case.law:.3g}"
    if found.worse_than_constant:
        evidence = f"{law}, and −ELBO is {found.cost:.3g} nats more than that of the mean row"
        yield finding("untrained", evidence, named=False)
        return
    if beta is not None and abs(beta.by_variance.value) < _NO_KL and abs(beta.by_mean.value) < 3 * _NO_KL:
        evidence = f"{law}, and the KL weighs {max(beta.by_variance.value, 0):.2g} {UNIT}"
        yield finding("no-kl", evidence, named=False)
        return
    if beta is not None and case.beta and beta.by_mean.ci95[1] < beta.by_variance.value / 1.5 and case.law > 1:
        evidence = (
            f"{law}, and the KL weighs {case.beta.value:.2g} by the variances but {beta.by_mean.value:.2g} by the means"
        )
        yield finding("batch-norm", f"{evidence}, as where something holds the means' size", named=False)
    yield from _pinned(case)
    yield finding("untrained", f"{law}; training that has not come to rest looks so, too", named=False)


def _pinned(case: Case) -> Iterator[Finding]:
    """Free bits leave several latents at one and the same KL, the floor."""
    kls = sorted(latent.kl for latent in case.latents if latent.kl > 0.02)
    for start, floor in enumerate(kls):
        same = [kl for kl in kls[start:] if kl < 1.08 * floor]
        if len(same) >= max(3, len(case.latents) // 3):
            evidence = f"{len(same)} latents stand at the same KL, {floor:.3g} to {same[-1]:.3g} nats"
            yield finding("free-bits", evidence, named=False)
            return


def _of_weight(case: Case, found: Symptoms) -> Iterator[Finding]:
    """What makes a weight that is not the expected one."""
    beta = case.beta
    if beta is None or case.expected is None or case.near(case.expected) or case.collapsed:
        return
    measured = f"the KL weighs {amount(beta)} {UNIT}"
    sizes = len(case.latents) * found.positions
    if beta.value > case.expected:
        matching = [w for w in _pixel_means(case, found) if case.near(w)]
        if matching:
            yield finding("pixel-mean", f"{measured}; averaging makes it {matching[0]:.3g}", named=False)
        yield finding("beta", measured, named=False)
        return
    yield from _pinned(case)
    if sizes > 1 and case.near(1 / sizes):
        yield finding(
            "latent-mean", f"{measured}; averaging over {sizes} latents makes it {1 / sizes:.3g}", named=False
        )
    if case.near(1 / found.pixels):
        yield finding(
            "kl-pixel-mean", f"{measured}; dividing by {found.pixels} makes it {1 / found.pixels:.2g}", named=False
        )
    if case.likelihood.kind == "gaussian":
        unit = case.likelihood.scale**2
        if case.near(1 / (2 * unit)):
            yield finding("squared-error", f"{measured}; without the half it is {1 / (2 * unit):.3g}", named=False)
        if case.near(found.squared_error / unit):
            evidence = f"{measured}; a learned variance makes it {found.squared_error / unit:.3g}, the squared error"
            yield finding("learned-variance", evidence, named=False)
    if beta.value < _NO_KL:
        yield finding("no-kl", measured, named=False)
        return
    yield finding("annealing", measured, named=False)
    if all(latent.verdict != "inactive" for latent in case.latents):
        yield finding("free-bits", measured, named=False)
    yield finding("beta", measured, named=False)
