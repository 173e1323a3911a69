"""What the channels of one run are tied to: encode or decode, disturbed call by call and channel by channel.

Every weight's output channels are disturbed and it is seen which input channels of which weights they reach, as in
`trace`. Channel by channel that would take thousands of runs, so each channel has a binary number, and one run disturbs
all whose bit b is v (`codes`): an input channel that is reached in exactly the runs of one number is reached by that
channel alone. Where several reach it, more numbers may be compatible with the runs than do reach it; those channels are
then told apart one by one. Weights that share no reader are disturbed in the same runs.

What cannot be followed holds only what it touches: a weight whose disturbance makes the model raise an error or take
another path, or the run as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.errors import VaepruneError
from vaeprune.factory import quoted
from vaeprune.posterior import VAE
from vaeprune.surgery.arrivals import NAN_AND_FINITE, Arrivals, Port, Run
from vaeprune.surgery.codes import apart, bits_for, compatible, patterns
from vaeprune.surgery.disturbing import Isolated
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Call, Passenger, Side, Site, Unknown
from vaeprune.surgery.trace import FINITE_CHANGES
from vaeprune.surgery.union import Union

_UNEXPLAINED = "what reads it is reached in some runs, but by no channel that was disturbed in them"


class Following:
    """The traced channels of one of the two runs."""

    def __init__(self, subject: Subject, side: Side, run: Run, inputs: Batch) -> None:
        self.subject, self.side, self.inputs = subject, side, inputs
        of_output = "it is part of the output" if side == "decode" else "it is a latent"
        self.arrivals = Arrivals(subject, run, of_output)
        self.before = self.arrivals.before
        self.sites = tuple(self.before.sites)
        self.widths = [r.shape[s.result_dim] for s, r in zip(self.sites, self.before.results, strict=True)]
        self.reads = [o.shape[s.operand_dim] for s, o in zip(self.sites, self.before.operands, strict=True)]
        self.unbatched = frozenset(self.sites[call].key for call in self.arrivals.unbatched)

    def join(self, union: Union) -> tuple[Site, ...]:
        """Put every channel of this run into `union`, with what it is tied to and what holds it."""
        for call, site in enumerate(self.sites):
            for channel in range(self.widths[call]):
                union.add(("write", (self.side, call), channel), (site.key, site.output_axis, channel))
                if site.bias is not None:
                    union.add(("write", (self.side, call), channel), (site.bias, 0, channel))
            for channel in range(self.reads[call]):
                union.add(("read", (self.side, call), channel), (site.key, site.input_axis, channel))
            if site.bias_unknown:
                self._hold(union, call, range(self.widths[call]), "its bias is computed, not a parameter")
        try:
            self._follow(union)
        except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
            for call in range(len(self.sites)):
                self._hold_whole(union, call, [("read", call)], f"{self.side} cannot be followed: {_words(error)}")
        return self.sites

    def _follow(self, union: Union) -> None:
        reached = self._reached(union)
        for calls in _without_common_port(reached):
            self._decode(union, calls, reached)
        self._inputs(union)  # last: what mixes channels is the better reason

    def _inputs(self, union: Union) -> None:
        """Channels that the data, a condition, the latents or a weight that is not understood also reach.

        Only where the model raises an error at a NaN, a finite change stands for it.
        """
        failure: Exception | None = None
        for change in NAN_AND_FINITE:
            try:
                arrived = self._foreign(change)
            except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
                failure = failure or error
                continue
            for call, columns in arrived.items():
                for channel in torch.nonzero(columns.any(0)).flatten().tolist():
                    why = "what reads it also depends on the input, a condition or a weight that is not understood"
                    union.hold(("read", (self.side, call), channel), why)
            return
        if failure:
            raise failure

    def _foreign(self, change: float) -> Mapping[int, Tensor]:
        """What is reached if row r has all of input r changed, and every row all unknown results."""
        rows = len(self.inputs) if self.arrivals.at_once > 1 else 1
        reached: dict[int, Tensor] = {}
        for start in range(0, len(self.inputs), rows):
            parts = [part.expand(rows, *part.shape[1:]).clone() for part in self.inputs]
            for row, part in enumerate(parts[start : start + rows]):
                if part.is_floating_point():
                    part[row] += change
            watch = _Foreign(self.before, rows, change)
            self.subject.run(partial(_run, side=self.side, parts=parts), watch)
            for call, columns in watch.reached.items():
                reached[call] = torch.cat([reached[call], columns]) if call in reached else columns
        return reached

    def _reached(self, union: Union) -> dict[int, set[Port]]:
        """Per call, the ports its output reaches at all; calls that the model does not bear disturbing are held."""
        step = self.arrivals.at_once
        reached: dict[int, set[Port]] = {}
        for start in range(0, len(self.sites), step):
            self._reached_by(union, list(range(start, min(len(self.sites), start + step))), reached)
        return reached

    def _reached_by(self, union: Union, calls: Sequence[int], reached: dict[int, set[Port]]) -> None:
        try:
            ports = self.arrivals.ports(self._whole(calls), len(calls))
        except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
            if len(calls) == 1:  # what a NaN cannot show, finite changes show; if they raise, too, nothing is known
                seen = self.arrivals.ports(self._whole(calls), 1, FINITE_CHANGES)
                self._hold_whole(union, calls[0], seen, f"it cannot be disturbed: {_words(error)}")
                return
            middle = len(calls) // 2
            for part in (calls[:middle], calls[middle:]):
                self._reached_by(union, part, reached)
            return
        for row, call in enumerate(calls):
            reached[call] = {port for port, rows in ports.items() if rows[row].any()}

    def _whole(self, calls: Sequence[int]) -> dict[int, Tensor]:
        """Row r disturbs all channels of the r-th call."""
        return {
            call: torch.zeros(len(calls), self.widths[call], dtype=torch.bool).index_fill(0, torch.tensor([row]), True)
            for row, call in enumerate(calls)
        }

    def _decode(self, union: Union, calls: Sequence[int], reached: Mapping[int, set[Port]]) -> None:
        """Find, for each channel of every port, which channels of these calls reach it."""
        try:
            found = self._coded(calls)
        except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
            for call in calls if len(calls) > 1 else ():
                self._decode(union, [call], reached)
            if len(calls) == 1:
                self._hold_whole(union, calls[0], reached[calls[0]], f"it cannot be disturbed: {_words(error)}")
            return
        new = found.keys() - set().union(*(reached[call] for call in calls))  # nobody says whose they are
        for port in new:
            self._hold_columns(union, port, found[port].any(0), _UNEXPLAINED)
        for call in calls:
            reaches = {p: compatible(rows, self.widths[call]) for p, rows in found.items() if p in reached[call]}
            self._ask(union, call, reaches, everything=any(kind == "hold" for kind, _ in new))
            for port, pairs in reaches.items():
                self._hold_columns(union, port, found[port].any(0) & ~pairs.any(0), _UNEXPLAINED)
                self._tie(union, call, port, pairs)

    def _coded(self, calls: Sequence[int]) -> dict[Port, Tensor]:
        """Port → (patterns, channels of the port): in which runs of the channels' numbers it was reached."""
        bits = bits_for([self.widths[call] for call in calls])
        coded = {call: patterns(self.widths[call], bits) for call in calls}
        found: dict[Port, Tensor] = {}
        for start in range(0, 2 * bits, self.arrivals.at_once):
            chosen = slice(start, min(2 * bits, start + self.arrivals.at_once))
            marks = {call: rows[chosen] for call, rows in coded.items()}
            for port, rows in self.arrivals.ports(marks, chosen.stop - start).items():
                known = found.setdefault(port, torch.zeros(2 * bits, rows.shape[1], dtype=torch.bool))
                known[chosen] |= rows
        return found

    def _ask(self, union: Union, call: int, reaches: Mapping[Port, Tensor], everything: bool) -> None:
        """Where several numbers fit what reached a port's channel, disturb those channels one by one, or `everything`.

        Those that meet nowhere are disturbed in the same run. Channels that have to stay anyway are not asked.
        `reaches` (channels of the call, channels of the port) each.
        """
        held = torch.zeros(self.widths[call], dtype=torch.bool)
        unsure, columns = torch.full_like(held, everything), [held[:, None]]
        for (kind, _), pairs in reaches.items():
            if kind == "hold":
                held |= pairs.any(1)
            else:
                unsure |= pairs[:, pairs.sum(0) > 1].any(1)
                columns.append(pairs)
        asked = torch.nonzero(unsure & ~held).flatten()
        if len(asked):
            suspects = self._ask_in(union, call, reaches, asked, apart(torch.cat(columns, 1)[asked]))
            self._ask_in(union, call, reaches, suspects, torch.arange(len(suspects)))

    def _ask_in(self, union: Union, call: int, reaches: Mapping[Port, Tensor], asked: Tensor, runs: Tensor) -> Tensor:
        """Disturb each of `asked` in its run; returns those of which one must stay, and it is not known which."""
        suspected = torch.zeros(self.widths[call], dtype=torch.bool)
        step = self.arrivals.at_once
        for start in range(0, int(runs.max()) + 1 if len(runs) else 0, step):
            here = (runs >= start) & (runs < start + step)
            chosen, row = asked[here], runs[here] - start
            count = int(row.max()) + 1
            marks = torch.zeros(count, self.widths[call], dtype=torch.bool)
            marks[row, chosen] = True
            arrived = self.arrivals.ports({call: marks}, count)
            for port, pairs in reaches.items():
                if port[0] != "hold":
                    pairs[chosen] &= arrived.get(port, torch.zeros(count, 1, dtype=torch.bool))[row]
            alone = marks.sum(1) == 1
            for (kind, why), rows in arrived.items():
                if kind == "hold":
                    self._hold(union, call, chosen[(rows.any(1) & alone)[row]].tolist(), why)
                    suspected[chosen[(rows.any(1) & ~alone)[row]]] = True
        return torch.nonzero(suspected).flatten()

    def _tie(self, union: Union, call: int, port: Port, reaches: Tensor) -> None:
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

    def _hold_whole(self, union: Union, call: int, ports: Iterable[Port], why: str) -> None:
        """Hold all that a call writes, and all channels of the ports it reaches."""
        self._hold(union, call, range(self.widths[call]), why)
        for port in ports:
            self._hold_columns(union, port, None, why)

    def _hold_columns(self, union: Union, port: Port, columns: Tensor | None, why: str) -> None:
        """Hold what is read at the marked channels of a port, or at all."""
        if port[0] == "read":
            at = range(self.reads[port[1]]) if columns is None else torch.nonzero(columns).flatten().tolist()
            for channel in at:
                union.hold(("read", (self.side, port[1]), channel), why)


class _Foreign(Isolated):
    """Every result of a weight that is not understood is changed."""

    def __init__(self, undisturbed: Recorder, rows: int, change: float) -> None:
        super().__init__(undisturbed, rows)
        self._change = change

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Where it arrives is all that counts."""

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """Change it."""
        if isinstance(value, Tensor) and value.is_floating_point():
            return value + self._change
        if isinstance(value, tuple):
            return tuple(self.unknown(call, part, where) for part in value)
        return value

    def mixed(self, function: str, value: Tensor, where: str) -> None:
        """Where it arrives is all that counts."""


def _run(vae: VAE, side: Side, parts: Sequence[Tensor]) -> Any:
    return vae.encode(*parts) if side == "encode" else vae.decode_parameters(*parts)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, VaepruneError) else quoted(error)


def _without_common_port(reached: Mapping[int, set[Port]]) -> list[list[int]]:
    """The calls in sets whose members share no port, greedily."""
    sets: list[tuple[list[int], set[Port]]] = []
    for call, ports in reached.items():
        for calls, taken in sets:
            if not ports & taken:
                calls.append(call)
                taken |= ports
                break
        else:
            sets.append(([call], set(ports)))
    return [calls for calls, _ in sets]
