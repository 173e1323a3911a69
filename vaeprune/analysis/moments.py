"""Streaming moments of the posterior: one pass, float64, and two halves merge into exactly the whole.

For each latent i: mean and central moments 2 to 4 of mu_i, mean and variance of sigma_i² and of the KL, extremes of
mu_i and of the KL, how many rows have a KL above ½ nat, and the co-moments of all mu. Update and merge follow Chan,
Golub and LeVeque 1983 and Pébay 2008: sums of powers about the running mean, shifted when the mean moves, so nothing is
lost to cancellation far from 0.

A latent that is a map (C×H×W) is one latent a channel. The positions of one image are not independent, so the image
is the sample: its spatial mean a and its within-image variance v. The variance of the channel is Var(a) + E[v], and
its standard error needs the joint moments of a and v kept here.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.errors import DataError
from vaeprune.posterior import Posterior

Powers = dict[tuple[int, int], Tensor]
# nats: a row whose KL is above uses the latent; a mean one prior standard deviation off at sigma² = 1 is worth as much
USED = 0.5


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of D latents over some rows; all tensors are float64 on the CPU, (D,) unless said otherwise.

    `count`: rows seen. `mean`: E[mu]. `within`: E[v], zero for vectors. `powers[p, q]`: Σ (a − E[a])^p (v − E[v])^q.
    `comoment`: Σ (mu − E[mu])(mu − E[mu])ᵀ of the (spatially averaged) means, (D, D); None
    where it was not wanted.
    `sigma2`, `kl`: (mean, Σ squared deviations), each (D,). `low`, `high`: extremes of mu. `kl_high`: largest KL.
    `used`: how many rows have a KL above ½ nat.
    """

    count: int
    mean: Tensor
    within: Tensor
    powers: Powers
    comoment: Tensor | None
    sigma2: tuple[Tensor, Tensor]
    kl: tuple[Tensor, Tensor]
    low: Tensor
    high: Tensor
    kl_high: Tensor
    used: Tensor

    @classmethod
    def of(cls, posterior: Posterior, comoments: bool = True) -> Moments:
        """Moments of one batch of posteriors, (B, D) or (B, C, H, W). Raises DataError on NaN or infinity."""
        mu, logvar = (t.detach().to("cpu", torch.float64, copy=True) for t in posterior)
        return cls.consuming(mu, logvar, torch.empty_like(mu), comoments)

    @classmethod
    def consuming(cls, mu: Tensor, logvar: Tensor, spare: Tensor, comoments: bool = True) -> Moments:
        """The same of float64 tensors on the CPU, which are used up, as is `spare` of their shape.

        Asking for memory and touching it first would cost as much as the sums.
        """
        sigma2 = torch.exp(logvar, out=spare)
        twice = torch.sub(sigma2, logvar, out=logvar).addcmul_(mu, mu)  # 2 KL + 1
        a, v, flat, positions = mu, None, mu, 1
        if mu.dim() > 2:
            v, a = torch.var_mean(mu.flatten(2), 2, correction=0)
            sigma2, twice, positions = sigma2.flatten(2).mean(2), twice.flatten(2).sum(2), mu[0, 0].numel()
            flat = mu.movedim(1, -1).flatten(0, -2)
        low, high, mean = flat.amin(0), flat.amax(0), a.mean(0)
        if not torch.isfinite(mean.sum() + twice.sum()):  # one number tells for all
            _refuse_non_finite(mu, twice)
        spread = _spread(sigma2)
        used = torch.gt(twice, 2 * USED + positions, out=sigma2).sum(0)
        kl_high = (twice.amax(0) - positions) * 0.5
        kl, squares = _spread(twice)
        centred = a.sub_(mean)
        powers, within = _powers(centred, v, (twice, sigma2))
        comoment = centred.T @ centred if comoments else None
        kl_spread = (kl - positions) * 0.5, squares * 0.25
        return cls(len(mu), mean, within, powers, comoment, spread, kl_spread, low, high, kl_high, used)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together; exact, in any order and grouping, up to rounding."""
        count = self.count + other.count
        share = other.count / count
        mean = torch.lerp(self.mean, other.mean, share)
        within = torch.lerp(self.within, other.within, share)
        delta = other.mean - self.mean
        mine = _recentred(self, self.mean - mean, self.within - within)
        theirs = _recentred(other, other.mean - mean, other.within - within)
        return Moments(
            count,
            mean,
            within,
            {power: mine[power] + theirs[power] for power in mine},
            None
            if self.comoment is None or other.comoment is None
            else (self.comoment + other.comoment).addr_(delta, delta, alpha=self.count * share),
            _merged_spread(self.count, self.sigma2, other.count, other.sigma2),
            _merged_spread(self.count, self.kl, other.count, other.kl),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            torch.maximum(self.kl_high, other.kl_high),
            self.used + other.used,
        )

    @property
    def variance(self) -> Tensor:
        """Var_x[mu_i], (D,): over rows, and over positions where latents are maps."""
        return self.powers[2, 0] / self.count + self.within

    @property
    def variance_error(self) -> Tensor:
        """Standard error of `variance`, (D,), from the fourth moments, with rows as the independent samples."""
        n, p = self.count, self.powers
        between = p[2, 0] / n
        spread = p[4, 0] / n - between.square()
        if (0, 2) in p:  # q = (a − E[a])² + v; Var(q) = Var((a − E[a])²) + Var(v) + 2 Cov
            spread = spread + p[0, 2] / n + 2 * p[2, 1] / n
        return (spread.clamp_min(0) / max(n - 1, 1)).sqrt()

    @property
    def covariance(self) -> Tensor | None:
        """Cov(mu), (D, D); None without co-moments."""
        return None if self.comoment is None else self.comoment / self.count


def _recentred(moments: Moments, da: Tensor, dv: Tensor) -> Powers:
    """Σ (a − A)^p (v − V)^q about new centres; da, dv are old centre minus new centre. The binomial theorem."""
    a, v = [torch.ones_like(da)], [torch.ones_like(dv)]
    for p, q in moments.powers:
        while len(a) <= p:
            a.append(a[-1] * da)
        while len(v) <= q:
            v.append(v[-1] * dv)
    shifted: Powers = {}
    for p, q in moments.powers:
        total = torch.addcmul(moments.powers[p, q], a[p], v[q], value=moments.count)
        for i, j in itertools.product(range(p + 1), range(q + 1)):
            if i + j > 1 and (i, j) != (p, q):  # the sums of first powers about a mean are 0
                step = a[p - i] if q == j else a[p - i] * v[q - j]
                total.addcmul_(moments.powers[i, j], step, value=math.comb(p, i) * math.comb(q, j))
        shifted[p, q] = total
    return shifted


def _powers(centred: Tensor, v: Tensor | None, spare: tuple[Tensor, Tensor]) -> tuple[Powers, Tensor]:
    """Σ (a − E[a])^p (v − E[v])^q over the rows, and E[v]; v is None where latents are no maps. `spare` are used up."""
    square = torch.square(centred, out=spare[0])

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y, out=spare[1]).sum(0)  # torch.linalg.vecdot would ask for memory

    powers = {(2, 0): square.sum(0), (3, 0): dot(square, centred), (4, 0): dot(square, square)}
    if v is None:
        return powers, torch.zeros_like(powers[2, 0])
    within = v.mean(0)
    u = v - within
    powers |= {(0, 2): dot(u, u), (1, 1): dot(centred, u), (2, 1): dot(square, u)}
    return powers, within


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and squared deviations of `values`, which are used up; torch.var_mean is slow along the first dimension."""
    mean = values.mean(0)
    return mean, values.sub_(mean).square_().sum(0)


def _merged_spread(n: int, a: tuple[Tensor, Tensor], m: int, b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    share = m / (n + m)
    delta = b[0] - a[0]
    return torch.lerp(a[0], b[0], share), a[1] + b[1] + delta.square() * (n * share)


def _refuse_non_finite(mu: Tensor, kl: Tensor) -> None:
    bad = torch.nonzero(~(torch.isfinite(mu.flatten(2).sum(2) if mu.dim() > 2 else mu) & torch.isfinite(kl)))
    raise DataError(
        f"encoder: mean, variance or KL is NaN or infinite, first for latent {int(bad[0][1])}",
        "check the weights and the range of the data",
    )
