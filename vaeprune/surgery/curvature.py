"""What a change costs: second moments of what each weight reads, and the Fisher information of what it writes.

The loss rises by ½ E[δᵀFδ] where a weight's output is off by δ. F is sampled: the gradient of the likelihood's and the
KL's own curvature along random signs, so that its square has F as its mean (a Gauss-Newton matrix, no labels needed).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.channels import Call, Side
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.regression import MOST_FEATURES, Places, features
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Run, Watcher

DRAWS = 4
_PRIOR_SHARE = 4  # one prior row to so many posterior rows: generated rows must stay right, too
_MOST_PLACES = 20_000
_CHUNK_BYTES = 1 << 28
_ALIVE = 8  # tensors of the largest size that a backward pass keeps


@dataclass
class Moments:
    """What one call reads and writes, at a choice of places of each row.

    `gram` (M, M) and `total` (M,): sums over `count` places of x xᵀ and x, float64; None where M is too large.
    `fisher` (O, O): sum over all places of a row of g gᵀ, mean over rows, float64. `squares` (n, O): g² at the chosen
    places. `places`: how many places the result has; `taps`: of the kernel. `by_taps`: whether M counts each channel
    under each tap; where that would be too many, M counts channels, seen at places of the operand.
    """

    places: int
    taps: int
    fisher: Tensor
    gram: Tensor | None
    total: Tensor
    by_taps: bool = True
    count: int = 0
    squares: list[Tensor] = field(default_factory=list)

    def covariance(self) -> Tensor | None:
        """Centred second moments of what is read (M, M)."""
        if self.gram is None:
            return None
        mean = self.total / self.count
        return self.gram / self.count - torch.outer(mean, mean)


@dataclass(frozen=True)
class FitRows:
    """The rows that costs and fits are computed on: x with conditions, and the z that the decoder reads, in chunks.

    `latents`: per chunk the posterior's samples, then a share of prior samples, with the conditions that go with them.
    """

    chunks: tuple[Batch, ...]
    noise: tuple[Tensor, ...]
    latents: tuple[Batch, ...]

    @property
    def rows(self) -> dict[Side, int]:
        """How many rows each run has."""
        return {
            "encode": sum(len(chunk[0]) for chunk in self.chunks),
            "decode": sum(len(chunk[0]) for chunk in self.latents),
        }

    def all(self, side: Side) -> Batch:
        """All inputs of a run in one batch."""
        return tuple(
            torch.cat(parts) for parts in zip(*(self.chunks if side == "encode" else self.latents), strict=True)
        )


def fit_rows(subject: Subject, batches: Iterator[Batch], most: int, row_bytes: int, seed: int) -> FitRows:
    """Up to `most` rows of `batches`; `row_bytes`: of the largest tensor that one row makes on its way."""
    size = max(1, min(most, _CHUNK_BYTES // (_ALIVE * row_bytes)))
    generator = torch.Generator().manual_seed(seed)
    chunks: list[Batch] = []
    noise: list[Tensor] = []
    latents: list[Batch] = []
    left = most
    for batch in batches:
        wanted = tuple(part[:left] for part in batch)
        for start in range(0, len(wanted[0]), size):
            chunk = tuple(part[start : start + size].clone() for part in wanted)
            shape = (len(chunk[0]), *subject.vae.latent_shape)
            draw, prior = (torch.randn(shape, generator=generator).to(chunk[0]) for _ in range(2))
            share = math.ceil(len(chunk[0]) / _PRIOR_SHARE)
            with torch.no_grad():
                posterior: Posterior = subject.vae.encode(*chunk)
            z = torch.cat([posterior.sample(draw), prior[:share]])
            chunks.append(chunk)
            noise.append(draw)
            latents.append((z, *(torch.cat([part, part[:share]]) for part in chunk[1:])))
            left -= len(chunk[0])
        if left <= 0:
            break
    return FitRows(tuple(chunks), tuple(noise), tuple(latents))


def measure(subject: Subject, fit: FitRows, calls: Collection[Call], seed: int = 0) -> dict[Call, Moments]:
    """The moments of all `calls`, from DRAWS gradients of every row."""
    found: dict[Call, Moments] = {}
    generator = torch.Generator().manual_seed(seed)
    starts: dict[Side, int] = {"encode": 0, "decode": 0}
    for chunk, noise, latents in zip(fit.chunks, fit.noise, fit.latents, strict=True):
        watches: dict[Side, _Gradients] = {
            "encode": _Gradients("encode", calls, found, fit.rows["encode"], starts["encode"], len(chunk[0])),
            "decode": _Gradients("decode", calls, found, fit.rows["decode"], starts["decode"], len(latents[0])),
        }
        posterior: Posterior = subject.run(partial(_encode, x=chunk), watches["encode"], gradients=True)
        z = torch.cat([posterior.sample(noise), latents[0][len(noise) :]])
        parameters = subject.run(partial(_decode, z=(z, *latents[1:])), watches["decode"], gradients=True)
        for draw in range(DRAWS):
            curved = _curved(subject.vae, posterior, parameters, generator)
            curved.backward(retain_graph=draw < DRAWS - 1)  # type: ignore[no-untyped-call]
            for watch in watches.values():
                watch.add_gradients()
        for side, watch in watches.items():
            watch.finish()
            starts[side] += watch.rows
    rows = fit.rows
    for (side, _), moments in found.items():
        moments.fisher /= rows[side] * DRAWS
    return found


def _encode(vae: VAE, x: Batch) -> Posterior:
    return vae.encode(*x)


def _decode(vae: VAE, z: Batch) -> Tensor:
    return vae.decode_parameters(*z)


def _curved(vae: VAE, posterior: Posterior, parameters: Tensor, generator: torch.Generator) -> Tensor:
    """A sum whose gradient is the square root of the loss's curvature along random signs."""

    def signs(like: Tensor) -> Tensor:
        return (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like)

    with torch.no_grad():
        root = vae.likelihood.curvature(parameters).sqrt()
        spread = (
            0.5 * posterior.logvar.exp()
        ).sqrt()  # the KL's second derivative by logvar is sigma²/2, by the mean 1
        weights = [s * signs(s) for s in (root, torch.ones_like(posterior.mean), spread)]
    tensors = (parameters, posterior.mean, posterior.logvar)
    return torch.stack([(w * t).sum() for w, t in zip(weights, tensors, strict=True)]).sum()


class _Gradients(Watcher):
    """Takes in what calls read, and the gradients of what they write."""

    def __init__(
        self, side: Side, calls: Collection[Call], found: dict[Call, Moments], all_rows: int, start: int, rows: int
    ) -> None:
        self._side, self._calls, self._found = side, calls, found
        self._all_rows, self._start, self.rows = all_rows, start, rows
        self._at: dict[int, tuple[Site, Places]] = {}
        self._gradients: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """Note moments of the operand; hand on a copy of the result, so that it may be changed in place."""
        result = run()
        if not result.requires_grad:
            result.requires_grad_(True)
        if (self._side, call) in self._calls:
            self._read(call, site, run, result)
            result.register_hook(partial(self._gradients.__setitem__, call))  # type: ignore[no-untyped-call]
        return result.clone()

    def _read(self, call: int, site: Site, run: Run, result: Tensor) -> None:
        places = result.numel() // (len(result) * result.shape[site.result_dim])
        chosen = Places.of(self._all_rows, places, _MOST_PLACES, call)
        self._at[call] = (site, chosen)
        with torch.no_grad():
            taps = run.argument(site.weight)[0, 0].numel() if site.spatial else 1
            channels = run.operand.shape[site.operand_dim]
            by_taps = channels * taps <= MOST_FEATURES
            size = channels * taps if by_taps else channels
            moments = self._found.get((self._side, call))
            if moments is None:
                outputs = result.shape[site.result_dim]
                zeros = torch.zeros(outputs, outputs, dtype=torch.float64)
                matrix = None if size > MOST_FEATURES else torch.zeros(size, size, dtype=torch.float64)
                total = torch.zeros(size, dtype=torch.float64)
                moments = Moments(places, taps, zeros, matrix, total, by_taps)
                self._found[self._side, call] = moments
            if moments.gram is None:
                return
            operand = run.operand.detach()
            if by_taps:
                x = features(run, operand, _part(chosen, self._start, self.rows))
            else:
                seen = operand.numel() // (len(operand) * channels)
                x = Places.of(self.rows, seen, _MOST_PLACES * self.rows // self._all_rows, call).take(
                    operand, site.operand_dim
                )
            x = x.double().cpu()
            moments.gram += x.T @ x
            moments.total += x.sum(0)
            moments.count += len(x)

    def add_gradients(self) -> None:
        """After one backward pass."""
        for call, gradient in self._gradients.items():
            site, chosen = self._at[call]
            g = gradient.detach().movedim(site.result_dim, -1).flatten(0, -2).double()
            self._found[self._side, call].fisher += (g.T @ g).cpu()
            squares = _part(chosen, self._start, self.rows).take(gradient.detach(), site.result_dim).square()
            self._squares[call] = self._squares[call] + squares if call in self._squares else squares
        self._gradients.clear()

    def finish(self) -> None:
        """After the last backward pass of a batch."""
        for call, squares in self._squares.items():
            self._found[self._side, call].squares.append(squares / DRAWS)


def _part(places: Places, start: int, rows: int) -> Places:
    return places if places.chosen is None else Places(places.chosen[start : start + rows])
