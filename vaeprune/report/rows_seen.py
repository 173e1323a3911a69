"""How one row of the data is shown: as a picture, or, where it is none, as the line of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data import DataSets, MemoryRows
from vaeprune.posterior import VAE

_COLOURS = (1, 3)
_LEAST_SIDE = 2
_ENDS = (0.001, 0.999)
_MOST_VALUES = 1_000_000

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """How rows are shown.

    `shape`: (C, H, W) of a picture with one or three channels, or (N,), a line of N values. `low`, `high`: what is
    black and what is white, or the ends of a line's axis, in data units. `moved`: how a row's axes are ordered before
    that (channels first). `said`: what a reader has to know, or empty.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    moved: tuple[int, ...] = ()
    side_by_side: int = 1
    said: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether rows are pictures."""
        return len(self.shape) == 3

    def rows(self, values: Tensor) -> Tensor:
        """Rows (N, ...) as pictures (N, C, H, W) or lines (N, D), float64, in data units."""
        count = len(values)
        values = values.detach().double().cpu()
        if not self.is_picture:
            return values.reshape(count, -1)
        channels, height, width = self.shape
        if self.side_by_side > 1:  # one grey picture beside the other
            parts = values.reshape(count, self.side_by_side, height, width // self.side_by_side)
            return parts.permute(0, 2, 1, 3).reshape(count, 1, height, width)
        if self.moved:
            return values.reshape(count, height, width, channels).permute(0, 3, 1, 2)
        return values.reshape(count, channels, height, width)

    def pixels(self, values: Tensor, most: int | None = None) -> Pixels:
        """Pictures (N, H, W, C) of rows (N, ...), 0 to 255; the longer side at most `most` pixels by averaging."""
        pictures = (self.rows(values) - self.low) / max(self.high - self.low, 1e-12)
        height, width = pictures.shape[-2:]
        if most is not None and max(height, width) > most:
            share = most / max(height, width)
            size = (max(1, round(height * share)), max(1, round(width * share)))
            pictures = F.adaptive_avg_pool2d(pictures, size)
        return np.asarray((pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())

    def span(self) -> float:
        """high − low, in data units."""
        return max(self.high - self.low, 1e-12)


def seen(vae: VAE, data: DataSets | None) -> Seen:
    """How rows of `data`, or without data what `vae` decodes to, are shown.

    The data's shape decides where it is a picture's, else the model's: many flatten pictures before the first layer.
    """
    low, high = _range(vae, data.verify if data else None)
    shapes = [tuple(data.row_shape)] if data else []
    for shape in (*shapes, tuple(vae.input_shape)):
        sizes = (1, *shape) if len(shape) == 2 else shape
        if len(sizes) != 3 or sorted(sizes)[1] < _LEAST_SIDE:
            continue
        if sizes[0] in _COLOURS:
            return Seen(sizes, low, high)
        if sizes[2] in _COLOURS:
            return Seen((sizes[2], *sizes[:2]), low, high, moved=(2, 0, 1))
        said = f"rows have {sizes[0]} channels, which stand beside each other in grey"
        return Seen((1, sizes[1], sizes[0] * sizes[2]), low, high, side_by_side=sizes[0], said=said)
    count = math.prod(vae.input_shape)
    said = f"rows of shape {tuple(vae.input_shape)} are no pictures, so the {count} values of a row are drawn as a line"
    return Seen((count,), low, high, said=said)


def _range(vae: VAE, rows: MemoryRows | None) -> tuple[float, float]:
    if rows is not None and rows.scaled_to is not None:
        return rows.scaled_to
    if vae.likelihood.kind == "bernoulli" or rows is None:
        return 0.0, 1.0
    values = rows.tensors[0].double().flatten()
    few = values[:: -(-len(values) // _MOST_VALUES)]
    low, high = torch.quantile(few, torch.tensor(_ENDS, dtype=few.dtype)).tolist()  # one outlier would flatten all else
    return (low, high) if low < high else (low - 0.5, low + 0.5)
