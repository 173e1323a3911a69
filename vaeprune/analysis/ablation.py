"""What the decoder does with a latent: set it to a constant, or feed it noise, and see what changes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune import ranks
from vaeprune.adapters import batches_for
from vaeprune.adapters.measuring import batch_rows
from vaeprune.analysis.latents import Interval, interval, quantile
from vaeprune.data import MemoryRows, Rows
from vaeprune.errors import DataError
from vaeprune.posterior import VAE

_MOST_ROWS = 256


@dataclass(frozen=True)
class Reaction:
    """Decoder's reaction to fixing a set of latents at their means.

    `cost`: mean change of −log p(x | z) on the mean path, in nats per row, with its 95% interval; positive = worse.
    `noise`: RMS change of the output when those latents are N(0, 1) noise instead, as a share of the output's range,
    with its interval.
    """

    cost: float
    cost_ci95: Interval
    noise: float
    noise_ci95: Interval


def reactions(
    vae: VAE,
    rows: Rows,
    constants: Tensor,
    sets: Sequence[Sequence[int]],
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[Reaction]:
    """The reaction to fixing each set of latents at `constants` (D,), over all `rows`.

    Call it inside `measuring(vae)`. One encoding serves all sets; decodings are batched across sets. Of several ranks
    each takes every so many batches, with the noise that one rank would give them; all get the same result. Raises
    DataError where the decoder, or the likelihood of what it gives, overflows.
    """
    if not sets:
        return []
    masks = torch.zeros(len(sets), len(constants), dtype=torch.bool)
    for mask, latents in zip(masks, sets, strict=True):
        mask[list(latents)] = True
    running = _Running(len(sets))
    generator = torch.Generator().manual_seed(seed)
    at_once = batch_rows(vae.input_shape)
    for number, (x, *condition) in enumerate(batches_for(vae, rows, size=min(_MOST_ROWS, at_once))):
        noise = [torch.randn(len(x), *vae.latent_shape, generator=generator) for _ in range(2)]
        if number % ranks.world() != ranks.rank():
            continue
        posterior = vae.encode(x, *condition)
        fixed = constants.to(posterior.mean).view(-1, *[1] * (posterior.mean.dim() - 2)).expand_as(posterior.mean)
        sampled, free = (drawn.to(posterior.mean) for drawn in noise)
        z = posterior.sample(sampled)
        whole = vae.decode_parameters(posterior.mean, *condition)
        base = vae.likelihood.nats(x, whole)
        running.see_range(vae.likelihood.mean(whole))
        for start, chunk in _chunks(masks, at_once // len(x)):
            repeat = len(chunk)
            mask = chunk.to(x.device)[:, None].view(repeat, 1, -1, *[1] * (z.dim() - 2))
            again = [c.repeat(repeat, *[1] * (c.dim() - 1)) for c in condition]

            def decoded(a: Tensor, b: Tensor, mask: Tensor = mask, again: list[Tensor] = again) -> Tensor:
                return vae.decode_parameters(torch.where(mask, a, b).flatten(0, 1), *again)

            ablated = vae.likelihood.nats(x.repeat(repeat, *[1] * (x.dim() - 1)), decoded(fixed, posterior.mean))
            still, noisy = (vae.likelihood.mean(decoded(a, z)) for a in (fixed, free))
            running.add(
                start,
                ablated.view(repeat, -1) - base,
                (noisy - still).flatten(1).square().mean(1).view(repeat, -1),
            )
        running.rows += len(x)
        if on_batch:
            on_batch(len(x))
    return functools.reduce(_Running.merge, ranks.gathered(running)).results()


def some_of(rows: MemoryRows, most: int, seed: int) -> MemoryRows:
    """At most `most` of the rows, drawn at random."""
    if rows.count <= most:
        return rows
    chosen = torch.randperm(rows.count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    span = rows.scaled_to or (0.0, 1.0)
    return MemoryRows(rows.name, *(tensor[chosen] for tensor in rows.tensors), span=span)


class _Running:
    """Means over rows and squared deviations of costs and of squared noise, merged by batch (Chan et al. 1983)."""

    def __init__(self, sets: int) -> None:
        self.rows = 0
        self.mean, self.squares = (torch.zeros(2, sets, dtype=torch.float64) for _ in range(2))
        self.low, self.high = math.inf, -math.inf

    def see_range(self, output: Tensor) -> None:
        self.low, self.high = min(self.low, output.amin().item()), max(self.high, output.amax().item())

    def add(self, start: int, cost: Tensor, noise: Tensor) -> None:
        """cost, noise: (sets, B) of the sets from `start` on."""
        found = torch.stack([cost.double().cpu(), noise.double().cpu()])
        here = slice(start, start + len(cost))
        n, m = self.rows, found.shape[2]
        mean = found.mean(2)
        delta = mean - self.mean[:, here]
        self.squares[:, here] += (found - mean[..., None]).square().sum(2) + delta.square() * n * m / (n + m)
        self.mean[:, here] += delta * m / (n + m)

    def merge(self, other: _Running) -> _Running:
        """Both together."""
        both = _Running(len(self.mean[0]))
        both.rows, both.low, both.high = self.rows + other.rows, min(self.low, other.low), max(self.high, other.high)
        share, delta = other.rows / max(both.rows, 1), other.mean - self.mean
        both.mean = self.mean + delta * share
        both.squares = self.squares + other.squares + delta.square() * (self.rows * share)
        return both

    def results(self) -> list[Reaction]:
        """Of each set. Raises DataError where a decoded value, or what it costs, was NaN or infinite."""
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.squares).all()):
            raise DataError(
                "decoder: its output, or the nats of a row, are NaN or infinite",
                "check the weights and the range of the data",
            )
        span = max(self.high - self.low, 1e-12)
        error = (self.squares / max(self.rows - 1, 1) / self.rows).sqrt()
        t = quantile(self.rows)
        found = []
        figures = torch.stack([self.mean[0], error[0], self.mean[1], error[1]]).T.tolist()
        for cost, cost_error, square, square_error in figures:
            low, high = (math.sqrt(s) / span for s in interval(square, square_error, least=0.0, quantile=t))
            found.append(Reaction(cost, interval(cost, cost_error, quantile=t), math.sqrt(square) / span, (low, high)))
        return found


def _chunks(masks: Tensor, most: int) -> Iterator[tuple[int, Tensor]]:
    step = max(1, most)
    for start in range(0, len(masks), step):
        yield start, masks[start : start + step]
