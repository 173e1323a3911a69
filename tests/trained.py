"""A small network trained for a moment on small tiles, since budgets mean little on random weights."""

from __future__ import annotations

import functools

from torch import Tensor

from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data import DataSets, MemoryRows, as_data, tiles
from vaeprune.training import Objective, Options, train

SIDE = 14


@functools.cache
def small_tiles(count: int = 3000) -> Tensor:
    """Tiles at half their resolution (count, 1, 14, 14)."""
    return tiles(count, seed=3)[:, ::2, ::2].float().div(255).reshape(-1, 1, SIDE, SIDE).contiguous()


@functools.cache
def sets(count: int = 3000) -> DataSets:
    """The same as three sets."""
    return as_data(small_tiles(count))


@functools.cache
def trained_dense() -> DenseVAE:
    """196-48-24-4-24-48-196, some nats away from rest."""
    vae = DenseVAE((1, SIDE, SIDE), (48, 24), (24, 48), 4)
    initialise(vae, "glorot", 0)
    options = Options(epochs=25, batch_size=64, learning_rate=3e-3, objective=Objective(beta=0.3))
    found = train(vae, MemoryRows("tiles", small_tiles()), options).vae.eval()
    found.provenance = {"training": {"data": "tiles", "batch_size": 64, "beta": 0.3}, "shrunk": None}
    return found
