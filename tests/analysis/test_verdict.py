import dataclasses
import math

import pytest

from vaeprune.analysis import Latent, Thresholds
from vaeprune.analysis.verdict import judge, plainly_active
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
)
MOVING = {"variance": 0.9, "variance_ci95": (0.8, 1.0)}
SHARP = {"posterior_variance": 0.1, "posterior_variance_ci95": (0.09, 0.11)}
DEAR = {"ablation_cost": 2.0, "ablation_cost_ci95": (1.5, 2.5)}
LOUD = {"noise_reaction": 0.12}
UNTRIED = {"ablation_cost": None, "ablation_cost_ci95": None, "noise_reaction": None}


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
            "encoder-dead, but fixing it costs 0.04 nats",
            id="free by its value, not by its interval",
        ),
        pytest.param(
            MOVING | SHARP,
            "mixed",
            "encoder-live, decoder-dead: fixing it costs 0.001 nats",
            id="informative and ignored",
        ),
        pytest.param(
            DEAR | SHARP | {"largest_deviation": 4.0},
            "mixed",
            "rare: |mu - mean| reaches 4 while the variance is 0.001",
            id="still but for a few rows",
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
            "weak: worth 2 nats",
            id="on the threshold of the variance",
        ),
        pytest.param(
            DEAR | {"posterior_variance": 0.81, "posterior_variance_ci95": (0.79, 0.83)},
            "mixed",
            "weak: worth 2 nats",
            id="on the threshold of the posterior variance",
        ),
        pytest.param(UNTRIED, "inactive", "provisional: the decoder was not tried", id="untried and idle"),
        pytest.param(UNTRIED | MOVING | SHARP, "active", "", id="untried and plainly active"),
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
        ({"noise_reaction": 0.01}, Thresholds(noise=0.01)),
    ],
    ids=["variance", "posterior variance", "ablation", "noise"],
)
def test_each_threshold_must_be_cleared_not_met(changes: dict[str, object], limits: Thresholds) -> None:
    assert judge(dataclasses.replace(IDLE, **changes), limits).verdict == "mixed"
    assert judge(IDLE, limits).verdict == "inactive"


def test_thresholds_decide_not_constants() -> None:
    assert judge(IDLE, Thresholds(variance=1e-4)).verdict == "mixed"
    assert judge(IDLE, Thresholds(posterior_variance=0.985)).verdict == "mixed"
    assert judge(IDLE, Thresholds(ablation=1e-3)).verdict == "mixed"
    assert judge(IDLE, Thresholds(noise=1e-4)).verdict == "mixed"
    assert judge(dataclasses.replace(IDLE, **MOVING), Thresholds(variance=2.0)).verdict == "inactive"


def test_a_nan_cost_makes_no_latent_inactive_or_active() -> None:
    broken = {"ablation_cost": math.nan, "ablation_cost_ci95": (math.nan, math.nan), "noise_reaction": math.nan}
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
