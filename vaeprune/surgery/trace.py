"""Which rows of which weights make latent i, and which columns of which weights read it? Run the model and see.

A NaN put somewhere shows everything that depends on it. Every other weight is given what it read in an undisturbed
run, so the NaN is seen only where it is reached directly. Some functions swallow a NaN, so each probe is repeated with
finite changes, and whatever those reach and the NaN did not makes the trace fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vaeprune.adapters import AdaptedVAE
from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.disturbing import Disturbed, Isolated, by_channel, differs, growth_of
from vaeprune.surgery.probe import Recorder, on_shared_weights
from vaeprune.surgery.sites import Passenger, Site
from vaeprune.surgery.undisturbed import Undisturbed, undisturbed

SWALLOWED = "but a NaN did not show that; a function on the way hides NaN"
FINITE_CHANGES = (1.37, -0.73)
_PROBE_BYTES = 1 << 29
_TENSORS_ALIVE = 6  # of the largest tensor's size, at the deepest point of a forward pass
_MOST_ROWS = 512


@dataclass(frozen=True)
class Reader:
    """A weight that reads latents directly; `columns` (D, input channels) says which latent reaches which."""

    site: Site
    columns: Tensor


@dataclass(frozen=True)
class Writer:
    """A weight whose output is a mean or logvar without another weight between.

    `rows` (output channels, D): which latents each channel makes. `also_read_by`: weights that read a channel too.
    """

    site: Site
    rows: Tensor
    also_read_by: dict[int, str]


@dataclass(frozen=True)
class Passed:
    """Per-channel parameters on a latent's way; `channels` (D, channels) says which latent passes which."""

    passenger: Passenger
    channels: Tensor


@dataclass(frozen=True)
class Trace:
    """Everything that makes and reads the latents of one model.

    `leaks` (D,): latents that reach the output without passing a weight. `mixers`: functions between the latents and
    what reads them that let every latent see the others.
    """

    readers: tuple[Reader, ...]
    writers: tuple[Writer, ...]
    passed: tuple[Passed, ...]
    latent_size: int
    leaks: Tensor
    mixers: tuple[str, ...] = ()


def trace(vae: VAE, example: Batch) -> Trace:
    """Follow every latent of `vae` on `example` rows (B, ...), B ≥ 1; the model stays as it is.

    Raises TraceError, naming the weight or latent, where something cannot be followed.
    """
    refuse_hidden_z(vae)
    return on_shared_weights(vae, example, lambda subject: follow(undisturbed(subject)))


def refuse_hidden_z(vae: VAE) -> None:
    """Raise TraceError for a model whose z cannot be given to it."""
    if isinstance(vae, AdaptedVAE) and vae.reading.decode is None:
        raise TraceError(
            f"{type(vae.network).__name__}: z is made and read inside forward, so what reads it cannot be followed",
            "give the model a method decode(z)",
        )


def follow(rest: Undisturbed) -> Trace:
    """Follow every latent from what was recorded. Raises TraceError as `trace` does."""
    readers, read_on_the_way, mixers, leaks = _readers(rest)
    writers, written_on_the_way = _writers(rest)
    return Trace(readers, writers, read_on_the_way + written_on_the_way, rest.subject.vae.latent_size, leaks, mixers)


def _readers(rest: Undisturbed) -> tuple[tuple[Reader, ...], tuple[Passed, ...], tuple[str, ...], Tensor]:
    subject, before = rest.subject, rest.decoding
    size = subject.vae.latent_size
    chunk = rows_at_once(before) if growth_of(subject, rest.decode, before).by_rows else 1
    reached: dict[int, Tensor] = {}
    passed: list[Passed] = []
    mixers: dict[str, Tensor] = {}
    leaks = torch.zeros(size, dtype=torch.bool)
    for start in range(0, size, chunk):
        rows = min(chunk, size - start)
        here = slice(start, start + rows)
        probe = Isolated(before, rows)
        output = subject.run(partial(rest.decode, rows=rows, start=start, change=float("nan")), probe)
        _refuse_unknown(probe, partial(_latent, start), torch.ones(rows, dtype=torch.bool))
        leaks[here] = differs(output, rest.output).flatten(1).any(1)
        for change in FINITE_CHANGES:
            finite = Isolated(before, rows)
            again = subject.run(partial(rest.decode, rows=rows, start=start, change=change), finite)
            leaks[here] |= differs(again, rest.output).flatten(1).any(1)
            for call, columns in finite.reached.items():
                _refuse_swallowed(columns & ~probe.reached[call], before.sites[call].key, start)
        for call, columns in probe.reached.items():
            reached.setdefault(call, columns.new_zeros(size, columns.shape[1]))[here] = columns
        for passenger, channels in probe.passengers:
            passed.append(Passed(passenger, channels.new_zeros(size, channels.shape[1])))
            passed[-1].channels[here] = channels
        mixers |= probe.mixers
    readers = tuple(Reader(before.sites[call], columns) for call, columns in reached.items() if columns.any())
    return readers, tuple(passed), tuple(mixers), leaks


def _latent(start: int, row: int) -> str:
    return f"latent {start + row}"


def _writers(rest: Undisturbed) -> tuple[tuple[Writer, ...], tuple[Passed, ...]]:
    subject, before = rest.subject, rest.encoding
    chunk = rows_at_once(before) if growth_of(subject, rest.encode, before).by_rows else 1
    writers: list[Writer] = []
    passed: list[Passed] = []
    calls = list(range(len(before.sites)))
    reaching: list[int] = []
    for start in range(0, len(calls), chunk):
        probe = _WriterProbe(rest, [(c, None) for c in calls[start : start + chunk]])
        reaching += [call for call, row in probe.reached_rows() if row.any()]
    for call in reaching:
        site = before.sites[call]
        channels = subject.weight(site.key).shape[site.output_axis]
        rows = torch.zeros(channels, subject.vae.latent_size, dtype=torch.bool)
        also_read: dict[int, str] = {}
        for start in range(0, channels, chunk):
            targets = [(call, c) for c in range(start, min(channels, start + chunk))]
            probe = _WriterProbe(rest, targets)
            for (_, row), channel in zip(probe.reached_rows(), range(start, channels), strict=False):
                rows[channel] = row
            also_read |= {start + r: key for r, key in probe.also_read().items()}
            passed += probe.passed()
        writers.append(Writer(site, rows, {c: key for c, key in also_read.items() if rows[c].any()}))
    return tuple(writers), tuple(passed)


def rows_at_once(before: Recorder) -> int:
    """How many rows of probes fit into memory together."""
    room = max((result.numel() * result.element_size() for result in before.results), default=1)
    return max(1, min(_MOST_ROWS, _PROBE_BYTES // (_TENSORS_ALIVE * room)))


class _WriterProbe:
    """One batch of probes of the encoder: row r disturbs one channel, or all, of what one call wrote."""

    def __init__(self, rest: Undisturbed, targets: Sequence[tuple[int, int | None]]) -> None:
        self._targets, self._sites = targets, rest.encoding.sites
        marks = _marks(rest.encoding, targets)

        def disturbed(change: float) -> tuple[Disturbed, Tensor]:
            probe = Disturbed(rest.encoding, len(targets), marks, change)
            moved = rest.subject.run(lambda vae: rest.encode(vae, len(targets)), probe)
            return probe, self._reach(moved, rest.posterior)

        self._probe, self.rows = disturbed(float("nan"))
        _refuse_unknown(self._probe, self._name, self.rows.any(1))  # elsewhere it does not concern the latents
        for change in FINITE_CHANGES:
            _, moved = disturbed(change)
            for row in torch.nonzero((moved & ~self.rows).any(1)).flatten().tolist():
                raise TraceError(f"{self._name(row)} changes a latent, {SWALLOWED}")

    def _reach(self, posterior: Posterior, at_rest: Posterior) -> Tensor:
        mean = by_channel(differs(posterior.mean, at_rest.mean), 1, len(self._targets))
        return mean | by_channel(differs(posterior.logvar, at_rest.logvar), 1, len(self._targets))

    def reached_rows(self) -> Iterator[tuple[int, Tensor]]:
        """(call, latents reached (D,)) of each row."""
        return zip((call for call, _ in self._targets), self.rows, strict=True)

    def also_read(self) -> dict[int, str]:
        """Row → key of a weight that reads the disturbed channel."""
        found = {}
        for call, reached in self._probe.reached.items():
            for row in torch.nonzero(reached.any(1)).flatten().tolist():
                found[row] = self._sites[call].key
        return found

    def passed(self) -> list[Passed]:
        """Per-channel parameters between the disturbed channels and the latents."""
        return [
            Passed(passenger, (self.rows.T[:, :, None] & channels[None]).any(1))
            for passenger, channels in self._probe.passengers
        ]

    def _name(self, row: int) -> str:
        call, channel = self._targets[row]
        key = self._sites[call].key
        return f"{key}: its output" if channel is None else f"{key}: output channel {channel}"


def _marks(before: Recorder, targets: Sequence[tuple[int, int | None]]) -> dict[int, Tensor]:
    marks: dict[int, Tensor] = {}
    for row, (call, channel) in enumerate(targets):
        if call not in marks:
            channels = before.results[call].shape[before.sites[call].result_dim]
            marks[call] = torch.zeros(len(targets), channels, dtype=torch.bool)
        marks[call][row, slice(None) if channel is None else channel] = True
    return marks


def _refuse_unknown(probe: Isolated, name: Callable[[int], str], concerned: Tensor) -> None:
    for what, rows in probe.unknowns:
        for row in torch.nonzero(rows & concerned).flatten().tolist():
            raise TraceError(f"{name(row)} goes through {what}, which mixes channels or is not understood")


def _refuse_swallowed(missed: Tensor, key: str, start: int) -> None:
    for row in torch.nonzero(missed.any(1)).flatten().tolist():
        raise TraceError(f"{key}: {_latent(start, row)} changes it, {SWALLOWED}")
