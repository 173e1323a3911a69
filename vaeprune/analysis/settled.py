"""Causes that something settles: the running model, the training's record, or what the model's author states."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vaeprune.analysis.case import ALIKE, Case, Finding, amount, finding
from vaeprune.analysis.causes import Cause
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.training.history import History


def settled(case: Case) -> Iterator[Finding]:
    """Named causes; and, not named, a statement that the numbers speak against."""
    yield from _seen(case)
    yield from _recorded(case)
    yield from _stated(case)


def _seen(case: Case) -> Iterator[Finding]:
    """Causes that the running model shows."""
    structure, found = case.structure, case.symptoms
    if structure.unsteady:
        yield finding("train-mode", f"{structure.unsteady}, in eval mode")
    if structure.untouched and not (found and found.cost < -0.05 * (found.constant - found.floor)):
        yield finding("untrained", structure.untouched)
        return
    if structure.normalised and (structure.scale_fixed or case.law_broken):
        yield finding("batch-norm", f"{structure.normalised}; Var mu + E sigma² has the median {case.law:.3g}")
    if structure.clamped:
        yield finding("clamped", structure.clamped)
    if found and not found.heard:
        yield finding(
            "dead-decoder", f"over {found.rows} rows decode gave the same for posterior means and prior draws"
        )
    yield from _learned_variance(case)


def learned_scale(case: Case) -> tuple[str, float] | None:
    """A parameter that nothing reads at inference and whose value explains the weight or the error, and s by it."""
    if case.likelihood.kind != "gaussian" or not case.symptoms or case.structure.untouched:
        return None
    unit = case.likelihood.scale**2
    wanted = case.beta.value * unit if case.beta and not case.collapsed else case.symptoms.squared_error
    fits = [
        (abs(math.log(variance / wanted)), scale.name, math.sqrt(variance))
        for scale in case.structure.learned_scales
        for variance in scale.variances
        if abs(math.log(variance / unit)) > ALIKE
    ]
    if not fits or min(fits)[0] > ALIKE:
        return None
    _, name, s = min(fits)
    return name, s


def _learned_variance(case: Case) -> Iterator[Finding]:
    found = learned_scale(case)
    if found and case.symptoms:
        name, s = found
        yield finding(
            "learned-variance",
            f"{name} is read by neither encode nor decode and says s = {s:.3g}, s² = {s * s:.3g}, while the likelihood "
            f"has s = {case.likelihood.scale:g}; the squared error of a pixel is {case.symptoms.squared_error:.3g}",
            remedy=f"analyze with --scale {s:.3g}, in Python Likelihood('gaussian', 'mean', {s:.3g})",
        )


def _recorded(case: Case) -> Iterator[Finding]:
    """Causes that the training's record settles."""
    record, found = case.record, case.symptoms
    if record is None:
        return
    if case.growth and (weight := case.growth.weight(len(case.history.epochs))) < 1:
        new = f"latents from {case.growth.latents} on were added"
        yield finding("grown", f"its record says that {new}; the weight of their KL is {weight:.2g} so far")
    if record.kl in ("none", "quadratic"):
        word = "none" if record.kl == "none" else "quadratic"
        yield finding("no-kl", f"its record says kl {word!r}")
    elif not record.sampling:
        yield finding("no-sampling", "its record says that the mean was decoded")
    elif risen := _rising(case.history):
        first, last = risen
        count = len(case.history.epochs)
        yield finding("annealing", f"its history: the weight rose from {first:.2g} to {last:.2g} over {count} epochs")
    elif case.collapsed and found and found.heard and found.leading_eigenvalue < record.beta != 1:
        yield finding(
            "beta",
            f"its record says beta {record.beta:g}, and the strongest direction of the rows pays up to "
            f"{found.leading_eigenvalue:.3g}",
            remedy="train with a smaller --beta",
        )
    reached = case.history.epochs[-1].reconstruction if case.history.epochs else None
    if case.collapsed and found and reached is not None and found.worse_than_constant and reached < found.constant:
        yield finding(
            "untrained",
            f"its history ends at a reconstruction of {reached:.4g} nats, these weights give {found.sampled:.4g}: they "
            "are not those of the history",
        )


def recorded_weights(history: History) -> list[float]:
    """The weight of the KL in each epoch, from the loss and its parts; epochs without any KL are left out."""
    return [(e.loss - e.reconstruction) / e.kl for e in history.epochs if e.kl > 0.01]


def _rising(history: History) -> tuple[float, float] | None:
    """The first and last weight of the KL if it rose to the very end."""
    weights = recorded_weights(history)
    if len(weights) < 3 or not weights[-1] > 1.005 * weights[-2] or not weights[-1] > 1.1 * max(weights[0], 0.0):
        return None
    return weights[0], weights[-1]


def _stated(case: Case) -> Iterator[Finding]:
    """Causes that the author's own words settle, where the numbers do not speak against them."""
    stated, found = case.stated, case.symptoms
    if stated is None:
        return
    predicted = case.predicted(stated)
    against = _against(case, stated, predicted)
    if against:
        yield finding("other-objective", f"{stated.describe()} amounts to β = {predicted:.3g}; {against}", named=False)
        return
    words = [f"stated: {stated.describe()}"]
    if predicted is not None:
        words.append(f"which amounts to β = {predicted:.3g}")
    if case.beta:
        words.append(f"{amount(case.beta)}")
    elif case.collapsed and found:
        words.append(f"the strongest direction of the rows pays up to {found.leading_eigenvalue:.3g}")
    evidence = ", ".join(words)
    faults: dict[Cause, bool] = {
        "no-kl": stated.kl in ("none", "quadratic") or stated.beta * stated.annealing == 0,
        "no-sampling": not stated.sampling,
        "pixel-mean": stated.reconstruction == "pixel-mean" and stated.kl != "pixel-mean",
        "latent-mean": stated.kl == "latent-mean",
        "kl-pixel-mean": stated.kl == "pixel-mean" and stated.reconstruction != "pixel-mean",
        "annealing": 0 < stated.annealing < 1,
        "free-bits": stated.free_bits > 0,
        "learned-variance": stated.scale == "learned",
    }
    for cause, stands in faults.items():
        if stands:
            yield finding(cause, evidence)


def _against(case: Case, stated: StatedObjective, predicted: float | None) -> str | None:
    """How the numbers speak against a statement, if they do."""
    beta, found = case.beta, case.symptoms
    if predicted is None or found is None or predicted == 0:
        return None
    if beta is not None and not case.law_broken:
        low, high = (v / predicted for v in beta.ci95)
        if low > 2 or (high < 0.5 and not stated.free_bits):
            return amount(beta)
    if beta is None and case.collapsed and predicted < found.leading_eigenvalue / 1.5:
        return f"but at that weight the strongest direction of the rows would pay, up to {found.leading_eigenvalue:.3g}"
    return None
