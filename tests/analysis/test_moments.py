import math
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vaeprune.analysis import Moments
from vaeprune.analysis.latents import latents_of
from vaeprune.errors import DataError
from vaeprune.posterior import Posterior

TENSORS = ("mean", "within", "comoment", "low", "high", "kl_high", "variance", "variance_error", "covariance")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(*shape: int, seed: int = 0, centre: float = 0.0) -> Posterior:
    """Skewed means (so that no third moment is near 0) and varied logvars, in float64."""
    g = generator(seed)
    mean = centre + torch.empty(shape, dtype=torch.float64).exponential_(1.0, generator=g)
    return Posterior(mean, torch.randn(shape, dtype=torch.float64, generator=g) - 1)


def assert_same(found: Moments, expected: Moments, relative: float) -> None:
    assert found.count == expected.count
    for name in TENSORS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=relative, atol=1e-13, msg=name)
    assert found.powers.keys() == expected.powers.keys()
    for power, value in expected.powers.items():
        torch.testing.assert_close(found.powers[power], value, rtol=relative, atol=relative * found.count)
    for name in ("sigma2", "kl"):
        for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(a, b, rtol=relative, atol=1e-13)


def in_batches(whole: Posterior, sizes: list[int]) -> list[Moments]:
    assert sum(sizes) == len(whole.mean)
    parts = zip(whole.mean.split(sizes), whole.logvar.split(sizes), strict=True)
    return [Moments.of(Posterior(*part)) for part in parts]


# ---- one batch against numpy


def test_moments_are_those_numpy_computes() -> None:
    p = posterior(50, 3)
    mu, sigma2 = p.mean.numpy(), np.exp(p.logvar.numpy())
    kl = 0.5 * (mu**2 + sigma2 - p.logvar.numpy() - 1)
    c = mu - mu.mean(0)

    moments = Moments.of(p)

    assert moments.count == 50
    for found, expected in (
        (moments.mean, mu.mean(0)),
        (moments.variance, mu.var(0)),
        (moments.powers[2, 0], (c**2).sum(0)),
        (moments.powers[3, 0], (c**3).sum(0)),
        (moments.powers[4, 0], (c**4).sum(0)),
        (moments.covariance, np.cov(mu.T, bias=True)),
        (moments.comoment, c.T @ c),
        (moments.sigma2[0], sigma2.mean(0)),
        (moments.sigma2[1], 50 * sigma2.var(0)),
        (moments.kl[0], kl.mean(0)),
        (moments.kl[1], 50 * kl.var(0)),
        (moments.low, mu.min(0)),
        (moments.high, mu.max(0)),
        (moments.kl_high, kl.max(0)),
    ):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_standard_error_of_a_variance_comes_from_the_fourth_moment() -> None:
    p = posterior(50, 3)
    squares = (p.mean.numpy() - p.mean.numpy().mean(0)) ** 2
    np.testing.assert_allclose(Moments.of(p).variance_error.numpy(), squares.std(0, ddof=1) / math.sqrt(50), rtol=1e-12)


def test_float32_posteriors_are_summed_in_float64() -> None:
    mean = 1000 + torch.rand(4000, 2, generator=generator())
    moments = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    assert moments.variance.dtype == torch.float64
    np.testing.assert_allclose(moments.variance.numpy(), mean.double().numpy().var(0), rtol=1e-10)


def test_a_posterior_equal_to_the_prior_costs_nothing() -> None:
    moments = Moments.of(Posterior(torch.zeros(5, 2), torch.zeros(5, 2)))
    assert moments.kl[0].tolist() == [0, 0]
    assert moments.kl_high.tolist() == [0, 0]
    assert moments.sigma2[0].tolist() == [1, 1]


# ---- maps: one latent a channel, one sample an image


def test_variance_of_a_map_is_pooled_over_images_and_positions() -> None:
    p = posterior(20, 3, 4, 5)
    mu = p.mean.numpy()
    moments = Moments.of(p)
    np.testing.assert_allclose(moments.mean.numpy(), mu.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments.variance.numpy(), mu.var((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments.within.numpy(), mu.var((2, 3)).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.low.numpy(), mu.min((0, 2, 3)), rtol=0)
    np.testing.assert_allclose(moments.high.numpy(), mu.max((0, 2, 3)), rtol=0)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(mu.mean((2, 3)).T, bias=True), rtol=1e-12)


def test_images_are_the_samples_behind_the_error_of_a_maps_variance() -> None:
    p = posterior(20, 3, 4, 5)
    mu = p.mean.numpy()
    of_each_image = ((mu - mu.mean((0, 2, 3), keepdims=True)) ** 2).mean((2, 3))
    expected = of_each_image.std(0, ddof=1) / math.sqrt(20)
    np.testing.assert_allclose(Moments.of(p).variance_error.numpy(), expected, rtol=1e-12)


def test_kl_of_a_map_is_summed_and_its_sigma2_averaged_over_positions() -> None:
    p = posterior(20, 3, 4, 5)
    sigma2 = np.exp(p.logvar.numpy())
    kl = (0.5 * (p.mean.numpy() ** 2 + sigma2 - p.logvar.numpy() - 1)).sum((2, 3))
    moments = Moments.of(p)
    np.testing.assert_allclose(moments.kl[0].numpy(), kl.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.kl_high.numpy(), kl.max(0), rtol=1e-12)
    np.testing.assert_allclose(moments.sigma2[0].numpy(), sigma2.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments.sigma2[1].numpy(), 20 * sigma2.mean((2, 3)).var(0), rtol=1e-12)


# ---- merging


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    shape=st.sampled_from([(1,), (3,), (2, 2, 2), (2, 1, 1), (3, 4)]),
    seed=st.integers(0, 1000),
    backwards=st.booleans(),
)
def test_any_split_into_batches_merges_to_the_whole(
    sizes: list[int], shape: tuple[int, ...], seed: int, backwards: bool
) -> None:
    whole = posterior(sum(sizes), *shape, seed=seed)
    parts = in_batches(whole, sizes)
    assert_same(reduce(Moments.merge, parts[::-1] if backwards else parts), Moments.of(whole), relative=1e-12)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=3, max_size=9), at=st.integers(1, 8), seed=st.integers(0, 1000))
def test_two_halves_gathered_apart_merge_to_the_whole(sizes: list[int], at: int, seed: int) -> None:
    whole = posterior(sum(sizes), 2, 3, seed=seed)
    parts = in_batches(whole, sizes)
    at = min(at, len(parts) - 1)
    halves = reduce(Moments.merge, parts[:at]), reduce(Moments.merge, parts[at:])
    assert_same(halves[0].merge(halves[1]), Moments.of(whole), relative=1e-12)


def test_merging_changes_neither_part() -> None:
    first, second = in_batches(posterior(20, 2), [5, 15])
    before = [first.mean.clone(), first.comoment.clone(), first.powers[4, 0].clone(), second.sigma2[1].clone()]
    first.merge(second)
    after = [first.mean, first.comoment, first.powers[4, 0], second.sigma2[1]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_means_near_a_million_lose_no_digits() -> None:
    p = posterior(1000, 2, centre=1e6)
    exact = p.mean.numpy().astype(np.longdouble)
    c = exact - exact.mean(0)
    for moments in (Moments.of(p), reduce(Moments.merge, in_batches(p, [1] * 10 + [90] * 11))):
        np.testing.assert_allclose(moments.mean.numpy(), exact.mean(0).astype(float), rtol=1e-15)
        for found, expected in (
            (moments.variance, (c**2).mean(0)),
            (moments.powers[3, 0], (c**3).sum(0)),
            (moments.powers[4, 0], (c**4).sum(0)),
            (moments.comoment, c.T @ c),
        ):
            np.testing.assert_allclose(found.numpy(), expected.astype(float), rtol=1e-9)


def test_maps_near_a_million_lose_no_digits() -> None:
    p = posterior(300, 2, 2, 3, centre=1e6)
    exact = p.mean.numpy().astype(np.longdouble)
    q = ((exact - exact.mean((0, 2, 3), keepdims=True)) ** 2).mean((2, 3))
    moments = reduce(Moments.merge, in_batches(p, [7] * 42 + [6]))
    np.testing.assert_allclose(moments.variance.numpy(), exact.var((0, 2, 3)).astype(float), rtol=1e-9)
    expected = q.std(0, ddof=1).astype(float) / math.sqrt(300)
    np.testing.assert_allclose(moments.variance_error.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_error_of_a_variance_is_that_of_a_mean_of_squared_deviations(n: int) -> None:
    mean = posterior(n, 2).mean
    squares = (mean - mean.mean(0)).square()
    found = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    torch.testing.assert_close(found.variance_error, squares.std(0) / math.sqrt(n))
    assert Moments.of(Posterior(mean[:1], torch.zeros(1, 2))).variance_error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_of_maps_an_image_is_a_sample_of_the_variance(n: int) -> None:
    mean = posterior(n, 2, 3, 3).mean
    squares = (mean - mean.mean((0, 2, 3), keepdim=True)).square().mean((2, 3))
    found = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    torch.testing.assert_close(found.variance_error, squares.std(0) / math.sqrt(n))


# ---- intervals cover what they promise


def coverage(mean: Tensor, logvar: Tensor, variance: float, posterior_variance: float) -> tuple[float, float]:
    """Share of channels (each a repetition of its own) whose 95% intervals hold the true values."""
    latents = latents_of(Moments.of(Posterior(mean, logvar)))
    held = [la.variance_ci95[0] <= variance <= la.variance_ci95[1] for la in latents]
    also = [la.posterior_variance_ci95[0] <= posterior_variance <= la.posterior_variance_ci95[1] for la in latents]
    return sum(held) / len(held), sum(also) / len(also)


def test_95_percent_intervals_of_gaussian_latents_cover_the_truth() -> None:
    repetitions, n = 400, 300
    mean = 0.1 * torch.randn(n, repetitions, dtype=torch.float64, generator=generator())
    logvar = 0.3 * torch.randn(n, repetitions, dtype=torch.float64, generator=generator(1))
    variance, posterior_variance = coverage(mean, logvar, 0.01, math.exp(0.3**2 / 2))
    assert 0.90 <= variance <= 0.99
    assert 0.90 <= posterior_variance <= 0.99


@pytest.mark.parametrize("correlation", [1.0, 0.5, 0.0])
def test_95_percent_intervals_of_maps_cover_the_truth_however_correlated_their_positions(correlation: float) -> None:
    repetitions, n, side = 400, 200, 3
    shape = (n, repetitions, side, side)
    shared = torch.randn(n, repetitions, 1, 1, dtype=torch.float64, generator=generator())
    own = torch.randn(shape, dtype=torch.float64, generator=generator(1))
    mean = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    other = torch.randn(n, repetitions, 1, 1, dtype=torch.float64, generator=generator(2)).expand(shape)
    variance, posterior_variance = coverage(mean, 0.3 * other, 1.0, math.exp(0.3**2 / 2))
    assert 0.90 <= variance <= 0.99
    assert 0.90 <= posterior_variance <= 0.99


def test_an_interval_of_a_variance_does_not_reach_below_zero() -> None:
    mean = torch.zeros(30, 1, dtype=torch.float64)
    mean[0] = 5
    (latent,) = latents_of(Moments.of(Posterior(mean, torch.zeros_like(mean))))
    assert latent.variance_ci95[0] == 0.0
    assert latent.largest_deviation == pytest.approx(5 - 5 / 30)


# ---- broken encoders


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["mean", "logvar"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 2, 2)])
def test_a_posterior_that_is_not_finite_is_refused_with_the_latent_that_is_to_blame(
    value: float, which: str, shape: tuple[int, ...]
) -> None:
    parts = {"mean": torch.zeros(shape), "logvar": torch.zeros(shape)}
    parts[which][3, 2] = value
    with pytest.raises(DataError) as error:
        Moments.of(Posterior(**parts))
    assert str(error.value) == (
        "encoder: mean, variance or KL is NaN or infinite, first for latent 2; "
        "check the weights and the range of the data"
    )


def test_a_logvar_too_large_for_its_exponential_is_refused() -> None:
    logvar = torch.zeros(6, 4)
    logvar[5, 3] = 800.0
    with pytest.raises(DataError, match="first for latent 3"):
        Moments.of(Posterior(torch.zeros(6, 4), logvar))
