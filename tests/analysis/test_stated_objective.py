"""What an author says of their loss: its grammar, its refusals, and the weight of the KL it comes to."""

from __future__ import annotations

import math

import pytest

from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.errors import UsageError

parse = StatedObjective.parse


def test_what_is_not_said_is_as_in_the_elbo() -> None:
    assert parse("beta=4") == StatedObjective(beta=4.0)
    assert parse("elbo") == StatedObjective()


def test_every_name_is_read() -> None:
    text = "reconstruction=pixel-mean, kl=latent-mean, beta=4, annealing=0.5, free-bits=0.25, scale=0.1, sampling=no"
    assert parse(text) == StatedObjective("pixel-mean", "nats", "latent-mean", 4.0, 0.5, 0.25, 0.1, False)
    assert parse("error=squared").error == "squared"
    assert parse("scale=learned").scale == "learned"


def test_a_whole_weight_and_none_are_within_bounds() -> None:
    assert parse("annealing=1") == StatedObjective()
    assert parse("annealing=0,free-bits=0,beta=0") == StatedObjective(beta=0.0, annealing=0.0)


@pytest.mark.parametrize("text", ["elbo", "beta=4", "reconstruction=pixel-mean,kl=none,sampling=no", "scale=learned"])
def test_a_description_is_read_back(text: str) -> None:
    assert parse(text).describe() == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "--objective: is empty"),
        ("beta", "--objective: got 'beta', expected name=value with a name of reconstruction, error, kl,"),
        ("weight=3", "--objective: got 'weight=3', expected name=value"),
        ("kl=mean", "--objective: kl is 'mean', expected sum or latent-mean or pixel-mean or quadratic or none"),
        ("beta=-1", "--objective: beta is '-1', expected a number of at least 0"),
        ("beta=inf", "--objective: beta is 'inf', expected a number of at least 0"),
        ("free-bits=-0.1", "--objective: free-bits is '-0.1', expected a number of at least 0"),
        ("annealing=1.01", "--objective: annealing is 1.01, expected the share of the final weight, from 0 to 1"),
        ("beta=nan", "--objective: beta is 'nan', expected a number of at least 0"),
        ("beta=1,beta=2", "--objective: beta is given twice"),
        ("annealing=40", "--objective: annealing is 40, expected the share of the final weight, from 0 to 1"),
        ("scale=0", "--objective: scale is 0, expected a positive number or 'learned'"),
        ("scale=big", "--objective: scale is 'big', expected a number of at least 0 or 'learned'"),
        ("error=squared,scale=0.1", "--objective: a squared error has no scale"),
        ("free_bits=1", "--objective: got 'free_bits=1'"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert error.value.message.startswith(told)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("elbo", 1.0),
        ("beta=4", 4.0),
        ("reconstruction=pixel-mean", 784.0),
        ("reconstruction=pixel-mean,error=squared", 392.0),
        ("error=squared", 0.5),
        ("kl=latent-mean", 1 / 16),
        ("kl=pixel-mean", 1 / 784),
        ("reconstruction=pixel-mean,kl=pixel-mean", 1.0),
        ("reconstruction=pixel-mean,kl=latent-mean", 49.0),
        ("annealing=0.5,beta=2", 1.0),
        ("kl=none", 0.0),
        ("scale=0.1", 0.01),
    ],
)
def test_weight_of_the_kl_per_nat(text: str, weight: float) -> None:
    assert parse(text).effective_beta(pixels=784, latents=16) == pytest.approx(weight)


def test_weight_is_in_the_nats_of_the_likelihoods_scale() -> None:
    assert parse("error=squared").effective_beta(10, 2, scale=0.5) == pytest.approx(2.0)
    assert parse("scale=0.5").effective_beta(10, 2, scale=0.5) == pytest.approx(1.0)


def test_positions_of_maps_count_as_latents() -> None:
    assert parse("kl=latent-mean").effective_beta(784, 4, positions=49) == pytest.approx(1 / 196)


@pytest.mark.parametrize("text", ["kl=quadratic", "scale=learned"])
def test_a_weight_that_cannot_be_told_is_none(text: str) -> None:
    assert parse(text).effective_beta(784, 16) is None


def test_a_training_record_is_a_statement() -> None:
    read = StatedObjective.from_record
    assert read({"kl": "full", "beta": 4, "sampling": True}) == StatedObjective(beta=4.0)
    assert read({"kl": "none", "beta": 1.0, "sampling": False}) == StatedObjective(kl="none", sampling=False)
    assert read({"kl": "quadratic", "beta": 1.0}) == StatedObjective(kl="quadratic")


def test_what_a_training_record_leaves_out_is_as_in_the_elbo() -> None:
    read = StatedObjective.from_record
    assert read({"kl": "full"}) == StatedObjective()
    assert read({"beta": 2.0}) == StatedObjective(beta=2.0)
    assert read({"kl": "full", "beta": 0}) == StatedObjective(beta=0.0)
    assert read({"kl": "full", "beta": -0.5}) is None


@pytest.mark.parametrize(
    "record",
    [None, {}, {"by": "somebody"}, {"kl": "odd", "beta": 1.0}, {"kl": "full", "beta": "4"},
     {"kl": "full", "beta": True},
     {"kl": "full", "beta": math.inf}, {"kl": ["full"], "beta": 1.0}],
)  # fmt: skip
def test_a_record_that_does_not_say_is_none(record: dict[str, object] | None) -> None:
    assert StatedObjective.from_record(record) is None
