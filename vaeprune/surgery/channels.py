"""Which hidden channels must go together: what writes them, what they pass, and what reads them.

Every weight's output channels are disturbed and it is seen which input channels of which weights they reach, as in
`trace`. Channel by channel that would take thousands of runs, so each channel has a binary number, and one run disturbs
all whose bit b is v: an input channel that is reached in exactly the runs of one number is reached by that channel
alone. Where several reach it, more numbers may be compatible with the runs than do reach it; those channels are then
disturbed one by one. Weights that share no reader are disturbed in the same runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.disturbing import Disturbed, Isolated, by_channel, differs
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Passenger, Site, Unknown
from vaeprune.surgery.trace import FINITE_CHANGES, SWALLOWED, rows_at_once
from vaeprune.surgery.union import Union

Side = Literal["encode", "decode"]
Call = tuple[Side, int]  # the n-th call on weights in a run of encode, or of decode
Axis = tuple[str, int]  # state-dict key and axis of a tensor
_Port = tuple[str, Any]  # where a disturbance can arrive


@dataclass(frozen=True)
class Group:
    """Channels that can only go together.

    `entries`: of each tensor axis, the indices that would go. `reads`, `writes`: per call, the channels of its operand
    and of its result. `obstacle`: why the group has to stay, None if it may go.
    """

    entries: Mapping[Axis, tuple[int, ...]]
    reads: Mapping[Call, tuple[int, ...]]
    writes: Mapping[Call, tuple[int, ...]]
    obstacle: str | None


@dataclass(frozen=True)
class Channels:
    """The hidden channels of a model in groups, and its calls on weights in the order of each run.

    `shared_biases`: state-dict keys of biases that something else than their one weight uses, too.
    """

    groups: tuple[Group, ...]
    sites: Mapping[Side, tuple[Site, ...]]
    shared_biases: frozenset[str] = frozenset()

    def site(self, call: Call) -> Site:
        """The weight behind a call."""
        return self.sites[call[0]][call[1]]

    def layers(self) -> list[list[Group]]:
        """The groups that may go, those together that one weight reads side by side, in the order of the runs."""
        together = Union()
        free = [group for group in self.groups if group.obstacle is None]
        for number, group in enumerate(free):
            for kind, calls in (("read", group.reads), ("write", group.writes)):
                for call in calls:
                    together.join((kind, call), ("group", number))
        found = [sorted(n for kind, n in nodes if kind == "group") for nodes, _ in together.members()]
        return [[free[number] for number in numbers] for numbers in sorted(found)]


def runs(example: Batch, z: Tensor) -> dict[Side, Callable[[VAE, int], Any]]:
    """Encode and decode of one row repeated as often as asked; outputs as tuples of tensors."""

    def repeated(part: Tensor, rows: int) -> Tensor:
        return part.expand(rows, *part.shape[1:]).clone()

    def encode(vae: VAE, rows: int) -> tuple[Tensor, ...]:
        found: Posterior = vae.encode(*(repeated(part, rows) for part in example))
        return found.mean, found.logvar

    def decode(vae: VAE, rows: int) -> tuple[Tensor, ...]:
        return (vae.decode_parameters(*(repeated(part, rows) for part in (z, *example[1:]))),)

    return {"encode": encode, "decode": decode}


def hidden_channels(subject: Subject) -> Channels:
    """Trace the hidden channels of the model in `subject`. Raises TraceError if it cannot be run in this way."""
    example = tuple(part[:1] for part in subject.example)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, *subject.vae.latent_shape, generator=generator, dtype=torch.float64).to(example[0])
    union = Union()
    sites: dict[Side, tuple[Site, ...]] = {}
    users: dict[str, set[Any]] = {}
    for side, run in runs(example, z).items():
        inputs = (z, *example[1:]) if side == "decode" else example
        traced = _Side(subject, side, run, inputs)
        sites[side] = traced.join(union)
        for key, user in traced.before.uses:
            users.setdefault(key, set()).add(user)
    shared = frozenset(key for key, known in users.items() if len(known) > 1)
    return Channels(tuple(_groups(subject, union, sites)), sites, shared)


class _Side:
    """The traced channels of one of the two runs."""

    def __init__(self, subject: Subject, side: Side, run: Callable[[VAE, int], Any], inputs: Batch) -> None:
        self.subject, self.side, self.run, self.inputs = subject, side, run, inputs
        self.before = _Uses()
        self.at_rest = subject.run(lambda vae: run(vae, 1), self.before)
        self.sites = tuple(self.before.sites)
        self.widths = [r.shape[s.result_dim] for s, r in zip(self.sites, self.before.results, strict=True)]

    def join(self, union: Union) -> tuple[Site, ...]:
        """Put every channel of this run into `union`, with what it is tied to and what holds it."""
        for call, site in enumerate(self.sites):
            for channel in range(self.widths[call]):
                union.add(("write", (self.side, call), channel), (site.key, site.output_axis, channel))
                if site.bias is not None:
                    union.add(("write", (self.side, call), channel), (site.bias, 0, channel))
            for channel in range(self.before.operands[call].shape[site.operand_dim]):
                union.add(("read", (self.side, call), channel), (site.key, site.input_axis, channel))
            if site.bias_unknown:
                self._hold(union, call, range(self.widths[call]), "its bias is computed, not a parameter")
        reached = self._reached()
        for calls in _without_common_port(reached):
            self._decode(union, calls, reached)
        self._inputs(union)  # last: what mixes channels is the better reason
        return self.sites

    def _inputs(self, union: Union) -> None:
        """Channels that the data, a condition, the latents or a weight that is not understood also reach."""
        found = _Foreign(self.before, len(self.inputs))
        self.subject.run(self._foreign_run, found)
        for call, columns in found.reached.items():
            for channel in torch.nonzero(columns.any(0)).flatten().tolist():
                why = "what reads it also depends on the input, a condition or a weight that is not understood"
                union.hold(("read", (self.side, call), channel), why)

    def _foreign_run(self, vae: VAE) -> Any:
        """Row r has NaN in all of input r; unknown results are made NaN by the watcher in every row."""
        rows = len(self.inputs)
        parts = [part.expand(rows, *part.shape[1:]).clone() for part in self.inputs]
        for row, part in enumerate(parts):
            if part.is_floating_point():
                part[row] = float("nan")
        return vae.encode(*parts) if self.side == "encode" else vae.decode_parameters(*parts)

    def _reached(self) -> list[set[_Port]]:
        """Per call, the ports its output reaches at all; channels that only a finite change gets through are noted."""
        reached: list[set[_Port]] = [set() for _ in self.sites]
        step = rows_at_once(self.before)
        for start in range(0, len(self.sites), step):
            calls = range(start, min(len(self.sites), start + step))
            marks = {
                call: torch.zeros(len(calls), self.widths[call], dtype=torch.bool).index_fill(
                    0, torch.tensor([row]), True
                )
                for row, call in enumerate(calls)
            }
            for port, rows in self._ports(marks, len(calls)).items():
                for row in torch.nonzero(rows.any(1)).flatten().tolist():
                    reached[start + row].add(port)
        return reached

    def _decode(self, union: Union, calls: Sequence[int], reached: Sequence[set[_Port]]) -> None:
        """Find, for each channel of every port, which channels of these calls reach it."""
        bits = max(1, *((self.widths[call] - 1).bit_length() for call in calls))
        patterns = [(bit, value) for bit in range(bits) for value in (0, 1)]
        found: dict[_Port, Tensor] = {}
        step = rows_at_once(self.before)
        for start in range(0, len(patterns), step):
            chosen = patterns[start : start + step]
            marks = {
                call: torch.stack([_bit(self.widths[call], bit) == bool(value) for bit, value in chosen])
                for call in calls
            }
            for port, rows in self._ports(marks, len(chosen)).items():
                known = found.setdefault(port, torch.zeros(len(patterns), rows.shape[1], dtype=torch.bool))
                known[start : start + step] |= rows
        for call in calls:
            reaches = {p: _compatible(rows, self.widths[call]) for p, rows in found.items() if p in reached[call]}
            self._ask_singly(union, call, reaches)
            for port, pairs in reaches.items():
                self._tie(union, call, port, pairs)

    def _ask_singly(self, union: Union, call: int, reaches: Mapping[_Port, Tensor]) -> None:
        """Where several numbers fit what reached a port's channel, disturb those channels one by one.

        Channels that have to stay anyway are not asked. `reaches` (channels of the call, channels of the port) each.
        """
        held = torch.zeros(self.widths[call], dtype=torch.bool)
        unsure = held.clone()
        for (kind, _), pairs in reaches.items():
            if kind == "hold":
                held |= pairs.any(1)
            else:
                unsure |= pairs[:, pairs.sum(0) > 1].any(1)
        asked = torch.nonzero(unsure & ~held).flatten()
        step = rows_at_once(self.before)
        for start in range(0, len(asked), step):
            chosen = asked[start : start + step]
            marks = torch.zeros(len(chosen), self.widths[call], dtype=torch.bool)
            marks[torch.arange(len(chosen)), chosen] = True
            arrived = self._ports({call: marks}, len(chosen))
            for port, pairs in reaches.items():
                if port[0] != "hold":
                    pairs[chosen] &= arrived.get(port, torch.zeros(1, 1, dtype=torch.bool))
            for (kind, why), rows in arrived.items():
                if kind == "hold":
                    self._hold(union, call, chosen[rows.any(1)].tolist(), why)

    def _tie(self, union: Union, call: int, port: _Port, reaches: Tensor) -> None:
        """`reaches` (channels of the call, channels of the port)."""
        kind, what = port
        pairs = torch.nonzero(reaches).tolist()
        writer: Call = (self.side, call)
        for channel, at in pairs:
            node = ("write", writer, channel)
            if kind == "read":
                union.join(node, ("read", (self.side, what), at))
            elif kind == "passenger":
                for key, axis in what:
                    union.add(node, (key, axis, at))
            else:
                union.hold(node, what)

    def _hold(self, union: Union, call: int, channels: Iterable[int], why: str) -> None:
        for channel in channels:
            union.hold(("write", (self.side, call), channel), why)

    def _ports(self, marks: Mapping[int, Tensor], rows: int) -> dict[_Port, Tensor]:
        """Where the marked disturbances arrive: port → (rows, channels of the port)."""
        probe = Disturbed(self.before, rows, marks, float("nan"))
        outputs = self.subject.run(lambda vae: self.run(vae, rows), probe)
        found = self._arrivals(probe, outputs, rows)
        for change in FINITE_CHANGES:
            finite = Disturbed(self.before, rows, marks, change)
            outputs = self.subject.run(lambda vae: self.run(vae, rows), finite)
            for port, arrived in self._arrivals(finite, outputs, rows).items():
                missed = arrived if port not in found else arrived & ~found[port]
                if missed.any():
                    found[port] = found.get(port, torch.zeros_like(arrived)) | arrived
                    held = found.setdefault(("hold", f"it changes {_name(port)} {SWALLOWED}"), torch.zeros(rows, 1) > 0)
                    held |= missed.any(1, keepdim=True)
        return found

    def _arrivals(self, probe: Isolated, outputs: Sequence[Tensor], rows: int) -> dict[_Port, Tensor]:
        found: dict[_Port, Tensor] = {
            ("read", call): columns for call, columns in probe.reached.items() if columns.any()
        }

        def add(port: _Port, arrived: Tensor) -> None:
            if arrived.any():
                found[port] = found.get(port, torch.zeros_like(arrived)) | arrived

        for passenger, channels in probe.passengers:
            if passenger.axes:
                add(("passenger", tuple(sorted(passenger.axes.items()))), channels)
        for name, where in (*probe.unknowns, *probe.mixers.items()):
            add(("hold", f"it goes through {name}, which mixes channels or is not understood"), where[:, None])
        for output, rest in zip(outputs, self.at_rest, strict=True):
            moved = by_channel(differs(output, rest), 1, rows).any(1, keepdim=True)
            add(("hold", "it is part of the output" if self.side == "decode" else "it is a latent"), moved)
        return found


class _Uses(Recorder):
    """Notes, too, what uses each bias: (key, weight and axis, or the call that is none on a weight)."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[tuple[str, Any]] = []

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note a weight's own bias."""
        if site.bias is not None:
            self.uses.append((site.bias, (site.key, site.input_axis)))
        return super().operand(call, site, value)

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Note parameters that are added or multiplied."""
        self.uses += [(key, "a parameter of each channel") for key in passenger.axes]

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """Note parameters of calls that are not understood."""
        self.uses += [(key, call.function) for key in call.keys]
        return value


class _Foreign(Isolated):
    """Every result of a weight that is not understood is NaN, as are the inputs of the run."""

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """Make it NaN."""
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.full_like(value, float("nan"))
        if isinstance(value, tuple):
            return tuple(self.unknown(call, part, where) for part in value)
        return value


def _groups(subject: Subject, union: Union, sites: Mapping[Side, tuple[Site, ...]]) -> Iterator[Group]:
    for nodes, obstacle in union.members():
        parts: dict[str, dict[Any, list[int]]] = {"entry": {}, "read": {}, "write": {}}
        for kind, *where, index in nodes:
            parts[kind].setdefault(where[0] if kind != "entry" else tuple(where), []).append(index)
        if not parts["write"]:
            continue  # read from the input alone
        entries = {axis: tuple(sorted(found)) for axis, found in parts["entry"].items()}
        for (key, axis), gone in entries.items():
            if obstacle is None and len(gone) == subject.weight(key).shape[axis]:
                obstacle = f"all channels of {key} hang together" if len(gone) > 1 else f"{key} has only one channel"
        reads, writes = ({c: tuple(sorted(i)) for c, i in parts[kind].items()} for kind in ("read", "write"))
        yield Group(entries, reads, writes, obstacle)


def _without_common_port(reached: Sequence[set[_Port]]) -> list[list[int]]:
    """The calls in sets whose members share no port, greedily."""
    sets: list[tuple[list[int], set[_Port]]] = []
    for call, ports in enumerate(reached):
        for calls, taken in sets:
            if not ports & taken:
                calls.append(call)
                taken |= ports
                break
        else:
            sets.append(([call], set(ports)))
    return [calls for calls, _ in sets]


def _compatible(rows: Tensor, width: int) -> Tensor:
    """(width, port channels): which channels' numbers fit the runs in which a port's channel was reached."""
    found = rows.any(0).expand(width, -1).clone()
    for bit in range(len(rows) // 2):
        found &= torch.where(_bit(width, bit)[:, None], rows[2 * bit + 1], rows[2 * bit])
    return found


def _bit(width: int, bit: int) -> Tensor:
    return (torch.arange(width) >> bit) % 2 == 1


def _name(port: _Port) -> str:
    kind, what = port
    if kind == "passenger":
        return ", ".join(key for key, _ in what)
    return "an input of a weight" if kind == "read" else "the output"
