"""Layers without an activation between what writes and what reads them: any basis of their channels does as well.

There the best r channels need not be r of the old ones. Of all r combinations those are kept that cost least, by the
singular values of F^½ S^½ (F: Fisher information of the channels, S: their second moments); the weights that write and
read them take the change of basis, so the network's layers and state-dict keys stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.surgery.channels import Call, Channels, Group, Side
from vaeprune.surgery.curvature import Moments
from vaeprune.surgery.elimination import Order
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.regression import as_matrix, best_combinations
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Run, Watcher

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Basis:
    """A linear link's best combinations: row i of `combinations` (C, C) is the i-th best, of unit size on the data.

    `writer`: the call that writes the channels; group g of the layer is its output channel `channels[g]`.
    """

    writer: Call
    channels: tuple[int, ...]
    combinations: Tensor
    order: Order


def linear_link(subject: Subject, channels: Channels, layer: Sequence[Group]) -> Call | None:
    """The one call that writes a layer, if nothing but a linear map that treats all channels alike follows it."""
    writers = {call for group in layer for call in group.writes}
    if len(writers) != 1:
        return None
    (writer,) = writers
    site = channels.site(writer)
    own = {(site.key, site.output_axis), (site.bias, 0)}
    own |= {(channels.site(call).key, channels.site(call).input_axis) for group in layer for call in group.reads}
    reads = {call for group in layer for call in group.reads}
    plain = all(
        len(group.writes[writer]) == 1 and set(group.reads) == reads and set(group.entries) <= own for group in layer
    )
    if not plain or not reads or len(layer) < subject.weight(site.key).shape[site.output_axis]:
        return None
    return writer if _commutes(subject, writer, layer, reads) else None


def best_basis(
    subject: Subject, channels: Channels, layer: Sequence[Group], writer: Call, moments: Mapping[Call, Moments]
) -> Basis | None:
    """The combinations of a link's channels in the order of what they are worth; None where moments are missing."""
    site, seen = channels.site(writer), moments[writer]
    covariance = seen.covariance()
    if covariance is None or seen.count < 2 * len(covariance):
        return None
    weight = as_matrix(subject.weight(site.key), site).flatten(1).double()
    written = weight @ covariance @ weight.T
    if not all(channels.site(call).holds_constant and channels.site(call).bias for call in layer[0].reads):
        mean = weight @ (seen.total / seen.count)
        if site.bias is not None:
            mean = mean + subject.weight(site.bias).double()
        written = written + torch.outer(mean, mean)  # no bias takes the mean over, so it has to go through
    order = [group.writes[writer][0] for group in layer]
    written, fisher = (matrix[order][:, order] for matrix in (written, seen.fisher))
    combinations, values = best_combinations(torch.eye(len(written), dtype=written.dtype), written, fisher)
    costs = 0.5 * values.square().flip(0).cumsum(0)
    size = len(layer)
    falling = Order(tuple(range(size - 1, 0, -1)), tuple(costs[: size - 1].tolist()))
    return Basis(writer, tuple(order), combinations, falling)


def _commutes(subject: Subject, writer: Call, layer: Sequence[Group], reads: set[Call]) -> bool:
    """Whether mixing the channels where they are written mixes them in the same way where they are read."""
    side, number = writer
    if any(read_side != side for read_side, _ in reads):
        return False
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(len(layer), len(layer), generator=generator, dtype=torch.float64)
    watch = _Mixing(number, [group.writes[writer][0] for group in layer], mixing, generator)
    example = tuple(part[:1].expand(2, *part.shape[1:]) for part in subject.example)
    z = (
        torch.randn(1, *subject.vae.latent_shape, generator=generator, dtype=torch.float64)
        .to(example[0])
        .expand(2, *subject.vae.latent_shape)
    )

    def run(vae: object, side: Side = side) -> object:
        return vae.encode(*example) if side == "encode" else vae.decode_parameters(z, *example[1:])  # type: ignore[attr-defined]

    subject.run(run, watch)
    for call in reads:
        operand = watch.operands[call[1]]
        moved = operand.movedim(watch.sites[call[1]].operand_dim, 1)
        operand = moved.reshape(*moved.shape[:2], -1)
        columns = torch.tensor([list(group.reads[call]) for group in layer])
        before, after = (row[columns].flatten(1) for row in operand)
        scale = float(after.abs().max()) + 1e-30
        if not torch.allclose(mixing.to(before) @ before, after, rtol=0, atol=_ROUNDING * scale):
            return False
    return True


class _Mixing(Watcher):
    """Row 0 of one call's result becomes random, row 1 the same with its channels mixed."""

    def __init__(self, number: int, order: Sequence[int], mixing: Tensor, generator: torch.Generator) -> None:
        self._number, self._order, self._mixing, self._generator = number, list(order), mixing, generator
        self.operands: dict[int, Tensor] = {}
        self.sites: dict[int, Site] = {}

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Keep what is read."""
        self.operands[call], self.sites[call] = value.clone(), site
        return value

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """Replace the result of the one call."""
        result = run()
        if call != self._number:
            return result
        moved = result.movedim(site.result_dim, 1).clone()
        random = torch.randn(moved[0].shape, generator=self._generator, dtype=torch.float64).to(moved)
        mixed = torch.empty_like(random)
        mixed[self._order] = torch.tensordot(self._mixing.to(random), random[self._order], 1)
        moved[0], moved[1] = random, mixed
        return moved.movedim(1, site.result_dim)
