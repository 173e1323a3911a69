"""Channels that were constant on the calibration rows and are not on others: how often, how far, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vaeprune.data import Rows
from vaeprune.posterior import VAE, Posterior, negative_elbo
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.channels import Call, Side
from vaeprune.surgery.hidden import Hidden
from vaeprune.surgery.observing import Pass, passes
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.reference import Holding
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Watcher

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Fired:
    """A hidden channel taken for constant that was not on some verify rows.

    `rows`: on how many of them; `deviation`: the furthest from its constant, in units of what its readers read; `cost`:
    mean change of the ELBO loss when it alone is held there, nats per row.
    """

    weight: str
    channel: int
    rows: int
    deviation: float
    cost: float


def fired(hidden: Hidden, chosen: Sequence[Chosen], rows: Rows) -> tuple[Fired, ...]:
    """Which of `chosen` are not constant on `rows`."""
    if not chosen:
        return ()
    subject = Subject(hidden.vae, double=False)
    watch = _Deviations(hidden, chosen)
    for inputs in passes(subject.vae, rows, seed=2):
        _run(subject, inputs, watch)
    found = []
    for number, choice in enumerate(chosen):
        if watch.rows[number]:
            call, channels = next(iter(choice.group.writes.items()))
            cost = _cost(hidden, subject, choice, rows)
            key = hidden.channels.site(call).key
            found.append(Fired(key, channels[0], int(watch.rows[number]), float(watch.furthest[number]), cost))
    return tuple(found)


def _run(subject: Subject, inputs: Pass, watch: _Deviations) -> None:
    watch.side, watch.hit = "encode", torch.zeros(len(watch.chosen), len(inputs.x[0]), dtype=torch.bool)
    posterior: Posterior = subject.run(lambda vae: vae.encode(*inputs.x), watch)
    watch.side = "decode"
    for z in inputs.latents(posterior):
        subject.run(partial(_decode, z=z, condition=inputs.x[1:]), watch)
    watch.rows += watch.hit.sum(1)


def _decode(vae: VAE, z: Tensor, condition: Sequence[Tensor]) -> Tensor:
    return vae.decode(z, *condition)


class _Deviations(Watcher):
    """In how many rows each choice is away from its constant, and how far."""

    def __init__(self, hidden: Hidden, chosen: Sequence[Chosen]) -> None:
        self.chosen = chosen
        self.side: Side = "encode"
        self.hit = torch.zeros(0)
        self.rows = torch.zeros(len(chosen), dtype=torch.long)
        self.furthest = torch.zeros(len(chosen), dtype=torch.float64)
        self._at: dict[Call, list[tuple[int, list[int], Tensor, float]]] = {}
        for number, choice in enumerate(chosen):
            for call, columns in choice.group.reads.items():
                values = choice.constants.get(call, torch.zeros(len(columns), dtype=torch.float64))
                scale = max(hidden.ranges.of[call].scale, 1e-30)
                self._at.setdefault(call, []).append((number, list(columns), values, _ROUNDING * scale))

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Compare what is read with the constants."""
        for number, columns, values, rounding in self._at.get((self.side, call), ()):
            seen = value.movedim(site.operand_dim, -1)[..., columns]
            away = (seen - values.to(seen)).abs().flatten(1).amax(1).double().cpu()
            self.furthest[number] = max(float(self.furthest[number]), float(away.max()))
            self.hit[number] |= away > rounding
        return value


def _cost(hidden: Hidden, subject: Subject, choice: Chosen, rows: Rows) -> float:
    held: dict[tuple[str, int], Tensor] = {}
    for call, columns in choice.group.reads.items():
        site = hidden.channels.site(call)
        size = hidden.subject.weight(site.key).shape[site.input_axis]
        values = torch.full((size,), math.nan, dtype=torch.float64)
        values[list(columns)] = choice.constants.get(call, torch.zeros(len(columns), dtype=torch.float64))
        held[site.key, site.input_axis] = values
    total, count = 0.0, 0
    for inputs in passes(subject.vae, rows, seed=2):
        losses = [_loss(subject, inputs, watch) for watch in (Holding(held), Watcher())]
        total += float((losses[0] - losses[1]).sum())
        count += len(inputs.x[0])
    return total / max(count, 1)


def _loss(subject: Subject, inputs: Pass, watch: Watcher) -> Tensor:
    """−ELBO of each row, float64."""

    def whole(vae: object) -> Tensor:
        posterior: Posterior = vae.encode(*inputs.x)  # type: ignore[attr-defined]
        z = posterior.sample(inputs.noise)
        return negative_elbo(vae, inputs.x[0], z, posterior, inputs.x[1:])  # type: ignore[arg-type]

    loss: Tensor = subject.run(whole, watch)
    return loss.double()
