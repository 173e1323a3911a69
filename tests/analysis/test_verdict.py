import dataclasses
import math

import pytest

from vaeprune.analysis import Latent, Thresholds
from vaeprune.analysis.verdict import judge, noise_limit, plainly_active
from vaeprune.errors import UsageError

IDLE = Latent(
    index=3,
    mean=0.01,
    variance=0.001,
    variance_ci95=(0.0009, 0.0011),
    posterior_variance=0.99,
    posterior_variance_ci95=(0.98, 1.0),
    kl=0.001,
    kl_max=0.01,
    largest_deviation=0.1,
    ablation_cost=0.001,
    ablation_cost_ci95=(0.0, 0.002),
    noise_reaction=0.001,
    noise_reaction_ci95=(0.0009, 0.0011),
    used_share=0.0,
    used_share_ci95=(0.0, 0.0004),
)
MOVING = {"variance": 0.9, "variance_ci95": (0.8, 1.0), "kl": 0.6, "kl_max": 4.0, "largest_deviation": 3.0}
SHARP = {"posterior_variance": 0.1, "posterior_variance_ci95": (0.09, 0.11)}
DEAR = {"ablation_cost": 2.0, "ablation_cost_ci95": (1.5, 2.5)}
LOUD = {"noise_reaction": 0.12, "noise_reaction_ci95": (0.11, 0.13)}
UNTRIED = {"ablation_cost": None, "ablation_cost_ci95": None, "noise_reaction": None, "noise_reaction_ci95": None}
SELDOM = {"largest_deviation": 3.0, "kl_max": 4.5, "used_share": 0.0007, "used_share_ci95": (0.0004, 0.001)}


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        pytest.param({}, "inactive", "", id="still, vague, free and unheard"),
        pytest.param(MOVING | SHARP | DEAR | LOUD, "active", "", id="moving, sharp, dear and heard"),
        pytest.param(MOVING | DEAR, "active", "", id="moving and dear, however vague"),
        pytest.param(
            LOUD,
            "mixed",
            "encoder-dead, decoder-live: noise in it moves the output by 12.0% RMS",
            id="the decoder listens to noise",
        ),
        pytest.param(
            {"ablation_cost": 0.3, "ablation_cost_ci95": (0.2, 0.4)},
            "mixed",
            "encoder-dead, but fixing it costs 0.3 nats",
            id="still, yet its mean is used",
        ),
        pytest.param(
            {"ablation_cost": 0.04, "ablation_cost_ci95": (-0.02, 0.10)},
            "mixed",
            "undecided: fixing it costs 0.04 nats (95%: -0.02 to 0.1), the limit 0.05",
            id="free by its value, not by its interval",
        ),
        pytest.param(
            MOVING | SHARP,
            "mixed",
            "encoder-live, decoder-dead: its KL is 0.6 nats, and fixing it costs 0.001 nats",
            id="informative and ignored",
        ),
        pytest.param(
            SELDOM,
            "mixed",
            "rare: used by 0.07% of the data, where its KL reaches 4.5 nats; worth 0.001 nats on average",
            id="still but for a few rows",
        ),
        pytest.param(
            SELDOM | {"variance": 0.05, "variance_ci95": (0.02, 0.09), "used_share": 0.006},
            "mixed",
            "rare: used by 0.6% of the data, where its KL reaches 4.5 nats; worth 0.001 nats on average",
            id="moving because of a few rows",
        ),
        pytest.param(
            SELDOM | {"kl": 1.2, "used_share": 1.0},
            "mixed",
            "rare: few rows stand out, where its KL reaches 4.5 nats; worth 0.001 nats on average",
            id="a constant mean that is not 0, but for a few rows",
        ),
        pytest.param(SELDOM | {"kl": 1.2, "kl_max": 1.25}, "inactive", "", id="a constant mean that is not 0"),
        pytest.param(
            SELDOM | MOVING | SHARP | DEAR | {"variance": 0.1, "variance_ci95": (0.05, 0.15), "largest_deviation": 3.0},
            "active",
            "",
            id="used by few rows, and dear all the same",
        ),
        pytest.param(
            {"kl": 0.05, "variance": 0.1, "variance_ci95": (0.09, 0.11)}
            | {"ablation_cost": 0.13, "ablation_cost_ci95": (0.11, 0.15)},
            "mixed",
            "weak: worth 0.13 nats",
            id="moving, vague and worth little",
        ),
        pytest.param(
            {"variance": 0.1, "variance_ci95": (0.09, 0.11)},
            "mixed",
            "weak: worth 0.001 nats",
            id="moving, vague and worth nothing",
        ),
        pytest.param(
            MOVING | {"ablation_cost": 0.3, "ablation_cost_ci95": (-0.1, 0.7)},
            "mixed",
            "undecided: worth 0.3 nats (95%: -0.1 to 0.7)",
            id="moving, and its cost may be nothing or much",
        ),
        pytest.param(
            MOVING | SHARP | LOUD | {"ablation_cost": -0.3, "ablation_cost_ci95": (-0.4, -0.2)},
            "mixed",
            "harmful: fixing it makes a row 0.3 nats cheaper",
            id="moving, sharp, and better without",
        ),
        pytest.param(
            SHARP | DEAR,
            "mixed",
            "undecided: still, but its mean σ² is 0.1; worth 2 nats",
            id="still and sharp",
        ),
        pytest.param(
            MOVING | {"ablation_cost": 0.06, "ablation_cost_ci95": (-0.01, 0.13)},
            "mixed",
            "weak: worth 0.06 nats",
            id="moving, and its cost may be nothing",
        ),
        pytest.param(
            DEAR | {"variance": 0.009, "variance_ci95": (0.007, 0.011)},
            "mixed",
            "undecided: variance 0.009 (95%: 0.007 to 0.011), the limit is 0.01; worth 2 nats",
            id="on the threshold of the variance",
        ),
        pytest.param(
            DEAR | {"posterior_variance": 0.81, "posterior_variance_ci95": (0.79, 0.83)},
            "mixed",
            "undecided: still, but its mean σ² is 0.81; worth 2 nats",
            id="on the threshold of the posterior variance",
        ),
        pytest.param(UNTRIED, "inactive", "provisional: the decoder was not tried", id="untried and idle"),
        pytest.param(
            UNTRIED | MOVING | SHARP,
            "active",
            "provisional: the decoder was not tried",
            id="untried and plainly active",
        ),
        pytest.param(
            UNTRIED | SELDOM,
            "mixed",
            "rare: used by 0.07% of the data, where its KL reaches 4.5 nats; the decoder was not tried",
            id="untried and rare",
        ),
        pytest.param(
            UNTRIED | MOVING,
            "mixed",
            "not clear of the thresholds, and the decoder was not tried",
            id="untried, moving and vague",
        ),
        pytest.param(
            UNTRIED | {"variance_ci95": (0.009, 0.011)},
            "mixed",
            "not clear of the thresholds, and the decoder was not tried",
            id="untried, on the threshold",
        ),
    ],
)
def test_verdict(changes: dict[str, object], verdict: str, reason: str) -> None:
    latent = dataclasses.replace(IDLE, **changes)
    assert judge(latent, Thresholds()) == dataclasses.replace(latent, verdict=verdict, reason=reason)


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"variance_ci95": (0.0, 0.01)}, Thresholds(variance=0.01)),
        ({"posterior_variance_ci95": (0.8, 0.9)}, Thresholds(posterior_variance=0.8)),
        ({"ablation_cost_ci95": (0.0, 0.05)}, Thresholds(ablation=0.05)),
        ({"noise_reaction_ci95": (0.008, 0.01)}, Thresholds(noise=0.01)),
    ],
    ids=["variance", "posterior variance", "ablation", "noise"],
)
def test_each_threshold_must_be_cleared_not_met(changes: dict[str, object], limits: Thresholds) -> None:
    assert judge(dataclasses.replace(IDLE, **changes), limits).verdict == "mixed"
    assert judge(IDLE, limits).verdict == "inactive"


@pytest.mark.parametrize(("rows", "limit"), [(None, 0.01), (10_000, 0.01), (2700, 0.01), (1350, 0.005), (27, 0.0001)])
def test_the_fewer_the_rows_the_deafer_the_decoder_must_be(rows: int | None, limit: float) -> None:
    """3/n of the rows may use it unseen; 3 units away they add 27/n to the variance, whose limit is 0.01."""
    assert noise_limit(Thresholds(), rows) == pytest.approx(limit)
    quieter, louder = (
        judge(dataclasses.replace(IDLE, noise_reaction=share * limit, noise_reaction_ci95=(0.0, share * limit)),
              Thresholds(), rows)
        for share in (0.99, 1.01)
    )  # fmt: skip
    assert (quieter.verdict, louder.verdict) == ("inactive", "mixed")
    if rows in (1350, 27):
        told = f"undecided: {rows} rows cannot rule out rare use, and noise in it moves the output by "
        assert louder.reason.startswith(told)


def test_thresholds_decide_not_constants() -> None:
    assert judge(IDLE, Thresholds(variance=1e-4)).verdict == "mixed"
    assert judge(IDLE, Thresholds(posterior_variance=0.985)).verdict == "mixed"
    assert judge(IDLE, Thresholds(ablation=1e-3)).verdict == "mixed"
    assert judge(IDLE, Thresholds(noise=1e-4)).verdict == "mixed"
    assert judge(dataclasses.replace(IDLE, **MOVING), Thresholds(variance=2.0)).verdict == "inactive"


def test_a_nan_cost_makes_no_latent_inactive_or_active() -> None:
    nothing = (math.nan, math.nan)
    broken = {"ablation_cost": math.nan, "ablation_cost_ci95": nothing, "noise_reaction": math.nan}
    broken |= {"noise_reaction_ci95": nothing}
    assert judge(dataclasses.replace(IDLE, **broken), Thresholds()).verdict == "mixed"
    assert judge(dataclasses.replace(IDLE, **MOVING | SHARP | broken), Thresholds()).verdict == "mixed"


def test_only_a_moving_and_sharp_latent_is_plainly_active() -> None:
    limits = Thresholds()
    assert plainly_active(dataclasses.replace(IDLE, **MOVING | SHARP), limits)
    assert not plainly_active(dataclasses.replace(IDLE, **MOVING), limits)
    assert not plainly_active(dataclasses.replace(IDLE, **SHARP), limits)
    assert not plainly_active(IDLE, limits)


@pytest.mark.parametrize("name", ["variance", "posterior_variance", "ablation", "noise"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_no_positive_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError) as error:
        Thresholds(**{name: value})
    assert str(error.value) == f"threshold {name}: got {value}, expected a positive finite number"


def test_variance_law_is_the_sum_of_both_variances() -> None:
    assert IDLE.variance_law == pytest.approx(0.991)
    assert IDLE.to_json()["variance_law"] == IDLE.variance_law
