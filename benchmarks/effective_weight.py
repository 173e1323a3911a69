"""The KL's weight read off trained weights, beside the weight they were trained with.

Asked for: within 20% in small networks trained by a known weight, and within 10% of 1 in the ready-made networks.
"""

from __future__ import annotations

import torch

from vaeprune import analyze, load
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data import DataSets, as_data, open_data
from vaeprune.errors import DataError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE
from vaeprune.training import Objective, Options, train

ROWS, PIXELS, FACTORS, LATENTS = 4000, 32, 4, 8
WEIGHTS = (1 / LATENTS, 0.5, 1.0, 2.0)


def main() -> None:
    print("trained with   read off (95%)              asked for")
    for weight in WEIGHTS:
        _line(f"{weight:<14g}", _trained(weight), as_data(_rows()), weight, 0.2)
    _line("1 (tiles)     ", load("models/tiles-dense"), open_data("tiles"), 1.0, 0.1)
    try:
        mnist = open_data("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return
    _line("1 (mnist)     ", load("models/mnist-dense"), mnist, 1.0, 0.1)


def _line(first: str, vae: VAE, data: DataSets, weight: float, within: float) -> None:
    found = analyze(vae, data, ablate="none").diagnosis
    if found.effective_beta is None or found.effective_beta_ci95 is None:
        print(f"{first} not to be told")
        return
    low, high = found.effective_beta_ci95
    read = f"{found.effective_beta:.3g} ({low:.3g} to {high:.3g})".ljust(27)
    print(f"{first} {read} {weight * (1 - within):.3g} to {weight * (1 + within):.3g}")


def _trained(weight: float) -> VAE:
    vae = DenseVAE((PIXELS,), (48, 48), (48, 48), LATENTS, Likelihood("gaussian", "mean"))
    initialise(vae, "glorot", 0)
    return train(vae, _rows(), Options(30, 100, 2e-3, Objective(beta=weight), decay=True)).vae


def _rows() -> torch.Tensor:
    """Rows (N, 32) that four factors of falling strength make, through tanh, with noise on top."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(ROWS, FACTORS, generator=generator)
    mixing = torch.randn(FACTORS, PIXELS, generator=generator) * torch.tensor([1.2, 0.9, 0.7, 0.5])[:, None]
    return torch.tanh(factors @ mixing) + 0.3 * torch.randn(ROWS, PIXELS, generator=generator)
