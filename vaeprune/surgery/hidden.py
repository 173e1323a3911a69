"""Scope `network`: hidden channels that every reader sees as a constant go, and so do those that nothing reads.

What is constant is seen at the readers' inputs, on every calibration row and, in the decoder, on samples of the
posterior and of the prior; so one rule covers units that never fire, saturated units, and units behind a function that
hides them. Interval bounds over the input's declared range and over a stated range of z prove some of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.data import Batch, DataSets
from vaeprune.errors import TraceError
from vaeprune.posterior import VAE
from vaeprune.surgery.assembling import Assembler, Chosen, left_of
from vaeprune.surgery.channels import Axis, Call, Channels, Group, hidden_channels
from vaeprune.surgery.observing import Ranges, observe
from vaeprune.surgery.plan import Left, Plan
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.proofs import Proofs, prove

_EXAMPLE_ROWS = 2
_ROUNDING = 1e-6  # of the largest value that a weight reads: float32 carries seven digits


@dataclass(frozen=True)
class Hidden:
    """The traced hidden channels of a model, which of them can be taken out, and what they do on the data.

    `layers`: groups that can go, those together that are read together. `left`: groups that have to stay, and why.
    """

    vae: VAE
    subject: Subject
    channels: Channels
    assembler: Assembler
    layers: tuple[tuple[Group, ...], ...]
    left: tuple[Left, ...]
    ranges: Ranges
    proofs: Proofs


def examine(vae: VAE, sets: DataSets, on_batch: Callable[[int], None] | None = None) -> Hidden:
    """Trace the hidden channels of `vae` and watch them on all calibration rows; `vae` stays as it is.

    Raises TraceError only where the model cannot be run as the trace needs it.
    """
    example: Batch = next(iter(batches_for(vae, sets.select, _EXAMPLE_ROWS)))
    subject = Subject(vae, example)
    channels = hidden_channels(subject)
    native = Subject(vae, double=False)
    calls = {call for group in channels.groups if group.obstacle is None for call in group.reads}
    ranges = observe(native, sets.calibrate, calls, sets.seed, on_batch)
    proofs = prove(subject, sets, ranges.largest_latent)
    data = sets.describe() | {"calibrate_rows": ranges.rows} | proofs.describe()
    assembler = Assembler(vae, subject, channels, example, data)
    layers, held_up = [], [(g, f"{g.obstacle}") for g in channels.groups if g.obstacle is not None]
    for layer, why in assembler.tried(channels.layers()):
        if why is None:
            layers.append(tuple(layer))
        else:
            held_up += [(group, why) for group in layer]
    return Hidden(vae, subject, channels, assembler, tuple(layers), left_of(channels, held_up), ranges, proofs)


def constant_channels(hidden: Hidden) -> tuple[list[Chosen], tuple[Left, ...]]:
    """The groups that can go without changing anything, and those that are constant but have to stay, with reasons."""
    chosen: list[Chosen] = []
    left: list[tuple[Group, str]] = []
    for group in (group for layer in hidden.layers for group in layer):
        choice = _unread(hidden, group) or _constant(hidden, group)
        if isinstance(choice, str):
            left.append((group, choice))
        elif choice is not None:
            chosen.append(choice)
    chosen, spared = _sparing(hidden, chosen)
    left += [(choice.group, "at least one channel must stay") for choice in spared]
    return _with_unread(hidden, chosen), left_of(hidden.channels, left)


def plan_network(hidden: Hidden) -> Plan | None:
    """The plan of scope `network`, None if no hidden channel can go."""
    chosen, more_left = constant_channels(hidden)
    return fitting_plan(hidden, chosen, more_left) if chosen else None


def fitting_plan(hidden: Hidden, chosen: Sequence[Chosen], more_left: tuple[Left, ...]) -> Plan | None:
    """The plan for all of `chosen`; if the model does not run so, for as many layers as it does run with."""
    assembler, left = hidden.assembler, (*hidden.left, *more_left)
    made = assembler.plan(chosen, "network", left)
    if assembler.fits(made) is None:
        return made
    kept: list[Chosen] = []
    for layer in hidden.layers:
        members = {id(group) for group in layer}
        more = [choice for choice in chosen if id(choice.group) in members]
        if not more:
            continue
        why = assembler.fits(assembler.plan([*kept, *more], "network"))
        if why is None:
            kept += more
        else:
            left += left_of(hidden.channels, [(choice.group, why) for choice in more])
    return assembler.plan(kept, "network", left) if kept else None


def _unread(hidden: Hidden, group: Group, gone: Mapping[Axis, Tensor] | None = None) -> Chosen | None:
    """The group if all weights that read it are 0 in the rows that stay."""
    for call, columns in group.reads.items():
        site = hidden.channels.site(call)
        weight = _columns(hidden, call, columns)
        where = (site.key, site.output_axis)
        if gone and where in gone:
            weight = weight[~gone[where]]
        if weight.any():
            return None
    return Chosen(group, "unread", "proved")


def _columns(hidden: Hidden, call: Call, columns: Sequence[int]) -> Tensor:
    """What the weight of a call does with some of its input channels (outputs, columns, *kernel)."""
    site = hidden.channels.site(call)
    weight = hidden.subject.weight(site.key).movedim((site.output_axis, site.input_axis), (0, 1))
    return weight[:, list(columns)]


def _sparing(
    hidden: Hidden, wanted: Sequence[Chosen], chosen: Sequence[Chosen] = ()
) -> tuple[list[Chosen], list[Chosen]]:
    """Those of `wanted` that can go besides `chosen` without any tensor losing all its channels, and the others."""
    staying = _staying(hidden, [*chosen, *wanted])
    going: list[Chosen] = []
    spared: list[Chosen] = []
    for choice in reversed(wanted):
        entries = choice.group.entries
        if all(staying[axis].any() for axis in entries):
            going.insert(0, choice)
            continue
        spared.insert(0, choice)
        for axis, indices in entries.items():
            staying[axis][list(indices)] = True
    return going, spared


def _staying(hidden: Hidden, chosen: Sequence[Chosen]) -> dict[Axis, Tensor]:
    """Of each tensor axis that loses channels, which ones stay."""
    staying: dict[Axis, Tensor] = {}
    for choice in chosen:
        for (key, axis), indices in choice.group.entries.items():
            size = hidden.subject.weight(key).shape[axis]
            staying.setdefault((key, axis), torch.ones(size, dtype=torch.bool))[list(indices)] = False
    return staying


def _with_unread(hidden: Hidden, chosen: list[Chosen]) -> list[Chosen]:
    """Add what served only channels that go, and what served only that, until nothing more is found."""
    while True:
        taken = {id(choice.group) for choice in chosen}
        gone = {axis: ~stays for axis, stays in _staying(hidden, chosen).items()}
        rest = [group for layer in hidden.layers for group in layer if id(group) not in taken]
        found = [choice for group in rest if (choice := _unread(hidden, group, gone))]
        more, _ = _sparing(hidden, found, chosen)
        if not more:
            return chosen
        chosen = chosen + more


def _constant(hidden: Hidden, group: Group) -> Chosen | str | None:
    """The group if every reader sees a constant it can do without; in words, why a constant one has to stay."""
    constants: dict[Call, Tensor] = {}
    deviation, proved = 0.0, True
    for call, columns in group.reads.items():
        at = list(columns)
        if not _columns(hidden, call, columns).any():
            constants[call] = torch.zeros(len(at), dtype=torch.float64)  # whatever it is, the weight is 0
            continue
        seen = hidden.ranges.of[call]
        scale = max(seen.scale, 1e-30)
        spread = float((seen.high[at] - seen.low[at]).max())
        if not spread <= _ROUNDING * scale:
            return None
        values = seen.mean[at]
        values[values.abs() <= _ROUNDING * scale] = 0.0
        constants[call] = values
        deviation = max(deviation, float((seen.high[at] - values).max()), float((values - seen.low[at]).max()))
        proved = proved and hidden.proofs.constant(call, columns, values, _ROUNDING * scale)
    why = _cannot_hold(hidden, group, constants)
    if why:
        return why
    evidence = "proved" if proved else f"observed constant on {hidden.ranges.rows} samples"
    return Chosen(group, "constant", evidence, deviation, constants)


def _cannot_hold(hidden: Hidden, group: Group, constants: Mapping[Call, Tensor]) -> str | None:
    seen: dict[Axis, Tensor] = {}
    for call in group.reads:
        site, values = hidden.channels.site(call), constants[call]
        known = seen.setdefault((site.key, site.input_axis), values)
        if known.shape != values.shape or not torch.allclose(known, values, rtol=1e-6, atol=1e-9):
            return f"{site.key} is called several times and sees different constants"
        if not values.any():
            continue
        if not site.holds_constant:
            return f"constant {values.abs().max():.3g}, but {site.key} pads with zeros or has taps that depend on place"
        if site.bias is None or site.bias_unknown:
            return f"constant {values.abs().max():.3g}, but {site.key} has no bias that could take it over"
        if site.bias in hidden.channels.shared_biases:
            return f"constant {values.abs().max():.3g}, but {site.bias} also serves something else than {site.key}"
    return None


def refuse_no_layers(hidden: Hidden) -> None:
    """Raise TraceError, with the commonest reason, where no hidden channel can be taken out at all."""
    if not hidden.layers:
        reason = max(hidden.left, key=lambda left: left.channels).reason if hidden.left else "there is none"
        raise TraceError(f"no hidden channel can be taken out: {reason}")
