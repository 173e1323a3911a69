"""Every call on weights in view, so that what goes in or comes out of it can be noted or changed.

Nothing is known of the model's code: a `TorchFunctionMode` sees each torch function that gets a weight as an operand,
recognised by identity, whether it is called by a module, functionally, or as an operator. A transposed view of a weight
is still that weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaeprune.surgery.sites import Passenger, Site, Unknown, Views, classify, derived

# functions without weights of their own that let every channel see every other
_MIXING = {
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax", "normalize",
    "scaled_dot_product_attention", "multi_head_attention_forward", "local_response_norm",
}  # fmt: skip
_IN_PLACE = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__iand__",
    "__ior__",
    "__ixor__",
    "__ipow__",
}


class CannotShare(BaseException):
    """A subject must not share weights with the model; it needs a copy of its own.

    No Exception, so that a model which catches those does not go on in another way.
    """


class Run:
    """One call of a site, which can be made again with another operand or other weights.

    `mixed`: the weight need not have the type of what it reads, and is multiplied in its own.
    """

    def __init__(self, site: Site, func: Callable[..., Any], args: Any, kwargs: Any, mixed: bool) -> None:
        self.site, self._func, self._mixed = site, func, mixed
        self._args, self._kwargs = list(args), dict(kwargs)

    @property
    def operand(self) -> Tensor:
        """What the site reads."""
        found: Tensor = self.argument(self.site.operand)
        return found

    def argument(self, place: int | str) -> Any:
        """An argument by position or name, None if it was not given."""
        if isinstance(place, int):
            return self._args[place] if place < len(self._args) else None
        return self._kwargs.get(place)

    def replace(self, place: int | str, value: Any) -> None:
        """Set an argument for all further calls."""
        if isinstance(place, int):
            self._args[place] = value
        else:
            self._kwargs[place] = value

    def __call__(
        self, operand: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The result; `weight` and `bias` in the layout of the state dict."""
        args, kwargs = list(self._args), dict(self._kwargs)
        views = (weight if weight is None else weight.permute(self.site.axes)), bias
        places = self.site.operand, self.site.weight, self.site.bias_place
        for place, value in zip(places, (operand, *views), strict=True):
            if value is not None:
                (args if isinstance(place, int) else kwargs)[place] = value  # type: ignore[index]
        if not self._mixed:
            return self._func(*args, **kwargs)  # type: ignore[no-any-return]
        read, dtype = self.operand.dtype, self.argument(self.site.weight).dtype
        for place in (self.site.operand, self.site.bias_place):
            holder: Any = args if isinstance(place, int) else kwargs
            if place is not None and holder[place] is not None:
                holder[place] = holder[place].to(dtype)
        found: Tensor = self._func(*args, **kwargs)
        return found.to(read)

    @property
    def settings(self) -> str:
        """All arguments that are not tensors, like strides."""
        named = [*enumerate(self._args), *self._kwargs.items()]
        return repr([(name, value) for name, value in named if not isinstance(value, Tensor)])

    def taps(self, operand: Tensor) -> Tensor:
        """(T, *result's places): which place of the operand (its number, from 1) each tap sees there; 0 is padding.

        The convolution itself is run on an image of place numbers, once for each tap with a kernel that is 1 there.
        """
        kernel = self.argument(self.site.weight).shape[2:]
        taps, places = math.prod(kernel), operand.shape[2:]
        numbers = torch.arange(1, math.prod(places) + 1, dtype=torch.float64).view(1, 1, *places)
        single = torch.eye(taps, dtype=torch.float64).view(taps, 1, *kernel)
        if self.site.transposed:
            single = single.transpose(0, 1)
        names = dict(self._kwargs) | dict(zip(self.site.names, self._args, strict=False))
        found: Tensor = self._func(**names | {"input": numbers, "weight": single, "bias": None, "groups": 1})
        return found[0].round().long()


class Watcher:
    """What to do at each call on weights; the base class does nothing and changes nothing.

    `call` counts calls of sites within one run. The value returned replaces the operand or result.
    """

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Before a site reads `value`."""
        return value

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """What a site writes; where that is known it need not be computed again."""
        return run()

    def result(self, call: int, site: Site, value: Tensor) -> Tensor:
        """After a site wrote `value`."""
        return value

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """`value` came out of a call with per-channel parameters."""

    def unknown(self, call: Unknown, value: Any, where: str) -> Any:
        """`value` came out of a call on weights that is not understood, in the module at path `where`."""
        return value

    def mixed(self, function: str, value: Tensor, where: str) -> None:
        """`value` went into a function that mixes channels, in the module at path `where`."""


class Watching(TorchFunctionMode):
    """`views`: the weights; `inside`: paths of the modules that run, the innermost last.

    Weights in `shared` are in the memory and type of somebody else's model, while all else is in float64. Then
    CannotShare is raised before any weight is changed in place, or where one is to read another type.
    """

    def __init__(self, views: Views, inside: list[str], shared: Collection[str], watcher: Watcher) -> None:
        super().__init__()
        self._views, self._inside, self._watcher, self._calls = dict(views), inside, watcher, 0
        self._shared = shared
        self._alive: list[Tensor] = []  # views made on the way: an id is only good while its tensor lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._shared:
            self._refuse_writing(func, args, kwargs)
        view = derived(func, args, kwargs, self._views)
        if view is not None:
            value = func(*args, **kwargs)
            if isinstance(value, Tensor):
                self._views[id(value)] = view
                self._alive.append(value)
            return value
        found = classify(func, args, kwargs, self._views)
        if isinstance(found, Site):
            return self._at_site(found, func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in _MIXING and args and isinstance(args[0], Tensor):
            self._watcher.mixed(name, args[0], self._where())
        if found is not None and self._shared:
            args, kwargs = self._in_double(args), self._in_double(kwargs)
        value = func(*args, **kwargs)
        if isinstance(found, Passenger):
            self._watcher.passed(found, value)
        elif isinstance(found, Unknown):
            value = self._watcher.unknown(found, value, self._where())
        return value

    def _at_site(self, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        run = Run(site, func, args, kwargs, mixed=bool(self._shared))
        if self._shared and run.operand.dtype != torch.float64:
            raise CannotShare(f"{site.key}: does not read float64")
        run.replace(site.operand, self._watcher.operand(call, site, run.argument(site.operand)))
        return self._watcher.result(call, site, self._watcher.compute(call, site, run))

    def _refuse_writing(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raise CannotShare before a weight is changed in place; functions that do so end in an underscore."""
        name = getattr(func, "__name__", "")
        if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_"):
            targets = args[:1]
        else:
            targets = (kwargs.get("out"),)
        for target in targets:
            each = target if isinstance(target, (tuple, list)) else (target,)
            if any(id(tensor) in self._views for tensor in each):
                raise CannotShare(f"{name} changes a weight")

    def _in_double(self, values: Any) -> Any:
        """Arguments, the weights among them in float64."""
        if isinstance(values, dict):
            return {name: self._in_double(value) for name, value in values.items()}
        if type(values) in (tuple, list):
            return type(values)(self._in_double(value) for value in values)
        weight = isinstance(values, Tensor) and id(values) in self._views and values.is_floating_point()
        return values.double() if weight else values

    def _where(self) -> str:
        return self._inside[-1] if self._inside else "the model"
