"""One call of a torch function with bounds beside its operands, which can be made again with other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from vaeprune.surgery.intervals import Interval

# bounds need not lie in memory as their tensor does
_UNSTRIDED: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


class Knowledge(Protocol):
    """What is known of the tensors of one run."""

    def constant(self, tensor: Tensor) -> bool:
        """Whether the tensor is the same for every input."""

    def interval(self, tensor: Tensor) -> Interval:
        """Bounds of the tensor, infinite where nothing is known."""


class NoRuleError(Exception):
    """Nothing can be said of a result."""


class Call:
    """One call of a torch function, which can be made again with other tensors."""

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], known: Knowledge) -> None:
        name = getattr(func, "__name__", "")
        self.reads_property = name == "__get__"
        if name in ("__get__", "__set__"):
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        self.in_place = name.endswith("_") and not name.endswith("__")
        self.name: str = name.removesuffix("_") if self.in_place else name
        self.func, self.args, self.kwargs, self.known = func, args, kwargs, known
        self.operands = list(tensors_in((args, kwargs)))
        self.varying = [tensor for tensor in self.operands if not known.constant(tensor)]

    @property
    def eps(self) -> float:
        """Machine epsilon of the coarsest type among the operands."""
        return max((torch.finfo(t.dtype).eps for t in self.operands if t.is_floating_point()), default=0.0)

    def named(self, *order: str) -> dict[str, Any]:
        """The arguments by name."""
        if len(self.args) > len(order):
            raise NoRuleError
        return dict(zip(order, self.args, strict=False)) | dict(self.kwargs)

    def expect_only(self, data: Tensor) -> None:
        """All other operands must be constants."""
        if len(self.varying) != 1 or self.varying[0] is not data:
            raise NoRuleError

    def at(self, ends: Mapping[int, Tensor]) -> list[Tensor]:
        """What the function gives for other tensors in place of its own, by id; constants in float64."""
        constants = {id(t): t.detach().double() for t in self.operands if t.is_floating_point()}
        swapped = {key: tensor.clone() for key, tensor in (constants | dict(ends)).items()}  # it may work in place
        func = _UNSTRIDED.get(self.name, self.func)
        return list(tensors_in(func(*_swap(self.args, swapped), **_swap(self.kwargs, swapped))))

    def ends(self, of: Callable[[Interval], Tensor]) -> list[Tensor]:
        """The function at one end of every operand."""
        return self.at({id(t): of(self.known.interval(t)) for t in self.operands if t.is_floating_point()})


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in the arguments or results of a call."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))


def _swap(value: Any, ends: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return ends.get(id(value), value)
    if isinstance(value, dict):
        return {key: _swap(item, ends) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(_swap(item, ends) for item in value)
    return value
