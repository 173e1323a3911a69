"""Which causes numbers made by hand allow."""

from __future__ import annotations

import pytest

from cases import GAUSSIAN, case, collapsed, latent, latents, symptoms, weighing
from vaeprune.analysis.case import Case, Finding
from vaeprune.analysis.consistent import consistent
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import Structure
from vaeprune.likelihood import Likelihood

BERNOULLI = Likelihood("bernoulli", "mean")


def found(of: Case) -> dict[str, Finding]:
    """The first finding of each cause. Numbers alone settle nothing, so none may be named."""
    findings = list(consistent(of))
    assert not any(finding.named for finding in findings)
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.cause, finding)
    return first


def causes(of: Case) -> list[str]:
    return list(found(of))


# ---- all is well


def test_a_network_at_rest_allows_no_cause() -> None:
    assert causes(case()) == []
    assert causes(case(seen=symptoms(0.7))) == []


# ---- collapse


def test_a_collapse_that_does_worse_than_the_mean_row_was_not_trained() -> None:
    findings = found(case(collapsed(), symptoms(None, cost=3.0)))
    assert list(findings) == ["untrained"]
    assert findings["untrained"].evidence.startswith("−ELBO is 3 nats more than that of the mean row")


@pytest.mark.parametrize(("least", "nothing"), [(0.9, True), (1.14, True), (1.16, False)])
def test_a_collapse_of_rows_whose_strongest_direction_does_not_pay_has_no_structure(
    least: float, nothing: bool
) -> None:
    findings = found(case(collapsed(), symptoms(None, leading_eigenvalue=least)))
    assert (list(findings) == ["no-structure"]) is nothing
    heavier = case(collapsed(), symptoms(None, leading_eigenvalue=4 * least), stated=StatedObjective(beta=4.0))
    assert (causes(heavier) == ["no-structure"]) is nothing


@pytest.mark.parametrize(("beta", "told"), [(3.5, True), (10.0, True), (29.0, True), (31.0, False), (3.2, False)])
def test_averaging_over_pixels_explains_a_collapse_at_a_weight_within_a_factor_of_three(
    beta: float, told: bool
) -> None:
    """10 pixels of a Bernoulli, one latent: averaging makes the weight 10."""
    of = case(collapsed(1, kl=0.05), symptoms(beta, leading_eigenvalue=9.0), likelihood=BERNOULLI)
    findings = found(of)
    assert ("pixel-mean" in findings) is told
    assert f"a nat of KL weighs {beta:.3g}" in findings["beta"].evidence
    assert list(findings)[-2:] == ["beta", "early-collapse"]


@pytest.mark.parametrize(("least", "told"), [(13.4, True), (13.6, False)])
def test_averaging_over_pixels_must_weigh_enough_for_the_collapse(least: float, told: bool) -> None:
    of = case(collapsed(1), symptoms(None, leading_eigenvalue=least), likelihood=BERNOULLI)
    assert ("pixel-mean" in found(of)) is told


def ways(of: Case) -> list[str]:
    return [f.evidence.split("; ")[-1] for f in consistent(of) if f.cause == "pixel-mean"]


def test_every_way_to_average_is_told_with_what_it_makes_of_the_weight() -> None:
    """40 pixels; four latents at three positions are twelve; s = ½ makes half a squared error two nats."""
    likelihood = Likelihood("gaussian", "mean", 0.5)
    seen = symptoms(None, pixels=40, positions=3, leading_eigenvalue=2.0)
    assert ways(case(collapsed(), seen, likelihood=likelihood)) == [
        "averaging over 40 pixels makes it 40",
        "averaging squared errors over 40 pixels makes it 80",
        "averaging over 40 pixels, and the KL over 12 latents, makes it 3.33",
        "averaging squared errors over 40 pixels, and the KL over 12 latents, makes it 6.67",
    ]
    one = symptoms(None, pixels=40, leading_eigenvalue=2.0)
    assert ways(case(collapsed(1), one, likelihood=BERNOULLI)) == ["averaging over 40 pixels makes it 40"]


# ---- a broken law


def broken(by_mean: float | None = None, law: float = 3.0, **changes: object) -> Case:
    of = latents(variance=law - 0.1, sigma2=0.1)
    return case(of, symptoms(None if by_mean is None else weighing(1.0, by_mean), **changes))


def test_a_broken_law_where_means_decode_no_better_than_the_mean_row_was_not_trained() -> None:
    findings = found(broken(at_mean=9.9))
    assert list(findings) == ["untrained"]
    assert findings["untrained"].evidence.endswith("means decode -0.1 nats beside the mean row")


@pytest.mark.parametrize(
    ("by_mean", "told"), [(0.05, True), (-0.05, True), (0.058, False), (0.07, False), (-0.07, False)]
)
def test_a_broken_law_where_nothing_pulls_the_means_has_no_kl(by_mean: float, told: bool) -> None:
    findings = found(broken(by_mean))
    assert ("no-kl" in findings) is told
    if told:
        assert list(findings) == ["no-kl"]
        assert findings["no-kl"].evidence.endswith(f"a nat of KL weighs {max(by_mean, 0):.2g}")


@pytest.mark.parametrize(
    ("by_mean", "law", "told"),
    [(0.5, 3.0, True), (0.6, 3.0, True), (0.65, 3.0, False), (1.0, 3.0, False), (0.5, 0.3, False)],
)
def test_means_that_are_larger_than_their_weight_lets_them_be_are_held_by_something(
    by_mean: float, law: float, told: bool
) -> None:
    findings = found(broken(by_mean, law))
    assert ("batch-norm" in findings) is told
    assert "untrained" in findings
    if told:
        assert (
            f"a nat of KL weighs 1 by the variances and {by_mean:.2g} by the means" in findings["batch-norm"].evidence
        )


# ---- without sampling


@pytest.mark.parametrize(("law", "first"), [(1.0, ["no-sampling", "no-kl"]), (3.0, ["no-kl", "no-sampling"])])
def test_of_samples_that_decode_badly_the_law_says_which_cause_is_likelier(law: float, first: list[str]) -> None:
    of = case(latents(variance=law - 0.1, sigma2=0.1), symptoms(None, sampled=12.0))
    assert causes(of) == first
    assert found(of)["no-kl"].evidence == "a sample decodes 9 nats worse than its mean"


# ---- a weight that is too small


@pytest.mark.parametrize(
    ("beta", "changes", "cause", "way"),
    [
        (0.25, {}, "latent-mean", "averaging it over 4 latents makes it 0.25"),
        (1 / 64, {"positions": 16}, "latent-mean", "averaging it over 64 latents makes it 0.0156"),
        (0.1, {}, "kl-pixel-mean", "dividing it by 10 pixels makes it 0.1"),
        (0.5, {}, "squared-error", "leaving out the half of the squared error makes it 0.5"),
        (0.33, {"squared_error": 0.33}, "learned-variance",
         "a learned variance, which ends at the squared error of a pixel, makes it 0.33"),
    ],
)  # fmt: skip
def test_a_light_kl_is_told_with_the_ways_that_make_it_so(
    beta: float, changes: dict[str, object], cause: str, way: str
) -> None:
    of = case(seen=symptoms(beta, **{"squared_error": 0.9} | changes))
    findings = found(of)
    assert findings[cause].evidence == (
        f"a nat of KL weighs {beta:.3g} of −log p(x | z) (95%: {0.95 * beta:.3g} to {1.05 * beta:.3g}); {way}"
    )
    assert causes(of)[0] == cause


def test_ways_that_make_another_weight_are_not_told() -> None:
    of = case(seen=symptoms(0.25, squared_error=0.9))
    assert {"kl-pixel-mean", "squared-error", "learned-variance"}.isdisjoint(found(of))


def test_a_squared_error_is_counted_in_the_nats_of_the_scale() -> None:
    """At s = 2 its half is an eighth of a nat."""
    of = case(seen=symptoms(0.125, squared_error=8.0), likelihood=Likelihood("gaussian", "mean", 2.0))
    assert "leaving out the half of the squared error makes it 0.125" in found(of)["squared-error"].evidence
    of = case(seen=symptoms(0.25, squared_error=1.0), likelihood=Likelihood("gaussian", "mean", 2.0))
    assert found(of)["learned-variance"].evidence.endswith("the squared error of a pixel, makes it 0.25")


def test_nothing_is_averaged_over_a_single_latent() -> None:
    """A nat weighs 1 where 4 was stated."""
    of = case(latents(1), symptoms(1.0), stated=StatedObjective(beta=4.0))
    assert "latent-mean" not in found(of)
    assert "latent-mean" in found(case(latents(4), symptoms(0.25), stated=StatedObjective(beta=4.0)))


def test_the_nearest_way_comes_first() -> None:
    of = case(seen=symptoms(0.1, pixels=11, squared_error=0.1), likelihood=GAUSSIAN)
    assert causes(of)[:2] == ["learned-variance", "kl-pixel-mean"]


@pytest.mark.parametrize(("beta", "only"), [(0.019, True), (0.021, False)])
def test_a_kl_that_weighs_next_to_nothing_may_be_none_at_all(beta: float, only: bool) -> None:
    findings = found(case(seen=symptoms(beta)))
    assert ("no-kl" in findings) is only
    assert ("annealing" in findings) is not only


def test_free_bits_are_told_where_no_latent_is_idle_and_before_all_else_where_latents_stand_at_a_floor() -> None:
    apart = latents(4)
    assert causes(case(apart, symptoms(0.25, squared_error=0.9)))[:2] == ["latent-mean", "annealing"]
    assert "free-bits" in causes(case(apart, symptoms(0.35)))
    idle = latent(4, variance=0.001, sigma2=0.99, kl=0.001, verdict="inactive")
    assert "free-bits" not in causes(case([*apart, idle], symptoms(0.35)))
    standing = case(latents(kl=0.5), symptoms(0.35))
    assert causes(standing)[0] == "free-bits"
    assert found(standing)["free-bits"].evidence == "4 of 4 latents stand at the same least KL of 0.5 nats"


def test_the_weight_itself_is_a_cause_unless_it_is_that_of_the_elbo() -> None:
    assert causes(case(seen=symptoms(0.35)))[-1] == "beta"
    assert "beta" not in causes(case(seen=symptoms(1.0), stated=StatedObjective(beta=4.0)))
    assert "beta" in causes(case(seen=symptoms(8.0), stated=StatedObjective(beta=4.0)))


# ---- a weight that is too large


def test_a_heavy_kl_is_told_with_averages_over_pixels_and_never_as_annealing() -> None:
    of = case(seen=symptoms(10.0))
    assert causes(of) == ["pixel-mean", "beta"]
    assert found(of)["pixel-mean"].evidence.endswith("; averaging over 10 pixels makes it 10")
    assert causes(case(seen=symptoms(20.0))) == ["beta"]


def test_a_mean_between_0_and_1_may_have_been_scored_by_squares() -> None:
    for likelihood, told in ((BERNOULLI, True), (Likelihood(), False), (GAUSSIAN, False)):
        for beta in (0.35, 3.0):
            assert (causes(case(seen=symptoms(beta), likelihood=likelihood))[0] == "other-likelihood") is told


# ---- without a decoder


def test_without_a_decoder_only_a_collapse_and_a_broken_law_tell() -> None:
    assert causes(Case(collapsed(), GAUSSIAN, Structure())) == ["pixel-mean", "untrained"]
    of = Case(latents(variance=2.9, sigma2=0.1), GAUSSIAN, Structure())
    assert [(f.cause, f.named, f.evidence) for f in consistent(of)] == [
        ("no-kl", False, "Var mu + E sigma² has the median 3")
    ]
    assert [f.named for f in consistent(Case(collapsed(), GAUSSIAN, Structure()))] == [False, False]
    assert causes(Case(latents(), GAUSSIAN, Structure())) == []
