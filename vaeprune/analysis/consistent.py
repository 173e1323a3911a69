"""Causes that the numbers alone allow; none of them is settled by that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vaeprune.analysis.case import Case, Finding, amount, finding
from vaeprune.analysis.causes import Cause
from vaeprune.analysis.effective_beta import Ratio
from vaeprune.analysis.symptoms import Symptoms

_NO_KL = 0.02
_BARELY = 1.15  # what few rows of noise seem to have as structure


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
    if found.unsampled:
        yield from _of_unsampled(case, found)
        return
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
    if least <= _BARELY * (case.expected or 1.0):
        evidence = f"the strongest direction of the rows pays for a weight of up to {least:.3g} only"
        yield finding("no-structure", evidence, named=False)
        return
    above = f"at rest a collapse needs a nat of KL to weigh at least {least:.3g}"
    # a collapsed posterior tells its weight by a trace in sigma² alone, so a factor of three is left to it
    for how, weight in _pixel_means(case, found):
        if weight > least / 1.35 and (case.beta is None or abs(math.log(case.beta.value / weight)) < math.log(3)):
            yield finding("pixel-mean", f"{above}; {how} makes it {weight:.3g}", named=False)
    yield finding("beta", f"{above}; {amount(case.beta)}" if case.beta else above, named=False)
    yield finding("early-collapse", f"{above}; below that it is a saddle that training is slow to leave", named=False)


def _pixel_means(case: Case, found: Symptoms) -> list[tuple[str, float]]:
    """What averaging the reconstruction makes of the weight: of nats, of squared errors, with the KL, too."""
    how = f"averaging over {found.pixels} pixels"
    ways = [(how, float(found.pixels))]
    if case.likelihood.kind == "gaussian":
        squares = found.pixels / (2 * case.likelihood.scale**2)
        ways.append((f"averaging squared errors over {found.pixels} pixels", squares))
    sizes = len(case.latents) * found.positions
    return ways + [(f"{how}, and the KL over {sizes} latents,", w / sizes) for how, w in ways if sizes > 1]


def _of_broken_law(case: Case, found: Symptoms) -> Iterator[Finding]:
    beta = found.beta
    law = f"Var mu + E sigma² has the median {case.law:.3g}"
    if not found.reconstructs:
        more = found.at_mean - found.constant
        yield finding("untrained", f"{law}, and means decode {more:+.3g} nats beside the mean row", named=False)
        return
    if beta is not None and beta.by_mean.ci95[1] < 3 * _NO_KL and abs(beta.by_mean.value) < 3 * _NO_KL:
        evidence = f"{law}, and by what pulls the means a nat of KL weighs {max(beta.by_mean.value, 0):.2g}"
        yield finding("no-kl", evidence, named=False)
        return
    if found.unsampled:
        return
    if beta is not None and case.beta and beta.by_mean.ci95[1] < case.beta.value / 1.5 and case.law > 1:
        weights = f"{case.beta.value:.2g} by the variances and {beta.by_mean.value:.2g} by the means"
        yield finding("batch-norm", f"{law}, and a nat of KL weighs {weights}: something holds their size", named=False)
    yield from _pinned(case)
    yield finding("untrained", f"{law}; training that has not come to rest looks so, too", named=False)


def _of_unsampled(case: Case, found: Symptoms) -> Iterator[Finding]:
    evidence = f"a sample decodes {found.sampled - found.at_mean:.3g} nats worse than its mean"
    causes: tuple[Cause, ...] = ("no-sampling", "no-kl") if not case.law_broken else ("no-kl", "no-sampling")
    for cause in causes:
        yield finding(cause, evidence, named=False)


def _pinned(case: Case) -> Iterator[Finding]:
    if case.floor:
        evidence = (
            f"{case.floor[1]} of {len(case.latents)} latents stand at the same least KL of {case.floor[0]:.3g} nats"
        )
        yield finding("free-bits", evidence, named=False)


def _of_weight(case: Case, found: Symptoms) -> Iterator[Finding]:
    """What makes a weight that is not the expected one."""
    beta = case.beta
    if beta is None or case.expected is None or not case.off or case.collapsed:
        return
    if case.likelihood.kind == "bernoulli" and case.likelihood.output == "mean":  # squared errors make such, too
        yield finding("other-likelihood", amount(beta), named=False)
    if beta.value > case.expected:
        yield from _matching(case, beta, [("pixel-mean", *way) for way in _pixel_means(case, found)])
        yield from _otherwise(case, beta)
        return
    yield from _pinned(case)
    yield from _matching(case, beta, list(_lighter(case, found)))
    if beta.value < _NO_KL:
        yield finding("no-kl", amount(beta), named=False)
        return
    yield finding("annealing", amount(beta), named=False)
    if all(latent.verdict != "inactive" for latent in case.latents):
        yield finding("free-bits", amount(beta), named=False)
    yield from _otherwise(case, beta)


def _otherwise(case: Case, beta: Ratio) -> Iterator[Finding]:
    if not case.near(1.0):
        yield finding("beta", amount(beta), named=False)


def _lighter(case: Case, found: Symptoms) -> Iterator[tuple[Cause, str, float]]:
    """What makes the KL weigh less than one, how, and how much."""
    sizes = len(case.latents) * found.positions
    yield "kl-pixel-mean", f"dividing it by {found.pixels} pixels", 1 / found.pixels
    if sizes > 1:
        yield "latent-mean", f"averaging it over {sizes} latents", 1 / sizes
    if case.likelihood.kind == "gaussian":
        unit = case.likelihood.scale**2
        yield "squared-error", "leaving out the half of the squared error", 1 / (2 * unit)
        yield (
            "learned-variance",
            "a learned variance, which ends at the squared error of a pixel,",
            found.squared_error / unit,
        )


def _matching(case: Case, beta: Ratio, ways: Sequence[tuple[Cause, str, float]]) -> Iterator[Finding]:
    """The causes whose weight is the measured one, the nearest first."""
    for cause, how, weight in sorted(ways, key=lambda way: abs(math.log(way[2] / beta.value))):
        if case.near(weight):
            yield finding(cause, f"{amount(beta)}; {how} makes it {weight:.3g}", named=False)
