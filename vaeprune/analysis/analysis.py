"""`analyze`: a model and its data in, a verdict on every latent and advice out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vaeprune import ranks
from vaeprune.adapters import AdaptedVAE, as_vae, measuring
from vaeprune.analysis.ablation import reactions
from vaeprune.analysis.advice import Advice, advise
from vaeprune.analysis.criteria import Criteria, peer_criteria
from vaeprune.analysis.diagnosis import Diagnosis, case_of, diagnose, observe
from vaeprune.analysis.encoding_pass import How, until_certain
from vaeprune.analysis.encoding_pass import accumulate as accumulate
from vaeprune.analysis.jacobian import DecoderPull, decoder_pull
from vaeprune.analysis.latents import Interval, Latent, Thresholds, latents_of
from vaeprune.analysis.moments import Moments
from vaeprune.analysis.precision import Precision, effect_of_bf16
from vaeprune.analysis.self_checks import SelfChecks, self_checks
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.trials import Ablate as Ablate
from vaeprune.analysis.trials import Progress as Progress
from vaeprune.analysis.trials import tried
from vaeprune.data import DataSets, as_data
from vaeprune.errors import UsageError
from vaeprune.posterior import VAE


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. `n_samples` counts the calibration rows behind the moments.

    `joint_ablation_cost`: nats per row for fixing all inactive latents at once; None without ablation.
    `diagnosis`: how the training weighed the KL, and what is wrong where something is.
    `criteria`: what other rules say of the same latents, where it was asked for. `stopped_early`: all intervals were
    clear of their limits before the last row. `precision`: what bfloat16 changed, where it was asked for.
    """

    data: str
    seed: int
    n_samples: int
    latents: tuple[Latent, ...]
    advice: Advice
    thresholds: Thresholds
    self_checks: SelfChecks
    joint_ablation_cost: float | None = None
    joint_ablation_cost_ci95: Interval | None = None
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    criteria: Criteria | None = None
    stopped_early: bool = False
    precision: Precision | None = None

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return len(self.latents)

    @property
    def unseen_share(self) -> float:
        """A share of rows that would go unseen in this many with a probability of 5%: 3/n."""
        return 3 / self.n_samples

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
            "self_checks": self.self_checks.to_json(),
            "criteria": self.criteria.to_json() if self.criteria else None,
            "stopped_early": self.stopped_early,
            "precision": dataclasses.asdict(self.precision) if self.precision else None,
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
            SelfChecks.from_json(entry["self_checks"]),
            entry["joint_ablation_cost"],
            _pair(entry["joint_ablation_cost_ci95"]),
            Diagnosis.from_json(entry["diagnosis"]),
            Criteria.from_json(entry["criteria"]) if entry["criteria"] else None,
            entry.get("stopped_early", False),
            Precision.from_json(entry["precision"]) if entry.get("precision") else None,
        )


def analyze(
    model: VAE | nn.Module,
    data: DataSets | torch.Tensor | str | Iterable[Any],
    *,
    thresholds: Thresholds | None = None,
    ablate: Ablate = "candidates",
    objective: StatedObjective | str | None = None,
    criteria: bool = False,
    certain: bool = False,
    how: How = How(),  # noqa: B008
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Measure every latent of `model` on `data` and say which are in use.

    Moments come from the calibrate rows, ablation costs and noise reactions from the select rows. `ablate` tries the
    decoder for "all" latents, for the "candidates" that are not plainly active (the others on few rows), or for "none"
    (verdicts are then provisional). `objective` is what the model was trained to minimise, in the words of
    docs/diagnosis.md, where that is known. `criteria` adds what other published rules say.
    `certain` stops reading once every interval is clear of its limit; `how` leaves co-moments out, or encodes in
    bfloat16. The model is left as it was.
    Raises DataError, ModelError or UsageError. Asperti, section IV and Table I.
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
        moments, stopped = until_certain(vae, sets.calibrate, limits if certain else None, progress, how)
        precision = effect_of_bf16(vae, sets.select, limits) if how.bf16 else None
        latents, joint = tried(vae, sets, moments, latents_of(moments), ablate, limits, progress)
        mixed_cost = _cost_of_mixed(vae, sets, moments, latents) if ablate != "none" else None
        case = case_of(vae, latents, observed, stated)
        beta = case.known_weight
        pull = _pull(vae, sets, 1.0 if beta is None else beta, ablate, progress)
        peers = peer_criteria(vae, sets, moments, latents, pull) if criteria else None
    most = math.prod(vae.input_shape) // math.prod(vae.latent_shape[1:])
    diagnosis = diagnose(case)
    found = Analysis(
        data=sets.name,
        seed=sets.seed,
        n_samples=moments.count,
        latents=tuple(latents),
        advice=advise(latents, getattr(vae, "provenance", {}), diagnosis, mixed_cost, most),
        thresholds=limits,
        joint_ablation_cost=joint.cost if joint else None,
        joint_ablation_cost_ci95=joint.cost_ci95 if joint else None,
        diagnosis=diagnosis,
        self_checks=self_checks(moments, latents, pull, beta),
        criteria=peers,
        stopped_early=stopped,
        precision=precision,
    )
    return ranks.from_first(lambda: found)


def _pull(vae: VAE, sets: DataSets, beta: float, ablate: Ablate, progress: Progress | None) -> DecoderPull | str:
    if isinstance(vae, AdaptedVAE) and vae.reading.decode is None:
        return "there is no decoder that could be called with z"
    if ablate == "none":
        return "the decoder was not tried"

    def report(rows: int, total: int) -> None:
        if progress:
            progress("decoder's slopes", rows, total)

    return decoder_pull(vae, sets.select, beta, sets.seed, report)


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
