"""What to do next: shrink, grow, keep, retrain or refuse, with the numbers it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vaeprune.analysis.latents import Latent

Action = Literal["shrink", "grow", "keep", "retrain", "refuse"]


@dataclass(frozen=True)
class Advice:
    """What to do next; `latent_size` is the size it leads to, `command` the command line that does it, if any."""

    action: Action
    latent_size: int | None
    reason: str
    command: str | None = None


def advise(latents: Sequence[Latent], provenance: Mapping[str, Any]) -> Advice:
    """Advice from verdicts, and from the training record where the model has one."""
    size = len(latents)
    count = {v: sum(latent.verdict == v for latent in latents) for v in ("active", "inactive", "mixed")}
    penalty = (provenance.get("training") or {}).get("kl", "full")
    if penalty != "full":
        return Advice(
            "refuse", None,
            f"trained with kl {penalty!r}: without the full KL nothing pushes an unused latent to the prior, and "
            "variances say nothing about use",
        )  # fmt: skip
    if count["inactive"] == size:
        return Advice(
            "retrain", size,
            f"all {size} latents are inactive: the posterior has collapsed, so there is no network to cut down; check "
            "that the reconstruction term is summed over pixels and the KL weight is not above 1, then train again",
        )  # fmt: skip
    if count["inactive"]:
        kept = size - count["inactive"]
        fresh = kept + max(1, math.ceil(kept / 10))
        return Advice(
            "shrink", kept,
            f"{count['inactive']} of {size} latents are inactive; when training from scratch take {fresh}, since an "
            "idle latent or two is the sign that there are enough",
        )  # fmt: skip
    if provenance.get("shrunk"):
        return Advice("keep", size, "this model was shrunk before and nothing in it is idle")
    if count["mixed"]:
        cost = sum(latent.ablation_cost or 0.0 for latent in latents if latent.verdict == "mixed")
        return Advice(
            "keep", size,
            f"nothing is inactive; {count['mixed']} of {size} latents are mixed, and fixing them would cost about "
            f"{cost:.2g} nats per row",
        )  # fmt: skip
    return Advice(
        "grow", 2 * size,
        f"all {size} latents are active, so {size} is only a lower bound on what the data can use: try {2 * size}",
    )  # fmt: skip
