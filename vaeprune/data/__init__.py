"""Rows to train on, to measure with and to judge by."""

from vaeprune.data.rows import Batch, MemoryRows, Rows
from vaeprune.data.sets import NAMED, DataSets, as_data, open_data, training_images
from vaeprune.data.tiles import tiles

__all__ = [
    "NAMED",
    "Batch",
    "DataSets",
    "MemoryRows",
    "Rows",
    "as_data",
    "open_data",
    "tiles",
    "training_images",
]
