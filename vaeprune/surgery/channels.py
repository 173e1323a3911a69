"""Which hidden channels must go together: what writes them, what they pass, and what reads them.

Encode and decode are followed one after the other (`following`); a tensor that both use joins what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.following import Following
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.sites import Axis, Call, Side, Site
from vaeprune.surgery.union import Union

__all__ = ["Axis", "Call", "Channels", "Group", "Side", "hidden_channels", "runs"]


@dataclass(frozen=True)
class Group:
    """Channels that can only go together.

    `entries`: of each tensor axis, the indices that would go. `reads`, `writes`: per call, the channels of its operand
    and of its result. `obstacle`: why the group has to stay, None if it may go.
    """

    entries: Mapping[Axis, tuple[int, ...]]
    reads: Mapping[Call, tuple[int, ...]]
    writes: Mapping[Call, tuple[int, ...]]
    obstacle: str | None


@dataclass(frozen=True)
class Channels:
    """The hidden channels of a model in groups, and its calls on weights in the order of each run.

    `shared_biases`: state-dict keys of biases that something else than their one weight uses, too. `unbatched`: of
    weights that read something that does not grow with the batch, or in another way than by rows.
    """

    groups: tuple[Group, ...]
    sites: Mapping[Side, tuple[Site, ...]]
    shared_biases: frozenset[str] = frozenset()
    unbatched: frozenset[str] = frozenset()

    def site(self, call: Call) -> Site:
        """The weight behind a call."""
        return self.sites[call[0]][call[1]]

    def layers(self) -> list[list[Group]]:
        """The groups that may go, those together that one weight reads side by side, in the order of the runs."""
        together = Union()
        free = [group for group in self.groups if group.obstacle is None]
        for number, group in enumerate(free):
            for kind, calls in (("read", group.reads), ("write", group.writes)):
                for call in calls:
                    together.join((kind, call), ("group", number))
        found = [sorted(n for kind, n in nodes if kind == "group") for nodes, _ in together.members()]
        return [[free[number] for number in numbers] for numbers in sorted(found)]


def runs(example: Batch, z: Tensor) -> dict[Side, Callable[[VAE, int], Any]]:
    """Encode and decode of one row repeated as often as asked; outputs as tuples of tensors."""

    def repeated(part: Tensor, rows: int) -> Tensor:
        return part.expand(rows, *part.shape[1:]).clone()

    def encode(vae: VAE, rows: int) -> tuple[Tensor, ...]:
        found: Posterior = vae.encode(*(repeated(part, rows) for part in example))
        return found.mean, found.logvar

    def decode(vae: VAE, rows: int) -> tuple[Tensor, ...]:
        return (vae.decode_parameters(*(repeated(part, rows) for part in (z, *example[1:]))),)

    return {"encode": encode, "decode": decode}


def hidden_channels(subject: Subject) -> Channels:
    """Trace the hidden channels of the model in `subject`. Raises TraceError if it cannot be run in this way."""
    example = tuple(part[:1] for part in subject.example)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, *subject.vae.latent_shape, generator=generator, dtype=torch.float64).to(example[0])
    union = Union()
    sites: dict[Side, tuple[Site, ...]] = {}
    users: dict[str, set[Any]] = {}
    unbatched: frozenset[str] = frozenset()
    for side, run in runs(example, z).items():
        inputs = (z, *example[1:]) if side == "decode" else example
        traced = Following(subject, side, run, inputs)
        sites[side] = traced.join(union)
        unbatched |= traced.unbatched
        for key, user in traced.before.uses:
            users.setdefault(key, set()).add(user)
    shared = frozenset(key for key, known in users.items() if len(known) > 1)
    return Channels(tuple(_groups(subject, union, sites)), sites, shared, unbatched)


def _groups(subject: Subject, union: Union, sites: Mapping[Side, tuple[Site, ...]]) -> Iterator[Group]:
    for nodes, obstacle in union.members():
        parts: dict[str, dict[Any, list[int]]] = {"entry": {}, "read": {}, "write": {}}
        for kind, *where, index in nodes:
            parts[kind].setdefault(where[0] if kind != "entry" else tuple(where), []).append(index)
        if not parts["write"]:
            continue  # read from the input alone
        entries = {axis: tuple(sorted(found)) for axis, found in parts["entry"].items()}
        for (key, axis), gone in entries.items():
            if obstacle is None and len(gone) == subject.weight(key).shape[axis]:
                obstacle = f"all channels of {key} hang together" if len(gone) > 1 else f"{key} has only one channel"
        reads, writes = ({c: tuple(sorted(i)) for c, i in parts[kind].items()} for kind in ("read", "write"))
        yield Group(entries, reads, writes, obstacle)
