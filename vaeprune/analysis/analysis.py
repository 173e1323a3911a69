"""`analyze`: a model and its data in, a verdict on every latent and advice out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vaeprune.adapters import AdaptedVAE, as_vae, batches_for, measuring
from vaeprune.analysis.ablation import Reaction, reactions
from vaeprune.analysis.advice import Advice, advise
from vaeprune.analysis.diagnosis import Diagnosis, case_of, diagnose, observe
from vaeprune.analysis.latents import Interval, Latent, Thresholds, latents_of
from vaeprune.analysis.moments import Moments
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.verdict import judge, plainly_active
from vaeprune.data import DataSets, Rows, as_data
from vaeprune.errors import DataError, UsageError
from vaeprune.posterior import VAE

Ablate = Literal["all", "candidates", "none"]
Progress = Callable[[str, int, int | None], None]  # what is being done, rows more, rows in all


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. `n_samples` counts the calibration rows behind the moments.

    `joint_ablation_cost`: nats per row for fixing all inactive latents at once; None without ablation.
    `diagnosis`: how the training weighed the KL, and what is wrong where something is.
    """

    data: str
    seed: int
    n_samples: int
    latents: tuple[Latent, ...]
    advice: Advice
    thresholds: Thresholds
    joint_ablation_cost: float | None = None
    joint_ablation_cost_ci95: Interval | None = None
    diagnosis: Diagnosis = field(default_factory=Diagnosis)

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return len(self.latents)

    def indices(self, verdict: str) -> list[int]:
        """Latents of one verdict."""
        return [latent.index for latent in self.latents if latent.verdict == verdict]

    def to_json(self) -> dict[str, Any]:
        """The JSON contract of `analyze`, less the model's name, which only the caller knows."""
        return {
            "data": self.data,
            "seed": self.seed,
            "n_samples": self.n_samples,
            "latent_size": self.latent_size,
            "n_active": len(self.indices("active")),
            "n_inactive": len(self.indices("inactive")),
            "n_mixed": len(self.indices("mixed")),
            "latents": [latent.to_json() for latent in self.latents],
            "joint_ablation_cost": self.joint_ablation_cost,
            "joint_ablation_cost_ci95": self.joint_ablation_cost_ci95,
            "thresholds": dataclasses.asdict(self.thresholds),
            "diagnosis": self.diagnosis.to_json(),
            "advice": dataclasses.asdict(self.advice),
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Analysis:
        """Read back what `to_json` wrote."""
        return cls(
            entry["data"],
            entry["seed"],
            entry["n_samples"],
            tuple(_latent(latent) for latent in entry["latents"]),
            Advice(**entry["advice"]),
            Thresholds(**entry["thresholds"]),
            entry["joint_ablation_cost"],
            _pair(entry["joint_ablation_cost_ci95"]),
            Diagnosis.from_json(entry["diagnosis"]),
        )


def analyze(
    model: VAE | nn.Module,
    data: DataSets | torch.Tensor | str | Iterable[Any],
    *,
    thresholds: Thresholds | None = None,
    ablate: Ablate = "candidates",
    objective: StatedObjective | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Measure every latent of `model` on `data` and say which are in use.

    Moments come from the calibrate rows, ablation costs and noise reactions from the select rows. `ablate` tries the
    decoder for "all" latents, for the "candidates" that are not plainly active, or for "none" (verdicts are then
    provisional). `objective` is what the model was trained to minimise, in the words of docs/diagnosis.md, where that
    is known. The model is left as it was. Raises DataError, ModelError or UsageError. Asperti, section IV and Table I.
    """
    limits = thresholds or Thresholds()
    if ablate not in ("all", "candidates", "none"):
        raise UsageError(f"ablate: got {ablate!r}, expected all, candidates or none")
    sets = as_data(data, seed)
    vae = as_vae(model, sets)
    undecoded = isinstance(vae, AdaptedVAE) and vae.reading.decode is None
    if undecoded:
        ablate = "none"  # there is no decoder to try
    stated = StatedObjective.parse(objective) if isinstance(objective, str) else objective
    observed = observe(vae, sets.calibrate, sets.seed, decodes=not undecoded)
    with measuring(vae):
        moments = accumulate(vae, sets.calibrate, progress)
        latents = latents_of(moments)
        joint = None
        if ablate != "none":
            tried = [la.index for la in latents if ablate == "all" or not plainly_active(la, limits)]
            latents = _with_reactions(vae, sets, moments, latents, tried, progress)
            latents = [judge(latent, limits) for latent in latents]
            latents, joint = _jointly(vae, sets, moments, latents, limits)
        else:
            latents = [judge(latent, limits) for latent in latents]
        mixed_cost = _cost_of_mixed(vae, sets, moments, latents) if ablate != "none" else None
    most = math.prod(vae.input_shape) // math.prod(vae.latent_shape[1:])
    diagnosis = diagnose(case_of(vae, latents, observed, stated))
    return Analysis(
        data=sets.name,
        seed=sets.seed,
        n_samples=moments.count,
        latents=tuple(latents),
        advice=advise(latents, getattr(vae, "provenance", {}), diagnosis, mixed_cost, most),
        thresholds=limits,
        joint_ablation_cost=joint.cost if joint else None,
        joint_ablation_cost_ci95=joint.cost_ci95 if joint else None,
        diagnosis=diagnosis,
    )


def accumulate(vae: VAE, rows: Rows, progress: Progress | None = None) -> Moments:
    """Moments of the posterior over all `rows`, in one pass. Call it inside `measuring(vae)`."""
    moments: Moments | None = None
    for batch in batches_for(vae, rows):
        new = Moments.of(vae.encode(*batch))
        moments = moments.merge(new) if moments else new
        if progress:
            progress("encoding", len(batch[0]), rows.count)
    if moments is None:
        raise DataError(f"{rows.name}: holds no rows to measure")
    return moments


def _with_reactions(
    vae: VAE, sets: DataSets, moments: Moments, latents: list[Latent], tried: Sequence[int],
    progress: Progress | None,
) -> list[Latent]:  # fmt: skip
    def report(rows: int) -> None:
        if progress:
            progress("ablating", rows, sets.select.count)

    found = reactions(vae, sets.select, moments.mean, [[i] for i in tried], sets.seed, report)
    latents = list(latents)
    for i, reaction in zip(tried, found, strict=True):
        latents[i] = dataclasses.replace(
            latents[i],
            ablation_cost=reaction.cost,
            ablation_cost_ci95=reaction.cost_ci95,
            noise_reaction=reaction.noise,
        )
    return latents


def _jointly(
    vae: VAE, sets: DataSets, moments: Moments, latents: list[Latent], limits: Thresholds
) -> tuple[list[Latent], Reaction | None]:
    """Fix all inactive latents at once: two redundant ones each look free. The dearest leave until the rest is free."""
    latents = list(latents)
    inactive = [latent.index for latent in latents if latent.verdict == "inactive"]
    while inactive:
        (joint,) = reactions(vae, sets.select, moments.mean, [inactive], sets.seed)
        if joint.cost_ci95[1] < limits.ablation and joint.noise < limits.noise:
            return latents, joint
        dearest = max(inactive, key=lambda i: (latents[i].ablation_cost or 0.0, latents[i].noise_reaction or 0.0))
        latents[dearest] = dataclasses.replace(
            latents[dearest],
            verdict="mixed",
            reason=f"redundant: free alone, {joint.cost:.3g} nats with the others",
        )
        inactive.remove(dearest)
    return latents, None


def _cost_of_mixed(vae: VAE, sets: DataSets, moments: Moments, latents: Sequence[Latent]) -> float | None:
    """Nats per row for fixing all mixed latents at once, where nothing is inactive."""
    mixed = [latent.index for latent in latents if latent.verdict == "mixed"]
    if not mixed or any(latent.verdict == "inactive" for latent in latents):
        return None
    return reactions(vae, sets.select, moments.mean, [mixed], sets.seed)[0].cost


def _latent(entry: dict[str, Any]) -> Latent:
    names = {f.name for f in dataclasses.fields(Latent)}
    fields: dict[str, Any] = {k: _pair(v) if isinstance(v, list) else v for k, v in entry.items() if k in names}
    return Latent(**fields)


def _pair(value: list[float] | None) -> Interval | None:
    return None if value is None else (value[0], value[1])
