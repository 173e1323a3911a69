"""Dense networks by the project's one setting at several sizes and seeds, for how far their counts agree."""

from __future__ import annotations

import dataclasses

from benchmarks.trained_networks import NETWORKS, TRAINED_HERE, Network
from vaeprune.training_run import Recipe

SEEDS = (0, 1, 2)
_READY_MADE = {network.recipe: network for network in NETWORKS}


def dense(data: str, latent: int, seed: int) -> Network:
    """The dense network that `vaeprune train --data DATA --latent LATENT --seed SEED` makes."""
    recipe = dataclasses.replace(Recipe(data), latent=latent, seed=seed)
    key = f"{data}-dense-{latent}-seed{seed}"
    fresh = Network(key, f"dense {data}, {latent} latents, seed {seed}", recipe, TRAINED_HERE / key)
    return _READY_MADE.get(recipe, fresh)
