"""Numbers at the edge of what floating point holds: the right answer, or a refusal that says why."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import vaeprune
from planted import IDLE_MEAN, PlainVAE, dense, rows
from vaeprune.analysis.moments import Moments
from vaeprune.architectures import DenseVAE
from vaeprune.errors import DataError, VaepruneError
from vaeprune.posterior import Posterior

IDLE = [1, 4]


def verdicts(vae: DenseVAE, data: object) -> list[int]:
    """Which latents are called inactive."""
    return vaeprune.analyze(vae, data).indices("inactive")


# ---- moments


def exact_moments(values: np.ndarray) -> tuple[Fraction, Fraction, Fraction]:
    """Mean, variance and fourth central moment of float64 values, without rounding."""
    numbers = [Fraction(float(v)) for v in values]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return mean, *(sum(((n - mean) ** p for n in numbers), Fraction(0)) / len(numbers) for p in (2, 4))


def order(name: str, values: np.ndarray) -> np.ndarray:
    """Orders that an unlucky algorithm suffers from."""
    ascending = np.sort(values)
    extremes = np.concatenate([ascending[::2], ascending[1::2][::-1]])
    return {"as drawn": values, "ascending": ascending, "outside in": extremes}[name]


@pytest.mark.parametrize("which", ["as drawn", "ascending", "outside in"])
@pytest.mark.parametrize("centre", [0.0, 1e6], ids=["0", "1e6"])
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_moments_far_from_zero_are_right_to_nine_digits_in_any_order_and_grouping(
    which: str, centre: float, batch: int
) -> None:
    values = order(which, np.random.default_rng(0).standard_normal(500) + centre)
    found: Moments | None = None
    for part in torch.from_numpy(values.copy()).view(-1, 1).split(batch):
        piece = Moments.of(Posterior(part, torch.zeros_like(part)))
        found = piece if found is None else found.merge(piece)
    mean, variance, fourth = exact_moments(values)
    assert found.mean.item() == pytest.approx(float(mean), rel=1e-14)
    assert found.variance.item() == pytest.approx(float(variance), rel=1e-9)
    assert found.powers[4, 0].item() / 500 == pytest.approx(float(fourth), rel=1e-8)
    error = math.sqrt(float(fourth - variance**2) / 499)
    assert found.variance_error.item() == pytest.approx(error, rel=1e-6)


def test_an_analysis_of_means_around_a_million_gives_their_variance() -> None:
    """E[x²] − E[x]² in float64 would have four right digits here, in float32 none."""
    vae = dense(IDLE).double()
    data = rows(400).double()
    before = vaeprune.analyze(vae, data, ablate="none")
    with torch.no_grad():
        vae.mean_head.bias += 1e6
    after = vaeprune.analyze(vae, data, ablate="none")
    for a, b in zip(before.latents, after.latents, strict=True):
        assert b.mean == pytest.approx(a.mean + 1e6, rel=1e-14)
        # the means themselves are rounded to 1e-10 beside a million
        assert b.variance == pytest.approx(a.variance, rel=1e-9, abs=1e-18)


def test_constant_means_have_no_variance_at_all() -> None:
    mean = torch.full((1000, 3), 1e6 + 0.1, dtype=torch.float64)
    parts = [Moments.of(Posterior(m, torch.zeros_like(m))) for m in mean.split(37)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    assert whole.variance.max() < 1e-18
    assert torch.isfinite(whole.variance_error).all()


@pytest.mark.parametrize("tiny", [1e-160, 5e-324, 0.0])
def test_denormal_means_are_as_good_as_none(tiny: float) -> None:
    mean = torch.tensor([[tiny], [-tiny], [tiny], [0.0]], dtype=torch.float64)
    found = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    assert 0 <= found.variance.item() <= tiny * tiny
    assert found.variance_error.item() == 0


def test_moments_of_means_of_1e60_do_not_overflow_into_nan() -> None:
    mean = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e60
    found = Moments.of(Posterior(mean, torch.zeros_like(mean)))
    assert found.variance == pytest.approx(mean.var(0, correction=0), rel=1e-12)


# ---- posteriors


def test_sigma_that_underflows_is_a_certain_posterior() -> None:
    """ln σ² = −1000: σ² is 0 in every type, and the KL half of 1000 and more; nothing of it is NaN."""
    vae = dense(IDLE)
    with torch.no_grad():
        vae.logvar_head.weight[0] = 0
        vae.logvar_head.bias[0] = -1000
    found = vaeprune.analyze(vae, rows())
    assert found.latents[0].posterior_variance == 0
    assert found.latents[0].kl == pytest.approx(0.5 * (found.latents[0].variance + found.latents[0].mean ** 2 + 999))
    assert found.latents[0].verdict != "inactive"
    assert found.indices("inactive") == IDLE


def test_sigma_that_overflows_is_refused_by_name() -> None:
    vae = dense(IDLE)
    with torch.no_grad():
        vae.logvar_head.bias[2] = 1000
    with pytest.raises(DataError) as caught:
        vaeprune.analyze(vae, rows())
    assert str(caught.value) == (
        "encoder: mean, variance or KL is NaN or infinite, first for latent 2; "
        "check the weights and the range of the data"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_encoder_that_gives_nan_or_infinity_is_refused_by_name(value: float) -> None:
    vae = dense(IDLE)
    with torch.no_grad():
        vae.mean_head.bias[3] = value
    with pytest.raises(DataError, match="NaN or infinite, first for latent 3"):
        vaeprune.analyze(vae, rows())


# ---- weights


@pytest.mark.parametrize("layer", ["encoder.0", "mean_head", "decoder.0", "output"])
@pytest.mark.parametrize("size", [1e30, 1e38])
def test_enormous_weights_end_in_finite_figures_or_a_reason(layer: str, size: float) -> None:
    vae = dense(IDLE, listening=0.0)
    with torch.no_grad():
        vae.get_submodule(layer).weight[0] *= size
    data = rows()
    try:
        found = vaeprune.analyze(vae, data)
        figures = [value for latent in found.latents for value in (latent.variance, latent.kl, latent.ablation_cost)]
        assert all(value is None or math.isfinite(value) for value in figures)
        if not found.indices("inactive"):
            return
        made = vaeprune.plan(vae, found, data)
        evidence = vaeprune.verify(vae, vaeprune.cut(vae, made), data, made)
    except VaepruneError:  # whose reasons are tested beside what raises them
        return
    assert not evidence.passed or agreement(vae, made, data) <= 1e-5


def agreement(vae: DenseVAE, made: object, data: Tensor) -> float:
    """The largest relative difference of the cut in float64 from the original held at the plan's constants."""
    from planted import held
    from vaeprune.surgery.cut import cut_any_weights

    double = dense(IDLE).double()
    double.load_state_dict({key: value.double() for key, value in vae.state_dict().items()})
    small = cut_any_weights(double, made)
    with torch.no_grad():
        p, q = double.encode(data.double()), small.encode(data.double())
        before = held(double, made, p.mean)
        after = small.decode_parameters(q.mean)
        return ((before - after).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("layer", ["decoder.0", "output"])
def test_a_decoder_that_overflows_is_refused(layer: str) -> None:
    """It had printed figures that JSON does not know."""
    vae = dense(IDLE)
    with torch.no_grad():
        vae.get_submodule(layer).weight[0] *= 1e38
    with pytest.raises(DataError, match="decoder: its output, or the nats of a row, are NaN or infinite; check the"):
        vaeprune.analyze(vae, rows())


def test_denormal_weights_are_as_good_as_none() -> None:
    vae = dense(IDLE)
    with torch.no_grad():
        vae.decoder[0].weight[:, IDLE] = 1e-40
        vae.mean_head.weight[IDLE] = -1e-42
    data = rows()
    found = vaeprune.analyze(vae, data)
    assert found.indices("inactive") == IDLE
    made = vaeprune.plan(vae, found, data)
    evidence = vaeprune.verify(vae, vaeprune.cut(vae, made), data, made)
    assert evidence.passed
    assert [r.constant for r in made.removals] == pytest.approx([IDLE_MEAN] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_any_precision_is_cut_in_it_and_verified(dtype: torch.dtype) -> None:
    vae = dense(IDLE).to(dtype)
    data = rows()
    found = vaeprune.analyze(vae, data)
    assert found.indices("inactive") == IDLE
    made = vaeprune.plan(vae, found, data)
    small = vaeprune.cut(vae, made)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert vaeprune.verify(vae, small, data, made).passed


# ---- rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rows_of_any_precision_give_the_verdicts(dtype: torch.dtype) -> None:
    assert verdicts(dense(IDLE), rows().to(dtype)) == IDLE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_single_row_of_nan_or_infinity_is_refused_by_its_number(value: float) -> None:
    data = rows()
    data[250, 7] = value
    with pytest.raises(DataError, match="NaN or infinite values, first in row 250; expected finite numbers"):
        vaeprune.analyze(dense(IDLE), data)


def test_the_order_of_rows_changes_no_figure_beyond_rounding() -> None:
    vae, data = dense(IDLE).double(), rows(400).double()
    with torch.no_grad():
        ranks = vae.encode(data).mean[:, 0].argsort()
    outside_in = torch.cat([ranks[::2], ranks[1::2].flip(0)])
    as_drawn = vaeprune.analyze(vae, data)
    for turned in (data[ranks], data[ranks.flip(0)], data[outside_in]):
        found = vaeprune.analyze(vae, turned)
        assert [latent.verdict for latent in found.latents] == [latent.verdict for latent in as_drawn.latents]
        for a, b in zip(as_drawn.latents, found.latents, strict=True):
            assert b.variance == pytest.approx(a.variance, rel=1e-12, abs=1e-20)
            assert b.kl == pytest.approx(a.kl, rel=1e-12, abs=1e-15)
            assert b.ablation_cost == pytest.approx(a.ablation_cost, rel=1e-6, abs=1e-12)


def test_repeated_rows_change_no_verdict_and_are_never_on_both_sides_of_the_split() -> None:
    vae, data = dense(IDLE), rows(200)
    sets = vaeprune.data.as_data(data.repeat(5, 1))
    sides = [{tuple(row) for (x,) in s.batches(64) for row in x.tolist()} for s in (sets.calibrate, sets.verify)]
    assert not sides[0] & sides[1]
    assert verdicts(vae, data.repeat(5, 1)) == IDLE


def test_constant_rows_leave_nothing_to_check_the_result_on() -> None:
    with pytest.raises(DataError, match="400 rows that are all alike, which leaves none to check the result on"):
        vaeprune.analyze(dense(IDLE), torch.full((400, 12), 0.5))


def test_one_row_is_too_few() -> None:
    with pytest.raises(DataError, match="1 row, which leaves none to check the result on; give more rows"):
        vaeprune.analyze(dense(IDLE), rows(1))


def test_rows_of_1e30_whose_squared_errors_overflow_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        vaeprune.analyze(PlainVAE(), rows(300, (5,)) * 1e30)
