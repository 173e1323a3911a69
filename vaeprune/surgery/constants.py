"""What a weight reads where a latent is held constant, and whether its bias can take that over.

A latent may be scaled, normalised or bent on its way to a weight, so the constant is not computed but seen: the decoder
runs with the removed latents held and everything else varied, and the columns they reach must not move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.sites import Site
from vaeprune.surgery.trace import Trace

_VARIED_ROWS = 8


class CannotHold(TraceError):
    """A constant other than 0 that a weight's bias cannot take over."""


@dataclass(frozen=True)
class Held:
    """The decoder, with some latents held at `constants` and everything else varied.

    `z`: (rows, *latent_shape), and the conditions that go with it; `output`: what is made of them.
    """

    subject: Subject
    constants: Mapping[int, float]
    z: Tensor
    conditions: Batch
    decoding: Recorder
    output: Tensor


def hold(subject: Subject, constants: Mapping[int, float]) -> Held:
    """Decode random z in which each latent in `constants` has its value."""
    generator = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(_VARIED_ROWS, *subject.vae.latent_shape, generator=generator, dtype=torch.float64)
    for latent, value in constants.items():
        z[:, latent] = value
    rows = torch.arange(_VARIED_ROWS) % len(subject.example[0])
    conditions = tuple(part[rows] for part in subject.example[1:])
    z = z.to(subject.example[0])
    seen = Recorder()
    output = subject.run(lambda vae: vae.decode(z.clone(), *conditions), seen)
    return Held(subject, constants, z, conditions, seen, output)


def bias_changes(held: Held, traced: Trace) -> dict[str, Tensor]:
    """For each bias, what to add (float64, before slicing) when latents are held.

    Raises CannotHold where a constant other than 0 meets zero padding, position-dependent taps or a weight without
    bias, or where a column that would go is not constant; holding the latents at 0 may then do. Raises TraceError where
    one weight is called several times and would need several biases.
    """
    removed, seen = sorted(held.constants), held.decoding
    changes: dict[str, Tensor] = {}
    needed: set[str] = set()
    for site, operand in zip(seen.sites, seen.operands, strict=True):
        columns = torch.zeros(operand.shape[site.operand_dim], dtype=torch.bool)
        for reader in traced.readers:
            if reader.site == site:
                columns |= reader.columns[removed].any(0)
        if not columns.any():
            continue
        values = _constant_columns(site, operand, columns)
        if values.any() and (not site.holds_constant or site.bias is None or site.bias_unknown):
            why = "has no bias" if site.holds_constant else "pads with zeros or has position-dependent taps"
            raise CannotHold(f"{site.key}: {why}, so it cannot take over a constant other than 0")
        if site.bias is None or site.bias_unknown:
            continue
        change = response(held.subject.weight(site.key), site, columns, values)
        if site.bias in changes and not torch.allclose(changes[site.bias], change, rtol=1e-9, atol=1e-12):
            raise TraceError(f"{site.key}: is called several times and sees different constants")
        changes[site.bias] = change
        if values.any():
            needed.add(site.bias)
    return {bias: change for bias, change in changes.items() if bias in needed}


def _constant_columns(site: Site, operand: Tensor, columns: Tensor) -> Tensor:
    """The value of each removed column; raises if one varies over rows or positions."""
    values = operand.movedim(site.operand_dim, -1)[..., columns]
    values = values.reshape(-1, values.shape[-1])
    first = values[0]
    rounding = 1e-11 if values.dtype == torch.float64 else 1e-5
    if not torch.allclose(values, first.expand_as(values), rtol=rounding, atol=rounding * 1e-2):
        raise CannotHold(
            f"{site.key}: a column that reads a removed latent also depends on its position or on other inputs"
        )
    return first


def response(weight: Tensor, site: Site, columns: Tensor, values: Tensor) -> Tensor:
    """What the columns add to each output channel (O,), float64: Σ over columns and taps of weight·value."""
    moved = weight.movedim((site.input_axis, site.output_axis), (0, 1))[columns]
    return torch.einsum("io...,i->o", moved.double(), values.double())
