import pytest

from vaeprune.analysis import Latent
from vaeprune.analysis.advice import Advice, advise


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
    assert advice.reason == (
        "all 4 latents are inactive: the posterior has collapsed, so there is no network to cut down; check that the "
        "reconstruction term is summed over pixels and the KL weight is not above 1, then train again"
    )


@pytest.mark.parametrize("counts", [{"active": 4}, {"inactive": 4}, {"active": 2, "inactive": 2}], ids=str)
@pytest.mark.parametrize("penalty", ["none", "quadratic"])
def test_a_model_trained_without_the_full_kl_is_refused_whatever_its_verdicts(
    counts: dict[str, int], penalty: str
) -> None:
    advice = advise(latents(**counts), {"training": {"kl": penalty}})
    assert (advice.action, advice.latent_size, advice.command) == ("refuse", None, None)
    assert advice.reason == (
        f"trained with kl '{penalty}': without the full KL nothing pushes an unused latent to the prior, and "
        "variances say nothing about use"
    )


@pytest.mark.parametrize("provenance", [{}, {"training": None}, {"training": {"kl": "full"}, "shrunk": None}], ids=str)
def test_a_missing_record_is_no_reason_to_refuse(provenance: dict[str, object]) -> None:
    assert advise(latents(active=2, inactive=2), provenance).action == "shrink"
