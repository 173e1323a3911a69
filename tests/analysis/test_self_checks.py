import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, dense, rows
from vaeprune.analysis import Moments, analyze
from vaeprune.analysis.self_checks import (
    AggregatePosterior,
    Information,
    JacobianCheck,
    SelfChecks,
    VarianceLaw,
    effective_rank,
)
from vaeprune.posterior import Posterior

GENERATOR = torch.Generator().manual_seed(0)


def moments(mean: Tensor) -> Moments:
    return Moments.of(Posterior(mean.double(), torch.zeros_like(mean.double())))


def test_effective_rank_of_independent_latents_is_their_number_and_of_copies_one() -> None:
    z = torch.randn(20_000, 4, generator=GENERATOR)
    assert effective_rank(moments(z), range(4)) == pytest.approx(4, abs=0.01)
    assert effective_rank(moments(z[:, [0, 0, 0]]), range(3)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(moments(torch.cat([z[:, :1], -5 * z[:, :1], z[:, 1:2]], 1)), range(3)) == pytest.approx(
        math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)), abs=0.01
    )


def test_a_rotation_hides_spare_directions_from_variances_and_not_from_the_rank() -> None:
    """Two directions of variance 1 in eight latents: each has a variance above 0.01."""
    turn = torch.linalg.qr(torch.randn(8, 8, generator=GENERATOR))[0]
    mean = torch.randn(5000, 2, generator=GENERATOR) @ turn[:2]
    assert (moments(mean).variance > 0.01).all()
    assert effective_rank(moments(mean), range(8)) == pytest.approx(2, abs=0.2)


def test_the_scale_of_a_latent_does_not_count_and_still_ones_are_left_out() -> None:
    z = torch.randn(5000, 3, generator=GENERATOR) * torch.tensor([1.0, 1e-3, 0.0])
    assert effective_rank(moments(z), range(3)) == pytest.approx(2, abs=0.01)
    assert effective_rank(moments(z), [0, 2]) is None
    assert effective_rank(moments(z), []) is None


def test_more_latents_than_rows_have_at_most_the_rank_of_the_rows() -> None:
    rank = effective_rank(moments(torch.randn(30, 100, generator=GENERATOR)), range(100))
    assert rank is not None
    assert 15 < rank <= 29


def test_checks_of_an_analysis_are_the_figures_of_its_latents() -> None:
    analysis = analyze(dense(idle=[1, 4]), rows(), ablate="all")
    checks = analysis.self_checks
    law = [latent.variance_law for latent in analysis.latents]
    assert (checks.variance_law.low, checks.variance_law.high) == (min(law), max(law))
    assert checks.aggregate.variance == pytest.approx(sum(law) / 6)
    assert checks.aggregate.directions == 4
    assert checks.information.nats == pytest.approx(sum(latent.kl for latent in analysis.latents))
    assert checks.information.bits == pytest.approx(checks.information.nats / math.log(2))
    assert checks.information.active == {i: analysis.latents[i].kl for i in analysis.indices("active")}
    assert len(checks.jacobian.predicted) == 6
    assert checks.jacobian.predicted[1] == checks.jacobian.measured[1] == pytest.approx(1)


def test_checks_survive_json() -> None:
    for ablate in ("all", "none"):
        checks = analyze(dense(), rows(), ablate=ablate).self_checks
        text = json.dumps(checks.to_json(), allow_nan=False)
        assert SelfChecks.from_json(json.loads(text)) == checks
    assert json.loads(text)["jacobian"]["predicted"] is None
    assert json.loads(text)["jacobian"]["unmeasured"] == "the decoder was not tried"


def test_each_check_is_one_line() -> None:
    checks = SelfChecks(
        VarianceLaw(0.99, 0.9, 1.2),
        AggregatePosterior(0.05, 3, 1.01, 5.97, 6, 5000),
        JacobianCheck(2.0, True, 256, (0.5, 1.0), (0.25, 1.0), (1.0, 0.0)),
        Information(4.0, {0: 1.0, 2: 2.9}),
    )
    assert checks.lines() == {
        "variance law": "variance + mean σ²: median 0.990, 0.900 to 1.200; 1 at rest",
        "aggregate posterior": (
            "largest |mean| 0.05 (latent 3), mean variance 1.010; effective rank of the correlations 5.97 of 6 in use"
        ),
        "σ² from the decoder": ("predicted / measured: median 1.50, furthest latent 0 (0.5 / 0.25); 256 rows, β = 2"),
        "KL": ("4.000 nats (5.771 bits) per row; 97.5% in the 2 active latents, 1.95 nats each on average, 1 to 2.9"),
    }


def test_lines_say_what_was_not_known() -> None:
    assumed = JacobianCheck(1.0, False, 256, (0.5,), (0.5,), (1.0,))
    assert assumed.line().endswith("β = 1 assumed")
    assert JacobianCheck(1.0, False, unmeasured="no decoder").line() == "not measured: no decoder"
    aggregate = AggregatePosterior(0.05, 3, 1.01, 5.97, 6, 59)
    assert aggregate.line().endswith("5.97 of 6 in use, too low with so few rows")
    alone = dataclasses.replace(aggregate, effective_rank=None, directions=1)
    assert alone.line().endswith("no correlations among 1 latents in use")
    assert Information(0.01, {}).line() == "0.010 nats (0.014 bits) per row; no latent is active"


@pytest.mark.parametrize(
    ("provenance", "beta"),
    [
        ({"training": {"kl": "full", "beta": 4}}, 4.0),
        ({"training": {"kl": "quadratic", "beta": 4}}, None),
        ({"training": {"kl": "full", "beta": 0}}, None),
        ({"training": {"kl": "full", "beta": True}}, None),
        ({"training": {"by": "somebody"}}, None),
        ({"training": None}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_weight_of_the_kl_is_taken_from_the_record_or_assumed(
    provenance: dict[str, object], beta: float | None
) -> None:
    vae = dense(idle=[1])
    vae.provenance = provenance
    check = analyze(vae, rows()).self_checks.jacobian
    assert (check.beta, check.beta_known) == (beta or 1.0, beta is not None)


def test_a_model_without_a_smooth_decoder_is_analyzed_all_the_same() -> None:
    class Rounded(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).round()

    checks = analyze(PlainVAE(Rounded(4, 5)), rows(300, (5,))).self_checks
    assert checks.lines()["σ² from the decoder"].startswith("not measured: the decoder is not smooth")
