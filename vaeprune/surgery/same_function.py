"""Whether a wider model computes what the narrow one did: rough checks, that tell a wrong place or size."""

from __future__ import annotations

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.posterior import VAE
from vaeprune.surgery.planning import refuse_other_values
from vaeprune.surgery.sizes import refuse_shape


def refuse_other_latents(vae: VAE, wider: VAE, example: Batch) -> None:
    """Raise where the old latents are not as they were."""
    before, after = vae.encode(*example), wider.encode(*example)
    full = (len(before.mean), wider.latent_size, *before.mean.shape[2:])
    for name, reference, found in (("mean", before.mean, after.mean), ("logvar", before.logvar, after.logvar)):
        refuse_shape(tuple(found.shape), full, name, vae.network, vae.latent_size)
        refuse_other_values(reference, found[:, : vae.latent_size], name, "wider model")


def refuse_other_rows(vae: VAE, wider: VAE, example: Batch) -> None:
    """Raise where what is decoded is not as it was."""
    z = _drawn(wider, example)
    reference = vae.decode(z[:, : vae.latent_size], *example[1:])
    found = wider.decode(z, *example[1:])
    refuse_shape(tuple(found.shape), tuple(reference.shape), "decoded row", vae.network, vae.latent_size)
    refuse_other_values(reference, found, "decoded row", "wider model")


def _drawn(vae: VAE, example: Batch) -> Tensor:
    shape = (len(example[0]), *vae.latent_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(example[0])


def refuse_deaf(hearing: VAE, example: Batch, new_latents: list[int]) -> None:
    """Raise where a new latent would not reach the output even if what reads it were not 0."""
    z = _drawn(hearing, example)
    quiet = hearing.decode(z, *example[1:])
    for latent in new_latents:
        moved = z.clone()
        moved[:, latent] += 3.0
        if torch.equal(hearing.decode(moved, *example[1:]), quiet):
            raise TraceError(f"decoder: new latent {latent} would not be read by anything")
