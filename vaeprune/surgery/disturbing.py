"""Runs in which something is disturbed, and every weight still reads what it read in an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeprune.errors import TraceError
from vaeprune.posterior import VAE
from vaeprune.surgery.probe import Recorder, Replayed, Subject
from vaeprune.surgery.sites import Passenger, Site, Unknown
from vaeprune.surgery.watching import Run, Watcher

_GOLDEN = 0.6180339887  # its multiples, taken modulo 1, lie evenly: no two channels change by the same


class Isolated(Watcher):
    """Gives every site what it read in an undisturbed run, so that a disturbance shows only where it is direct.

    The undisturbed run was of one row, and stands for each of `rows`. What a site then writes is known, too, so nothing
    is multiplied again. `reached`: per call, which channels of its operand (rows, channels) were disturbed before that.
    """

    def __init__(self, undisturbed: Recorder, rows: int) -> None:
        self._undisturbed = undisturbed
        self.rows = rows
        self.reached: dict[int, Tensor] = {}
        self.passengers: list[tuple[Passenger, Tensor]] = []
        self.unknowns: list[tuple[str, Tensor]] = []
        self.mixers: dict[str, Tensor] = {}

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note which channels differ, then hand over the undisturbed operand."""
        sites, operands = self._undisturbed.sites, self._undisturbed.operands
        if call >= len(sites) or sites[call].key != site.key:
            raise TraceError(
                f"{site.key}: is reached in another order or shape when the input changes; "
                "control flow that depends on values cannot be followed"
            )
        before = operands[call]
        alone = self.rows == 1 and before.shape == value.shape  # what it reads need not have a batch then
        if not alone and (before.shape[1:] != value.shape[1:] or len(before) != 1 or len(value) != self.rows):
            raise TraceError(
                f"{site.key}: what it reads, of shape {tuple(value.shape)}, does not keep the batch of {self.rows} "
                "rows in its first dimension",
                "keep rows apart in encode and decode",
            )
        self.reached[call] = by_channel(differs(value, before), site.operand_dim, self.rows)
        return before.expand_as(value)

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """The undisturbed result, in memory of its own."""
        result = self._undisturbed.results[call]
        return result.repeat(self.rows, *[1] * (result.dim() - 1))

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Note which channels of a per-channel parameter were passed by a NaN."""
        if value.isnan().any():
            self.passengers.append((passenger, by_channel(value.isnan(), passenger.dim, self.rows)))

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """Note which rows reached a call that is not understood."""
        tensors = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Tensor)]
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.isnan().any():
                dims = [dim for dim, size in enumerate(tensor.shape) if size == self.rows]
                rows = torch.ones(self.rows, dtype=torch.bool)
                if len(dims) == 1 or (dims and dims[0] == 0):
                    rows = tensor.isnan().movedim(dims[0], 0).reshape(self.rows, -1).any(1)
                self.unknowns.append((f"{call.function} with {', '.join(call.keys)} in {where}", rows))
        return value

    def mixed(self, function: str, value: Tensor, where: str) -> None:
        """Note in which rows a NaN went into a function that mixes channels."""
        if value.is_floating_point() and value.isnan().any():
            rows = torch.ones(self.rows, dtype=torch.bool)
            if value.dim() and len(value) == self.rows:
                rows = value.isnan().reshape(self.rows, -1).any(1)
            name = f"{function} in {where}"
            self.mixers[name] = self.mixers.get(name, torch.zeros_like(rows)) | rows


class Disturbed(Isolated):
    """Changes what calls write: `marks` (rows, channels) says, per call, which channels in which row.

    Each channel by another amount, so that changes do not cancel out.
    """

    def __init__(self, undisturbed: Recorder, rows: int, marks: Mapping[int, Tensor], change: float) -> None:
        super().__init__(undisturbed, rows)
        self._marks, self._change = marks, change

    def result(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Disturb what is marked."""
        if call not in self._marks:
            return value
        marks = self._marks[call].to(value.device)
        shape = [1] * value.dim()
        shape[0], shape[site.result_dim] = self.rows, marks.shape[1]
        apart = 1 + (_GOLDEN * torch.arange(marks.shape[1], dtype=value.dtype, device=value.device)) % 1
        change = torch.where(marks, self._change * apart, 0.0).to(value)
        return value + change.view(shape)


@dataclass(frozen=True)
class Growth:
    """What grows with the batch: `unbatched` calls read something that has not one row more for each of its rows.

    `by_rows`: whether all has, what passes per-channel parameters included; if not, rows cannot be told apart.
    """

    unbatched: frozenset[int]
    by_rows: bool


def growth_of(subject: Subject, run: Callable[[VAE, int], Any], one: Recorder) -> Growth:
    """Compare `one`, the record of a run of one row, with a run of two."""
    two = _Shapes(one)
    subject.run(lambda vae: run(vae, 2), two)
    pairs = zip((tuple(operand.shape) for operand in one.operands), two.read, strict=False)
    unbatched = frozenset(c for c, pair in enumerate(pairs) if not _by_rows(*pair))
    passed = all(_by_rows(*pair) for pair in zip(one.passed_on, two.passed_on, strict=False))
    return Growth(unbatched, passed and not unbatched)


class _Shapes(Replayed):
    """The shapes of what weights read, and of what comes out of per-channel parameters, in the order of a run."""

    def __init__(self, one: Recorder) -> None:
        super().__init__(one)
        self.read: list[tuple[int, ...]] = []
        self.passed_on: list[tuple[int, ...]] = []

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the shape."""
        self.read.append(tuple(value.shape))
        return value

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Note the shape."""
        self.passed_on.append(tuple(value.shape))


def _by_rows(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    return one[:1] == (1,) and two[:1] == (2,) and one[1:] == two[1:]


def differs(value: Tensor, before: Tensor) -> Tensor:
    """Where two tensors differ by more than rounding; NaN differs."""
    rounding = 1e-11 if value.dtype == torch.float64 else 1e-4
    scale = before.abs().amax().clamp_min(1e-30) if before.numel() else 1.0
    return ~((value - before).abs() <= rounding * scale)


def by_channel(mask: Tensor, dim: int, rows: int) -> Tensor:
    """(rows, channels): whether anything of a channel is marked, for each row of the batch; of 1 row all is its own."""
    if rows == 1 and mask.dim():
        moved = mask.movedim(dim, -1) if -mask.dim() <= dim < mask.dim() else mask[:, None]
        return moved.reshape(-1, moved.shape[-1]).any(0, keepdim=True)
    if mask.dim() == 0 or mask.shape[0] != rows:
        raise TraceError(
            f"a tensor of shape {tuple(mask.shape)} does not keep the batch of {rows} rows in its first dimension",
            "keep rows apart in encode and decode",
        )
    moved = mask.movedim(dim, -1) if mask.dim() > 1 else mask[:, None]
    return moved.flatten(1, -2).any(1) if moved.dim() > 2 else moved
