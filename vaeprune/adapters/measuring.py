"""Run a model for measurement: eval mode, no gradients, the caller's model as it was afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from vaeprune.adapters.adapted import element_type_of
from vaeprune.data import Batch, Rows
from vaeprune.data.sets import to_shape
from vaeprune.data.sources import LARGEST_BATCH
from vaeprune.posterior import VAE

_LEAST_ROWS = 32
_BATCH_BYTES = 1 << 24


@contextlib.contextmanager
def measuring(*models: VAE) -> Iterator[None]:
    """Eval mode and inference mode inside; every module's training flag is put back afterwards."""
    flags = [(module, module.training) for vae in models for module in vae.network.modules()]
    try:
        for vae in models:
            vae.network.eval()
        with torch.inference_mode():
            yield
    finally:
        for module, training in flags:
            module.training = training


def batch_rows(row_shape: tuple[int, ...]) -> int:
    """How many rows make a batch: enough that what is done once a batch costs little, within 16 MB of floats."""
    return max(_LEAST_ROWS, min(LARGEST_BATCH, _BATCH_BYTES // (4 * math.prod(row_shape))))


def batches_for(vae: VAE, rows: Rows, size: int | None = None) -> Iterator[Batch]:
    """Batches of `rows` in the model's input shape, element type and place; of `batch_rows` unless `size` is given.

    Raises DataError if the shape cannot fit, ModelError if values are outside the likelihood's range.
    """
    shape = to_shape(rows.row_shape, vae.input_shape, rows.name)
    dtype, device = element_type(vae)
    for x, *conditions in rows.batches(size or batch_rows(rows.row_shape), dtype, device):
        if rows.scaled_to != (0.0, 1.0):
            vae.likelihood.check_range(x, rows.name)
        yield (x.reshape(-1, *shape), *conditions)


def element_type(vae: VAE) -> tuple[torch.dtype, torch.device]:
    """Floating point type and device of the model's first weight."""
    return element_type_of(vae.network)
