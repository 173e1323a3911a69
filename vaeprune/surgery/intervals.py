"""Intervals of tensors, elementwise: the arithmetic that bounds rest on, with 0·∞ = 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INFINITY = float("inf")


@dataclass(frozen=True)
class Interval:
    """`lower` ≤ value ≤ `upper`, elementwise: float64 of one shape, infinite where nothing is known."""

    lower: Tensor
    upper: Tensor


def between(lower: Tensor, upper: Tensor) -> Interval:
    """Ends that could not be computed, or that overflowed to the wrong side, say nothing."""
    return Interval(
        lower.where(~lower.isnan() & (lower < INFINITY), -INFINITY),
        upper.where(~upper.isnan() & (upper > -INFINITY), INFINITY),
    )


def widened(box: Interval, below: Tensor, above: Tensor) -> Interval:
    """Further by `below` and by `above`."""
    return between(box.lower - below, box.upper + above)


def rounded(box: Interval, noise: float, least: float) -> Interval:
    """Further by `noise` times `least` + |end|."""
    return widened(box, noise * (least + box.lower.abs()), noise * (least + box.upper.abs()))


def corners(function: Callable[[Tensor, Tensor], Tensor], a: Interval, b: Interval) -> Interval:
    """What a function that is monotone in either operand can give."""
    values = [function(x, y) for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    every = torch.stack(values).nan_to_num(0.0, INFINITY, -INFINITY)  # 0·∞
    return between(every.amin(0), every.amax(0))


def unbounded(like: Tensor) -> Interval:
    """Nothing known of a tensor of this shape."""
    ends = torch.full(like.shape, INFINITY, dtype=torch.float64, device=like.device)
    return Interval(-ends, ends)


def by_channel(box: Interval, dim: int) -> Interval:
    """Over all rows and positions; unbounded where there are none."""
    lower, upper = (end.movedim(dim, -1)[None].flatten(0, -2) for end in (box.lower, box.upper))
    if not len(lower):
        return unbounded(lower.new_empty(lower.shape[1:]))
    return Interval(lower.amin(0), upper.amax(0))
