"""Rows whose number of useful latents is known: linear in a few factors, seen through Gaussian noise.

A VAE with a Gaussian likelihood of variance s² uses one latent for each principal component whose variance is above s²
(Lucas et al. 2019, Don't Blame the ELBO).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vaeprune.training_run import Recipe

ROWS = 2000  # enough for a verdict of inactive


def linear_rows(*variances: float) -> NDArray[np.float32]:
    """(2000, 3, 4): a principal component of each variance, plus noise of standard deviation 0.05."""
    draw = np.random.default_rng(0)
    directions = np.linalg.qr(draw.normal(size=(12, 12)))[0][: len(variances)]
    rows = draw.normal(size=(ROWS, len(variances))) * np.sqrt(variances) @ directions
    return (rows + 0.05 * draw.normal(size=rows.shape)).astype(np.float32).reshape(ROWS, 3, 4)


def linear_recipe(data: str, **changes: object) -> Recipe:
    """Some 1,000 steps of a small network with s = 0.5."""
    known = {"hidden": (24, 16), "likelihood": "gaussian", "scale": 0.5, "learning_rate": 0.01, "batch_size": 96}
    return Recipe(data, **{**known, "epochs": 80, **changes})  # type: ignore[arg-type]
