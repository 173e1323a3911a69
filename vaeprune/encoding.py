"""Posterior means of a whole data set, streamed into an array file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vaeprune.adapters import batches_for, measuring
from vaeprune.data import Rows
from vaeprune.posterior import VAE
from vaeprune.storage import new_file


def encode_to_file(
    vae: VAE,
    rows: Rows,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> tuple[int, ...]:
    """Write E[z | x] of all rows to `out` as float32 `.npy` (rows, *latent_shape); returns its shape.

    Memory does not grow with the rows. Raises StorageError if `out` exists and `force` is false.
    """
    with new_file(out, force) as temporary, temporary.open("wb") as file, measuring(vae):
        count = 0
        _write_header(file, (rows.count or 0, *vae.latent_shape))
        for batch in batches_for(vae, rows):
            file.write(vae.encode(*batch).mean.float().cpu().contiguous().numpy().tobytes())
            count += len(batch[0])
            if progress:
                progress("encoding", len(batch[0]), rows.count)
        file.seek(0)
        _write_header(file, (count, *vae.latent_shape))
    return (count, *vae.latent_shape)


def _write_header(file: object, shape: tuple[int, ...]) -> None:
    """The header of a float32 array; its length depends on the shape only through padding to 64 bytes."""
    entry = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, entry)  # type: ignore[arg-type]
