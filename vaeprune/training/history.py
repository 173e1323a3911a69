"""The record of a training run: losses and latents epoch by epoch, and between them on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vaeprune.errors import StorageError
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE, INACTIVE_VARIANCE

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    `loss`, `reconstruction` and `kl` are means over the epoch's rows in nats, while the weights moved.
    `variance` is Var_x[mu_i] and `posterior_variance` E_x[sigma_i²] over training rows, after the epoch.
    """

    epoch: int
    loss: float
    reconstruction: float
    kl: float
    variance: tuple[float, ...]
    posterior_variance: tuple[float, ...]

    @property
    def inactive(self) -> list[int]:
        """Latents with a variance below 0.01 and a posterior variance above 0.8."""
        pairs = zip(self.variance, self.posterior_variance, strict=True)
        return [i for i, (v, s) in enumerate(pairs) if v < INACTIVE_VARIANCE and s > INACTIVE_POSTERIOR_VARIANCE]

    @property
    def n_inactive(self) -> int:
        """How many those are."""
        return len(self.inactive)


@dataclass(frozen=True)
class TracePoint:
    """Var_x[mu_i] and E_x[sigma_i²] over the minibatch of one step (the paper's Fig. 11)."""

    step: int
    variance: tuple[float, ...]
    posterior_variance: tuple[float, ...]


@dataclass(frozen=True)
class History:
    """All finished epochs, and the trace between them if one was asked for."""

    epochs: tuple[Epoch, ...] = ()
    trace: tuple[TracePoint, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What history.json holds."""
        return {
            "format": 1,
            "epochs": [dataclasses.asdict(e) for e in self.epochs],
            "trace": [dataclasses.asdict(t) for t in self.trace],
        }

    @classmethod
    def from_json(cls, entry: object, where: str) -> History:
        """Read history.json; raises StorageError if it is not one."""
        if not isinstance(entry, Mapping) or entry.get("format") != 1:
            raise StorageError(f"{where}: is not a training history of format 1")
        return cls(
            tuple(_entry(Epoch, e, where) for e in _list(entry.get("epochs"), where)),
            tuple(_entry(TracePoint, t, where) for t in _list(entry.get("trace"), where)),
        )


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise StorageError(f"{where}: got {type(value).__name__}, expected a list of entries")
    return value


def _entry(kind: type[_Entry], value: object, where: str) -> _Entry:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, Mapping) or set(value) != set(fields):
        raise StorageError(f"{where}: got {value!r:.80}, expected the keys {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    for name, given in value.items():
        numbers = given if isinstance(given, list) else [given]
        if not all(type(n) in (int, float) and abs(n) < 1e300 for n in numbers):
            raise StorageError(f"{where}: {name} holds {given!r:.80}, expected finite numbers")
        if isinstance(given, list) != str(fields[name].type).startswith("tuple"):
            raise StorageError(f"{where}: {name} holds {given!r:.80}, expected {fields[name].type}")
        if str(fields[name].type) == "int" and type(given) is not int:
            raise StorageError(f"{where}: {name} holds {given!r:.80}, expected a whole number")
        arguments[name] = tuple(given) if isinstance(given, list) else given
    if len(arguments["variance"]) != len(arguments["posterior_variance"]):
        raise StorageError(
            f"{where}: has variances of {len(arguments['variance'])} and posterior variances of "
            f"{len(arguments['posterior_variance'])} latents, expected as many"
        )
    return kind(**arguments)
