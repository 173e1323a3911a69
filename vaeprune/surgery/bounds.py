"""What each call on weights can read at least and at most, whatever the input in a box: interval arithmetic.

Nothing is known of the model's code. It runs once, on a point of the box, and beside each tensor that the input reaches
stand two float64 tensors of its shape that bound it, by the rules of `bound_rules`.

Fails closed. A tensor that nobody vouches for (a condition, say) is unbounded. So is, from then on, one that is changed
in place in a way not understood. So is everything once the code looks at a value that depends on the input, since it
may take another path for another input. Parameters, buffers and Python numbers count as constants of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaeprune.surgery.bound_calls import Call, tensors_in
from vaeprune.surgery.bound_rules import result_bounds
from vaeprune.surgery.intervals import Interval, between, by_channel, unbounded
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Watcher

__all__ = ["Interval", "operand_bounds"]

_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "dropout", "uniform", "exponential", "empty",
           "resize", "cauchy", "geometric", "gumbel", "fractional", "rrelu")  # fmt: skip
# give memory away that can then be changed without a trace
_ESCAPES = {"data", "numpy", "__array__", "storage", "untyped_storage", "data_ptr", "__dlpack__", "from_dlpack", "set"}
# Python values that do not depend on a tensor's elements
_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "is_floating_point",
    "is_complex", "is_signed", "is_inference", "is_same_size", "element_size", "get_device", "type", "result_type",
    "__len__", "__hash__", "_has_compatible_shallow_copy_type",
}  # fmt: skip
_SHAPED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}


def operand_bounds(subject: Subject, run: Callable[..., Any], *boxes: Interval) -> list[Interval]:
    """Per-channel bounds of what each site reads while `run(vae, *inputs)` runs, for any inputs inside `boxes`.

    boxes: one for each input of `run`, of shape (1, ...) each, ends may be infinite. Tensors that `run` brings itself
    are unbounded. Returns one interval a call, numbered as `Recorder.sites` is, each of two vectors (channels of the
    operand): the least lower end and the greatest upper end over its positions.

    The bounds hold for what the copy computes, rounding included, as long as nothing in it overflows, and for a batch
    if rows are kept apart. Moore 1966; for networks Gowal et al. 2018 (arXiv:1810.12715).
    """
    known = _Known(tensor for tensor, _ in subject.aliases)
    points = [_point(box).to(subject.dtype) for box in boxes]
    for point, box in zip(points, boxes, strict=True):
        known.bound(point, box)
    propagation = _Propagation(known)
    with propagation:  # below the subject's own mode, which tells of a site before its function comes down here
        subject.run(lambda vae: run(vae, *points), propagation.ahead)
    return propagation.operands


def _point(box: Interval) -> Tensor:
    """A point of the box, in the middle where it has one."""
    middle = box.lower / 2 + box.upper / 2
    nearest = torch.zeros_like(middle).clamp(box.lower, box.upper)
    return torch.where(middle.isfinite(), middle, nearest)


@dataclass(frozen=True)
class _Entry:
    tensor: Tensor  # kept alive: an id is only good while its tensor lives
    version: int
    interval: Interval | None  # None: a constant


class _Known:
    """What is known of the tensors of one run.

    torch counts the changes in place of each tensor, through whatever view; what was known before one is void.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        self._entries: dict[int, _Entry] = {}
        self.lost = False  # whether the code may take another path for another input
        for tensor in constants:
            self._enter(tensor, None)

    def constant(self, tensor: Tensor) -> bool:
        """Whether the tensor is the same for every input."""
        entry = self._entry(tensor)
        return entry is not None and entry.interval is None

    def interval(self, tensor: Tensor) -> Interval:
        """Bounds of the tensor; they are let go where the point of this run already lies outside."""
        entry = self._entry(tensor)
        if entry is not None and not tensor.is_complex():
            value = tensor.detach().double().clone()
            found = entry.interval or between(value, value)
            if found.lower.shape == value.shape and ((found.lower <= value) & (value <= found.upper)).all():
                return found
        return unbounded(tensor)

    def bound(self, tensor: Tensor, interval: Interval) -> None:
        """Note bounds of a tensor; rounded to its type, which keeps order."""
        lower, upper = (end.to(tensor).double() for end in (interval.lower, interval.upper))
        self._enter(tensor, between(lower, upper))

    def vouch(self, tensor: Tensor) -> None:
        """Note that a tensor is the same for every input."""
        self._enter(tensor, None)

    def forget(self, tensor: Tensor) -> None:
        """Know nothing of a tensor."""
        self._entries.pop(id(tensor), None)

    def forget_memory(self, tensor: Tensor) -> None:
        """Know nothing of all tensors that share memory with this one."""
        memory = tensor.untyped_storage().data_ptr()
        for entry in list(self._entries.values()):
            if entry.tensor.untyped_storage().data_ptr() == memory:
                self.forget(entry.tensor)

    def _entry(self, tensor: Tensor) -> _Entry | None:
        entry = self._entries.get(id(tensor))
        return None if entry is None or self.lost or _version(tensor) != entry.version else entry

    def _enter(self, tensor: Tensor, interval: Interval | None) -> None:
        self.forget(tensor)
        version = _version(tensor)
        if version is not None:
            self._entries[id(tensor)] = _Entry(tensor, version, interval)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class _Ahead(Watcher):
    """The site whose function comes next, and what it reads."""

    def __init__(self) -> None:
        self.read: tuple[Site, Tensor] | None = None

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note it; the bounds are looked up where no mode watches."""
        self.read = site, value
        return value


class _Propagation(TorchFunctionMode):
    def __init__(self, known: _Known) -> None:
        super().__init__()
        self.ahead, self.operands = _Ahead(), list[Interval]()
        self._known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.ahead.read is not None:
            (site, operand), self.ahead.read = self.ahead.read, None
            self.operands.append(by_channel(self._known.interval(operand), site.operand_dim))
        call = Call(func, args, kwargs or {}, self._known)
        fixed = all(self._known.constant(tensor) for tensor in call.operands)
        disclosed = not fixed and _discloses(call)
        found = [] if fixed else result_bounds(call)
        value = func(*args, **(kwargs or {}))
        results = list(tensors_in(value))
        if not fixed:
            speaks = value is not None and not results and call.name not in _METADATA and not call.reads_property
            self._known.lost |= disclosed or speaks
            self._note(call, results, found)
        elif not any(part in call.name for part in _RANDOM):
            for tensor in itertools.chain(call.operands, results):  # also what it changed
                self._known.vouch(tensor)
        if call.name in _ESCAPES:
            for tensor in call.operands:
                self._known.forget_memory(tensor)
        return value

    def _note(self, call: Call, results: list[Tensor], found: list[Interval]) -> None:
        for tensor in itertools.chain(results, call.operands if call.in_place else ()):
            self._known.forget(tensor)
        for tensor, interval in zip(results, found, strict=True) if len(results) == len(found) else ():
            if tensor.is_floating_point() and (interval.lower.isfinite() | interval.upper.isfinite()).any():
                self._known.bound(tensor, interval)


def _discloses(call: Call) -> bool:
    """Whether Python code can see in the result's shape what an operand held."""
    if call.name in _SHAPED_BY_VALUES or (call.name == "where" and len(call.operands) == 1):
        return True
    masks = (torch.bool, torch.uint8) if call.name == "__getitem__" else (torch.int64, torch.int32)
    shaping = call.name in ("__getitem__", "repeat_interleave")
    return any(
        (shaping and t.dtype in masks) or (t.dim() == 0 and not t.is_floating_point() and t.dtype != torch.bool)
        for t in call.varying
    )
