"""Run a copy of the model with every call on weights in view, and change what goes in or comes out of them.

Nothing is known of the model's code: a `TorchFunctionMode` sees each torch function that gets a weight as an operand,
recognised by identity, whether it is called by a module, functionally, or as an operator.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vaeprune.errors import TraceError
from vaeprune.posterior import VAE
from vaeprune.surgery.sites import Passenger, Site, Unknown, classify


class Watcher:
    """What to do at each call on weights; the base class does nothing and changes nothing.

    `call` counts calls of sites within one run. The value returned replaces the operand or result.
    """

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Before a site reads `value`."""
        return value

    def result(self, call: int, site: Site, value: Tensor) -> Tensor:
        """After a site wrote `value`."""
        return value

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """`value` came out of a call with per-channel parameters."""

    def unknown(self, call: Unknown, value: Any) -> None:
        """`value` came out of a call on weights that is not understood."""


class _Mode(TorchFunctionMode):
    def __init__(self, names: Mapping[int, str], watcher: Watcher) -> None:
        super().__init__()
        self._names, self._watcher, self._calls = names, watcher, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = classify(func, args, kwargs, self._names)
        if isinstance(found, Site):
            return self._at_site(found, func, args, kwargs)
        value = func(*args, **kwargs)
        if isinstance(found, Passenger):
            self._watcher.passed(found, value)
        elif isinstance(found, Unknown):
            self._watcher.unknown(found, value)
        return value

    def _at_site(self, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
        call, self._calls = self._calls, self._calls + 1
        args, kwargs = list(args), dict(kwargs)
        place: Any = args if isinstance(site.operand, int) else kwargs
        place[site.operand] = self._watcher.operand(call, site, place[site.operand])
        return self._watcher.result(call, site, func(*args, **kwargs))


class Subject:
    """A float64 copy of a model in eval mode, to be probed; the model itself stays as it is."""

    def __init__(self, vae: VAE) -> None:
        self.vae: VAE = copy.deepcopy(vae)
        network = self.vae.network
        network.double().eval().requires_grad_(False)
        self.aliases = aliases(network)
        self._names = {id(tensor): keys[0] for tensor, keys in self.aliases}

    def weight(self, key: str) -> Tensor:
        """The float64 tensor behind a state-dict key."""
        return next(tensor for tensor, keys in self.aliases if key in keys)

    def run(self, what: Callable[[VAE], Any], watcher: Watcher) -> Any:
        """`what(model)` with `watcher` in view of each call; random numbers are the same in every run."""
        with _reproducibly(), torch.no_grad(), _Mode(self._names, watcher):
            return what(self.vae)


def aliases(network: nn.Module) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Each parameter and buffer once, with all state-dict keys it goes by."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    tensors = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    for key, tensor in tensors:
        found.setdefault(id(tensor), (tensor, []))[1].append(key)
    return [(tensor, tuple(keys)) for tensor, keys in found.values()]


class Recorder(Watcher):
    """Keeps what each site reads."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.operands: list[Tensor] = []

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note the site and its operand."""
        self.sites.append(site)
        self.operands.append(value)
        return value


class Isolated(Watcher):
    """Gives every site what it read in an undisturbed run, so that a disturbance shows only where it is direct.

    `disturbed(site, difference)` sees, before that, which channels of an operand (R, channels) were reached in each
    of the R rows.
    """

    def __init__(self, undisturbed: Recorder) -> None:
        self._undisturbed = undisturbed
        self.reached: dict[int, Tensor] = {}
        self.passengers: list[tuple[Passenger, Tensor]] = []
        self.unknowns: list[tuple[Unknown, Tensor]] = []
        self.rows = 0

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note which channels differ, then hand over the undisturbed operand."""
        before = self._undisturbed
        if (
            call >= len(before.sites)
            or before.sites[call].key != site.key
            or before.operands[call].shape != value.shape
        ):
            raise TraceError(
                f"{site.key}: is reached in another order or shape when the input changes; "
                "control flow that depends on values cannot be followed"
            )
        self.reached[call] = by_channel(differs(value, before.operands[call]), site.operand_dim, self.rows)
        return before.operands[call]

    def passed(self, passenger: Passenger, value: Tensor) -> None:
        """Note which channels of a per-channel parameter were passed by a NaN."""
        if value.isnan().any():
            self.passengers.append((passenger, by_channel(value.isnan(), passenger.dim, self.rows)))

    def unknown(self, call: Unknown, value: Any) -> None:
        """Note which rows reached a call that is not understood."""
        tensors = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Tensor)]
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.isnan().any():
                self.unknowns.append((call, tensor.isnan().reshape(len(tensor), -1).any(1)))


def differs(value: Tensor, before: Tensor) -> Tensor:
    """Where two float64 tensors differ by more than rounding; NaN differs."""
    scale = before.abs().amax().clamp_min(1e-30) if before.numel() else 1.0
    return ~((value - before).abs() <= 1e-11 * scale)


def by_channel(mask: Tensor, dim: int, rows: int) -> Tensor:
    """(rows, channels): whether anything of a channel is marked, for each row of the batch."""
    if mask.shape[0] != rows:
        raise TraceError(
            f"a tensor of shape {tuple(mask.shape)} does not keep the batch of {rows} rows in its first dimension",
            "keep rows apart in encode and decode",
        )
    moved = mask.movedim(dim, -1)
    if moved.dim() == 1:
        moved = moved[:, None]
    return moved.flatten(1, -2).any(1) if moved.dim() > 2 else moved


@contextlib.contextmanager
def _reproducibly() -> Iterator[None]:
    """The same random numbers in each run, and no check that would reject a NaN."""
    validating = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validating)
