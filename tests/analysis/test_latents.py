import math

import numpy as np
import pytest
import torch

from vaeprune.analysis.latents import NORMAL_95, interval, latents_of, quantile, share_interval, variance_interval
from vaeprune.analysis.moments import Moments
from vaeprune.posterior import Posterior


@pytest.mark.parametrize(
    ("n", "t"), [(11, 2.228139), (21, 2.085963), (30, 2.045230), (61, 2.000298), (121, 1.979930), (10_001, 1.960201)]
)
def test_quantile_is_students(n: int, t: float) -> None:
    """Tabled 97.5% quantiles of t with n − 1 degrees of freedom."""
    assert quantile(n) == pytest.approx(t, rel=1e-4)


def test_interval_of_a_variance_is_linear_below_and_logarithmic_above() -> None:
    low, high = variance_interval(0.02, 0.002, 10_000)
    assert low == pytest.approx(0.02 - quantile(10_000) * 0.002)
    assert high == pytest.approx(0.02 * math.exp(quantile(10_000) * 0.1))
    assert high - 0.02 > 0.02 - low > 0


def test_one_row_that_stands_out_leaves_the_variance_open() -> None:
    """Of 100 values one is 3: variance and its error are nearly the same, and the interval reaches from 0 far up."""
    mean = torch.zeros(100, 1, dtype=torch.float64)
    mean[0] = 3.0
    (latent,) = latents_of(Moments.of(Posterior(mean, torch.zeros_like(mean))))
    assert latent.variance == pytest.approx(0.0891)
    assert latent.variance_ci95[0] == 0
    assert latent.variance_ci95[1] > 0.5
    assert latent.used_share == 0.01
    assert latent.used_share_ci95 == pytest.approx((0.00177, 0.0545), rel=1e-2)  # Wilson 1927, 1 of 100


def test_a_variance_of_nothing_has_no_spread() -> None:
    assert variance_interval(0.0, 0.0, 30) == (0.0, 0.0)


def test_what_was_never_seen_may_be_as_frequent_as_four_in_n() -> None:
    low, high = share_interval(0, 1000)
    assert low == 0
    assert high == pytest.approx(NORMAL_95**2 / (1000 + NORMAL_95**2))
    assert share_interval(1000, 1000)[1] == pytest.approx(1)


def test_interval_of_a_mean_takes_the_quantile_it_is_given() -> None:
    assert interval(1.0, 0.1) == pytest.approx((1 - 0.1959964, 1 + 0.1959964))
    assert interval(1.0, 0.1, quantile=2.0) == pytest.approx((0.8, 1.2))
    assert interval(0.1, 0.1, least=0.0) == pytest.approx((0.0, 0.2959964))


def test_shares_of_a_map_count_images_by_their_summed_kl() -> None:
    mean = torch.zeros(40, 2, 3, 3, dtype=torch.float64)
    mean[:10, 1] = 0.4  # 9 · 0.08 nats = 0.72 an image
    moments = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    assert moments.used.tolist() == [0, 10]
    assert [latent.used_share for latent in latents_of(moments)] == [0, 0.25]


def test_uses_are_counted_from_half_a_nat_and_add_up_over_batches() -> None:
    mean = torch.tensor([[0.9, 0.0], [1.1, 0.0], [3.0, 1.2], [0.0, 0.0]], dtype=torch.float64)
    posterior = Posterior(mean, torch.zeros_like(mean))
    whole = Moments.of(posterior)
    assert whole.used.tolist() == [2, 1]
    halves = [Moments.of(Posterior(mean[i : i + 2], torch.zeros(2, 2, dtype=torch.float64))) for i in (0, 2)]
    assert halves[0].merge(halves[1]).used.tolist() == whole.used.tolist()
    np.testing.assert_allclose(halves[0].merge(halves[1]).variance, whole.variance)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_the_interval_of_a_mean_sigma2_is_that_of_its_standard_error(n: int) -> None:
    sigma2 = 0.5 + torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    (latent,) = latents_of(Moments.of(Posterior(torch.zeros_like(sigma2), sigma2.log())))
    reach = quantile(n) * sigma2.std().item() / math.sqrt(n)
    assert latent.posterior_variance == pytest.approx(sigma2.mean().item())
    low, high = latent.posterior_variance_ci95
    assert high == pytest.approx(sigma2.mean().item() + reach)
    assert low == pytest.approx(max(0.0, sigma2.mean().item() - reach))


def test_a_single_row_has_figures_and_no_spread() -> None:
    (latent,) = latents_of(Moments.of(Posterior(torch.tensor([[0.5]]), torch.tensor([[-1.0]]))))
    assert (latent.mean, latent.variance, latent.variance_ci95) == (0.5, 0.0, (0.0, 0.0))
    assert latent.posterior_variance_ci95 == pytest.approx((math.exp(-1), math.exp(-1)))
