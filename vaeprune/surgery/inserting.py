"""From a trace to a widening: where new latents go in every weight that makes or reads latents.

New latents go behind the last one, in the pattern it has: where it takes one row of a head, each new one takes one;
where it takes a row in each half of a head, a column for every pixel of a map, or rows that alternate with others, so
do they. Whether a pattern was read rightly is tried: the wider model must compute the same for the old latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from vaeprune.adapters import element_type, measuring
from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.posterior import VAE
from vaeprune.storage import weights_sha256
from vaeprune.surgery.heads import Head, heads_of
from vaeprune.surgery.plan import Slice
from vaeprune.surgery.planning import refuse_inseparable, try_sample
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.same_function import refuse_deaf, refuse_other_latents, refuse_other_rows
from vaeprune.surgery.sizes import first_that_works, own_sizes, sizes_of_layers
from vaeprune.surgery.trace import Trace, trace
from vaeprune.surgery.widening import Widening, widen_any_weights

Pattern = Literal["runs", "roles", "entries", "mirrored"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
_ROWS_TO_TRY = 8
Where = tuple[str, int]  # state-dict key and axis


@dataclass(frozen=True)
class _Repeated:
    """An axis with the last latent's entries repeated; `new` (added, entries): their places in the wide axis."""

    kept: tuple[int, ...]
    size: int
    new: Tensor


def widening_for(vae: VAE, latent_size: int, rows: Batch, *, seed: int = 0) -> Widening:
    """The widening of `vae` to `latent_size` latents that leaves what it computes as it is.

    What reads the new latents is 0. Their means are directions of the head's input in which `rows` (B, ...) vary and
    which no old mean shows, scaled to variance 1; their spread is that of the most certain old latent. Raises
    TraceError, naming the place, where the model cannot be followed or holds its latent size in its code.
    """
    added = latent_size - vae.latent_size
    traced = trace(vae, rows)
    subject = Subject(vae, rows)
    heads = heads_of(subject, traced)
    _refuse(traced)
    failures: list[TraceError] = []
    for pattern in PATTERNS:
        try:
            return _widening(vae, subject, traced, heads, added, pattern, seed)
        except TraceError as error:  # noqa: PERF203  four patterns, each a run of the model
            failures.append(error)
    raise failures[0]


def _refuse(traced: Trace) -> None:
    """Raise TraceError where a new latent could have no row, column or entry of its own."""
    leaking = torch.nonzero(traced.leaks).flatten().tolist()
    if leaking:
        raise TraceError(
            f"decoder: latent {leaking[0]} reaches the output without passing a weight that could be widened"
        )
    if not traced.readers:
        raise TraceError("decoder: no weight was found that reads a latent")
    try:
        refuse_inseparable(traced, [traced.latent_size - 1])
    except TraceError as error:
        raise TraceError(error.message) from error  # its hint is about what to keep


def _widening(
    vae: VAE, subject: Subject, traced: Trace, heads: tuple[Head, ...], added: int, pattern: Pattern, seed: int
) -> Widening:
    axes = _axes(subject, traced, heads, added, pattern)
    read = {(r.site.key, r.site.input_axis) for r in traced.readers}
    slices = tuple(
        Slice(name, axis, repeated.size, repeated.kept)
        for (key, axis), repeated in axes.items()
        for name in subject.names(key)
    )
    values = _values(subject, traced, heads, axes, read, seed)
    made = Widening(
        weights_sha256=weights_sha256(vae.network.state_dict()),
        latent_size=vae.latent_size,
        added=added,
        slices=slices,
        values={name: value for key, value in values.items() for name in subject.names(key)},
        made_plain=subject.plain,
    )
    return replace(made, attributes=_sizes(vae, subject, made, read, axes))


def _axes(
    subject: Subject, traced: Trace, heads: tuple[Head, ...], added: int, pattern: Pattern
) -> dict[Where, _Repeated]:
    """Every axis that gets new entries."""
    last = traced.latent_size - 1
    axes: dict[Where, _Repeated] = {}

    def repeat(where: Where, entries: Tensor, roles: Tensor | None = None) -> None:
        size = subject.weight(where[0]).shape[where[1]]
        found = _repeated(torch.nonzero(entries).flatten(), size, added, pattern, roles)
        if where in axes and axes[where].kept != found.kept:
            raise TraceError(f"{where[0]}: is used several times, by different latents each time")
        axes[where] = found

    for reader in traced.readers:
        repeat((reader.site.key, reader.site.input_axis), reader.columns[last])
    for head in heads:
        site = head.writer.site
        repeat((site.key, site.output_axis), head.writer.rows[:, last], head.spread[:, last])
        if site.bias_unknown:
            raise TraceError(f"{site.key}: its bias is computed, not a parameter, and cannot be widened")
        if site.bias is not None:
            repeat((site.bias, 0), head.writer.rows[:, last], head.spread[:, last])
    for key, axis, channels in _passed(traced):
        repeat((key, axis), channels[last])
    return axes


def _passed(traced: Trace) -> Iterator[tuple[str, int, Tensor]]:
    """Per-channel parameters on the way of latents: key, axis and (D, channels) of all that passes them."""
    united: dict[Where, Tensor] = {}
    for passed in traced.passed:
        for where in passed.passenger.axes.items():
            united[where] = united.get(where, torch.zeros_like(passed.channels)) | passed.channels
    for (key, axis), channels in united.items():
        yield key, axis, channels


def _repeated(entries: Tensor, size: int, added: int, pattern: Pattern, roles: Tensor | None) -> _Repeated:
    """After each run of entries that belong together, `added` copies of it.

    Together are neighbours ("runs"), neighbours of one role ("roles"), or none ("entries"). Where spreads stand in the
    opposite order their copies come before them ("mirrored").
    """
    runs: list[list[int]] = []
    for entry in entries.tolist():
        follows = bool(runs) and runs[-1][-1] == entry - 1 and pattern != "entries"
        if follows and pattern != "runs" and roles is not None:
            follows = bool(roles[entry] == roles[entry - 1])
        if follows:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    before = [bool(pattern == "mirrored" and roles is not None and roles[run[0]]) for run in runs]
    starts = {run[0]: run for run, first in zip(runs, before, strict=True) if first}
    ends = {run[-1]: run for run, first in zip(runs, before, strict=True) if not first}
    kept: list[int] = []
    new: list[list[int]] = [[] for _ in range(added)]
    place = 0
    for entry in range(size):
        for copy in reversed(new):
            copy += range(place, place + len(starts.get(entry, ())))
            place += len(starts.get(entry, ()))
        kept.append(place)
        place += 1
        for copy in new:
            copy += range(place, place + len(ends.get(entry, ())))
            place += len(ends.get(entry, ()))
    return _Repeated(tuple(kept), place, torch.tensor(new))


def _values(
    subject: Subject,
    traced: Trace,
    heads: tuple[Head, ...],
    axes: Mapping[Where, _Repeated],
    read: set[Where],
    seed: int,
) -> dict[str, Tensor]:
    """What new entries hold, per tensor in its wider shape; readers' are 0 and so not named."""
    like = _most_certain(subject, traced, heads)
    last = traced.latent_size - 1
    values: dict[str, Tensor] = {}
    for head in heads:
        site = head.writer.site
        repeated = axes[site.key, site.output_axis]
        if any(key == site.key for key, _ in read):
            continue  # the decoder reads by the very weights that the encoder writes by
        rows, offsets = head.new_rows(last, like, len(repeated.new), seed)
        wide = _blank(subject, site.key, axes)
        wide.movedim(site.output_axis, 0)[repeated.new.flatten()] = rows
        values[site.key] = wide
        if site.bias is not None:
            values[site.bias] = _blank(subject, site.bias, axes)
            values[site.bias][repeated.new.flatten()] = offsets
    for key, axis, channels in _passed(traced):
        tensor = subject.weight(key).double()
        entries = torch.nonzero(channels[like if channels[like].sum() == channels[last].sum() else last]).flatten()
        wide = _blank(subject, key, axes)
        new = axes[key, axis].new
        wide.movedim(axis, 0)[new.flatten()] = tensor.movedim(axis, 0)[entries.repeat(len(new))]
        values[key] = wide
    return values


def _blank(subject: Subject, key: str, axes: Mapping[Where, _Repeated]) -> Tensor:
    shape = [axes[key, a].size if (key, a) in axes else n for a, n in enumerate(subject.weight(key).shape)]
    return torch.zeros(shape, dtype=torch.float64)


def _most_certain(subject: Subject, traced: Trace, heads: tuple[Head, ...]) -> int:
    """The latent of least mean logvar among those with as many rows as the last; its spread is what new ones get."""
    with torch.no_grad():
        logvar = subject.vae.encode(*subject.example).logvar
    order = logvar.movedim(1, -1).flatten(0, -2).mean(0).argsort().tolist()
    last = traced.latent_size - 1

    def alike(latent: int) -> bool:
        return all(torch.equal(h.spread[:, latent].sum(), h.spread[:, last].sum()) for h in heads)

    return next(int(latent) for latent in (*order, last) if alike(int(latent)))


def _sizes(
    vae: VAE, subject: Subject, made: Widening, read: set[Where], axes: Mapping[Where, _Repeated]
) -> dict[str, int]:
    """Every integer to set, tried on the wider model: it must compute the same, and could hear each new latent."""
    network, size = vae.network, made.latent_size + made.added
    layers = sizes_of_layers(network, {(s.key, s.axis): s.size for s in made.slices})
    dtype = element_type(vae)[0]
    few = tuple(part[:_ROWS_TO_TRY] for part in subject.example)
    example = tuple(part.to(dtype) if part.is_floating_point() else part for part in few)
    other = _other_values(subject, made, read, axes)

    def check(own: dict[str, int]) -> None:
        candidate = replace(made, attributes=layers | own)
        wider = widen_any_weights(vae, candidate)
        hearing = widen_any_weights(vae, replace(candidate, values=other))
        with measuring(vae, wider, hearing):
            refuse_other_latents(vae, wider, example)
            refuse_other_latents(vae, hearing, example)
            refuse_other_rows(vae, wider, example)
            refuse_deaf(hearing, example, made.new_latents)
            try_sample(network, wider.network)

    return layers | first_that_works(own_sizes(network, made.latent_size, size, layers), check, "widening")


def _other_values(
    subject: Subject, made: Widening, read: set[Where], axes: Mapping[Where, _Repeated]
) -> dict[str, Tensor]:
    """Values that differ from the plan's in every new entry; the old latents must come out the same, whatever they are.

    Otherwise a new row that is a copy of an old one could stand in its place unnoticed.
    """
    generator = torch.Generator().manual_seed(1)
    other: dict[str, Tensor] = {}
    for _, names in subject.aliases:
        if names[0] in made.values:
            value = made.values[names[0]]
            change = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            other |= dict.fromkeys(names, value * (1 + 0.1 * change) + 0.01 * change)
    for key, axis in read:
        wide = _blank(subject, key, axes)
        wide.movedim(axis, 0)[axes[key, axis].new.flatten()] = 1.0
        other |= dict.fromkeys(subject.names(key), wide)
    return other
