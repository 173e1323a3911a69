from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood

LOGITS = Likelihood("bernoulli", "logits")
PROBABILITIES = Likelihood("bernoulli", "mean")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: Tensor, expected: Tensor | np.ndarray) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_bernoulli_nats_of_a_fair_coin_are_ln_2_for_each_pixel() -> None:
    x, logits = torch.tensor([[0.0, 1.0, 1.0]]).double(), torch.zeros(1, 3).double()
    close(LOGITS.nats(x, logits), np.array([3 * math.log(2)]))


def test_bernoulli_nats_are_minus_the_log_probability_summed_over_the_row() -> None:
    x, logits = (normal(5, 2, 3, seed=1) > 0).double(), normal(5, 2, 3)
    expected = -Bernoulli(logits=logits).log_prob(x).sum((1, 2))
    close(LOGITS.nats(x, logits), expected)
    close(PROBABILITIES.nats(x, torch.sigmoid(logits)), expected)


def test_bernoulli_nats_of_grey_pixels_are_the_cross_entropy() -> None:
    x, logits = torch.sigmoid(normal(4, 6, seed=1)), normal(4, 6)
    p, grey = 1 / (1 + np.exp(-logits.numpy())), x.numpy()
    expected = -(grey * np.log(p) + (1 - grey) * np.log(1 - p)).sum(1)
    close(LOGITS.nats(x, logits), expected)
    close(PROBABILITIES.nats(x, torch.from_numpy(p)), expected)


def test_bernoulli_nats_of_extreme_logits_stay_finite() -> None:
    x, logits = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[-1000.0, 1000.0]]).double()
    close(LOGITS.nats(x, logits), np.array([2000.0]))


def test_a_probability_a_rounding_error_above_one_is_still_scored() -> None:
    assert torch.isfinite(PROBABILITIES.nats(torch.ones(1, 1), torch.tensor([[1 + 1e-6]])))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.5])
def test_gaussian_nats_are_minus_the_log_density(scale: float) -> None:
    x, mean = normal(5, 3, 2, seed=1), normal(5, 3, 2)
    expected = -Normal(mean, scale).log_prob(x).sum((1, 2))
    close(Likelihood("gaussian", "mean", scale).nats(x, mean), expected)


def test_gaussian_nats_of_one_pixel_by_hand() -> None:
    got = Likelihood("gaussian", "mean", 2.0).nats(torch.tensor([[3.0]]).double(), torch.tensor([[-1.0]]).double())
    close(got, np.array([0.5 * 4**2 / 4 + 0.5 * math.log(2 * math.pi * 4)]))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_log_of_an_extreme_gaussian_scale_neither_under_nor_overflows(scale: float) -> None:
    x = torch.zeros(1, 1).double()
    expected = 0.5 * math.log(2 * math.pi) + math.log(scale)
    close(Likelihood("gaussian", "mean", scale).nats(x, x), np.array([expected]))


def test_the_mean_of_logits_is_their_sigmoid() -> None:
    logits = normal(3, 2)
    close(LOGITS.mean(logits), 1 / (1 + np.exp(-logits.numpy())))


@pytest.mark.parametrize("likelihood", [PROBABILITIES, Likelihood("gaussian", "mean", 2.0)])
def test_an_output_that_is_the_mean_stays_as_it_is(likelihood: Likelihood) -> None:
    parameters = normal(3, 2)
    assert torch.equal(likelihood.mean(parameters), parameters)


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0, math.nan, -math.inf])
def test_bernoulli_rows_outside_0_to_1_are_refused(value: float) -> None:
    rows = torch.tensor([[0.5, value]])
    with pytest.raises(ModelError) as caught:
        LOGITS.check_range(rows, "rows.npy")
    assert caught.value.message.startswith("rows.npy: got values in [")
    assert caught.value.message.endswith("], the Bernoulli likelihood expects [0, 1]")
    assert caught.value.hint == "scale the data, or use the gaussian likelihood"


def test_rows_inside_the_range_pass_the_check() -> None:
    LOGITS.check_range(torch.tensor([[0.0, 1.0, 0.5]]), "rows")
    LOGITS.check_range(torch.empty(0, 3), "rows")
    Likelihood("gaussian", "mean").check_range(torch.tensor([[-7.0, 300.0]]), "rows")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poisson",), "likelihood: got 'poisson', expected 'bernoulli' or 'gaussian'"),
        (("bernoulli", "probits"), "likelihood output: got 'probits', expected 'logits' or 'mean'"),
        (("gaussian", "logits"), "likelihood: a gaussian decoder's output is its mean, got 'logits'"),
        (("gaussian", "mean", 0.0), "likelihood scale: got 0.0, expected a positive finite number"),
        (("gaussian", "mean", -1.0), "likelihood scale: got -1.0, expected a positive finite number"),
        (("gaussian", "mean", math.nan), "likelihood scale: got nan, expected a positive finite number"),
        (("gaussian", "mean", math.inf), "likelihood scale: got inf, expected a positive finite number"),
    ],
)
def test_a_likelihood_that_makes_no_sense_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        Likelihood(*arguments)  # type: ignore[arg-type]
    assert caught.value.message == message


@pytest.mark.parametrize("likelihood", [LOGITS, PROBABILITIES, Likelihood("gaussian", "mean", 0.25)])
def test_a_likelihood_comes_back_from_its_config_entry(likelihood: Likelihood) -> None:
    assert Likelihood.from_json(likelihood.to_json()) == likelihood


def test_a_config_entry_may_leave_out_what_is_usual() -> None:
    assert Likelihood.from_json({}) == Likelihood("bernoulli", "logits", 1.0)
    assert Likelihood.from_json({"kind": "gaussian", "scale": 2}) == Likelihood("gaussian", "mean", 2.0)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "bernoulli",
        ["bernoulli"],
        {"kind": "bernoulli", "sigma": 1.0},
        {"kind": ["bernoulli"]},
        {"kind": "bernoulli", "output": {}},
        {"scale": "1"},
        {"scale": True},
        {"scale": None},
        {"scale": math.inf},
        pytest.param({"scale": 10**400}, id="scale beyond floats"),
    ],
)
def test_a_config_entry_that_is_no_likelihood_is_refused(entry: object) -> None:
    with pytest.raises(ModelError, match="likelihood"):
        Likelihood.from_json(entry)
