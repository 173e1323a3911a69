import dataclasses

import pytest

from vaeprune.analysis import Latent
from vaeprune.analysis.advice import Advice, advise, movement, unsettled
from vaeprune.analysis.case import Finding
from vaeprune.analysis.diagnosis import Diagnosis
from vaeprune.training.history import Epoch, History


def latents(active: int = 0, inactive: int = 0, mixed: tuple[float | None, ...] = ()) -> list[Latent]:
    verdicts = ["active"] * active + ["inactive"] * inactive + ["mixed"] * len(mixed)
    costs = [1.0] * active + [0.0] * inactive + list(mixed)
    return [
        Latent(i, 0.0, 0.5, (0.4, 0.6), 0.5, (0.4, 0.6), 1.0, 2.0, 1.0, cost, verdict=verdict)
        for i, (verdict, cost) in enumerate(zip(verdicts, costs, strict=True))
    ]


@pytest.mark.parametrize(
    ("active", "inactive", "kept", "fresh"), [(3, 5, 3, 4), (10, 6, 10, 11), (11, 5, 11, 13), (1, 1, 1, 2)]
)
def test_some_inactive_latents_call_for_a_cut_to_the_others(active: int, inactive: int, kept: int, fresh: int) -> None:
    assert advise(latents(active, inactive), {}) == Advice(
        "shrink",
        kept,
        f"{inactive} of {active + inactive} latents are inactive; when training from scratch take {fresh}, since an "
        "idle latent or two is the sign that there are enough",
    )


def test_what_the_encoder_alone_calls_inactive_is_provisional() -> None:
    found = latents(active=3, inactive=1)
    tried = [dataclasses.replace(latent, ablation_cost=0.0) for latent in found]
    untried = [dataclasses.replace(latent, ablation_cost=None) for latent in found]
    assert advise(untried, {}).reason.endswith(
        "; provisional, since the decoder was not tried: a cut may fail its checks"
    )
    assert "provisional" not in advise(tried, {}).reason


def test_mixed_latents_are_kept_when_the_inactive_go() -> None:
    advice = advise(latents(active=2, inactive=3, mixed=(0.1, 0.2)), {})
    assert (advice.action, advice.latent_size) == ("shrink", 4)


def test_all_active_is_only_a_lower_bound() -> None:
    assert advise(latents(active=8), {"training": {"kl": "full"}}) == Advice(
        "grow", 16, "all 8 latents are active, so 8 is only a lower bound on what the data can use: try 16"
    )


def test_mixed_latents_are_kept_with_what_they_are_worth() -> None:
    assert advise(latents(active=5, mixed=(0.25, 0.5, None)), {}) == Advice(
        "keep", 8, "nothing is inactive; 3 of 8 latents are mixed, and fixing them would cost about 0.75 nats per row"
    )


@pytest.mark.parametrize("rest", [{"active": 5}, {"active": 4, "mixed": (0.1,)}], ids=["all active", "some mixed"])
def test_a_model_that_was_shrunk_is_not_told_to_grow(rest: dict[str, object]) -> None:
    assert advise(latents(**rest), {"shrunk": {"latent_size": 16}, "training": None}) == Advice(
        "keep", 5, "this model was shrunk before and nothing in it is idle"
    )


def test_a_model_that_was_shrunk_may_be_shrunk_again() -> None:
    assert advise(latents(active=4, inactive=1), {"shrunk": {"latent_size": 16}}).action == "shrink"


def test_a_collapsed_posterior_is_a_diagnosis_not_a_cut() -> None:
    advice = advise(latents(inactive=4), {})
    assert (advice.action, advice.latent_size, advice.command) == ("retrain", 4, None)
    assert advice.reason.startswith("all 4 latents are inactive")


def test_no_more_latents_are_advised_than_a_row_has_values() -> None:
    assert advise(latents(active=3), {}, most=5).latent_size == 5
    full = advise(latents(active=3), {}, most=3)
    assert (full.action, full.latent_size) == ("keep", 3)
    assert full.reason == "all 3 latents are active, and a row has no more values than that"


# ---- with a diagnosis

COUNTS = [{"active": 4}, {"inactive": 4}, {"active": 2, "inactive": 2}, {"active": 2, "mixed": (0.1,)}]
NAMED = Finding("latent-mean", True, "stated: kl=latent-mean", "sum it")


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_named_cause_is_the_advice_whatever_the_verdicts(counts: dict[str, object]) -> None:
    advice = advise(latents(**counts), {}, Diagnosis(findings=(NAMED,)))
    size = len(latents(**counts))
    assert advice == Advice("retrain", size, "the KL is averaged over latents (stated: kl=latent-mean): sum it")


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_where_the_model_itself_must_change_the_advice_is_to_refuse(counts: dict[str, object]) -> None:
    finding = Finding("no-kl", True, "its record says kl 'none'", "add it")
    advice = advise(latents(**counts), {}, Diagnosis(findings=(NAMED, finding)))
    assert (advice.action, advice.latent_size) == ("refuse", None)
    assert advice.reason.endswith("drives an idle one to the prior (its record says kl 'none'): add it")


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("cause", "action"), [("free-bits", "retrain"), ("no-kl", "refuse")])
def test_symptoms_that_forbid_a_cut_are_told_with_what_they_are_consistent_with(
    counts: dict[str, object], cause: str, action: str
) -> None:
    finding = Finding(cause, False, "of numbers", "do this")
    advice = advise(latents(**counts), {}, Diagnosis(symptoms=("it is odd",), findings=(finding,), blocking=True))
    assert advice.action == action
    assert advice.reason == (
        f"it is odd; consistent with: {finding.title}; do this; --objective with the loss it was trained by settles "
        "which"
    )


@pytest.mark.parametrize(("counts", "action"), [(COUNTS[0], "grow"), (COUNTS[2], "shrink"), (COUNTS[3], "keep")])
def test_another_weight_of_the_kl_is_said_beside_the_advice(counts: dict[str, object], action: str) -> None:
    finding = Finding("annealing", False, "of numbers", "train on")
    advice = advise(latents(**counts), {}, Diagnosis(0.48, (0.46, 0.5), 1.0, ("it weighs",), (finding,)))
    assert advice.action == action
    assert advice.reason.endswith("; but the KL weighs 0.48 here: the KL's weight was still rising")


def test_latents_that_are_all_active_for_want_of_a_kl_are_no_reason_to_grow() -> None:
    finding = Finding("latent-mean", False, "of numbers", "sum it")
    advice = advise(latents(active=4), {}, Diagnosis(0.25, (0.2, 0.3), 1.0, ("it weighs 0.25",), (finding,)))
    assert (advice.action, advice.latent_size) == ("retrain", 4)
    assert advice.reason.startswith("all 4 latents are active, but it weighs 0.25; consistent with: the KL is averaged")


def test_of_several_causes_the_first_ones_remedy_is_given_as_such() -> None:
    findings = (Finding("free-bits", False, "of numbers", "do this"), Finding("no-kl", False, "of numbers", "do that"))
    told = advise(latents(active=4), {}, Diagnosis(symptoms=("it is odd",), findings=findings, blocking=True)).reason
    assert told.startswith(f"it is odd; consistent with: {findings[0].title}; or {findings[1].title}; ")
    assert told.endswith("; in the first case do this; --objective with the loss it was trained by settles which")


@pytest.mark.parametrize(("weight", "action"), [(0.32, "retrain"), (0.34, "grow")])
def test_a_third_of_the_expected_weight_is_enough_to_grow_by(weight: float, action: str) -> None:
    finding = Finding("annealing", False, "of numbers", "train on")
    for expected in (1.0, 4.0):
        found = Diagnosis(weight * expected, (0.0, 1.0), expected, ("it weighs",), (finding,))
        assert advise(latents(active=4), {}, found).action == action


def test_a_light_kl_that_is_meant_is_no_hindrance_to_growing() -> None:
    assert advise(latents(active=4), {}, Diagnosis(0.25, (0.2, 0.3), 0.25)).action == "grow"


def test_mixed_latents_are_priced_jointly_where_that_was_measured() -> None:
    assert "would cost about 2 nats" in advise(latents(active=5, mixed=(0.25, 0.5)), {}, mixed_cost=2.0).reason


# ---- with a history

ON = ": train on before deciding"


def history(inactive: list[int], size: int = 4, rising: float = 0.0) -> History:
    """One epoch for each count; the sigma² of the last latent rises to the end by `rising`."""
    return History(tuple(
        Epoch(i + 1, 1.0, 1.0, 1.0, (1e-4,) * n + (0.9,) * (size - n),
              (0.99,) * n + (0.1,) * (size - n - 1) + (0.1 + rising * i / len(inactive),))
        for i, n in enumerate(inactive)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (history([0, 1, 2, 2, 2, 2, 2, 2]), "; the count has stood still for the last 6 of 8 epochs"),
        (history([0, 1, 1, 1, 1, 1, 1, 2]), "; its count was still moving, from 1 to 2 in the last 3 epochs" + ON),
        (history([2] * 10, rising=1.0), "; sigma² of latents 3 was still rising in the last 3 epochs" + ON),
        (history([0, 1, 2]), ""),
        (History(), ""),
        (history([2] * 8, size=5), ""),
    ],
)  # fmt: skip
def test_the_history_says_whether_the_count_was_still_moving(found: History, told: str) -> None:
    verdicts = latents(active=2, inactive=2)[::-1]
    advice = advise(verdicts, {"history": found})
    assert advice.action == "shrink"
    assert advice.reason.endswith(f"there are enough{told}")
    assert unsettled(verdicts, {"history": found}) == told.endswith("deciding")


def test_the_history_of_a_shrunk_model_is_that_of_another() -> None:
    assert movement(latents(active=4), {"history": history([0, 1, 1, 1, 1, 2]), "shrunk": {"latent_size": 9}}) == ""


def test_epochs_from_before_latents_were_added_do_not_hide_the_later_ones() -> None:
    grown = History((*history([0, 0], size=3).epochs, *history([0, 2, 2, 2, 2, 2]).epochs))
    found = latents(active=2, inactive=2)[::-1]
    assert movement(found, {"history": grown}) == "; the count has stood still for the last 5 of 6 epochs"


def test_few_epochs_since_latents_were_added_say_nothing_of_the_count() -> None:
    grown = History((*history([0] * 20, size=3).epochs, *history([0, 0, 1]).epochs))
    assert movement(latents(active=3, inactive=1), {"history": grown}) == ""


@pytest.mark.parametrize(("rise", "told"), [(0.13, False), (0.15, True)])
def test_a_sigma2_that_rose_by_a_tenth_in_the_window_is_still_rising(rise: float, told: bool) -> None:
    """Three of four epochs' steps lie in the window: three quarters of the rise."""
    found = movement(latents(active=2, inactive=2)[::-1], {"history": history([2] * 4, rising=rise)})
    assert ("still rising" in found) is told
    idle = latents(active=1, inactive=3)
    assert "still rising" not in movement(idle, {"history": history([2] * 4, rising=1.0)})


@pytest.mark.parametrize("provenance", [{}, {"training": None}, {"training": {"kl": "full"}, "shrunk": None}], ids=str)
def test_a_missing_record_is_no_reason_to_refuse(provenance: dict[str, object]) -> None:
    assert advise(latents(active=2, inactive=2), provenance).action == "shrink"
