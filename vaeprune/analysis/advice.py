"""What to do next: shrink, grow, keep, retrain or refuse, with the numbers it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vaeprune.analysis.case import Finding
from vaeprune.analysis.causes import CAUSES
from vaeprune.analysis.diagnosis import Diagnosis
from vaeprune.analysis.latents import Latent
from vaeprune.training.history import History

Action = Literal["shrink", "grow", "keep", "retrain", "refuse"]
_LIGHT = 1 / 3  # a KL that weighs less than this of what it should leaves latents in use that would be idle
_RISEN = 0.1
_TRAIN_ON = ": train on before deciding"


@dataclass(frozen=True)
class Advice:
    """What to do next; `latent_size` is the size it leads to, `command` the command line that does it, if any."""

    action: Action
    latent_size: int | None
    reason: str
    command: str | None = None


def advise(
    latents: Sequence[Latent],
    provenance: Mapping[str, Any],
    diagnosis: Diagnosis | None = None,
    mixed_cost: float | None = None,
    most: int | None = None,
) -> Advice:
    """Advice from verdicts and the diagnosis, and from the training's record where the model has one.

    `mixed_cost`: nats per row for fixing all mixed latents at once. `most`: as many latents as a row has values.
    A named cause, a collapsed posterior, a decoder that does not react or a broken variance law make it a diagnosis; a
    weight of the KL other than expected is said beside the advice, and takes its place only where all latents are in
    use for want of it.
    """
    diagnosis = diagnosis or Diagnosis()
    size = len(latents)
    count = {v: sum(latent.verdict == v for latent in latents) for v in ("active", "inactive", "mixed")}
    if diagnosis.named:
        return _named(diagnosis.named, size)
    if diagnosis.blocking or count["inactive"] == size:
        return _unnamed(diagnosis, size)
    beside = _beside(diagnosis)
    moving = movement(latents, provenance)
    if count["inactive"]:
        kept = size - count["inactive"]
        fresh = kept + math.ceil(kept / 10)
        return Advice(
            "shrink", kept,
            f"{count['inactive']} of {size} latents are inactive; when training from scratch take {fresh}, since an "
            f"idle latent or two is the sign that there are enough{moving}{beside}{_untried(latents)}",
        )  # fmt: skip
    if provenance.get("shrunk"):
        return Advice("keep", size, f"this model was shrunk before and nothing in it is idle{beside}")
    if count["mixed"]:
        costs = [latent.ablation_cost or 0.0 for latent in latents if latent.verdict == "mixed"]
        cost = sum(costs) if mixed_cost is None else mixed_cost
        return Advice(
            "keep", size,
            f"nothing is inactive; {count['mixed']} of {size} latents are mixed, and fixing them would cost about "
            f"{cost:.2g} nats per row{moving}{beside}",
        )  # fmt: skip
    if diagnosis.weight is not None and diagnosis.weight < _LIGHT:
        return _unnamed(diagnosis, size, f"all {size} latents are active, but ")
    wider = 2 * size if most is None else min(2 * size, most)
    if wider <= size:
        return Advice("keep", size, f"all {size} latents are active, and a row has no more values than that{beside}")
    return Advice(
        "grow", wider,
        f"all {size} latents are active, so {size} is only a lower bound on what the data can use: try {wider}"
        f"{moving}{beside}",
    )  # fmt: skip


def _untried(latents: Sequence[Latent]) -> str:
    """That the decoder had no say in what is called inactive."""
    if all(la.ablation_cost is not None for la in latents if la.verdict == "inactive"):
        return ""
    return "; provisional, since the decoder was not tried: a cut may fail its checks"


def _named(findings: Sequence[Finding], size: int) -> Advice:
    """A cause is known: say what to change."""
    ways = [CAUSES[finding.cause].way for finding in findings]
    reason = "; ".join(f"{f.title} ({f.evidence}): {f.remedy}" for f in findings)
    return Advice("refuse", None, reason) if "refuse" in ways else Advice("retrain", size, reason)


def _unnamed(diagnosis: Diagnosis, size: int, start: str = "") -> Advice:
    """Something is wrong that several causes explain: say which, and how to settle it."""
    what = start + "; ".join(diagnosis.symptoms or (f"all {size} latents are inactive",))
    first = diagnosis.findings[0] if diagnosis.findings else None
    refused = first is not None and CAUSES[first.cause].way == "refuse"
    why = f"; consistent with: {'; or '.join(f.title for f in diagnosis.findings)}" if first else ""
    several = "in the first case " if len(diagnosis.findings) > 1 else ""
    remedy = f"; {several}{first.remedy}" if first else ""
    settled = "; --objective with the loss it was trained by settles which"
    return Advice("refuse" if refused else "retrain", None if refused else size, f"{what}{why}{remedy}{settled}")


def _beside(diagnosis: Diagnosis) -> str:
    """A weight of the KL that is not the expected one, and does not change the advice."""
    if not diagnosis.findings or diagnosis.effective_beta is None:
        return ""
    titles = "; or ".join(finding.title for finding in diagnosis.findings[:2])
    return f"; but the KL weighs {diagnosis.effective_beta:.2g} here: {titles}"


def unsettled(latents: Sequence[Latent], provenance: Mapping[str, Any]) -> bool:
    """Whether the training's history says that the count of inactive latents was still moving."""
    return movement(latents, provenance).endswith(_TRAIN_ON)


def movement(latents: Sequence[Latent], provenance: Mapping[str, Any]) -> str:
    """Whether the count of inactive latents, or a latent on its way there, moved in the last fifth of training.

    In words, to be put behind an advice; empty where there is no history, or one too short to tell. Epochs from before
    latents were added do not count.
    """
    history: History = provenance.get("history") or History()
    epochs = [epoch for epoch in history.epochs if len(epoch.variance) == len(latents)]
    window = max(3, math.ceil(len(epochs) / 5))
    if len(epochs) <= window or provenance.get("shrunk"):
        return ""
    counts = [epoch.n_inactive for epoch in epochs]
    then, now = epochs[-1 - window].posterior_variance, epochs[-1].posterior_variance
    leaving = [
        i for i, (a, b) in enumerate(zip(then, now, strict=True)) if b - a > _RISEN and latents[i].verdict != "inactive"
    ]
    if counts[-1] != counts[-1 - window]:
        text = f"; its count was still moving, from {counts[-1 - window]} to {counts[-1]} in the last {window} epochs"
    elif leaving:
        text = f"; sigma² of latents {', '.join(map(str, leaving))} was still rising in the last {window} epochs"
    else:
        still = next((n for n, c in enumerate(reversed(counts)) if c != counts[-1]), len(counts))
        return f"; the count has stood still for the last {still} of {len(counts)} epochs"
    return text + _TRAIN_ON
