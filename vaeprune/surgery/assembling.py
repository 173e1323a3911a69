"""From chosen channel groups to a plan: slices, constants and the biases that take them over, sizes, reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vaeprune.adapters import measuring
from vaeprune.data import Batch
from vaeprune.errors import ModelError, PlanError, TraceError, VaepruneError
from vaeprune.factory import quoted
from vaeprune.posterior import VAE
from vaeprune.storage import weights_sha256
from vaeprune.surgery.channels import Axis, Call, Channels, Group
from vaeprune.surgery.constants import response
from vaeprune.surgery.cut import cut_any_weights
from vaeprune.surgery.plan import ChannelRemoval, Left, Plan, Scope, Slice
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.reference import Reference
from vaeprune.surgery.sizes import layer_sizes, own_sizes, refuse_shape

_ROUGHLY = 1e-2  # sizes are checked here, values by `verify`


@dataclass(frozen=True)
class Chosen:
    """A group that goes: what each of its readers takes its channels for, and why it may.

    `constants`: per call, the values of the group's channels there, in their order; 0 where a call is not named.
    """

    group: Group
    kind: str
    evidence: str
    deviation: float | None = None
    constants: Mapping[Call, Tensor] = field(default_factory=dict)


class Assembler:
    """Makes plans for one model, whose hidden channels were traced."""

    def __init__(self, vae: VAE, subject: Subject, channels: Channels, example: Batch, data: Mapping[str, Any]) -> None:
        self.vae, self.subject, self.channels, self.data = vae, subject, channels, data
        self._example = example
        self._sha256 = weights_sha256(vae.network.state_dict())
        self._following: dict[Axis, list[str]] = {}

    def plan(
        self,
        chosen: Sequence[Chosen],
        scope: Scope,
        left: Iterable[Left] = (),
        refits: Mapping[str, Tensor] | None = None,
    ) -> Plan:
        """The plan that takes out these groups. Raises PlanError if a tensor would lose all its channels."""
        slices = self._slices(chosen)
        made = Plan(
            weights_sha256=self._sha256,
            scope=scope,
            latent_size=self.vae.latent_size,
            removals=(),
            slices=slices,
            attributes={**layer_sizes(self.vae.network, slices), **self._own(slices)},
            data=self.data,
            bias_changes=self._bias_changes(chosen),
            made_plain=self.subject.plain,
            channels=tuple(r for c in chosen for r in self._removals(c)),
            left=tuple(left),
            held=self._held(chosen),
        )
        return made if not refits else replace(made, refits=self.all_names(refits))

    def refuse_unfit(self, made: Plan) -> None:
        """Raise VaepruneError if the cut model does not run, or roughly computes something else than the reference."""
        smaller, reference = cut_any_weights(self.vae, made), Reference(self.vae, made)
        with measuring(self.vae, smaller):
            before, after = reference.encode(*self._example), smaller.encode(*self._example)
            z = torch.randn(before.mean.shape, generator=torch.Generator().manual_seed(2)).to(before.mean)
            pairs = [("mean", before.mean, after.mean), ("logvar", before.logvar, after.logvar)]
            condition = self._example[1:]
            pairs.append(("decoded row", reference.decode(z, *condition), smaller.decode(z, *condition)))
            for name, expected, found in pairs:
                refuse_shape(tuple(found.shape), tuple(expected.shape), name, self.vae.network, made.latent_size)
                scale = max(expected.abs().max().item(), 1e-12)
                if not ((expected - found).abs().max().item() <= _ROUGHLY * scale):
                    raise TraceError(f"{name} of the cut model differs from the original's")

    def tried(self, layers: Sequence[Sequence[Group]]) -> list[tuple[Sequence[Group], str | None]]:
        """Each layer with the reason why it cannot be cut, None if it can.

        One group of every layer at once; only where that does not run are halves of them tried, and so on.
        """
        if len(layers) <= 1:
            return [(layer, self.why_not(layer)) for layer in layers]
        try:
            whole = self.plan([Chosen(layer[0], "cheap", "tried") for layer in layers], "network")
        except PlanError:  # two layers share a tensor, and together they would take all of it
            whole = None
        if whole is not None and self.fits(whole) is None:
            return [(layer, None) for layer in layers]
        middle = len(layers) // 2
        return self.tried(layers[:middle]) + self.tried(layers[middle:])

    def why_not(self, layer: Sequence[Group]) -> str | None:
        """Try to take one group out of a layer; None if the model then still runs and computes the same.

        A model's own integers that equal a width of the layer are set if it runs only so; later plans do as well.
        """
        made = self.plan([Chosen(layer[0], "cheap", "tried")], "network")
        return self.fits(made) and self._try_own_sizes(made)

    def fits(self, made: Plan) -> str | None:
        """What goes wrong when the plan is carried out, in words; None if nothing does."""
        try:
            self.refuse_unfit(made)
        except (ModelError, TraceError, PlanError) as error:
            return error.message
        except VaepruneError:
            raise
        except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
            return f"after cutting it the model no longer runs: {quoted(error)}"
        return None

    def _try_own_sizes(self, made: Plan) -> str | None:
        for part in {(s.size, len(s.kept)): s for s in made.slices}.values():
            for sizes in own_sizes(self.vae.network, part.size, len(part.kept), dict(made.attributes)):
                candidate = replace(made, attributes={**made.attributes, **sizes})
                if sizes and self.fits(candidate) is None:
                    self._following.setdefault((part.key, part.axis), []).extend(sizes)
                    return None
        return self.fits(made)

    def _own(self, slices: Sequence[Slice]) -> dict[str, int]:
        return {path: len(s.kept) for s in slices for path in self._following.get((s.key, s.axis), ())}

    def _slices(self, chosen: Sequence[Chosen]) -> tuple[Slice, ...]:
        going: dict[Axis, set[int]] = {}
        for choice in chosen:
            for axis, indices in choice.group.entries.items():
                going.setdefault(axis, set()).update(indices)
        slices = []
        for (key, dim), gone in going.items():
            size = self.subject.weight(key).shape[dim]
            kept = tuple(i for i in range(size) if i not in gone)
            if not kept:
                raise PlanError(f"{key}: would lose all {size} channels of axis {dim}, at least one must stay")
            slices += [Slice(name, dim, size, kept) for name in self.subject.names(key)]
        return tuple(slices)

    def _bias_changes(self, chosen: Sequence[Chosen]) -> dict[str, Tensor]:
        """What each bias takes over; a weight that is called several times must see the same constants each time."""
        changes: dict[str, dict[Call, Tensor]] = {}
        for choice in chosen:
            for call, values in choice.constants.items():
                site = self.channels.site(call)
                if site.bias is None or not values.any():
                    continue
                weight = self.subject.weight(site.key)
                columns = torch.zeros(weight.shape[site.input_axis], dtype=torch.bool)
                columns[list(choice.group.reads[call])] = True
                change = response(weight, site, columns, values)
                of_bias = changes.setdefault(site.bias, {})
                of_bias[call] = of_bias[call] + change if call in of_bias else change
        return {name: next(iter(c.values())) for bias, c in changes.items() for name in self.subject.names(bias)}

    def _held(self, chosen: Sequence[Chosen]) -> dict[Axis, Tensor]:
        held: dict[Axis, Tensor] = {}
        for choice in chosen:
            for call, columns in choice.group.reads.items():
                site = self.channels.site(call)
                axis = (site.key, site.input_axis)
                size = self.subject.weight(site.key).shape[site.input_axis]
                known = held.setdefault(axis, torch.full((size,), float("nan"), dtype=torch.float64))
                if known[list(columns)].isnan().any():  # the first call counts, as it does for the bias
                    known[list(columns)] = choice.constants.get(call, torch.zeros(len(columns), dtype=torch.float64))
        return held

    def _removals(self, choice: Chosen) -> list[ChannelRemoval]:
        return [
            ChannelRemoval(key, axis, channel, choice.kind, choice.evidence, choice.deviation)
            for (key, axis), channels in _written(self.channels, choice.group).items()
            for channel in channels
        ]

    def all_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under every key that they go by."""
        return {name: value for key, value in tensors.items() for name in self.subject.names(key)}


def left_of(found: Channels, groups: Iterable[tuple[Group, str]]) -> tuple[Left, ...]:
    """What stays and why, counted by weight and reason."""
    counts: dict[tuple[str, str], int] = {}
    for group, reason in groups:
        for (key, _), channels in _written(found, group).items():
            counts[key, reason] = counts.get((key, reason), 0) + len(channels)
    return tuple(Left(weight, count, reason) for (weight, reason), count in counts.items())


def _written(found: Channels, group: Group) -> dict[Axis, tuple[int, ...]]:
    """The output channels of weights that a group holds, each once however often its weight is called."""
    sites = [found.site(call) for call in group.writes]
    return {(site.key, site.output_axis): group.entries[site.key, site.output_axis] for site in sites}
