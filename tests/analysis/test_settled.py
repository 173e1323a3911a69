"""What the running model, the record and the author's words settle, of numbers made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cases import GAUSSIAN, case, collapsed, latents, symptoms
from vaeprune.analysis.case import Case
from vaeprune.analysis.settled import learned_scale, recorded_weights, settled
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import LearnedScale, Structure
from vaeprune.likelihood import Likelihood
from vaeprune.training.growth import Growth
from vaeprune.training.history import Epoch, History


def told(of: Case) -> dict[str, str]:
    """Each cause that is named, with its evidence."""
    return {finding.cause: finding.evidence for finding in settled(of) if finding.named}


# ---- what the running model shows


def test_weights_as_they_were_drawn_are_untrained_unless_they_gain_a_twentieth_over_the_mean_row() -> None:
    drawn = Structure(untouched="as drawn", clamped="at a limit")
    assert told(case(seen=symptoms(cost=-0.4), structure=drawn)) == {"untrained": "as drawn"}
    assert told(case(seen=symptoms(cost=-0.6), structure=drawn)) == {"clamped": "at a limit"}
    assert told(case(seen=symptoms(cost=-0.6, constant=20.0), structure=drawn)) == {"untrained": "as drawn"}
    assert told(Case(latents(), GAUSSIAN, drawn)) == {"untrained": "as drawn"}


def test_a_batch_norm_whose_scale_is_trained_is_a_cause_only_where_the_law_is_broken() -> None:
    trained = Structure(normalised="a batch normalisation")
    fixed = Structure(normalised="a batch normalisation", scale_fixed=True)
    broken = latents(variance=2.9, sigma2=0.1)
    assert told(case(structure=trained)) == {}
    assert told(case(structure=fixed)) == {"batch-norm": "a batch normalisation; Var mu + E sigma² has the median 1"}
    assert told(case(broken, structure=trained)) == {
        "batch-norm": "a batch normalisation; Var mu + E sigma² has the median 3"
    }
    assert told(case(broken)) == {}


def test_a_decoder_that_hears_nothing_is_dead_and_steadiness_is_told_in_its_own_words() -> None:
    assert told(case(seen=symptoms(heard=False))) == {
        "dead-decoder": "over 400 rows decode gave the same for posterior means and prior draws"
    }
    assert told(case(structure=Structure(unsteady="it varies"))) == {"train-mode": "it varies, in eval mode"}


# ---- a learned scale


def scale_of(
    *variances: float, beta: float | None = 0.09, s: float = 1.0, name: str = "log_s", **changes: object
) -> object:
    likelihood = Likelihood("gaussian", "mean", s)
    scales = (LearnedScale(name, variances),)
    return learned_scale(
        case(seen=symptoms(beta, **changes), likelihood=likelihood, structure=Structure(learned_scales=scales))
    )


def test_a_number_nothing_reads_is_a_scale_if_it_explains_the_weight() -> None:
    assert scale_of(0.09) == ("log_s", pytest.approx(0.3))
    assert scale_of(0.12) == ("log_s", pytest.approx(0.12**0.5))
    assert scale_of(0.13) is None
    assert scale_of(0.068) == ("log_s", pytest.approx(0.068**0.5))
    assert scale_of(0.065) is None
    assert scale_of() is None


def test_of_several_readings_the_nearest_counts() -> None:
    assert scale_of(0.5, 0.1, 0.07, 4.0) == ("log_s", pytest.approx(0.1**0.5))


def test_where_the_weight_is_unknown_the_scale_must_explain_the_error() -> None:
    assert scale_of(0.5, beta=None) == ("log_s", pytest.approx(0.5**0.5))
    assert scale_of(0.09, beta=None) is None
    few = case(collapsed(kl=0.1), symptoms(0.09), structure=Structure(learned_scales=(LearnedScale("s", (0.5, 0.09)),)))
    assert learned_scale(few) == ("s", pytest.approx(0.5**0.5))


def test_a_scale_is_held_against_that_of_the_likelihood() -> None:
    """At s = ½ a weight of 0.36 is a variance of 0.09; a parameter that says s = ½ explains nothing."""
    assert scale_of(0.09, beta=0.36, s=0.5) == ("log_s", pytest.approx(0.3))
    assert scale_of(0.25, beta=1.0, s=0.5) is None
    assert scale_of(1.0, beta=4.0, s=0.5) == ("log_s", pytest.approx(1.0))
    assert scale_of(1.0, beta=1.0) is None


def test_a_scale_is_told_with_what_to_put_right() -> None:
    structure = Structure(learned_scales=(LearnedScale("log_s", (0.09,)),))
    (finding,) = settled(case(seen=symptoms(0.09), structure=structure))
    assert (finding.cause, finding.named) == ("learned-variance", True)
    assert finding.evidence.startswith("log_s is read by neither encode nor decode and says s = 0.3, s² = 0.09,")
    assert finding.remedy == "analyze with --scale 0.3, in Python Likelihood('gaussian', 'mean', 0.3)"


def test_only_a_trained_gaussian_with_a_decoder_has_a_learned_scale() -> None:
    structure = Structure(learned_scales=(LearnedScale("log_s", (0.09,)),))
    assert learned_scale(case(seen=symptoms(0.09), likelihood=Likelihood(), structure=structure)) is None
    assert learned_scale(Case(latents(), GAUSSIAN, structure)) is None
    drawn = Structure(learned_scales=structure.learned_scales, untouched="as drawn")
    assert learned_scale(case(seen=symptoms(None, squared_error=0.09), structure=drawn)) is None


# ---- the record


def history(weights: Sequence[float], kl: float = 10.0, reconstruction: float = 5.0) -> History:
    """One epoch for each weight of the KL."""
    return History(tuple(
        Epoch(i + 1, reconstruction + kl * w, reconstruction, kl, (0.5,) * 4, (0.5,) * 4) for i, w in enumerate(weights)
    ))  # fmt: skip


def recorded(
    weights: Sequence[float] = (), found: object = None, seen: object = None, **record: object
) -> dict[str, str]:
    return told(case(found, seen, record=StatedObjective(**record), history=history(weights)))


@pytest.mark.parametrize(("kl", "word"), [("none", "'none'"), ("quadratic", "'quadratic'")])
def test_a_record_without_the_full_kl_says_so(kl: str, word: str) -> None:
    assert recorded([0.1, 0.2, 0.3], kl=kl, sampling=False) == {"no-kl": f"its record says kl {word}"}


def test_a_record_that_the_mean_was_decoded_says_so() -> None:
    assert recorded([0.1, 0.2, 0.3], sampling=False) == {"no-sampling": "its record says that the mean was decoded"}


@pytest.mark.parametrize(
    ("weights", "rose"),
    [
        ([0.1, 0.2, 0.3], (0.1, 0.3)),
        ([0.1, 0.2, 0.3, 0.4, 0.5], (0.1, 0.5)),
        ([0.0, 0.0, 0.5], (0.0, 0.5)),
        ([0.1, 0.2], None),
        ([0.1, 0.5, 0.5], None),
        ([0.1, 0.5, 0.502], None),
        ([1.0, 1.04, 1.08], None),
        ([1.0, 1.06, 1.12], (1.0, 1.12)),
        ([1.0, 0.5, 0.6], None),
        ([0.5, 0.9, 0.4, 0.5], None),
        ([0.5, 0.2, 0.6, 0.61], (0.5, 0.61)),
    ],
)  # fmt: skip
def test_a_weight_that_rose_to_the_very_end_and_by_a_tenth_is_annealing(
    weights: list[float], rose: tuple[float, float] | None
) -> None:
    found = recorded(weights)
    if rose is None:
        assert found == {}
    else:
        evidence = f"the weight rose from {rose[0]:.2g} to {rose[1]:.2g} over {len(weights)} epochs"
        assert found == {"annealing": f"its history: {evidence}"}


def test_epochs_without_any_kl_tell_no_weight() -> None:
    some = (*history([1.0], kl=0.0).epochs, *history([1.0], kl=0.009).epochs, *history([0.5, 0.25], kl=0.02).epochs)
    assert recorded_weights(History(some)) == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(("beta", "named"), [(8.0, True), (3.1, True), (2.9, False), (1.0, False)])
def test_a_record_of_a_weight_that_the_rows_do_not_pay_explains_the_collapse(beta: float, named: bool) -> None:
    least = 0.5 if beta == 1.0 else 3.0  # the ELBO's own weight is no fault
    found = recorded((), collapsed(), symptoms(None, leading_eigenvalue=least), beta=beta)
    assert found == (
        {"beta": f"its record says beta {beta:g}, and the strongest direction of the rows pays up to 3"}
        if named
        else {}
    )
    assert recorded((), None, symptoms(None, leading_eigenvalue=least), beta=beta) == {}


@pytest.mark.parametrize(("epochs", "weight"), [(11, "0.25"), (13, "0.75"), (14, None), (20, None)])
def test_latents_that_were_added_are_told_until_their_kl_has_its_full_weight(epochs: int, weight: str | None) -> None:
    of = case(record=StatedObjective(), history=history([1.0] * epochs), growth=Growth(2, 10, 4.0))
    evidence = f"its record says that latents from 2 on were added; the weight of their KL is {weight} so far"
    assert told(of) == ({} if weight is None else {"grown": evidence})


def ends_at(*reconstructions: float) -> History:
    return History(tuple(epoch for r in reconstructions for epoch in history([1.0], reconstruction=r).epochs))


def test_weights_that_have_forgotten_what_the_history_reached_are_not_its_own() -> None:
    worse = symptoms(None, cost=3.0, sampled=13.0)
    of = case(collapsed(), worse, record=StatedObjective(), history=ends_at(12.0, 4.0))
    assert told(of) == {
        "untrained": "its history ends at a reconstruction of 4 nats, these weights give 13: they are not those of the "
        "history"
    }
    for other in (
        case(collapsed(), worse, record=StatedObjective(), history=ends_at(4.0, 12.0)),
        case(collapsed(), symptoms(None), record=StatedObjective(), history=ends_at(4.0)),
        case(latents(), worse, record=StatedObjective(), history=ends_at(4.0)),
        case(collapsed(), worse, record=StatedObjective()),
        case(collapsed(), worse, history=ends_at(4.0)),
    ):
        assert told(other) == {}


# ---- what is stated


@pytest.mark.parametrize(
    ("words", "causes"),
    [
        ("elbo", []),
        ("error=squared", []),
        ("kl=none", ["no-kl"]),
        ("kl=quadratic", ["no-kl"]),
        ("beta=0", ["no-kl"]),
        ("annealing=0", ["no-kl"]),
        ("sampling=no", ["no-sampling"]),
        ("reconstruction=pixel-mean", ["pixel-mean"]),
        ("reconstruction=pixel-mean,kl=pixel-mean", []),
        ("kl=pixel-mean", ["kl-pixel-mean"]),
        ("kl=latent-mean", ["latent-mean"]),
        ("annealing=0.5", ["annealing"]),
        ("free-bits=0.5", ["free-bits"]),
        ("scale=learned", ["learned-variance"]),
        ("scale=0.5", []),
        ("kl=none,sampling=no", ["no-kl", "no-sampling"]),
    ],
)
def test_a_statement_settles_what_it_says_where_the_numbers_have_no_word(words: str, causes: list[str]) -> None:
    stated = StatedObjective.parse(words)
    found = told(Case(latents(), GAUSSIAN, Structure(), stated=stated))
    assert found == dict.fromkeys(causes, f"stated: {words}")


def test_a_statement_is_told_with_the_weight_it_amounts_to_and_what_was_measured() -> None:
    stated = StatedObjective.parse("kl=latent-mean")
    assert told(case(seen=symptoms(0.25), stated=stated)) == {
        "latent-mean": "stated: kl=latent-mean, which amounts to β = 0.25, a nat of KL weighs 0.25 of −log p(x | z) "
        "(95%: 0.237 to 0.263)"
    }
    idle = case(collapsed(), symptoms(None), stated=StatedObjective.parse("reconstruction=pixel-mean"))
    assert told(idle) == {
        "pixel-mean": "stated: reconstruction=pixel-mean, which amounts to β = 10, the strongest direction of the rows "
        "pays up to 3"
    }
    unknown = case(seen=symptoms(None), stated=stated)
    assert told(unknown) == {"latent-mean": "stated: kl=latent-mean, which amounts to β = 0.25"}


@pytest.mark.parametrize(("beta", "against"), [(2.05, False), (2.2, True), (0.49, False), (0.45, True)])
def test_numbers_speak_against_a_statement_when_their_whole_interval_is_off_by_two(beta: float, against: bool) -> None:
    """Intervals reach a twentieth to both sides."""
    for weight in (1.0, 3.0):
        of = case(seen=symptoms(beta * weight), stated=StatedObjective(beta=weight))
        findings = [(f.cause, f.named) for f in settled(of)]
        assert findings == ([("other-objective", False)] if against else [])


def test_free_bits_may_make_the_kl_seem_to_weigh_less_and_not_more() -> None:
    stated = StatedObjective(free_bits=0.5)
    assert list(told(case(seen=symptoms(0.2), stated=stated))) == ["free-bits"]
    assert told(case(seen=symptoms(4.0), stated=stated)) == {}


@pytest.mark.parametrize(("least", "against"), [(1.4, False), (1.6, True)])
def test_a_collapse_speaks_against_a_weight_that_rows_would_pay(least: float, against: bool) -> None:
    of = case(collapsed(), symptoms(None, leading_eigenvalue=least), stated=StatedObjective())
    findings = list(settled(of))
    assert bool(findings) is against
    if against:
        assert findings[0].evidence == (
            f"elbo amounts to β = 1; but at that weight the strongest direction of the rows would pay, up to {least}"
        )
    assert list(settled(case(seen=symptoms(None, leading_eigenvalue=least), stated=StatedObjective()))) == []


def test_where_the_law_is_broken_the_weight_speaks_against_no_statement() -> None:
    broken = latents(variance=2.9, sigma2=0.1)
    stated = StatedObjective.parse("kl=latent-mean")
    assert list(told(case(broken, symptoms(1.0), stated=stated))) == ["latent-mean"]
    assert told(case(seen=symptoms(1.0), stated=stated)) == {}
