"""What every weight reads while the model runs on real data: the range and mean of each input channel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.data import Rows
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.channels import Call, Side
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Watcher


@dataclass
class Range:
    """Smallest, largest and mean value of each channel (C,) over rows and positions, float64; `scale`: the largest
    absolute value of any channel."""

    low: Tensor
    high: Tensor
    total: Tensor
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self.total / max(self.count, 1)

    @property
    def scale(self) -> float:
        """0 where nothing but zeros was seen."""
        return float(torch.maximum(self.low.abs(), self.high.abs()).max())


@dataclass
class Ranges:
    """Ranges of what the calls of interest read, on `rows` rows; `largest_latent` is the largest |z| decoded."""

    rows: int = 0
    largest_latent: float = 0.0
    of: dict[Call, Range] = field(default_factory=dict)


def observe(
    subject: Subject,
    rows: Rows,
    calls: Collection[Call],
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Ranges:
    """Run all `rows` through encode, and through decode both a posterior and a prior sample of each, so that what is
    constant for reconstructions is constant for generated rows, too."""
    found = Ranges()
    encoding, decoding = _Watch("encode", calls, found), _Watch("decode", calls, found)
    for inputs in passes(subject.vae, rows, seed):
        posterior: Posterior = subject.run(partial(_encode, x=inputs.x), encoding)
        for z in inputs.latents(posterior):
            found.largest_latent = max(found.largest_latent, float(z.abs().max()))
            subject.run(partial(_decode, z=z, condition=inputs.x[1:]), decoding)
        found.rows += len(inputs.x[0])
        if on_batch:
            on_batch(len(inputs.x[0]))
    return found


@dataclass(frozen=True)
class Pass:
    """One batch x with its conditions, and two standard normal draws of the shape of z."""

    x: tuple[Tensor, ...]
    noise: Tensor
    prior: Tensor

    def latents(self, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """A sample of the posterior and one of the prior for each row."""
        return posterior.sample(self.noise), self.prior


def passes(
    vae: VAE, rows: Rows, seed: int, size: int | None = None, shape: tuple[int, ...] | None = None
) -> Iterator[Pass]:
    """Batches of `rows` with the noise that goes with them, the same in each pass; of `shape`, or of the latents'."""
    generator = torch.Generator().manual_seed(seed)
    for batch in batches_for(vae, rows, size):
        drawn = (len(batch[0]), *(shape or vae.latent_shape))
        noise, prior = (torch.randn(drawn, generator=generator).to(batch[0]) for _ in range(2))
        yield Pass(batch, noise, prior)


def _encode(vae: VAE, x: tuple[Tensor, ...]) -> Posterior:
    return vae.encode(*x)


def _decode(vae: VAE, z: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
    return vae.decode(z, *condition)


class _Watch(Watcher):
    def __init__(self, side: Side, calls: Collection[Call], found: Ranges) -> None:
        self._side, self._calls, self._found = side, calls, found

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Take in one batch of what a weight reads."""
        if (self._side, call) in self._calls:
            _take(self._found, (self._side, call), value.movedim(site.operand_dim, -1).flatten(0, -2))
        return value


def _take(found: Ranges, call: Call, values: Tensor) -> None:
    """values (rows and positions, C)."""
    low, high = (bound.double().cpu() for bound in torch.aminmax(values, dim=0))
    total = values.sum(0, dtype=torch.float64).cpu()
    known = found.of.get(call)
    if known is None:
        found.of[call] = Range(low, high, total, len(values))
        return
    known.low, known.high = torch.minimum(known.low, low), torch.maximum(known.high, high)
    known.total += total
    known.count += len(values)
