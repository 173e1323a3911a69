"""Run a copy of the model with every call on weights in view, and change what goes in or comes out of them.

Nothing is known of the model's code: a `TorchFunctionMode` sees each torch function that gets a weight as an operand,
recognised by identity, whether it is called by a module, functionally, or as an operator. A transposed view of a weight
is still that weight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaeprune.adapters import element_type
from vaeprune.adapters.copying import aliases, copied, make_plain
from vaeprune.data import Batch
from vaeprune.posterior import VAE
from vaeprune.surgery.sites import Passenger, Site, Unknown, View, classify, derived

# functions without weights of their own that let every channel see every other
_MIXING = {
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax", "normalize",
    "scaled_dot_product_attention", "multi_head_attention_forward", "local_response_norm",
}  # fmt: skip


class Run:
    """One call of a site, which can be made again with another operand or other weights."""

    def __init__(self, site: Site, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.site, self._func = site, func
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
        for place, value in zip(
            (self.site.operand, self.site.weight, self.site.bias_place), (operand, *views), strict=True
        ):
            if value is not None:
                (args if isinstance(place, int) else kwargs)[place] = value  # type: ignore[index]
        found: Tensor = self._func(*args, **kwargs)
        return found

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


class _Mode(TorchFunctionMode):
    def __init__(self, subject: Subject, watcher: Watcher) -> None:
        super().__init__()
        self._views, self._inside, self._watcher, self._calls = dict(subject.views), subject.inside, watcher, 0
        self._alive: list[Tensor] = []  # views made on the way: an id is only good while its tensor lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
        value = func(*args, **kwargs)
        if isinstance(found, Passenger):
            self._watcher.passed(found, value)
        elif isinstance(found, Unknown):
            value = self._watcher.unknown(found, value, self._where())
        return value

    def _at_site(self, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        run = Run(site, func, args, kwargs)
        run.replace(site.operand, self._watcher.operand(call, site, run.argument(site.operand)))
        return self._watcher.result(call, site, self._watcher.compute(call, site, run))

    def _where(self) -> str:
        return self._inside[-1] if self._inside else "the model"


class Subject:
    """A copy of a model in eval mode, to be probed; the model itself stays as it is.

    It is in float64 where it runs so, unless `double` is false. Weights that are computed (weight norm and the like)
    are plain in the copy; `plain` are the paths of their modules. `example`: rows in the copy's type.
    """

    def __init__(self, vae: VAE, example: Batch = (), double: bool = True) -> None:
        self.vae: VAE = copied(vae)  # type: ignore[type-var]
        network = self.vae.network
        self.plain = make_plain(network)
        network.eval().requires_grad_(False)
        self.example = example
        if double:
            network.double()
            self.example = _as(torch.float64, example)
            if not self._runs():  # a type is written into its code
                dtype, _ = element_type(vae)
                network.to(dtype)
                self.example = _as(dtype, example)
        self.inside: list[str] = []
        for path, module in network.named_modules():
            module.register_forward_pre_hook(lambda _m, _a, path=path: self.inside.append(path or "the model"))
            module.register_forward_hook(lambda _m, _a, _r: self.inside.pop() and None, always_call=True)
        self.aliases = aliases(network)
        self.views = {id(t): View(keys[0], tuple(range(t.dim()))) for t, keys in self.aliases}

    @property
    def dtype(self) -> torch.dtype:
        """float64, or the model's own type where it does not run in float64."""
        return element_type(self.vae)[0]

    def _runs(self) -> bool:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self.vae.encode(*self.example)
        except RuntimeError:
            return False
        return True

    def weight(self, key: str) -> Tensor:
        """The tensor behind a state-dict key."""
        return next(tensor for tensor, keys in self.aliases if key in keys)

    def names(self, key: str) -> tuple[str, ...]:
        """All state-dict keys of the tensor behind one of them."""
        return next(keys for _, keys in self.aliases if key in keys)

    def run(self, what: Callable[[VAE], Any], watcher: Watcher, gradients: bool = False) -> Any:
        """`what(model)` with `watcher` in view of each call; random numbers are the same in every run."""
        self.inside.clear()
        with _reproducibly(), torch.set_grad_enabled(gradients), _Mode(self, watcher):
            return what(self.vae)


class Recorder(Watcher):
    """Keeps copies of what each site reads and writes; the model may go on to change the originals in place."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.operands: list[Tensor] = []
        self.results: list[Tensor] = []

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the site and its operand."""
        self.sites.append(site)
        self.operands.append(value.clone())
        return value

    def result(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the result."""
        self.results.append(value.clone())
        return value


def _as(dtype: torch.dtype, batch: Batch) -> Batch:
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)


@contextlib.contextmanager
def _reproducibly() -> Iterator[None]:
    """The same random numbers in each run, and no check that would reject a NaN."""
    kind = torch.distributions.Distribution
    usual = kind.__init__

    def unchecked(self: Any, *args: Any, validate_args: bool | None = None, **kwargs: Any) -> None:
        usual(self, *args[:2], **(kwargs | {"validate_args": False}))

    kind.__init__ = unchecked  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        kind.__init__ = usual  # type: ignore[method-assign]
