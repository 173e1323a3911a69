"""What other published rules say of the same latents. docs/criteria.md has each rule's source and blind spot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.analysis.ablation import some_of
from vaeprune.analysis.jacobian import DecoderPull
from vaeprune.analysis.latents import Latent
from vaeprune.analysis.moments import Moments
from vaeprune.data import DataSets
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE, INACTIVE_VARIANCE, VAE

_MEAN_KL = 0.01  # nats
_PASSIVE, _FIXED, _ACTIVE = (0.9, 1.1), 0.1, 0.1  # mean of sigma² between; its variance below; mean of sigma² at most
_ARD_SHARE = 0.99
_FONDUE_SHARE = 0.2
_ROWS, _NEIGHBOURS = 1000, 20


@dataclass(frozen=True)
class Criterion:
    """One rule applied to this model.

    `verdicts`: its word for each latent, empty where it has none. `count`: how many latents it takes to be in use, None
    where it gives no count. `note`: what the count rests on, or why there is none.
    """

    name: str
    rule: str
    verdicts: tuple[str, ...] = ()
    count: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Criteria:
    """All rules, this package's first."""

    rules: tuple[Criterion, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """One object a rule."""
        return [dataclasses.asdict(rule) | {"verdicts": list(rule.verdicts) or None} for rule in self.rules]

    @classmethod
    def from_json(cls, entry: Iterable[Mapping[str, Any]]) -> Criteria:
        """Read back what `to_json` wrote."""
        return cls(tuple(Criterion(**{**rule, "verdicts": tuple(rule["verdicts"] or ())}) for rule in entry))


def peer_criteria(
    vae: VAE, sets: DataSets, moments: Moments, latents: Sequence[Latent], pull: DecoderPull | str
) -> Criteria:
    """Every rule on the same rows as the verdicts. Call it inside `measuring(vae)`."""
    ours = tuple(latent.verdict for latent in latents)
    kept = f"{ours.count('active')} active, {ours.count('mixed')} mixed"
    filtered = variable_filter(moments)
    return Criteria((
        Criterion("vaeprune", "intervals, ablation and noise", ours, ours.count("active"), kept),
        _threshold(
            "active units", f"Var mu > {INACTIVE_VARIANCE}", [la.variance > INACTIVE_VARIANCE for la in latents]
        ),
        _threshold(
            "posterior variance", f"E σ² ≤ {INACTIVE_POSTERIOR_VARIANCE}",
            [la.posterior_variance <= INACTIVE_POSTERIOR_VARIANCE for la in latents],
        ),
        _threshold("mean KL", f"E KL > {_MEAN_KL} nats", [la.kl > _MEAN_KL for la in latents]),
        Criterion(
            "variable filter", "mean and variance of σ²", filtered, filtered.count("active"),
            f"{filtered.count('active')} active, {filtered.count('mixed')} mixed",
        ),
        _fondue_filter(filtered),
        _fondue_dimensions(vae, sets),
        _ard(latents, pull),
    ))  # fmt: skip


def variable_filter(moments: Moments) -> tuple[str, ...]:
    """passive, active or mixed by mean and variance of sigma² over rows. Bonheme and Grzes 2021."""
    mean, variance = moments.sigma2[0].tolist(), (moments.sigma2[1] / moments.count).tolist()
    found = []
    for m, v in zip(mean, variance, strict=True):
        steady = v < _FIXED
        passive = steady and _PASSIVE[0] <= m <= _PASSIVE[1]
        found.append("passive" if passive else "active" if steady and m <= _ACTIVE else "mixed")
    return tuple(found)


def intrinsic_dimension(points: Tensor, neighbours: int = _NEIGHBOURS) -> float | None:
    """Of points (N, M), from the distances to their nearest neighbours; None with too few different ones.

    Levina and Bickel 2004, eq. (8), averaged over points as inverses (MacKay and Ghahramani 2005).
    """
    points = points.double()
    points = torch.unique(points, dim=0)
    neighbours = min(neighbours, len(points) - 1)
    if neighbours < 3:
        return None
    nearest = torch.cdist(points, points).topk(neighbours + 1, largest=False).values[:, 1:]
    nearest = nearest[nearest[:, 0] > 0]  # others coincide but for rounding
    if not len(nearest):
        return None
    inverse = (nearest[:, -1:] / nearest[:, :-1]).log().sum(1) / (neighbours - 2)
    return 1 / inverse.mean().item() if inverse.mean() > 0 else None


def _threshold(name: str, rule: str, active: Sequence[bool]) -> Criterion:
    return Criterion(name, rule, tuple("active" if a else "inactive" for a in active), sum(active))


def _fondue_filter(filtered: Sequence[str]) -> Criterion:
    """FONDUE by the variable filter: the first size with a passive variable has as many as are not passive."""
    name, rule = "FONDUE, filter", "active and mixed of the variable filter, once one is passive"
    passive = filtered.count("passive")
    if not passive:
        return Criterion(name, rule, note="none is passive: it would double the size and train again")
    return Criterion(name, rule, count=len(filtered) - passive)


def _fondue_dimensions(vae: VAE, sets: DataSets) -> Criterion:
    """FONDUE by intrinsic dimension: passive variables make z's exceed mu's by more than a share of the data's."""
    name, rule = "FONDUE, dimension", f"dimension of z − of mu ≤ {_FONDUE_SHARE:.0%} of the data's"
    generator = torch.Generator().manual_seed(sets.seed)
    parts: list[list[Tensor]] = [[], [], []]
    for x, *condition in batches_for(vae, some_of(sets.select, _ROWS, sets.seed), size=256):
        posterior = vae.encode(x, *condition)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean))
        for kept, new in zip(parts, (x, posterior.mean, z), strict=True):
            kept.append(new.flatten(1).cpu())
    data, mean, sampled = (intrinsic_dimension(torch.cat(kept)) for kept in parts)
    if data is None or mean is None or sampled is None:
        which = "data" if data is None else "means" if mean is None else "samples"
        return Criterion(name, rule, note=f"no dimension of the {which}: too few different rows")
    told = f"data {data:.1f}, mu {mean:.1f}, z {sampled:.1f}"
    fits = sampled - mean <= _FONDUE_SHARE * data
    return Criterion(name, rule, note=f"{told}: {'it would try a larger size' if fits else 'this size is too large'}")


def _ard(latents: Sequence[Latent], pull: DecoderPull | str) -> Criterion:
    """ARD-VAE's relevance, with the aggregate posterior's second moment for its learned prior variance."""
    name, rule = "ARD-VAE", f"smallest set with {_ARD_SHARE:.0%} of E‖∂x̂/∂z‖² · E z²"
    if isinstance(pull, str):
        return Criterion(name, rule, note=f"not measured: {pull}")
    squares = [la.mean**2 + la.variance + la.posterior_variance for la in latents]
    relevance = pull.sensitivity * torch.tensor(squares, dtype=torch.float64)
    total = relevance.sum().item()
    if not (total > 0 and math.isfinite(total)):
        return Criterion(name, rule, note="the decoder moves with no latent")
    order = relevance.argsort(descending=True)
    count = int((relevance[order].cumsum(0) < _ARD_SHARE * total).sum()) + 1
    relevant = set(order[:count].tolist())
    return Criterion(name, rule, tuple("active" if i in relevant else "inactive" for i in range(len(latents))), count)
