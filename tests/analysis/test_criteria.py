import json
import math

import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, dense, rows
from vaeprune.analysis import Analysis, Moments, analyze
from vaeprune.analysis.criteria import Criterion, intrinsic_dimension, variable_filter
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

GENERATOR = torch.Generator().manual_seed(0)


def rule(analysis: Analysis, name: str) -> Criterion:
    (found,) = (criterion for criterion in analysis.criteria.rules if criterion.name == name)
    return found


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.0, 1.0, "passive"), (0.9, 0.9, "passive"), (0.89, 0.89, "mixed"), (1.11, 1.11, "mixed"),
        (0.0999, 0.0999, "active"), (0.11, 0.11, "mixed"), (0.5, 1.5, "mixed"), (0.01, 0.15, "active"),
    ],
)  # fmt: skip
def test_the_variable_filter_goes_by_mean_and_variance_of_sigma2(low: float, high: float, word: str) -> None:
    """Half of the rows have one sigma², half the other: mean (low + high)/2, variance ((high − low)/2)²."""
    logvar = torch.tensor([[low], [high]], dtype=torch.float64).repeat(50, 1).log()
    assert variable_filter(Moments.of(Posterior(torch.zeros_like(logvar), logvar))) == (word,)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimension_of_a_gaussian_on_a_plane_is_the_planes(dimension: int) -> None:
    plane = torch.randn(dimension, 12, generator=GENERATOR)
    points = torch.randn(1000, dimension, generator=GENERATOR) @ plane
    assert intrinsic_dimension(points) == pytest.approx(dimension, rel=0.12)
    assert intrinsic_dimension(points.repeat(2, 1)) == pytest.approx(dimension, rel=0.12)  # equal rows count once


def test_intrinsic_dimension_of_the_levina_bickel_estimator() -> None:
    points = torch.randn(60, 3, generator=GENERATOR, dtype=torch.float64)
    k, inverses = 7, []
    for point in points:
        near = sorted((points - point).norm(dim=1).tolist())[1 : k + 1]
        inverses.append(sum(math.log(near[-1] / near[j]) for j in range(k - 1)) / (k - 2))
    assert intrinsic_dimension(points, k) == pytest.approx(60 / sum(inverses), rel=1e-6)


def test_points_that_coincide_have_no_dimension() -> None:
    assert intrinsic_dimension(torch.zeros(100, 3)) is None
    assert intrinsic_dimension(torch.randn(3, 3, generator=GENERATOR)) is None


def test_four_different_points_are_the_fewest_with_a_dimension() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    inverses = [math.log(7 * 7 / 3 / 1), math.log(6 * 6 / 2 / 1), math.log(4 * 4 / 3 / 2), math.log(7 * 7 / 6 / 4)]
    assert intrinsic_dimension(line) == pytest.approx(4 / sum(inverses))
    assert intrinsic_dimension(line[:3]) is None
    assert intrinsic_dimension(torch.cat([line[:3], line[:1]])) is None


def test_points_that_are_all_as_far_from_each_other_have_no_dimension() -> None:
    """The corners of a simplex: every ratio of distances is 1."""
    assert intrinsic_dimension(torch.eye(6)) is None


def test_thresholds_are_those_of_their_authors() -> None:
    analysis = analyze(dense(idle=[1, 4]), rows(), criteria=True)
    latents = analysis.latents
    expected = {
        "active units": [latent.variance > 0.01 for latent in latents],
        "posterior variance": [latent.posterior_variance <= 0.8 for latent in latents],
        "mean KL": [latent.kl > 0.01 for latent in latents],
    }
    for name, active in expected.items():
        found = rule(analysis, name)
        assert found.verdicts == tuple("active" if a else "inactive" for a in active)
        assert found.count == sum(active)
    assert rule(analysis, "vaeprune").verdicts == tuple(latent.verdict for latent in latents)
    assert rule(analysis, "FONDUE, filter").count == 4


def _axes(gains: list[float]) -> tuple[PlainVAE, Tensor]:
    """x = Σ gain_i z_i e_i: E‖∂x̂/∂z_i‖² = gain_i²; E z_i² = 1.25 for all."""
    vae = PlainVAE(nn.Linear(4, 5))
    vae.likelihood = Likelihood("gaussian", "mean", 0.1)
    with torch.no_grad():
        vae.decoder.weight.copy_(torch.eye(5)[:, :4] * torch.tensor(gains))
    vae.encode = lambda x, *_: Posterior(x[:, :4], torch.full_like(x[:, :4], math.log(0.25)))
    return vae, torch.randn(2000, 5, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("gains", "count"), [([1, 1, 1, 1], 4), ([1, 1, 0.1, 0], 2), ([1, 1, 0.2, 0], 3)])
def test_ard_takes_the_smallest_set_with_99_percent_of_the_relevance(gains: list[float], count: int) -> None:
    vae, x = _axes(gains)
    found = rule(analyze(vae, x, criteria=True), "ARD-VAE")
    assert found.count == count
    assert found.verdicts == tuple("active" if i < count else "inactive" for i in range(4))


def test_rules_that_need_a_decoder_say_when_there_was_none() -> None:
    found = rule(analyze(dense(), rows(), ablate="none", criteria=True), "ARD-VAE")
    assert (found.count, found.verdicts, found.note) == (None, (), "not measured: the decoder was not tried")
    dead = rule(analyze(dense(idle=range(6)), rows(), criteria=True), "ARD-VAE")
    assert (dead.count, dead.note) == (None, "the decoder moves with no latent")


def test_fondue_says_when_its_filter_would_go_on() -> None:
    vae, x = _axes([1, 1, 1, 1])
    found = rule(analyze(vae, x, criteria=True), "FONDUE, filter")
    assert (found.count, found.note) == (None, "none is passive: it would double the size and train again")


@pytest.mark.parametrize(("passive", "told"), [(0, "it would try a larger size"), (3, "this size is too large")])
def test_fondue_by_dimension_sees_the_noise_of_passive_latents(passive: int, told: str) -> None:
    vae, x = _axes([1, 1, 1, 1])
    logvar = torch.full((4,), -8.0)
    logvar[4 - passive :] = 0.0
    keep = (logvar < 0).float()
    vae.encode = lambda x, *_: Posterior(x[:, :4] * keep, logvar.expand(len(x), 4))
    note = rule(analyze(vae, x, criteria=True), "FONDUE, dimension").note
    assert note.endswith(told)
    assert note.startswith("data ")


def test_criteria_are_there_only_when_asked_for_and_survive_json() -> None:
    assert analyze(dense(), rows()).criteria is None
    analysis = analyze(dense(), rows(), criteria=True)
    assert Analysis.from_json(json.loads(json.dumps(analysis.to_json(), allow_nan=False))) == analysis
    assert [criterion.name for criterion in analysis.criteria.rules] == [
        "vaeprune", "active units", "posterior variance", "mean KL", "variable filter", "FONDUE, filter",
        "FONDUE, dimension", "ARD-VAE",
    ]  # fmt: skip
