"""The weights that make means and logvars: which of their rows is which, and rows for latents that are to be added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.posterior import Posterior
from vaeprune.surgery.disturbing import Disturbed, by_channel, differs
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Site
from vaeprune.surgery.trace import Trace, Writer, rows_at_once
from vaeprune.surgery.watching import Run, Watcher

_MOST_CANDIDATES = 128
_MOST_SAMPLES = 20_000
_NOTHING = 1e-10  # share of the largest variance below which a direction says nothing


@dataclass(frozen=True, eq=False)
class Head:
    """A weight that makes latents. `spread` (output channels, D): the rows that make logvars; the rest make means."""

    writer: Writer
    spread: Tensor
    weight: Tensor
    bias: Tensor | None
    run: Run

    def new_rows(self, last: int, like: int, added: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows and biases, float64, for `added` latents with as many entries each as latent `last`, in their order.

        Rows of a mean are new directions of what the head reads; rows of a spread are copies of those of `like`.
        """
        entries = torch.nonzero(self.writer.rows[:, last]).flatten().tolist()
        means = [e for e in entries if not self.spread[e, last]]
        directions, offsets = self._directions(added * len(means), seed)
        copied = iter(torch.nonzero(self.spread[:, like]).flatten().repeat(added).tolist())
        fresh = iter(range(len(directions)))
        weight = self.weight.double().movedim(self.writer.site.output_axis, 0)
        bias = self.bias.double() if self.bias is not None else torch.zeros(len(weight), dtype=torch.float64)
        rows, biases = [], []
        for entry in entries * added:
            source = next(copied) if self.spread[entry, last] else None
            place = next(fresh) if source is None else 0
            rows.append(directions[place] if source is None else weight[source])
            biases.append(offsets[place] if source is None else bias[source])
        return torch.stack(rows), torch.stack(biases)

    def _directions(self, wanted: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows (wanted, ...) whose outputs are uncorrelated with the old means and have mean 0 and variance 1.

        The principal ones among all combinations of up to 128 random rows; where they run out, random combinations.
        """
        site = self.writer.site
        shape = self.weight.movedim(site.output_axis, 0)[0].shape
        generator = torch.Generator().manual_seed(seed)
        many = min(shape.numel(), _MOST_CANDIDATES)
        random = torch.randn(shape.numel(), many, generator=generator, dtype=torch.float64)
        candidates = torch.linalg.qr(random)[0].T.reshape(many, *shape)
        seen = self._outputs(candidates)
        centre = seen.mean(0)
        mixes = _uncorrelated(seen - centre, self._old_means(), wanted)
        if len(mixes) < wanted:
            more = torch.randn(wanted - len(mixes), many, generator=generator, dtype=torch.float64)
            size = ((seen - centre) @ more.T).square().mean(0).sqrt()[:, None]
            mixes = torch.cat([mixes, torch.where(size > 0, more / size.clamp_min(1e-300), more)])
        return torch.tensordot(mixes, candidates, 1), -(mixes @ centre) * (self.bias is not None)

    def _outputs(self, rows: Tensor) -> Tensor:
        """What rows (K, ...) would write, (samples, K); of a map every position is a sample."""
        site = self.writer.site
        weight = rows.movedim(0, site.output_axis).to(self.weight)
        bias = None if site.bias_place is None else weight.new_zeros(len(rows))
        with torch.no_grad():
            return _samples(self.run(weight=weight, bias=bias), site)

    def _old_means(self) -> Tensor:
        """(samples, rows) of the rows that make means."""
        old = (self.writer.rows & ~self.spread).any(1)
        with torch.no_grad():
            found = _samples(self.run(), self.writer.site)[:, old]
        return found - found.mean(0)


class _Runs(Watcher):
    """Keeps the first call of every site."""

    def __init__(self) -> None:
        self.first: dict[str, Run] = {}

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """Note the call, with a copy of its operand: the model may go on to change that in place."""
        if site.key not in self.first:
            run.replace(site.operand, run.operand.clone())
            self.first[site.key] = run
        return run()


def heads_of(subject: Subject, traced: Trace) -> tuple[Head, ...]:
    """Every weight that makes latents, with its call on the subject's example rows.

    Raises TraceError where a row makes the mean and the logvar of one latent.
    """
    runs = _Runs()
    _encoded(subject, subject.example, runs)
    heads = []
    for writer, spread in zip(traced.writers, _spreads(subject, traced.writers), strict=True):
        bias = None if writer.site.bias is None else subject.weight(writer.site.bias)
        heads.append(Head(writer, spread, subject.weight(writer.site.key), bias, runs.first[writer.site.key]))
    return tuple(heads)


def _spreads(subject: Subject, writers: Sequence[Writer]) -> list[Tensor]:
    """For each writer, which rows reach a logvar (output channels, D)."""
    example = tuple(part[:1] for part in subject.example)
    before = Recorder()
    at_rest = _encoded(subject, example, before)
    chunk = rows_at_once(before)
    found = []
    for writer in writers:
        calls = [call for call, site in enumerate(before.sites) if site == writer.site]
        spread = torch.zeros_like(writer.rows)
        for channels in torch.split(torch.nonzero(writer.rows.any(1)).flatten(), chunk):
            marks = torch.zeros(len(channels), len(writer.rows), dtype=torch.bool)
            marks[torch.arange(len(channels)), channels] = True
            probe = Disturbed(before, len(channels), dict.fromkeys(calls, marks), float("nan"))
            batch = tuple(part.expand(len(channels), *part.shape[1:]).clone() for part in example)
            moved = _encoded(subject, batch, probe)
            mean = by_channel(differs(moved.mean, at_rest.mean), 1, len(channels))
            logvar = by_channel(differs(moved.logvar, at_rest.logvar), 1, len(channels))
            for row in torch.nonzero((mean & logvar).any(1)).flatten().tolist():
                raise TraceError(
                    f"{writer.site.key}: row {int(channels[row])} makes both the mean and the spread of a latent"
                )
            spread[channels] = logvar
        found.append(spread)
    return found


def _encoded(subject: Subject, batch: Batch, watcher: Watcher) -> Posterior:
    found: Posterior = subject.run(lambda vae: vae.encode(*batch), watcher)
    return found


def _samples(result: Tensor, site: Site) -> Tensor:
    """(samples, channels), at most 20,000 of them."""
    samples = result.movedim(site.result_dim, -1).flatten(0, -2).double()
    return samples[:: max(1, len(samples) // _MOST_SAMPLES)]


def _uncorrelated(outputs: Tensor, old: Tensor, wanted: int) -> Tensor:
    """Up to `wanted` mixes (n, K) of centred outputs (samples, K) that no old mean shows, the most varied first."""
    across = outputs.T @ old / len(outputs)
    basis, sizes, _ = torch.linalg.svd(across)
    rank = int((sizes > _NOTHING * sizes.max().clamp_min(1e-300)).sum()) if len(sizes) else 0
    free = basis[:, rank:]
    values, vectors = torch.linalg.eigh(free.T @ (outputs.T @ outputs / len(outputs)) @ free)
    order = values.argsort(descending=True)[:wanted]
    total = outputs.square().mean(0).sum()
    order = order[values[order] > _NOTHING * total]
    mixes: Tensor = (free @ vectors[:, order] / values[order].sqrt()).T
    return mixes
