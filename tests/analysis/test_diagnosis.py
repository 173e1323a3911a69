"""Each wrong state is trained into, by a small network, and diagnosed; a network trained rightly gets no diagnosis."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest
import torch

from diagnosed import LATENTS, PIXELS, factors, noise, pictures, state
from planted import assert_untouched, dense, rows, snapshot
from trained import small_tiles, trained_dense
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.case import Case
from vaeprune.analysis.causes import CAUSES
from vaeprune.analysis.diagnosis import Diagnosis, diagnose, observe
from vaeprune.analysis.effective_beta import EffectiveBeta, Ratio
from vaeprune.analysis.settled import recorded_weights
from vaeprune.analysis.stated_objective import StatedObjective
from vaeprune.analysis.structure import Structure
from vaeprune.data import as_data
from vaeprune.likelihood import Likelihood
from vaeprune.training import History
from vaeprune.training.history import Epoch


@functools.cache
def analysis(name: str, objective: str | None = None) -> Analysis:
    data = noise() if name == "noise" else factors()
    return analyze(state(name), data, ablate="all", objective=objective)


def causes(found: Diagnosis, named: bool) -> list[str]:
    return [finding.cause for finding in found.findings if finding.named is named]


# ---- a network trained rightly


def test_a_healthy_network_gets_no_diagnosis() -> None:
    found = analysis("healthy").diagnosis
    assert (found.symptoms, found.findings, found.blocking) == ((), (), False)
    assert found.effective_beta == pytest.approx(1, rel=0.15)
    assert analysis("healthy").advice.action == "shrink"


def test_a_healthy_network_stated_rightly_gets_none_either() -> None:
    assert analysis("healthy", "elbo").diagnosis.findings == ()


def test_a_weight_that_is_meant_is_no_fault() -> None:
    found = analysis("beta 4", "beta=4").diagnosis
    assert (found.symptoms, found.findings, found.expected_beta) == ((), (), 4.0)
    assert found.effective_beta == pytest.approx(4, rel=0.2)


# ---- the effective weight, from numbers alone


@pytest.mark.parametrize(
    ("name", "weight"),
    [("latent mean", 1 / LATENTS), ("annealed half way", 0.5), ("squared error", 0.5), ("KL per pixel", 1 / PIXELS),
     ("beta 4", 4.0), ("learned variance", 0.13), ("batch norm", 1.0)],
)  # fmt: skip
def test_the_weight_of_the_kl_is_read_off_the_weights_of_the_network(name: str, weight: float) -> None:
    found = analysis(name).diagnosis
    assert found.effective_beta == pytest.approx(weight, rel=0.2)


# ---- consistent causes, from numbers alone


@pytest.mark.parametrize(
    ("name", "cause", "action"),
    [
        ("pixel mean", "pixel-mean", "retrain"),
        ("latent mean", "latent-mean", None),
        ("KL per pixel", "kl-pixel-mean", None),
        ("squared error", "squared-error", None),
        ("annealed half way", "annealing", None),
        ("free bits", "free-bits", "retrain"),
        ("no KL", "no-kl", "refuse"),
        ("plain autoencoder", "no-kl", "refuse"),
        ("no sampling", "no-sampling", "refuse"),
        ("noise", "no-structure", "refuse"),
    ],
)
def test_numbers_alone_give_consistent_causes_and_name_none(name: str, cause: str, action: str | None) -> None:
    found = analysis(name)
    assert causes(found.diagnosis, named=True) == []
    assert cause in causes(found.diagnosis, named=False)
    if action:
        assert found.diagnosis.blocking
        assert found.advice.action == action
        assert CAUSES[cause].title in found.advice.reason
    else:
        assert not found.diagnosis.blocking
        assert "but the KL weighs" in found.advice.reason


def test_squared_errors_of_a_sigmoid_are_another_likelihood_first_of_all() -> None:
    vae = state("squared errors of a sigmoid")
    found = analyze(vae, pictures())
    assert found.diagnosis.effective_beta > 1.5
    assert causes(found.diagnosis, named=True) == []
    assert causes(found.diagnosis, named=False)[0] == "other-likelihood"
    vae.likelihood = Likelihood("gaussian", "mean", 0.5**0.5)
    try:
        assert analyze(vae, pictures()).diagnosis.findings == ()
    finally:
        vae.likelihood = Likelihood("bernoulli", "mean")


@pytest.mark.parametrize(
    ("name", "first"), [("latent mean", "latent-mean"), ("KL per pixel", "kl-pixel-mean"), ("free bits", "free-bits"),
                        ("no KL", "no-kl"), ("pixel mean", "pixel-mean")],
)  # fmt: skip
def test_the_likeliest_cause_comes_first(name: str, first: str) -> None:
    assert analysis(name).diagnosis.findings[0].cause == first


def test_a_collapse_says_how_much_the_kl_must_weigh_for_it() -> None:
    finding = analysis("pixel mean").diagnosis.findings[0]
    least = float(finding.evidence.split("at least ")[1].split(";")[0])
    spread = factors().double().T.cov()
    assert least == pytest.approx(torch.linalg.eigvalsh(spread)[-1].item(), rel=0.1)
    assert least < PIXELS / 2


# ---- named causes: seen in the running model


@pytest.mark.parametrize(
    ("name", "cause", "action", "evidence"),
    [
        ("batch norm", "batch-norm", "retrain", "the batch normalisation norm is the last thing before the mean"),
        ("dropout that stays", "train-mode", "refuse", "encode gives other means each time it is called"),
        (
            "learned variance",
            "learned-variance",
            "refuse",
            "log_s is read by neither encode nor decode and says s = 0.3",
        ),
        (
            "untrained",
            "untrained",
            "retrain",
            "no weight of its 7 layers lies outside the range that PyTorch's default",
        ),
        ("dead decoder", "dead-decoder", "retrain", "decode gave the same for posterior means and prior draws"),
        ("ceiling", "clamped", "retrain", "sigma² goes no further above than 0.368"),
    ],
)
def test_what_the_running_model_shows_names_the_cause(name: str, cause: str, action: str, evidence: str) -> None:
    found = analysis(name)
    assert causes(found.diagnosis, named=True) == [cause]
    assert evidence in found.diagnosis.findings[0].evidence
    assert found.advice.action == action
    assert found.diagnosis.findings[0].remedy in found.advice.reason


def test_an_untrained_network_looks_idle_and_is_not_called_so() -> None:
    found = analysis("untrained")
    assert all(latent.variance < 0.01 and latent.posterior_variance > 0.8 for latent in found.latents)
    assert found.diagnosis.effective_beta is None
    assert found.advice.action == "retrain"


def test_the_learned_scale_is_told_and_put_right_no_cause_is_left() -> None:
    vae, s = state("learned variance"), analysis("learned variance").diagnosis.learned_scale
    assert s == pytest.approx(vae.get_parameter("log_s").exp().item(), rel=1e-6)
    vae.likelihood = dataclasses.replace(vae.likelihood, scale=s)
    try:
        found = analyze(vae, factors()).diagnosis
    finally:
        del vae.likelihood
    assert found.findings == ()
    assert found.effective_beta == pytest.approx(1, rel=0.2)


# ---- named causes: stated


@pytest.mark.parametrize(
    ("name", "objective", "cause"),
    [
        ("pixel mean", "reconstruction=pixel-mean,error=squared", "pixel-mean"),
        ("latent mean", "kl=latent-mean", "latent-mean"),
        ("KL per pixel", "kl=pixel-mean", "kl-pixel-mean"),
        ("annealed half way", "annealing=0.5", "annealing"),
        ("free bits", "free-bits=0.5", "free-bits"),
        ("no KL", "kl=none", "no-kl"),
        ("plain autoencoder", "kl=none,sampling=no", "no-kl"),
        ("no sampling", "sampling=no", "no-sampling"),
    ],
)
def test_a_statement_names_the_cause(name: str, objective: str, cause: str) -> None:
    found = analysis(name, objective)
    assert causes(found.diagnosis, named=True)[0] == cause
    assert f"stated: {objective}" in found.diagnosis.findings[0].evidence
    assert found.advice.action == CAUSES[cause].way
    assert CAUSES[cause].remedy in found.advice.reason


def test_a_squared_error_that_is_stated_is_no_fault() -> None:
    assert analysis("squared error", "error=squared").diagnosis.findings == ()


@pytest.mark.parametrize("objective", ["reconstruction=pixel-mean", "kl=latent-mean", "beta=10"])
def test_a_statement_the_numbers_speak_against_names_nothing(objective: str) -> None:
    found = analysis("healthy", objective).diagnosis
    assert causes(found, named=True) == []
    assert found.findings[0].cause == "other-objective"
    assert f"{objective} amounts to β = " in found.findings[0].evidence
    assert "a nat of KL weighs 1.0" in found.findings[0].evidence


# ---- named causes: recorded


def epochs(weights: list[float], inactive: int = 0) -> History:
    return History(tuple(
        Epoch(i + 1, 100 + 10 * w, 100.0, 10.0, (0.5,) * LATENTS, (0.5,) * LATENTS) for i, w in enumerate(weights)
    ))  # fmt: skip


def recorded(name: str, history: History, **record: object) -> Diagnosis:
    vae = state(name)
    seen = observe(vae, as_data(factors()).calibrate)
    found = StatedObjective.from_record({"kl": "full", "beta": 1.0, "sampling": True} | record)
    return diagnose(
        Case(analysis(name).latents, vae.likelihood, seen.structure, seen.symptoms, record=found, history=history)
    )


def test_a_history_whose_weight_rises_to_the_end_names_the_annealing() -> None:
    found = recorded("annealed half way", epochs([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert causes(found, named=True) == ["annealing"]
    assert found.findings[0].evidence == "its history: the weight rose from 0.1 to 0.5 over 5 epochs"


def test_a_weight_that_has_stood_still_names_no_annealing() -> None:
    assert recorded("healthy", epochs([0.2, 0.6, 1.0, 1.0, 1.0])).findings == ()
    assert recorded_weights(epochs([0.5, 1.0])) == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(
    ("name", "record", "cause"),
    [("no KL", {"kl": "none"}, "no-kl"), ("no KL", {"kl": "quadratic"}, "no-kl"),
     ("no sampling", {"sampling": False}, "no-sampling"), ("pixel mean", {"beta": 32.0}, "beta")],
)  # fmt: skip
def test_a_record_names_the_cause(name: str, record: dict[str, object], cause: str) -> None:
    assert causes(recorded(name, History(), **record), named=True) == [cause]


def test_weights_that_are_not_those_of_the_history_are_named() -> None:
    found = recorded("noise", History())  # collapsed on other rows: worse than their mean row
    assert causes(found, named=True) == []
    good = Epoch(40, 4.0, 2.0, 2.0, (0.5,) * LATENTS, (0.5,) * LATENTS)
    vae = state("noise")
    seen = observe(vae, as_data(factors() + 1.0).calibrate)
    named = diagnose(
        Case(analysis("noise").latents, vae.likelihood, seen.structure, seen.symptoms,
             record=StatedObjective(), history=History((good,)))
    )  # fmt: skip
    assert "untrained" in causes(named, named=True)
    assert "they are not those of the history" in named.findings[0].evidence


# ---- what a diagnosis is


def test_every_cause_says_what_to_change() -> None:
    for known in CAUSES.values():
        assert known.title
        assert known.remedy
        assert known.way in ("retrain", "refuse")


def test_a_diagnosis_comes_back_from_json() -> None:
    for name in ("healthy", "pixel mean", "learned variance"):
        found = analysis(name).diagnosis
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Diagnosis.from_json(json.loads(text)) == found


def test_the_model_is_left_as_it_was() -> None:
    vae = state("dropout that stays")
    vae.train()
    before = snapshot(vae)
    observe(vae, as_data(factors(300)).calibrate)
    assert_untouched(vae, before)
    vae.eval()


def test_a_decoder_that_cannot_be_differentiated_leaves_the_weight_unknown() -> None:
    vae = dense()
    inner = vae.decode_parameters
    vae.decode_parameters = torch.no_grad()(inner)  # type: ignore[method-assign]
    assert analyze(vae, rows()).diagnosis.effective_beta is None


def test_expected_weight_without_a_decoder_is_unknown_where_it_is_stated() -> None:
    case = Case(analysis("healthy").latents, state("healthy").likelihood, observe(
        state("healthy"), as_data(factors(300)).calibrate, decodes=False).structure,
        stated=StatedObjective(beta=2.0))  # fmt: skip
    assert case.expected is None
    assert not math.isnan(case.law)
    assert diagnose(case).findings == ()


def test_latents_that_are_used_alike_are_no_floor() -> None:
    """Three of four have a KL within 3% of each other on so few rows, and the KL weighs what the record says."""
    found = analyze(trained_dense(), small_tiles()[:100])
    least, *others = sorted(latent.kl for latent in found.latents)
    assert others[1] < 1.03 * least
    assert found.diagnosis.symptoms == ()


def test_what_is_left_of_a_collapsed_posterior_tells_no_weight() -> None:
    """1e-5 nats of KL are residue, though its ratio may look certain; averaging over pixels stays among the causes."""
    found = analysis("pixel mean")
    assert sum(latent.kl for latent in found.latents) < 1e-2
    certain = Ratio(5e3, (2.8e3, 7.9e3))
    symptoms = observe(state("pixel mean"), as_data(factors()).calibrate).symptoms
    assert symptoms is not None
    seen = dataclasses.replace(symptoms, beta=EffectiveBeta(certain, certain, (certain,) * LATENTS))
    told = diagnose(Case(found.latents, state("pixel mean").likelihood, Structure(), seen))
    assert told.effective_beta is None
    assert "pixel-mean" in {finding.cause for finding in told.findings}
