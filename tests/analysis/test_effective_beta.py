"""The KL's weight read off the optimum of a linear VAE, which is known in closed form (Lucas et al. 2019)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from planted import OwnVAE, PlainVAE
from vaeprune.analysis.effective_beta import EffectiveBeta, Ratio, effective_beta
from vaeprune.analysis.symptoms import examine
from vaeprune.data import as_data
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

EIGENVALUES = (9.0, 4.0, 2.0, 0.1, 0.05)


def gaussian_rows(count: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64) * torch.tensor(EIGENVALUES).sqrt()


class LinearOptimum(OwnVAE):
    """The best linear VAE of `gaussian_rows` for a weight: along axis i sigma² = beta s² / λ_i, and mu to match."""

    input_shape = (5,)

    def __init__(self, beta: float, scale: float = 1.0) -> None:
        super().__init__()
        self.likelihood = Likelihood("gaussian", "mean", scale)
        self.noise = beta * scale**2
        self.eigenvalues = torch.tensor(EIGENVALUES[:3], dtype=torch.float64)
        self.carried = (self.eigenvalues - self.noise).clamp_min(0)
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def latent_size(self) -> int:
        return 3

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        mean = x[:, :3] * self.carried.sqrt() / self.eigenvalues
        idle = self.carried == 0
        sigma2 = torch.where(idle, torch.ones(3, dtype=torch.float64), self.noise / self.eigenvalues)
        return Posterior(mean, sigma2.log().expand_as(mean))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return torch.cat([z * self.carried.sqrt(), torch.zeros_like(z[:, :2])], 1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("beta", [0.05, 0.25, 1.0, 3.0])
def test_the_optimum_of_a_linear_vae_gives_the_weight_it_was_found_for(beta: float, scale: float) -> None:
    found = examine(LinearOptimum(beta, scale), as_data(gaussian_rows()).calibrate)
    assert found is not None
    assert found.beta is not None
    assert found.beta.by_variance.value == pytest.approx(beta, rel=0.12)
    assert found.beta.by_mean.value == pytest.approx(beta, rel=0.3, abs=0.02)
    assert found.beta.by_variance.known
    assert found.beta.agrees


def test_each_latent_tells_the_weight_by_itself() -> None:
    found = examine(LinearOptimum(1.0), as_data(gaussian_rows()).calibrate)
    assert found is not None
    assert found.beta is not None
    for latent in found.beta.latents:
        assert latent.ci95[0] - 0.05 < 1.0 < latent.ci95[1] + 0.05


def test_gradients_of_parameters_are_not_touched() -> None:
    vae = PlainVAE()
    examine(vae, as_data(torch.randn(200, 5)).calibrate)
    assert all(p.grad is None for p in vae.parameters())


def test_ratio_and_its_interval_are_those_of_the_delta_method() -> None:
    above = torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64)
    below = torch.tensor([[1.0], [1.0], [2.0], [2.0]], dtype=torch.float64)
    ratio = effective_beta(above, below, above, below).by_variance
    assert ratio.value == 2.0
    residual = torch.tensor([-1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    error = residual.std().item() / 2 / 1.5
    assert ratio.ci95 == pytest.approx((2 - 1.959964 * error, 2 + 1.959964 * error))
    assert ratio.known
    assert not effective_beta(-above + 3, below, above, below).by_variance.known


def test_a_ratio_of_nothing_is_unknown() -> None:
    nothing = torch.zeros(10, 2, dtype=torch.float64)
    found = effective_beta(nothing, nothing, nothing, nothing)
    assert math.isnan(found.by_variance.value)
    assert not found.by_variance.known


@pytest.mark.parametrize(
    ("by_variance", "by_mean", "agrees"),
    [
        ((1.0, 0.9, 1.1), (1.9, 1.8, 2.0), True),
        ((1.0, 0.9, 1.1), (2.1, 2.0, 2.2), False),
        ((1.0, 0.9, 1.1), (0.4, -0.2, 1.0), True),
        ((1.0, 0.9, 1.1), (-1.0, -1.2, -0.8), False),
    ],
)
def test_means_and_variances_agree_within_a_factor_of_two_or_their_errors(
    by_variance: tuple[float, float, float], by_mean: tuple[float, float, float], agrees: bool
) -> None:
    a, b = (Ratio(value, (low, high)) for value, low, high in (by_variance, by_mean))
    assert EffectiveBeta(a, b, ()).agrees is agrees
