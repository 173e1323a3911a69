"""Run a model for measurement: eval mode, no gradients, the caller's model as it was afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from vaeprune.adapters.adapted import element_type_of
from vaeprune.architectures import BuiltVAE
from vaeprune.data import Batch, Rows
from vaeprune.data.sets import to_shape
from vaeprune.data.sources import LARGEST_BATCH
from vaeprune.posterior import VAE

_LEAST_ROWS = 32
# Of floats; on a CPU its caches then hold a batch between its conversion and the first layer.
_BATCH_BYTES, _CPU_BATCH_BYTES = 1 << 24, 1 << 21


@contextlib.contextmanager
def measuring(*models: VAE) -> Iterator[None]:
    """Eval mode and inference mode inside; every module's training flag is put back afterwards.

    Our own convolutions have their weights' channels last inside: the same values, in less time on a CPU.
    """
    flags = [(module, module.training) for vae in models for module in vae.network.modules()]
    weights = [
        (weight, weight.data)
        for vae in models
        if isinstance(vae, BuiltVAE)  # somebody's own module may call view, which needs NCHW
        for weight in vae.parameters()
        if weight.dim() == 4
    ]
    try:
        for vae in models:
            vae.network.eval()
        for weight, laid_out in weights:
            weight.data = laid_out.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            yield
    finally:
        for weight, laid_out in weights:
            weight.data = laid_out
        for module, training in flags:
            module.training = training


def batch_rows(row_shape: Sequence[int], device: str = "cpu") -> int:
    """How many rows make a batch: 2 MB of floats, on a GPU 16; a power of two, as matrix products like it."""
    rows = max(1, (_CPU_BATCH_BYTES if device == "cpu" else _BATCH_BYTES) // (4 * math.prod(row_shape)))
    return max(_LEAST_ROWS, min(LARGEST_BATCH, 1 << (rows.bit_length() - 1)))


def batches_for(vae: VAE, rows: Rows, size: int | None = None) -> Iterator[Batch]:
    """Batches of `rows` in the model's input shape, element type and place; of `batch_rows` unless `size` is given.

    Raises DataError if the shape cannot fit, ModelError if values are outside the likelihood's range.
    """
    shape = to_shape(rows.row_shape, vae.input_shape, rows.name)
    dtype, device = element_type(vae)
    for x, *conditions in rows.batches(size or batch_rows(rows.row_shape, device.type), dtype, device):
        if rows.scaled_to != (0.0, 1.0):
            vae.likelihood.check_range(x, rows.name)
        yield (x.reshape(-1, *shape), *conditions)


def element_type(vae: VAE) -> tuple[torch.dtype, torch.device]:
    """Floating point type and device of the model's first weight."""
    return element_type_of(vae.network)
