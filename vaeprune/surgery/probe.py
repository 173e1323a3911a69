"""A copy of a model to be run with every call on weights in view, and runs that are kept to compare others with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vaeprune.adapters import element_type
from vaeprune.adapters.copying import aliases, copied, make_plain
from vaeprune.data import Batch
from vaeprune.posterior import VAE
from vaeprune.surgery.sites import Passenger, Site, View
from vaeprune.surgery.watching import CannotShare, Run, Watcher, Watching

SHARED_FROM = 1 << 16  # entries of a weight that a copy for probing leaves where it is
T = TypeVar("T")


class Subject:
    """A copy of a model in eval mode, to be probed; the model itself stays as it is.

    It is in float64 where it runs so, unless `double` is false. Weights that are computed (weight norm and the like)
    are plain in the copy; `plain` are the paths of their modules. `example`: rows in the copy's type.

    With `sharing`, large weights stay in the model's own memory and type, and only what they read and write is in
    float64; a run raises CannotShare before it changes such a weight in place, or where it leaves float64. `shared`:
    their state-dict keys.
    """

    def __init__(self, vae: VAE, example: Batch = (), double: bool = True, sharing: bool = False) -> None:
        # an embedding with max_norm is changed in place by its own function, out of sight
        sharing = sharing and all(getattr(m, "max_norm", None) is None for m in vae.network.modules())
        large = [p for p in vae.network.parameters() if sharing and _is_large(p)]
        self.vae: VAE = copied(vae, large)  # type: ignore[type-var]
        network = self.vae.network
        self.plain = make_plain(network)
        network.eval().requires_grad_(False)
        self.example = example
        if large:
            self.example = _as(torch.float64, example)
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point() and not _is_large(tensor):
                    tensor.data = tensor.data.double()
        elif double:
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
        self.shared = frozenset(keys[0] for t, keys in self.aliases if sharing and _is_large(t))

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

    def run(self, what: Callable[[VAE], Any], watcher: Watcher, gradients: bool = False, seed: int = 0) -> Any:
        """`what(model)` with `watcher` in view of each call; random numbers are the same in every run of a `seed`."""
        self.inside.clear()
        with (
            _reproducibly(seed, element_type(self.vae)[1]),
            torch.set_grad_enabled(gradients),
            Watching(self.views, self.inside, self.shared, watcher),
        ):
            return what(self.vae)


def on_shared_weights(vae: VAE, example: Batch, work: Callable[[Subject], T]) -> T:
    """`work` on a subject in the model's own memory; where it cannot be so, on a copy."""
    try:
        return work(Subject(vae, example, sharing=True))
    except CannotShare:
        return work(Subject(vae, example))


class Recorder(Watcher):
    """Keeps copies of what each site reads and writes; the model may go on to change the originals in place.

    `runs`: what else a call's result depends on, see `made_by`. `passed_on`: shapes of what came out of per-channel
    parameters.
    """

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.operands: list[Tensor] = []
        self.results: list[Tensor] = []
        self.runs: list[tuple[Any, ...]] = []
        self.passed_on: list[tuple[int, ...]] = []

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the site and its operand."""
        self.sites.append(site)
        self.operands.append(value.clone())
        return value

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """Note what else the result depends on."""
        self.runs.append(made_by(run))
        return run()

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Note the shape."""
        self.passed_on.append(tuple(value.shape))

    def result(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the result."""
        self.results.append(value.clone())
        return value


class Replayed(Watcher):
    """Multiplies nothing again whose result was recorded: where a call reads what it read then, by the same weight.

    One recorded row stands for each of many that are the same. What is read may differ by `rounding`, as a share of the
    largest value.
    """

    def __init__(self, before: Recorder, rounding: float = 0.0) -> None:
        self._before, self._rounding = before, rounding

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """The recorded result in memory of its own, or a new one."""
        known = self._known(call, site, run)
        return run() if known is None else known

    def _known(self, call: int, site: Site, run: Run) -> Tensor | None:
        before, value = self._before, run.operand
        if call >= len(before.sites) or before.sites[call] != site or not _same(before.runs[call], made_by(run)):
            return None
        operand, result = before.operands[call], before.results[call]
        one = len(operand) == len(result) == 1 and operand.dim() + site.operand_dim > 0
        if value.dtype != operand.dtype or value.numel() == 0:
            return None
        if value.shape != operand.shape and not (one and value.shape[1:] == operand.shape[1:]):
            return None
        if not ((value - operand).abs() <= self._rounding * operand.abs().amax()).all():  # so for NaN
            return None
        return result.repeat(len(value) // len(operand), *[1] * (result.dim() - 1))


def made_by(run: Run) -> tuple[Any, ...]:
    """What a call's result depends on besides what it reads: its weight's memory, its bias, its settings."""
    weight, place = run.argument(run.site.weight), run.site.bias_place
    bias = None if place is None else run.argument(place)
    return (weight.data_ptr(), tuple(weight.shape), weight.dtype, run.settings, None if bias is None else bias.clone())


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    (*settings, bias), (*others, other_bias) = one, other
    if settings != others or bias is None or other_bias is None:
        return settings == others and bias is other_bias
    return bias.dtype == other_bias.dtype and torch.equal(bias, other_bias)


def _is_large(tensor: Tensor) -> bool:
    return type(tensor) is nn.Parameter and tensor.dim() > 1 and tensor.numel() >= SHARED_FROM


def _as(dtype: torch.dtype, batch: Batch) -> Batch:
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)


@contextlib.contextmanager
def _reproducibly(seed: int, device: torch.device) -> Iterator[None]:
    """The same random numbers in each run, and no check that would reject a NaN."""
    kind = torch.distributions.Distribution
    usual = kind.__init__

    def unchecked(self: Any, *args: Any, validate_args: bool | None = None, **kwargs: Any) -> None:
        usual(self, *args[:2], **(kwargs | {"validate_args": False}))

    kind.__init__ = unchecked  # type: ignore[method-assign]
    try:
        with torch.random.fork_rng(devices=[]):
            if device.type == "cpu":  # torch.manual_seed would keep the stack for devices not yet started, which costs
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)
            yield
    finally:
        kind.__init__ = usual  # type: ignore[method-assign]
