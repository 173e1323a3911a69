"""Runs that tell many disturbed channels apart: each has a binary number, and one run disturbs all whose bit b is v."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def patterns(width: int, bits: int) -> Tensor:
    """(2·bits, width): row 2b + v marks the channels whose bit b is v."""
    return torch.stack([_bit(width, bit) == bool(value) for bit in range(bits) for value in (0, 1)])


def bits_for(widths: Sequence[int]) -> int:
    """How many bits number so many channels, at least one."""
    return max(1, *((width - 1).bit_length() for width in widths))


def compatible(rows: Tensor, width: int) -> Tensor:
    """(width, columns): which channels' numbers fit the runs, rows (2·bits, columns), that reached a column.

    A channel that reaches a column is among them, since it does so in each run that disturbs it; where several do,
    others may be among them, too.
    """
    found = rows.any(0).expand(width, -1).clone()
    for bit in range(len(rows) // 2):
        found &= torch.where(_bit(width, bit)[:, None], rows[2 * bit + 1], rows[2 * bit])
    return found


def apart(candidates: Tensor) -> Tensor:
    """(channels,): in which run each may be disturbed, so that a column reached in a run tells which channel did it.

    candidates (channels, columns): which may reach which. No two of one column get the same run; the first free one
    each, so that channels that meet nowhere share runs.
    """
    taken = [0] * candidates.shape[1]  # runs of each column, as bits
    runs = torch.zeros(len(candidates), dtype=torch.long)
    for channel, columns in enumerate(candidates):
        reached = torch.nonzero(columns).flatten().tolist()
        known = 0
        for column in reached:
            known |= taken[column]
        free = ~known & (known + 1)
        runs[channel] = free.bit_length() - 1
        for column in reached:
            taken[column] |= free
    return runs


def _bit(width: int, bit: int) -> Tensor:
    return (torch.arange(width) >> bit) % 2 == 1
