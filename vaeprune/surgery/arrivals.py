"""Where disturbances arrive in one run of the model: which inputs of which weights, parameters, functions, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vaeprune.posterior import VAE
from vaeprune.surgery.disturbing import Disturbed, Isolated, by_channel, differs, growth_of
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Passenger, Site, Unknown
from vaeprune.surgery.trace import FINITE_CHANGES, SWALLOWED, rows_at_once

Port = tuple[str, Any]  # where a disturbance can arrive: "read" a call, "passenger" its axes, "hold" a reason
Run = Callable[[VAE, int], Any]  # the model on one row, repeated so often
NAN_AND_FINITE = (float("nan"), *FINITE_CHANGES)


class Arrivals:
    """One undisturbed run, and where disturbances of what its calls write arrive.

    `before`: what was recorded on one row. `at_once`: how many rows one disturbed run may have; one alone where a
    weight reads something that does not grow with the batch, or grows in another way than by rows (`unbatched`: the
    calls), since rows could then not be told apart. `of_output`: why what reaches the run's result has to stay.
    """

    def __init__(self, subject: Subject, run: Run, of_output: str) -> None:
        self._subject, self._run, self._of_output = subject, run, of_output
        self.before = Uses()
        self._at_rest: tuple[Tensor, ...] = subject.run(lambda vae: run(vae, 1), self.before)
        growth = growth_of(subject, run, self.before)
        self.unbatched = growth.unbatched
        self.at_once = rows_at_once(self.before) if growth.by_rows else 1

    def ports(
        self, marks: Mapping[int, Tensor], rows: int, changes: Sequence[float] = NAN_AND_FINITE
    ) -> dict[Port, Tensor]:
        """Where the marked disturbances arrive: port → (rows, channels of the port); 1 channel where it has none.

        The first change is the one that is believed; what another one reaches besides, has to stay.
        """
        found: dict[Port, Tensor] = {}
        for number, change in enumerate(changes):
            probe = Disturbed(self.before, rows, marks, change)
            outputs = self._subject.run(lambda vae: self._run(vae, rows), probe)
            for port, arrived in self._arrived(probe, outputs, rows).items():
                missed = arrived if port not in found else arrived & ~found[port]
                if not missed.any():
                    continue
                found[port] = found.get(port, torch.zeros_like(arrived)) | arrived
                if number:
                    why: Port = ("hold", f"it changes {_name(port)} {SWALLOWED}")
                    found[why] = found.get(why, torch.zeros(rows, 1) > 0) | missed.any(1, keepdim=True)
        return found

    def _arrived(self, probe: Isolated, outputs: Sequence[Tensor], rows: int) -> dict[Port, Tensor]:
        found: dict[Port, Tensor] = {
            ("read", call): columns for call, columns in probe.reached.items() if columns.any()
        }

        def add(port: Port, arrived: Tensor) -> None:
            if arrived.any():
                found[port] = found.get(port, torch.zeros_like(arrived)) | arrived

        for passenger, channels in probe.passengers:
            if passenger.axes:
                add(("passenger", tuple(sorted(passenger.axes.items()))), channels)
        for name, where in (*probe.unknowns, *probe.mixers.items()):
            add(("hold", f"it goes through {name}, which mixes channels or is not understood"), where[:, None])
        for output, rest in zip(outputs, self._at_rest, strict=True):
            add(("hold", self._of_output), by_channel(differs(output, rest), 1, rows).any(1, keepdim=True))
        return found


class Uses(Recorder):
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
        super().passed(passenger, value)
        self.uses += [(key, "a parameter of each channel") for key in passenger.axes]

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """Note parameters of calls that are not understood."""
        self.uses += [(key, call.function) for key in call.keys]
        return value


def _name(port: Port) -> str:
    kind, what = port
    if kind == "passenger":
        return ", ".join(key for key, _ in what)
    return "an input of a weight" if kind == "read" else "the output"
