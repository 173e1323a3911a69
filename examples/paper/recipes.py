"""How every network of the reproduction is trained: stated once, the same for all of them.

The paper leaves open the optimiser, the epochs, the scale of the reconstruction and the start of the weights. Here:
Bernoulli likelihood summed over pixels, Glorot start, Adam at 1e-3, minibatches of 128, 40 epochs, 16 latents.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vaeprune.training_run import Recipe

NETWORKS = ("mnist-dense", "mnist-conv", "tiles-dense", "tiles-conv")
WIDTHS = {"mnist": (256, 32, 24), "tiles": (512, 256, 64, 32)}
SMALL_WIDTHS = (256, 64, 16)  # Fig. 2's network of three latents; Fig. 1's is not described, so it is taken to be alike
STARTED_OTHERWISE = ("mnist-dense", "mnist-conv", "tiles-dense")  # all but the one whose count is the paper's
FIRST_SIZE = 4  # where following the advice to grow begins
OBJECTIVES = {"full KL": "full", "quadratic term only": "quadratic", "no KL": "none"}  # section VI
_TRACE_EVERY = 20


@dataclass(frozen=True)
class Scale:
    """How much of it is done. `rows`: of each split; None for all."""

    name: str
    epochs: int
    rows: int | None
    dense_seeds: int
    conv_seeds: int

    def seeds(self, network: str) -> range:
        """Seeds of one of the four networks."""
        return range(self.dense_seeds if network.endswith("dense") else self.conv_seeds)

    def says(self) -> str:
        """A warning to stand beside whatever was made in less than full."""
        rows = "" if self.rows is None else f" of {self.rows:,} rows"
        return "" if self.name == "full" else f"{self.name}: {self.epochs} epoch{'s' * (self.epochs > 1)}{rows}"


FULL = Scale("full", epochs=40, rows=None, dense_seeds=5, conv_seeds=3)
QUICK = Scale("quick", epochs=4, rows=4_000, dense_seeds=2, conv_seeds=1)


def recipe(scale: Scale, network: str, seed: int = 0, **changes: Any) -> Recipe:
    """The recipe of one of the four networks, less what an experiment changes on purpose."""
    data, kind = network.split("-")
    common = Recipe(data, rows=scale.rows, epochs=scale.epochs, seed=seed, trace_every=_TRACE_EVERY)
    if kind == "dense":
        return dataclasses.replace(common, hidden=WIDTHS[data], **changes)
    return dataclasses.replace(common, architecture="convolutional", **changes)


def plain(scale: Scale, network: str) -> dict[str, Recipe]:
    """The four networks' trainings, one for each seed, by the name of their folder."""
    return {f"{network}-seed{seed}": recipe(scale, network, seed) for seed in scale.seeds(network)}


def objective(scale: Scale, network: str, words: str) -> tuple[str, Recipe]:
    """Name and recipe of a training by one of the objectives of section VI; the full KL is the plain training."""
    penalty = OBJECTIVES[words]
    name = {"full": "seed0", "quadratic": "quadratic", "none": "no-kl"}[penalty]
    return f"{network}-{name}", recipe(scale, network, kl=penalty)


def torch_start(scale: Scale, network: str) -> tuple[str, Recipe]:
    """Name and recipe of a training from PyTorch's default start."""
    return f"{network}-torch", recipe(scale, network, initialisation="torch")


def of_size(scale: Scale, network: str, latents: int) -> tuple[str, Recipe]:
    """Name and recipe of a training with another number of latents; 16 is the plain training."""
    name = f"{network}-seed0" if latents == Recipe.latent else f"{network}-{latents}-latents"
    return name, recipe(scale, network, latent=latents)


def three_latents(scale: Scale) -> dict[str, tuple[str, Recipe]]:
    """Fig. 2: with sampling, and without it but with the quadratic term."""
    sampled = recipe(scale, "mnist-dense", latent=3)
    sampled = dataclasses.replace(sampled, hidden=SMALL_WIDTHS, trace_every=0)
    means = dataclasses.replace(sampled, kl="quadratic", sampling=False)
    return {"A": ("mnist-3d-sampled", sampled), "B": ("mnist-3d-not-sampled", means)}


def two_latents(scale: Scale) -> tuple[str, Recipe]:
    """Fig. 1: one epoch with two latents."""
    flat = recipe(scale, "mnist-dense", latent=2, epochs=1)
    return "mnist-2d", dataclasses.replace(flat, hidden=SMALL_WIDTHS, trace_every=0)
