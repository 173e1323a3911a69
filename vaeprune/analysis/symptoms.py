"""What a model's numbers show of how it was trained: the KL's weight, what reconstruction gains, whether z is heard."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.analysis.effective_beta import EffectiveBeta, effective_beta
from vaeprune.data import MemoryRows, Rows
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE, Posterior

_MOST_ROWS = 2_048
_SOON_READ, _RUNS = 1 << 20, 64  # rows; of more, so many short runs are read
_MOST_VALUES = 1 << 23  # of all rows together, which are kept in memory
_BATCH_VALUES = 1 << 18  # of one batch, whose activations autograd keeps
_CLEARLY = 0.02  # of the span between the best constant and perfection
_DEAF = 1e-6  # share of the outputs' size that rounding alone may move
_POWER_STEPS = 60
_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Symptoms:
    """Measured on `rows` rows; nats are per row.

    `pixels`: values of a row. `positions`: of a latent, 1 unless latents are maps. `beta`: None where the decoder
    passes no gradient back.
    `sampled`, `at_mean`, `constant`, `floor`: −log p(x | z) at a posterior sample and at its mean, of the best output
    that does not depend on x (the mean row), and of the perfect output. `cost`: −ELBO, less `constant`, with its
    standard error; positive = the model does worse than that constant.
    `leading_eigenvalue`: the largest eigenvalue of the rows' covariance in the likelihood's own metric. A latent that
    has collapsed stays so only where beta is at least this (Lucas et al. 2019, for linear networks).
    `squared_error`: mean (x − x̂)² of a pixel, at a sample. `heard`: whether any output moves when z does.
    """

    rows: int
    pixels: int
    positions: int
    beta: EffectiveBeta | None
    sampled: float
    at_mean: float
    constant: float
    floor: float
    cost: float
    cost_error: float
    leading_eigenvalue: float
    squared_error: float
    heard: bool

    @property
    def span(self) -> float:
        """What there is to gain over the constant, in nats."""
        return max(self.constant - self.floor, 1e-12)

    @property
    def worse_than_constant(self) -> bool:
        """Whether the ELBO lies clearly below that of the mean row and no latents at all."""
        return self.cost > _CLEARLY * self.span and self.cost > 3 * self.cost_error

    @property
    def reconstructs(self) -> bool:
        """Whether decoding the mean does clearly better than the constant."""
        return self.at_mean < self.constant - _CLEARLY * self.span

    @property
    def unsampled(self) -> bool:
        """Whether decoding the mean does better than the constant and decoding a sample does worse."""
        return self.reconstructs and self.sampled > self.constant


def examine(vae: VAE, rows: Rows, seed: int = 0) -> Symptoms | None:
    """Run up to 2,048 of `rows` through encoder and decoder, with gradients by z.

    Call it in eval mode, outside of inference mode. No parameter's gradient is touched. None where a latent is NaN or
    infinite, which the moments refuse with the right words.
    """
    generator = torch.Generator().manual_seed(seed)
    found = _Sums()
    parts = _thinned(vae, rows)
    size = max(2, min(256, _BATCH_VALUES // math.prod(rows.row_shape)))
    for x, *condition in zip(*(torch.split(part, size) for part in parts), strict=True):
        with torch.no_grad():
            posterior = vae.encode(x, *condition)
            if not torch.isfinite(posterior.mean.sum() + posterior.kl().sum()):
                return None
            eps, prior = (torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean) for _ in range(2))
            found.hear(vae, x, posterior, prior, condition)
        found.add(vae, x, posterior, eps, condition)
    return found.result(vae.likelihood)


def _thinned(vae: VAE, rows: Rows) -> list[Tensor]:
    """At most `_MOST_ROWS` rows and their conditions, evenly from the whole, since files may be sorted.

    Of rows in memory only those are converted. Of very many others they are taken as short runs, so that the rest need
    not be read.
    """
    most = max(32, min(_MOST_ROWS, _MOST_VALUES // math.prod(rows.row_shape)))
    if isinstance(rows, MemoryRows):
        return _evenly(vae, rows, most)
    if rows.count is not None and rows.count > _SOON_READ:
        runs = [next(iter(batches_for(vae, rows.part(i, _RUNS), max(1, most // _RUNS)))) for i in range(_RUNS)]
        return [torch.cat(parts) for parts in zip(*runs, strict=True)]
    kept: list[list[Tensor]] = []
    stride, seen, held = 1, 0, 0
    for batch in batches_for(vae, rows):
        start = -seen % stride
        kept.append([part[start::stride].clone() for part in batch])  # a batch's memory is used again for the next
        seen += len(batch[0])
        held += len(kept[-1][0])
        if held > 2 * most:  # rows 0, stride, 2·stride … are held: every other one of them stays
            kept = [[torch.cat(parts)[::2] for parts in zip(*kept, strict=True)]]
            stride, held = 2 * stride, len(kept[0][0])
    parts = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    step = -(-len(parts[0]) // most)
    return [part[::step] for part in parts]


def _evenly(vae: VAE, rows: MemoryRows, most: int) -> list[Tensor]:
    """The same rows as are kept of a stream that long."""
    stride = 1
    while rows.count > 2 * most * stride:
        stride *= 2
    few = rows.every(stride * math.ceil(math.ceil(rows.count / stride) / most))
    return [torch.cat(parts) for parts in zip(*batches_for(vae, few), strict=True)]


class _Sums:
    """What the batches gave, row by row."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.parts: list[tuple[Tensor, ...]] = []
        self.sampled: list[Tensor] = []
        self.at_mean: list[Tensor] = []
        self.kl: list[Tensor] = []
        self.squared_error = 0.0
        self.heard, self.followed = False, True
        self.positions = 1

    def hear(self, vae: VAE, x: Tensor, posterior: Posterior, prior: Tensor, condition: list[Tensor]) -> None:
        """What decoding the means costs, and whether decode gives something else for another z."""
        first, other = (vae.decode_parameters(z, *condition) for z in (posterior.mean, prior))
        self.at_mean.append(vae.likelihood.nats(x, first).double().cpu())
        self.heard |= bool((first - other).abs().amax() > _DEAF * first.abs().amax().clamp_min(1e-30))

    def add(self, vae: VAE, x: Tensor, posterior: Posterior, eps: Tensor, condition: list[Tensor]) -> None:
        """Antithetic draws: with eps and −eps what the linear part of g adds cancels."""
        mean, sigma = posterior.mean.detach(), torch.exp(0.5 * posterior.logvar.detach())
        pull = mean_pull = torch.zeros_like(mean)
        nats = torch.zeros(len(x), dtype=torch.float64)
        for noise in (eps, -eps):
            cost, gradient, output = _gradient(vae, x, mean + sigma * noise, condition, self.followed)
            nats += cost / 2
            error = (vae.likelihood.mean(output) - x).square().flatten(1).mean(1)
            self.squared_error += error.double().sum().item() / 2
            if gradient is None:
                self.followed = False
                continue
            pull = pull + sigma * noise * gradient / 2
            mean_pull = mean_pull - mean * gradient / 2
        parts = (pull, 1 - sigma.square(), mean_pull, mean.square())
        self.parts.append(tuple(part.double().flatten(2).sum(2) if part.dim() > 2 else part.double() for part in parts))
        self.positions = math.prod(mean.shape[2:])
        self.x.append(x.detach().flatten(1))
        self.sampled.append(nats)
        self.kl.append(posterior.kl().detach().double().flatten(1).sum(1).cpu())

    def result(self, likelihood: Likelihood) -> Symptoms:
        x, sampled, kl = torch.cat(self.x), torch.cat(self.sampled), torch.cat(self.kl)
        pull, deficit, mean_pull, mean_square = (torch.cat([p[i] for p in self.parts]).cpu() for i in range(4))
        constant, floor = _bounds(likelihood, x)
        cost = sampled + kl - constant
        return Symptoms(
            rows=len(x),
            pixels=x.shape[1],
            positions=self.positions,
            beta=effective_beta(pull, deficit, mean_pull, mean_square) if self.followed else None,
            sampled=sampled.mean().item(),
            at_mean=torch.cat(self.at_mean).mean().item(),
            constant=constant.mean().item(),
            floor=floor.mean().item(),
            cost=cost.mean().item(),
            cost_error=cost.std().item() / math.sqrt(len(cost)) if len(cost) > 1 else math.inf,
            leading_eigenvalue=_leading_eigenvalue(likelihood, x),
            squared_error=self.squared_error / len(x),
            heard=self.heard,
        )


def _gradient(
    vae: VAE, x: Tensor, z: Tensor, condition: list[Tensor], wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """−log p(x | z) of each row, its gradient by z (None if none flows), and what the decoder gave."""
    if wanted:
        try:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                output = vae.decode_parameters(leaf + 0, *condition)  # a leaf could not be changed in place
                nats = vae.likelihood.nats(x, output)
                gradient = torch.autograd.grad(nats.sum(), leaf, allow_unused=True)[0] if nats.requires_grad else None
            return nats.detach().double().cpu(), gradient, output.detach()
        except RuntimeError:  # autograd cannot go back through what is changed in place, or kept from inference mode
            return _gradient(vae, x, z, condition, wanted=False)
    with torch.no_grad():
        output = vae.decode_parameters(z.detach().clone(), *condition)
        return vae.likelihood.nats(x, output).double().cpu(), None, output


def _bounds(likelihood: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    """−log p of each row (N,) under the mean row, and under the row itself."""
    plain = Likelihood(likelihood.kind, "mean", likelihood.scale)
    bernoulli = likelihood.kind == "bernoulli"
    mean = x.double().mean(0, keepdim=True)
    mean = mean.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY) if bernoulli else mean
    return plain.nats(x.double(), mean.expand(x.shape)).cpu(), plain.nats(x.double(), x.double()).cpu()


def _leading_eigenvalue(likelihood: Likelihood, x: Tensor) -> float:
    """Largest eigenvalue of F^½ Cov F^½ with F the Fisher information of the mean parameter at the mean row.

    Found on every other row, and taken along that direction on the rest: not inflated by few rows.
    """
    mean = x.double().mean(0)
    spread = torch.full_like(mean, likelihood.scale**2)
    if likelihood.kind == "bernoulli":
        spread = mean * (1 - mean)
    centred = (x.double() - mean) / spread.clamp_min(1e-12).sqrt()
    centred = centred[:, spread > _LEAST_PROBABILITY]
    found, judged = centred[::2], centred[1::2]
    if not len(judged) or not centred.shape[1]:
        return 0.0
    direction = found.square().mean(0).sqrt() + 1e-9
    for _ in range(_POWER_STEPS):
        direction = direction / direction.norm()
        direction = found.T @ (found @ direction)
    norm = direction.norm()
    return (judged @ (direction / norm)).square().mean().item() if norm > 0 else 0.0
