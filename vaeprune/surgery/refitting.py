"""Fit the weights that stay: layer after layer, on what the pruned network reads, towards what the original wrote.

Original and pruned network run side by side as the two halves of one batch. Where a weight has lost input channels, or
what it reads has changed, the pruned half gets weights fitted to give the original's results (bias included), rows and
outputs counting as much as the loss depends on them. Nothing is cut yet: columns of removed channels are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vaeprune.posterior import VAE
from vaeprune.surgery.channels import Call, Side
from vaeprune.surgery.curvature import FitRows, Moments
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.regression import (
    MOST_FEATURES,
    Places,
    as_matrix,
    as_weight,
    best_rows,
    columns_of,
    features,
    least_squares,
    weighted_least_squares,
    with_ones,
)
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Run, Watcher

_MOST_PLACES = 20_000
_LEAST_ROWS_PER_FEATURE = 2


@dataclass(frozen=True)
class Mixture:
    """Output channels `kept` become `combinations` (kept, C) of the output channels `order` (C) of before."""

    order: tuple[int, ...]
    combinations: Tensor

    @property
    def kept(self) -> list[int]:
        """The places that the combinations take."""
        return list(self.order[: len(self.combinations)])

    def of(self, rows: Tensor) -> Tensor:
        """rows (O, ...) of a weight's matrix or bias, those that go 0."""
        mixed = torch.zeros_like(rows)
        before = rows[list(self.order)]
        mixed[self.kept] = torch.tensordot(self.combinations.to(before), before, 1)
        return mixed


@dataclass(frozen=True)
class Removed:
    """Channels that go: per tensor axis, the indices.

    `shared`: weights that may not be fitted because several calls use them. `mixed`: calls that write combinations of
    their channels from now on. `ranks`: weights that become products of two of this rank.
    """

    of: Mapping[tuple[str, int], frozenset[int]]
    shared: frozenset[str] = frozenset()
    mixed: Mapping[Call, Mixture] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def inputs(self, site: Site) -> frozenset[int]:
        """Input channels of a weight that go."""
        return self.of.get((site.key, site.input_axis), frozenset())

    def outputs(self, site: Site) -> frozenset[int]:
        """Output channels of a weight that go."""
        return self.of.get((site.key, site.output_axis), frozenset())


@dataclass
class Refit:
    """New weights and biases at full size, in the model's type, by state-dict key; `skipped`: not fitted, why.

    `factors`: up (O, r) and down (r, C, T) of weights that are products, at full size.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def refit(
    subject: Subject,
    fit: FitRows,
    moments: Mapping[Call, Moments],
    removed: Removed,
    sides: Sequence[Side] = ("encode", "decode"),
    iterations: int = 6,
) -> Refit:
    """Fitted weights for the network without `removed`; the model in `subject` stays as it is."""
    found = Refit()
    for side in sides:
        both = tuple(torch.cat([part, part]) for part in fit.all(side))
        watch = _Fitting(side, moments, removed, found, iterations)

        def what(vae: VAE, both: tuple[Tensor, ...] = both, side: Side = side) -> Any:
            return vae.encode(*both) if side == "encode" else vae.decode_parameters(*both)

        subject.run(what, watch)
    return found


class _Fitting(Watcher):
    """Gives the first half of each batch the original's weights, the second half fitted ones."""

    def __init__(
        self, side: Side, moments: Mapping[Call, Moments], removed: Removed, found: Refit, iterations: int
    ) -> None:
        self._side, self._moments, self._removed = side, moments, removed
        self._found, self._iterations = found, iterations

    def compute(self, call: int, site: Site, run: Run) -> Tensor:
        """Both halves of the result."""
        before, after = run.operand.chunk(2)
        original = run(operand=before)
        gone = self._removed.inputs(site)
        mixture = self._removed.mixed.get((self._side, call))
        same = not gone and site.key not in self._removed.ranks and torch.equal(before, after)
        if same and mixture is None:
            return torch.cat([original, original])
        weight, bias = self._fitted(call, site, run, before, after, original, gone)
        if mixture is not None:
            if site.key in self._found.factors:
                up, down = self._found.factors[site.key]
                self._found.factors[site.key] = mixture.of(up), down
            weight = mixture.of(weight.movedim(site.output_axis, 0)).movedim(0, site.output_axis)
            bias = bias if bias is None else mixture.of(bias)
        self._found.weights[site.key] = weight
        if site.bias is not None and bias is not None:
            self._found.biases[site.bias] = bias
        return torch.cat([original, run(operand=after, weight=weight, bias=bias)])

    def _fitted(
        self, call: int, site: Site, run: Run, before: Tensor, after: Tensor, original: Tensor, gone: frozenset[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the state dict's layout, columns in `gone` 0."""
        argument = run.argument(site.weight)
        whole = argument.permute([site.axes.index(axis) for axis in range(argument.dim())])
        bias = run.argument(site.bias_place) if site.bias_place is not None else None
        matrix = as_matrix(whole, site)
        inputs = torch.tensor([c for c in range(matrix.shape[1]) if c not in gone], device=matrix.device)
        lost = self._removed.outputs(site) if (self._side, call) not in self._removed.mixed else frozenset()
        outputs = torch.tensor([o for o in range(matrix.shape[0]) if o not in lost], device=matrix.device)
        fitted = torch.zeros_like(matrix)
        fitted[:, inputs] = matrix[:, inputs]
        solved = None
        if not gone and site.key not in self._removed.ranks and torch.equal(before, after):
            return whole, bias
        if site.key in self._removed.shared or site.bias_unknown:
            self._found.skipped[site.key] = "it is used several times, or its bias is computed"
        elif matrix.shape[1] * matrix.shape[2] <= MOST_FEATURES:
            solved = self._by_taps(call, site, run, after, original, inputs, outputs, bias is not None)
        elif matrix.shape[1] <= MOST_FEATURES:
            solved = self._by_channels(call, site, run, before, after, matrix, inputs, bias)
        else:
            self._found.skipped[site.key] = f"its {matrix.shape[1]} input channels are more than {MOST_FEATURES}"
        if solved is not None:
            values, offset = solved
            rows = outputs if len(values) == len(outputs) else torch.arange(len(matrix), device=matrix.device)
            fitted[rows[:, None], inputs] = values.to(fitted)
            if bias is not None and offset is not None:
                bias = bias.clone()
                bias[rows] = offset.to(bias)
        return as_weight(fitted, site, whole), bias

    def _by_taps(
        self,
        call: int,
        site: Site,
        run: Run,
        after: Tensor,
        original: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        with_bias: bool,
    ) -> tuple[Tensor, Tensor | None] | None:
        """Every tap fitted: (outputs, inputs, T) and the bias."""
        moments = self._moments[self._side, call]
        places = Places.of(len(after), moments.places, _MOST_PLACES, call)
        x = features(run, after, places)[:, columns_of(inputs.tolist(), moments.taps)]
        if len(x) < _LEAST_ROWS_PER_FEATURE * x.shape[1]:
            self._found.skipped[site.key] = f"{len(x)} rows are too few for {x.shape[1]} inputs"
            return None
        y = places.take(original, site.result_dim)[:, outputs]
        counts = torch.cat(moments.squares)[:, outputs]
        if with_bias:
            x = with_ones(x)
        solved = weighted_least_squares(x, y, counts, self._iterations)
        rank = self._removed.ranks.get(site.key)
        if rank is not None:
            fisher = moments.fisher[outputs][:, outputs]
            plain = x[:, :-1] if with_bias else x
            down = best_rows(solved[:, : plain.shape[1]], plain, fisher, rank, centred=with_bias)
            low = plain @ down.T
            up = weighted_least_squares(with_ones(low) if with_bias else low, y, counts, self._iterations)
            whole = x.new_zeros(int(original.shape[site.result_dim]), rank)
            whole[outputs] = up[:, :rank]
            wide = x.new_zeros(rank, int(after.shape[site.operand_dim]), moments.taps)
            wide[:, inputs] = down.reshape(rank, len(inputs), moments.taps)
            self._found.factors[site.key] = whole, wide
            solved = torch.cat([up[:, :rank] @ down, up[:, rank:]], 1)
        offset = solved[:, -1] if with_bias else None
        values = solved[:, :-1] if with_bias else solved
        return values.reshape(len(outputs), len(inputs), moments.taps), offset

    def _by_channels(
        self,
        call: int,
        site: Site,
        run: Run,
        before: Tensor,
        after: Tensor,
        matrix: Tensor,
        inputs: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None] | None:
        """The original's channels as combinations of those that stay, the same under every tap."""
        size = after.numel() // (len(after) * after.shape[site.operand_dim])
        places = Places.of(len(after), size, _MOST_PLACES, call)
        x, y = places.take(after, site.operand_dim)[:, inputs], places.take(before, site.operand_dim)
        if len(x) < _LEAST_ROWS_PER_FEATURE * x.shape[1]:
            self._found.skipped[site.key] = f"{len(x)} rows are too few for {x.shape[1]} inputs"
            return None
        holds = site.holds_constant and bias is not None
        combination = least_squares(with_ones(x) if holds else x, y)
        values = torch.einsum("oct,ck->okt", matrix, combination[:, : len(inputs)].to(matrix))
        if not holds or bias is None:
            return values, None
        return values, bias + torch.einsum("oct,c->o", matrix, combination[:, -1].to(matrix))
