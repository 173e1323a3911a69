from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from planted import OwnVAE
from vaeprune.architectures import DenseVAE
from vaeprune.errors import TrainingError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior
from vaeprune.training import Objective


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def vae() -> DenseVAE:
    torch.manual_seed(0)
    return DenseVAE((1, 2, 3), [5], [4], 2, Likelihood("bernoulli", "logits")).double()


X = torch.sigmoid(normal(7, 1, 2, 3, seed=1))
NOISE = normal(7, 2, seed=2)


# The posterior


def test_kl_is_that_of_torch_distributions() -> None:
    posterior = Posterior(normal(6, 3), 2 * normal(6, 3, seed=1))
    q = Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    p = Normal(torch.zeros(()).double(), torch.ones(()).double())
    torch.testing.assert_close(posterior.kl(), kl_divergence(q, p), rtol=1e-12, atol=1e-12)


def test_kl_of_latents_that_are_maps_has_their_shape() -> None:
    posterior = Posterior(normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1))
    by_hand = 0.5 * (posterior.mean**2 + np.e**posterior.logvar - posterior.logvar - 1)
    torch.testing.assert_close(posterior.kl(), by_hand, rtol=1e-12, atol=1e-12)


def test_kl_of_the_prior_itself_is_nothing() -> None:
    assert not Posterior(torch.zeros(2, 3), torch.zeros(2, 3)).kl().any()


def test_a_sample_is_the_mean_plus_sigma_times_the_noise() -> None:
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * math.log(3)]]))
    torch.testing.assert_close(posterior.sample(torch.tensor([[0.5, 2.0]])), torch.tensor([[1.5, 4.0]]))


# The objective


def test_the_loss_is_minus_the_elbo_in_nats(vae: DenseVAE) -> None:
    loss = Objective()(vae, X, NOISE)
    mean, logvar = vae.encode(X)
    q = Normal(mean, torch.exp(0.5 * logvar))
    logits = vae.decode_parameters(mean + torch.exp(0.5 * logvar) * NOISE)
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    reconstruction = -(X.numpy() * np.log(p) + (1 - X.numpy()) * np.log(1 - p)).sum((1, 2, 3))
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(loss.reconstruction.detach(), reconstruction, rtol=1e-12)
    torch.testing.assert_close(loss.kl, kl)
    np.testing.assert_allclose(loss.total.detach(), reconstruction + kl.detach().numpy(), rtol=1e-12)
    assert torch.equal(loss.posterior.mean, mean)
    assert torch.equal(loss.posterior.logvar, logvar)


def test_the_gaussian_loss_uses_its_scale() -> None:
    vae = DenseVAE((3,), [], [], 2, Likelihood("gaussian", "mean", 0.3)).double()
    x = normal(4, 3)
    loss = Objective()(vae, x, NOISE[:4])
    z = loss.posterior.sample(NOISE[:4])
    expected = -Normal(vae.decode(z), 0.3).log_prob(x).sum(1) + loss.kl
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_beta_weighs_the_kl_in_the_total_only(vae: DenseVAE, beta: float) -> None:
    plain, weighed = Objective()(vae, X, NOISE), Objective(beta=beta)(vae, X, NOISE)
    assert torch.equal(weighed.kl, plain.kl)
    assert torch.equal(weighed.reconstruction, plain.reconstruction)
    torch.testing.assert_close(weighed.total, plain.reconstruction + beta * plain.kl)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_quadratic_penalty_is_half_the_squared_mean(vae: DenseVAE, beta: float) -> None:
    loss = Objective("quadratic", beta)(vae, X, NOISE)
    mean = loss.posterior.mean
    torch.testing.assert_close(loss.total, loss.reconstruction + beta * 0.5 * (mean[:, 0] ** 2 + mean[:, 1] ** 2))
    assert torch.equal(loss.kl, loss.posterior.kl().sum(1))


def test_without_a_penalty_the_total_is_the_reconstruction_and_the_kl_is_still_told(vae: DenseVAE) -> None:
    loss = Objective("none", beta=4.0)(vae, X, NOISE)
    assert torch.equal(loss.total, loss.reconstruction)
    assert torch.equal(loss.kl, loss.posterior.kl().sum(1))


@pytest.mark.parametrize("penalty", ["full", "quadratic"])
def test_weights_of_latents_weigh_the_penalty_of_each_and_nothing_else(vae: DenseVAE, penalty: Any) -> None:
    plain = Objective(penalty, beta=0.5)(vae, X, NOISE)
    weighed = Objective(penalty, beta=0.5)(vae, X, NOISE, kl_weights=torch.tensor([1.0, 0.25]))
    mean = plain.posterior.mean
    terms = plain.posterior.kl() if penalty == "full" else 0.5 * mean**2
    torch.testing.assert_close(weighed.total, plain.reconstruction + 0.5 * (terms[:, 0] + 0.25 * terms[:, 1]))
    assert torch.equal(weighed.kl, plain.kl)
    assert torch.equal(weighed.reconstruction, plain.reconstruction)


def test_weights_of_one_change_no_bit(vae: DenseVAE) -> None:
    plain, weighed = Objective()(vae, X, NOISE), Objective()(vae, X, NOISE, kl_weights=torch.ones(2))
    assert torch.equal(weighed.total, plain.total)


def test_weights_of_maps_count_for_all_positions() -> None:
    class Maps(OwnVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            return Posterior(x[:, :2], x[:, 1:])

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return torch.cat([z, z[:, :1]], 1)

    x, noise = normal(4, 3, 2, 5), normal(4, 2, 2, 5, seed=1)
    loss = Objective()(Maps(), x, noise, kl_weights=torch.tensor([0.5, 0.0]))
    expected = loss.reconstruction + 0.5 * loss.posterior.kl()[:, 0].sum((1, 2))
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)


def test_without_sampling_the_mean_is_decoded(vae: DenseVAE) -> None:
    loss = Objective(sampling=False)(vae, X, NOISE)
    expected = vae.likelihood.nats(X, vae.decode_parameters(vae.encode(X).mean))
    assert torch.equal(loss.reconstruction, expected)
    assert torch.equal(loss.total, expected + loss.kl)


def test_the_elbo_of_latents_that_are_maps_sums_over_positions() -> None:
    class Maps(OwnVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            return Posterior(x[:, :2] + condition[0], x[:, 1:])

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return torch.cat([z, z[:, :1]], 1) * condition[0]

    x, noise, c = normal(4, 3, 2, 5), normal(4, 2, 2, 5, seed=1), normal(4, 1, 2, 5, seed=2)
    loss = Objective()(Maps(), x, noise, c)
    q = Normal(x[:, :2] + c, torch.exp(0.5 * x[:, 1:]))
    z = q.mean + q.stddev * noise
    expected = -Normal(torch.cat([z, z[:, :1]], 1) * c, 1.0).log_prob(x).sum((1, 2, 3))
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(loss.reconstruction, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.kl, kl, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.total, expected + kl, rtol=1e-12, atol=1e-12)


def test_sampling_teaches_the_logvar_also_without_a_penalty(vae: DenseVAE) -> None:
    for sampling in (True, False):
        vae.zero_grad()
        Objective("none", sampling=sampling)(vae, X, NOISE).total.sum().backward()
        gradient = vae.logvar_head.weight.grad
        assert (gradient is not None and bool(gradient.any())) is sampling


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": "kl"}, "kl: got 'kl', expected full, quadratic or none"),
        ({"beta": -1.0}, "beta: got -1.0, expected a finite number of at least 0"),
        ({"beta": math.nan}, "beta: got nan, expected a finite number of at least 0"),
        ({"beta": math.inf}, "beta: got inf, expected a finite number of at least 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        Objective(**arguments)
    assert caught.value.message == message
