"""A plan: pure data that says what is taken out of which weights, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vaeprune.errors import PlanError, StorageError
from vaeprune.storage import read_json, read_tensors, write_json, write_tensors
from vaeprune.unreplaced import unreplaced

FORMAT = 2
PLAN, NUMBERS = "plan.json", "plan.safetensors"
_PAIR = ("down", "up")


@dataclass(frozen=True)
class Slice:
    """Of axis `axis` of the tensor `key`, `size` entries long, only `kept` stay, in this order."""

    key: str
    axis: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Removal:
    """One latent that goes.

    `constant`: the value the rest of the network takes it for from now on. `verdict`, `evidence`: why it may go.
    """

    latent: int
    constant: float
    verdict: str
    evidence: str


@dataclass(frozen=True)
class ChannelRemoval:
    """One hidden channel that goes: entry `channel` on output axis `axis` of `weight`, with all that is tied to it.

    `kind`: "unread" (every weight that would read it is 0), "constant", or "cheap" (within a budget). `evidence`:
    "proved", "observed constant on N samples" or "searched". `deviation`: the largest distance from its constant that
    was seen, in units of what its readers read; None where nothing was observed.
    """

    weight: str
    axis: int
    channel: int
    kind: str
    evidence: str
    deviation: float | None = None


@dataclass(frozen=True)
class Left:
    """`channels` output channels of `weight` that stay because of `reason`."""

    weight: str
    channels: int
    reason: str


Scope = Literal["latents", "network", "budget"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, eq=False)
class Plan:
    """What to cut, for one set of weights.

    `weights_sha256`: the weights it was made for; applying it to others is refused.
    `slices`: per tensor and axis what stays. `bias_changes`: per bias (before slicing) what is added, float64.
    `held`: per tensor and input axis, the values its removed channels are taken for from then on, float64, NaN for
    those that stay. `refits`: what is added to tensors after slicing (least squares), float64.
    `attributes`: integers to set on modules ("decoder.0.in_features"). `data`: the split behind it, with its seed.
    `made_plain`: modules whose weights are computed (weight norm and the like); all such become plain weights first.
    `channels`: hidden channels that go, one by one; `left`: those that stay, and why.
    `factors`: layers, by path, that become two of low rank in the end: the weights of both, in their layout, float64.
    """

    weights_sha256: str
    scope: Scope
    latent_size: int
    removals: tuple[Removal, ...]
    slices: tuple[Slice, ...]
    attributes: Mapping[str, int]
    data: Mapping[str, Any]
    bias_changes: Mapping[str, Tensor] = field(default_factory=dict)
    made_plain: tuple[str, ...] = ()
    channels: tuple[ChannelRemoval, ...] = ()
    left: tuple[Left, ...] = ()
    held: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    refits: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def removed_latents(self) -> list[int]:
        """Indices that go, ascending."""
        return sorted(removal.latent for removal in self.removals)

    @property
    def kept_latents(self) -> list[int]:
        """Indices that stay, ascending: column j of the new means is column kept_latents[j] of the old."""
        removed = set(self.removed_latents)
        return [i for i in range(self.latent_size) if i not in removed]

    def numbers(self) -> dict[str, Tensor]:
        """What plan.safetensors holds."""
        return {
            **{f"bias:{key}": change for key, change in self.bias_changes.items()},
            **{f"held:{axis}:{key}": values for (key, axis), values in self.held.items()},
            **{f"refit:{key}": change for key, change in self.refits.items()},
            **{
                f"{name}:{path}": part
                for path, pair in self.factors.items()
                for name, part in zip(_PAIR, pair, strict=True)
            },
        }

    def to_json(self) -> dict[str, Any]:
        """What plan.json holds; the numbers go beside it."""
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "scope": self.scope,
            "latent_size": {"before": self.latent_size, "after": len(self.kept_latents)},
            "kept_latents": self.kept_latents,
            "removals": [dataclasses.asdict(r) for r in self.removals],
            "channels": [dataclasses.asdict(c) for c in self.channels],
            "left": [dataclasses.asdict(entry) for entry in self.left],
            "slices": [dataclasses.asdict(s) for s in self.slices],
            "numbers": sorted(self.numbers()),
            "attributes": dict(self.attributes),
            "made_plain": list(self.made_plain),
            "data": dict(self.data),
        }

    @classmethod
    def from_json(cls, entry: object, numbers: Mapping[str, Tensor], where: str) -> Plan:
        """Read and check what `to_json` and `numbers` gave. Raises PlanError."""
        try:
            if not isinstance(entry, dict) or entry["format"] != FORMAT:
                raise PlanError(f"{where}: is not a plan of format {FORMAT}")
            plan = cls(
                weights_sha256=_checked(entry["weights_sha256"], str),
                scope=_scope(entry["scope"]),
                latent_size=_checked(entry["latent_size"]["before"], int),
                removals=tuple(_removal(r) for r in _checked(entry["removals"], list)),
                slices=tuple(read_slice(s) for s in _checked(entry["slices"], list)),
                attributes={_checked(k, str): _checked(v, int) for k, v in entry["attributes"].items()},
                data=_checked(entry["data"], dict),
                bias_changes={name[5:]: value for name, value in numbers.items() if name.startswith("bias:")},
                made_plain=tuple(_checked(path, str) for path in _checked(entry["made_plain"], list)),
                channels=tuple(_channel(c) for c in _checked(entry["channels"], list)),
                left=tuple(_left(c) for c in _checked(entry["left"], list)),
                held=dict(_held(name, value) for name, value in numbers.items() if name.startswith("held:")),
                refits={name[6:]: value for name, value in numbers.items() if name.startswith("refit:")},
                factors={
                    name[5:]: (value, numbers[f"up:{name[5:]}"])
                    for name, value in numbers.items()
                    if name.startswith("down:")
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PlanError(f"{where}: is not a complete plan: {error}", "restore it from its source") from error
        plan._refuse_contradictions(entry, numbers, where)
        return plan

    def _refuse_contradictions(self, entry: Mapping[str, Any], numbers: Mapping[str, Tensor], where: str) -> None:
        budget = self.data.get("budget")
        if budget is not None and not (type(budget) in (int, float) and 0 <= budget < 1e300):
            raise PlanError(f"{where}: its budget is {budget!r:.40}, expected a number of nats of at least 0")
        seed = self.data.get("seed")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise PlanError(f"{where}: the seed of its split is {seed!r:.40}, expected a whole number of at least 0")
        if sorted(numbers) != entry.get("numbers") or sorted(self.numbers()) != sorted(numbers):
            raise PlanError(f"{where}: its numbers are not those in {NUMBERS}", "restore both from one source")
        removed = self.removed_latents
        if len(set(removed)) != len(removed) or not all(0 <= i < self.latent_size for i in removed):
            raise PlanError(f"{where}: removes latents {removed} of {self.latent_size}")
        kept = entry.get("kept_latents")
        fits = isinstance(kept, list) and len(kept) + len(removed) == self.latent_size  # which may be any number
        if not fits or self.kept_latents != kept:
            raise PlanError(f"{where}: kept_latents contradicts its removals")


def write_plan(plan: Plan, folder: Path) -> None:
    """Write plan.json and, beside it, plan.safetensors with the numbers."""
    write_json(folder / PLAN, plan.to_json())
    write_tensors(folder / NUMBERS, plan.numbers())


def read_plan(path: Path) -> Plan:
    """Read a plan from plan.json or the folder that holds it. Raises PlanError or StorageError."""
    path = path / PLAN if path.is_dir() else path
    with unreplaced(path.parent):
        return _read(path)


def _read(path: Path) -> Plan:
    entry = read_json(path, "plan")
    numbers = path.with_name(NUMBERS)
    try:
        found = read_tensors(numbers)
    except StorageError as error:
        raise PlanError(f"{path}: its numbers are gone: {error.message}", error.hint) from error
    bad = [name for name, value in found.items() if not _sound(name, value)]
    if bad:
        raise PlanError(f"{numbers}: {', '.join(bad)} are not finite float64 numbers of the expected shape")
    return Plan.from_json(entry, found, str(path))


def _sound(name: str, value: Tensor) -> bool:
    if value.dtype != torch.float64 or (name.startswith(("bias:", "held:")) and value.dim() != 1):
        return False
    return not bool(torch.isinf(value).any() if name.startswith("held:") else not torch.isfinite(value).all())


def _scope(value: Any) -> Scope:
    if value not in SCOPES:
        raise ValueError(f"scope is {value!r:.40}, expected one of {', '.join(SCOPES)}")
    return value  # type: ignore[no-any-return]


def _held(name: str, value: Tensor) -> tuple[tuple[str, int], Tensor]:
    axis, _, key = name[5:].partition(":")
    if not axis.isdecimal():
        raise ValueError(f"{name!r:.60} names no axis")
    return (key, int(axis)), value


def _channel(entry: Any) -> ChannelRemoval:
    deviation = entry["deviation"]
    if deviation is not None and type(deviation) not in (int, float):
        raise TypeError(f"deviation is {deviation!r:.40}")
    texts = {name: _checked(entry[name], str) for name in ("weight", "kind", "evidence")}
    places = {name: _checked(entry[name], int) for name in ("axis", "channel")}
    return ChannelRemoval(deviation=deviation, **places, **texts)


def _left(entry: Any) -> Left:
    return Left(_checked(entry["weight"], str), _checked(entry["channels"], int), _checked(entry["reason"], str))


def _removal(entry: Any) -> Removal:
    constant = entry["constant"]
    if type(constant) not in (int, float) or not abs(constant) < 1e300:
        raise TypeError(f"constant is {constant!r:.40}")
    return Removal(
        _checked(entry["latent"], int),
        float(constant),
        _checked(entry["verdict"], str),
        _checked(entry["evidence"], str),
    )


def read_slice(entry: Any) -> Slice:
    """A slice as JSON has it. Raises KeyError, TypeError or ValueError."""
    kept = tuple(_checked(i, int) for i in _checked(entry["kept"], list))
    size, axis = _checked(entry["size"], int), _checked(entry["axis"], int)
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size or axis < 0:
        raise ValueError(f"slice of {entry['key']!r:.60} keeps {kept!r:.60} of {size} on axis {axis}")
    return Slice(_checked(entry["key"], str), axis, size, kept)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"got {value!r:.60}, expected {kind.__name__}")
    return value
