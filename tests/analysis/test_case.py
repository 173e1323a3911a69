"""What a case tells, of numbers made by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cases import GAUSSIAN, case, collapsed, latent, latents, ratio, symptoms, weighing
from vaeprune.analysis.case import Case
from vaeprune.analysis.effective_beta import EffectiveBeta
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import Structure
from vaeprune.likelihood import Likelihood


def test_a_posterior_has_collapsed_when_every_latent_is_idle_by_its_verdict_or_by_its_intervals() -> None:
    by_intervals = latents(2, variance=0.001, sigma2=0.99, verdict="mixed")
    assert case(collapsed()).collapsed
    assert case(collapsed(2) + by_intervals).collapsed
    assert not case([*collapsed(3), latent(3)]).collapsed


@pytest.mark.parametrize(("variance", "sigma2"), [(0.0097, 0.99), (0.001, 0.81), (0.5, 0.99), (0.001, 0.5)])
def test_a_latent_whose_intervals_reach_a_limit_is_not_idle(variance: float, sigma2: float) -> None:
    assert not case(latents(variance=variance, sigma2=sigma2, verdict="mixed")).collapsed


# ---- the floor


def standing(at: int, above: int, beta: float = 0.5) -> tuple[float, int] | None:
    """The floor of so many latents at half a nat, and so many with more."""
    return case([*latents(at, kl=0.5), *latents(above, kl=2.0)], symptoms(beta)).floor


@pytest.mark.parametrize(
    ("at", "above", "found"),
    [(3, 1, True), (3, 6, True), (2, 1, False), (3, 7, False), (4, 8, True), (3, 9, False), (1, 0, False)],
)
def test_three_latents_at_the_least_kl_are_a_floor_if_they_are_a_third_of_all(at: int, above: int, found: bool) -> None:
    assert standing(at, above) == ((0.5, at) if found else None)


def test_latents_stand_at_the_same_kl_within_three_hundredths_of_it() -> None:
    near = [latent(i, kl=kl) for i, kl in enumerate((0.2, 0.203, 0.2055, 0.21, 0.25))]
    assert case(near, symptoms(0.5)).floor == (0.2, 3)


def test_what_idle_latents_have_of_kl_is_no_floor() -> None:
    assert case(latents(kl=0.019), symptoms(0.5)).floor is None
    assert case(latents(kl=0.021), symptoms(0.5)).floor == (0.021, 4)


def test_there_is_no_floor_where_the_kl_weighs_what_it_should() -> None:
    assert standing(4, 0, beta=1.0) is None
    alike = [*latents(4, kl=0.5)]
    assert case(alike, symptoms(0.5), stated=StatedObjective(beta=0.5)).floor is None
    assert case(alike, symptoms(1.0), stated=StatedObjective(beta=0.5)).floor == (0.5, 4)


# ---- the law


@pytest.mark.parametrize(("law", "broken"), [(0.49, True), (0.51, False), (1.0, False), (1.99, False), (2.01, True)])
def test_the_law_is_broken_by_half_and_by_double(law: float, broken: bool) -> None:
    found = case(latents(variance=law - 0.25, sigma2=0.25))
    assert found.law == pytest.approx(law)
    assert found.law_broken is broken


# ---- the weight


@pytest.mark.parametrize("weight", [0.004, 0.3, 0.99, 7.0])
def test_the_weight_is_what_variances_and_means_agree_on(weight: float) -> None:
    found = case(seen=symptoms(weight)).beta
    assert found is not None
    assert found.value == weight


@pytest.mark.parametrize("weight", [-0.3, 0.0])
def test_a_weight_that_is_not_positive_is_none(weight: float) -> None:
    assert case(seen=symptoms(weight)).beta is None


def test_where_means_and_variances_disagree_the_weight_is_unknown_unless_something_holds_the_means() -> None:
    seen = symptoms(weighing(1.0, by_mean=5.0))
    assert case(seen=seen).beta is None
    assert case(seen=seen, structure=Structure(normalised="a batch normalisation")).beta == ratio(1.0)
    assert case(latents(variance=3.0), seen).beta == ratio(1.0)  # which breaks the law
    assert case(collapsed(kl=0.05), seen).beta == ratio(1.0)


def test_a_collapsed_posterior_tells_its_weight_as_long_as_a_hundredth_of_a_nat_is_left() -> None:
    seen = symptoms(8.0)
    assert case(collapsed(kl=0.003), seen).beta == ratio(8.0)
    assert case(collapsed(kl=0.002), seen).beta is None


def test_weights_that_are_not_at_rest_tell_no_weight_of_the_kl() -> None:
    assert case(seen=symptoms(8.0), structure=Structure(untouched="as drawn")).beta is None
    worse = symptoms(8.0, cost=3.0)
    assert case(collapsed(kl=0.05), worse).beta is None
    assert case(seen=worse).beta == ratio(8.0)


def test_a_weight_that_rows_cannot_tell_from_nothing_is_unknown() -> None:
    vague = ratio(1.0, within=0.7)
    assert case(seen=symptoms(EffectiveBeta(vague, vague, ()))).beta is None


# ---- what was to be expected


def test_the_expected_weight_is_as_stated_then_as_recorded_then_the_elbos() -> None:
    stated, record = StatedObjective(beta=3.0), StatedObjective(beta=2.0)
    assert case(stated=stated, record=record).expected == 3.0
    assert case(record=record).expected == 2.0
    assert case().expected == 1.0
    assert case(record=record).known_weight == 2.0
    assert case().known_weight is None
    assert case(record=StatedObjective(kl="none")).known_weight is None


def test_a_stated_weight_is_counted_in_the_nats_of_the_models_own_scale() -> None:
    """A squared error is 2s² nats: half of one at s = ½, and the KL beside it weighs twice."""
    stated = StatedObjective(error="squared")
    assert case(likelihood=Likelihood("gaussian", "mean", 0.5), stated=stated).expected == pytest.approx(2.0)
    assert case(likelihood=GAUSSIAN, stated=stated).expected == pytest.approx(0.5)
    assert case(likelihood=Likelihood("bernoulli", "mean", 0.5), stated=stated).expected is None
    own = StatedObjective(beta=2.0)
    assert case(likelihood=Likelihood("bernoulli", "mean", 0.5), stated=own).expected == pytest.approx(2.0)


def test_latents_that_are_maps_count_by_their_positions() -> None:
    stated = StatedObjective(kl="latent-mean")
    assert case(seen=symptoms(positions=16), stated=stated).expected == pytest.approx(1 / 64)


# ---- near and off


def test_a_weight_is_near_within_a_third_or_within_its_interval() -> None:
    found = case(seen=symptoms(1.0))
    assert found.near(1 / 1.34)
    assert found.near(1.34)
    assert not found.near(1.36)
    assert not found.near(1 / 1.36)
    assert not found.near(0.0)
    wide = case(seen=symptoms(weighing(1.0, within=0.5)))
    assert wide.near(1.49)
    assert wide.near(0.51)
    assert not wide.near(1.51)
    assert not wide.near(0.49)


@pytest.mark.parametrize(("weight", "off"), [(1.0, False), (1.45, False), (1.55, True), (0.69, False), (0.65, True)])
def test_a_weight_is_off_when_half_as_much_again_or_more(weight: float, off: bool) -> None:
    assert case(seen=symptoms(weight)).off is off
    assert not case(seen=symptoms(None)).off


def test_a_case_without_a_decoder_has_no_weight() -> None:
    bare = Case(latents(), GAUSSIAN, Structure(), None)
    assert bare.beta is None
    assert bare.expected == 1.0
    assert dataclasses.replace(bare, stated=StatedObjective()).expected is None
    assert math.isclose(bare.law, 1.0)
    assert not bare.off
