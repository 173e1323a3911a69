"""What must hold of any VAE that has come to rest, measured: one line each.

A check that fails says that something about the model is not as the verdicts suppose; passing is no sign of activity.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vaeprune.analysis.jacobian import DecoderPull
from vaeprune.analysis.latents import Latent
from vaeprune.analysis.moments import Moments

_FEW = 10  # rows a direction: with fewer, sample correlations alone lower the effective rank by several percent


@dataclass(frozen=True)
class VarianceLaw:
    """Var mu + E sigma² over the latents: 1 where scales are free and training is at rest, at any weight of the KL."""

    median: float
    low: float
    high: float

    def line(self) -> str:
        """In words."""
        return f"variance + mean σ²: median {self.median:.3f}, {self.low:.3f} to {self.high:.3f}; 1 at rest"


@dataclass(frozen=True)
class AggregatePosterior:
    """The mixture of all posteriors, which the prior N(0, I) should match.

    `largest_mean`: the largest |E mu_i|, of latent `at`. `variance`: mean over latents of Var mu + E sigma².
    `effective_rank`: exp of the entropy of the eigenvalues of the correlation matrix of mu (Roy and Vetterli 2007) over
    the `directions` latents that are not inactive; None with less than two. Where it is far below `directions`, rotated
    latents hide spare directions. `rows`: with few a direction, the rank comes out too low. Maps count by their means.
    """

    largest_mean: float
    at: int
    variance: float
    effective_rank: float | None
    directions: int
    rows: int

    def line(self) -> str:
        """In words."""
        told = f"largest |mean| {self.largest_mean:.3g} (latent {self.at}), mean variance {self.variance:.3f}"
        if self.effective_rank is None:
            return f"{told}; no correlations among {self.directions} latents in use"
        few = ", too low with so few rows" if self.rows < _FEW * self.directions else ""
        rank = f"effective rank of the correlations {self.effective_rank:.2f} of {self.directions} in use{few}"
        return f"{told}; {rank}"


@dataclass(frozen=True)
class JacobianCheck:
    """sigma² as the decoder's slopes predict it (analysis/jacobian.py), over `rows` rows.

    `beta`: the weight of the KL; `beta_known` from the training record, else taken as 1. `predicted`, `measured`: E of
    sigma² by latent. `pull`: E[JᵀFJ]_ii in nats per squared unit of z. All are empty, and `unmeasured` says why, where
    the decoder could not be measured.
    """

    beta: float
    beta_known: bool
    rows: int = 0
    predicted: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()
    pull: tuple[float, ...] = ()
    unmeasured: str = ""

    @property
    def furthest(self) -> int | None:
        """The latent whose prediction is furthest off, as a ratio; None where nothing was measured."""
        if not self.predicted:
            return None
        ratios = [abs(math.log(max(p, 1e-12) / max(m, 1e-12))) for p, m in self._pairs()]
        return ratios.index(max(ratios))

    @property
    def ratio(self) -> float | None:
        """Median of predicted / measured; None where nothing was measured."""
        return statistics.median(p / max(m, 1e-12) for p, m in self._pairs()) if self.predicted else None

    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.predicted, self.measured, strict=True))

    def line(self) -> str:
        """In words."""
        at = self.furthest
        if at is None:
            return f"not measured: {self.unmeasured}"
        return (
            f"predicted / measured: median {self.ratio:.2f}, furthest latent {at} ({self.predicted[at]:.3g} / "
            f"{self.measured[at]:.3g}); {self.rows} rows, β = {self.beta:g}{'' if self.beta_known else ' assumed'}"
        )


@dataclass(frozen=True)
class Information:
    """Mean KL(q(z | x) ‖ p(z)) per row: in all, and of the active latents each."""

    nats: float
    active: dict[int, float]

    @property
    def bits(self) -> float:
        """The total in bits."""
        return self.nats / math.log(2)

    def line(self) -> str:
        """In words."""
        told = f"{self.nats:.3f} nats ({self.bits:.3f} bits) per row"
        if not self.active:
            return f"{told}; no latent is active"
        found = list(self.active.values())
        share = sum(found) / self.nats if self.nats > 0 else 0.0
        each = f"{statistics.mean(found):.3g} nats each on average, {min(found):.3g} to {max(found):.3g}"
        return f"{told}; {share:.1%} in the {len(found)} active latents, {each}"


@dataclass(frozen=True)
class SelfChecks:
    """The checks of one analysis."""

    variance_law: VarianceLaw
    aggregate: AggregatePosterior
    jacobian: JacobianCheck
    information: Information

    def lines(self) -> dict[str, str]:
        """One line in words for each check."""
        return {
            "variance law": self.variance_law.line(),
            "aggregate posterior": self.aggregate.line(),
            "σ² from the decoder": self.jacobian.line(),
            "KL": self.information.line(),
        }

    def to_json(self) -> dict[str, Any]:
        """All figures; what was not measured is null."""
        entry = dataclasses.asdict(self)
        entry["information"] |= {"bits": self.information.bits}
        entry["jacobian"] |= {"ratio": self.jacobian.ratio}
        for name in ("predicted", "measured", "pull"):
            entry["jacobian"][name] = entry["jacobian"][name] or None
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> SelfChecks:
        """Read back what `to_json` wrote."""
        jacobian: dict[str, Any] = dict(entry["jacobian"])
        jacobian.pop("ratio")
        for name in ("predicted", "measured", "pull"):
            jacobian[name] = tuple(jacobian[name] or ())
        information = entry["information"]
        return cls(
            VarianceLaw(**entry["variance_law"]),
            AggregatePosterior(**entry["aggregate"]),
            JacobianCheck(**jacobian),
            Information(information["nats"], {int(i): nats for i, nats in information["active"].items()}),
        )


def self_checks(moments: Moments, latents: Sequence[Latent], pull: DecoderPull | str, beta: float | None) -> SelfChecks:
    """Every check from what was measured. `beta`: the KL's weight in training, None where nothing tells it."""
    law = [latent.variance_law for latent in latents]
    means = [abs(latent.mean) for latent in latents]
    used = [latent.index for latent in latents if latent.verdict != "inactive"]
    weight = 1.0 if beta is None else beta
    if isinstance(pull, str):
        jacobian = JacobianCheck(weight, beta is not None, unmeasured=pull)
    else:
        predicted, measured, pulls = (tuple(t.tolist()) for t in (pull.predicted, pull.measured, pull.pull))
        jacobian = JacobianCheck(weight, beta is not None, pull.rows, predicted, measured, pulls)
    return SelfChecks(
        VarianceLaw(statistics.median(law), min(law), max(law)),
        AggregatePosterior(
            max(means), means.index(max(means)), statistics.fmean(law), effective_rank(moments, used), len(used),
            moments.count,
        ),
        jacobian,
        Information(
            sum(latent.kl for latent in latents), {la.index: la.kl for la in latents if la.verdict == "active"}
        ),
    )  # fmt: skip


def effective_rank(moments: Moments, latents: Sequence[int]) -> float | None:
    """exp(entropy) of the normalised eigenvalues of the correlation matrix of the means of `latents`.

    From 1 (all move together) to their number (none correlates with another); None if less than two of them move,
    or without co-moments.
    """
    covariance = moments.covariance
    if covariance is None:
        return None
    covariance = covariance[list(latents)][:, list(latents)]
    scale = covariance.diagonal().clamp_min(0).sqrt()
    moving = scale > 0
    if int(moving.sum()) < 2:
        return None
    covariance, scale = covariance[moving][:, moving], scale[moving]
    share = torch.linalg.eigvalsh(covariance / torch.outer(scale, scale)).clamp_min(0)
    share = share / share.sum()
    return math.exp(-torch.special.xlogy(share, share).sum().item())
