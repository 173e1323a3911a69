"""Numbers of tiny models, held against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from planted import MapVAE, OwnVAE, PlainVAE, dense, rows
from vaeprune.analysis import symptoms
from vaeprune.analysis.symptoms import Symptoms, examine
from vaeprune.data import MemoryRows, as_data
from vaeprune.data.rows import StreamedRows
from vaeprune.data.sources import MemorySource
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior


class Fixed(OwnVAE):
    """Encodes (a·x, sigma²) and decodes b·z + c; two values of a row, two latents."""

    input_shape = (2,)

    def __init__(self, a: float = 0.0, b: float = 0.0, c: float = 0.0, sigma2: float = 1.0, kind: str = "gaussian"):
        super().__init__()
        self.likelihood = Likelihood(kind, "mean")
        self.a, self.b, self.c, self.sigma2 = a, b, c, sigma2
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def latent_size(self) -> int:
        return 2

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(self.a * x, torch.full_like(x, math.log(self.sigma2)))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.b * z + self.c


def normal(count: int = 2000, shift: float = 0.0) -> Tensor:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * torch.tensor([2.0, 0.5]) + shift


def seen(vae: OwnVAE, x: Tensor) -> Symptoms:
    found = examine(vae, as_data(x).calibrate)
    assert found is not None
    return found


def test_constant_is_the_mean_row_and_floor_the_row_itself() -> None:
    x = normal(shift=3.0)
    found = seen(Fixed(), x)
    calibrated = torch.cat([b for b, *_ in as_data(x).calibrate.batches(64, torch.float64)])
    spread = calibrated.var(0, correction=0).sum().item()
    assert found.rows == len(calibrated)
    assert found.floor == pytest.approx(math.log(2 * math.pi))
    assert found.constant == pytest.approx(0.5 * spread + math.log(2 * math.pi))
    assert found.span == pytest.approx(0.5 * spread)


def test_cost_is_that_of_the_elbo_over_the_constant() -> None:
    found = seen(Fixed(sigma2=0.5), normal())  # decodes 0, near the mean row
    kl = 2 * 0.5 * (0.5 - math.log(0.5) - 1)
    assert found.cost == pytest.approx(kl, abs=0.01)
    assert found.sampled == pytest.approx(found.at_mean)


@pytest.mark.parametrize("count", [2, 3, 300])
def test_the_error_of_the_cost_is_the_standard_error_of_its_rows(count: int) -> None:
    """The decoder gives 0 whatever z is, and the KL is the same in all rows."""
    x = normal(count)
    found = examine(Fixed(sigma2=0.5), MemoryRows("rows", x))
    costs = 0.5 * (x.square() - (x - x.mean(0)).square()).sum(1)
    assert found is not None
    assert found.cost_error == pytest.approx(costs.std().item() / math.sqrt(count))


def test_a_single_row_leaves_the_cost_open() -> None:
    found = examine(Fixed(sigma2=0.5), MemoryRows("rows", normal(1)))
    assert found is not None
    assert found.cost_error == math.inf
    assert found.leading_eigenvalue == 0
    assert not found.worse_than_constant


@pytest.mark.parametrize(("shift", "worse"), [(0.0, False), (2.0, True)])
def test_an_output_beside_the_mean_row_is_worse_than_it(shift: float, worse: bool) -> None:
    assert seen(Fixed(c=shift), normal()).worse_than_constant is worse


def test_leading_eigenvalue_is_that_of_the_covariance_over_the_likelihoods_variance() -> None:
    vae = Fixed()
    assert seen(vae, normal(4000)).leading_eigenvalue == pytest.approx(4, rel=0.1)
    vae.likelihood = Likelihood("gaussian", "mean", 0.5)
    assert seen(vae, normal(4000)).leading_eigenvalue == pytest.approx(16, rel=0.1)


def test_leading_eigenvalue_of_binary_rows_is_that_of_their_correlations() -> None:
    coin = (torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    found = examine(Fixed(c=0.5, kind="bernoulli"), MemoryRows("coins", coin.expand(-1, 2).clone()))
    assert found is not None
    assert found.leading_eigenvalue == pytest.approx(2, rel=0.1)


def test_few_rows_of_noise_do_not_seem_to_have_structure() -> None:
    noise = torch.randn(150, 5, generator=torch.Generator().manual_seed(0))
    assert seen(PlainVAE(), noise).leading_eigenvalue < 1.5


@pytest.mark.parametrize(("a", "b", "sigma2"), [(0.5, 1.0, 0.5), (0.5, 1.0, 0.2), (0.2, 2.0, 0.1)])
def test_the_weight_of_a_linear_decoder_is_that_of_its_slopes(a: float, b: float, sigma2: float) -> None:
    """g = b(bz − x): variances rest at b²σ²/(1 − σ²), means at b(1 − ab)/a."""
    found = seen(Fixed(a=a, b=b, sigma2=sigma2), normal()).beta
    assert found is not None
    assert found.by_variance.value == pytest.approx(b**2 * sigma2 / (1 - sigma2), rel=0.05)
    assert found.by_mean.value == pytest.approx(b * (1 - a * b) / a, rel=1e-9)
    assert len(found.latents) == 2


def test_wide_rows_are_run_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, sizes = Fixed(a=1.0, b=1.0), []
    encode = vae.encode
    vae.encode = lambda x, *c: (sizes.append(len(x)), encode(x, *c))[1]
    for room, size in ((64, 32), (7, 3), (1, 2)):
        monkeypatch.setattr(symptoms, "_BATCH_VALUES", room)
        examine(vae, MemoryRows("rows", normal(66)))
        assert max(sizes) == size
        assert sum(sizes) == 66
        sizes.clear()


@pytest.mark.parametrize(("b", "heard"), [(0.0, False), (1e-3, True)])
def test_whether_the_output_moves_when_z_does(b: float, heard: bool) -> None:
    assert seen(Fixed(b=b, c=1.0), normal()).heard is heard


def test_a_decoder_that_only_reads_means_is_worse_at_samples() -> None:
    found = seen(Fixed(a=0.1, b=10.0), normal())  # sigma² = 1 stays
    assert found.reconstructs
    assert found.unsampled
    assert not seen(Fixed(a=1.0, b=1.0, sigma2=0.01), normal()).unsampled


def test_rows_of_a_sorted_file_are_taken_from_all_of_it() -> None:
    x = normal(20_000).sort(0).values
    found = seen(Fixed(), x)
    assert found.rows <= 2 * 2048
    assert found.constant - found.floor == pytest.approx(0.5 * 4.25, rel=0.1)


class InPlace(PlainVAE):
    """A decoder that changes what it computed, which autograd cannot go back through."""

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        h = torch.exp(z)
        h += 1.0
        return self.decoder(h)


def test_a_decoder_that_changes_its_values_in_place_is_measured_but_for_the_weight() -> None:
    found = seen(InPlace(), torch.rand(200, 5))
    assert found.beta is None
    assert found.heard
    assert found.sampled > found.floor


def test_maps_count_their_positions() -> None:
    found = seen(MapVAE(), torch.rand(200, 2, 4, 4))
    assert (found.positions, found.pixels) == (16, 32)
    assert found.beta is not None
    assert len(found.beta.latents) == 3


def test_latents_that_are_not_finite_are_left_to_the_moments() -> None:
    vae = dense()
    with torch.no_grad():
        vae.mean_head.bias[0] = math.nan
    assert examine(vae, as_data(rows()).calibrate) is None


def test_of_very_many_rows_short_runs_from_all_over_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symptoms, "_SOON_READ", 999)
    monkeypatch.setattr(symptoms, "_RUNS", 10)
    monkeypatch.setattr(symptoms, "_MOST_ROWS", 50)
    x = torch.arange(1000.0).view(-1, 1).expand(-1, 2).contiguous()
    (found,) = symptoms._thinned(Fixed(), StreamedRows(MemorySource("rows", x), 0, None))
    assert found[:, 0].tolist() == [100 * run + i for run in range(10) for i in range(5)]
    monkeypatch.setattr(symptoms, "_SOON_READ", 1000)
    (found,) = symptoms._thinned(Fixed(), MemoryRows("rows", x))
    assert len({*torch.diff(found[:, 0]).tolist()}) == 1, "evenly from the whole"


def test_of_very_many_rows_as_many_are_looked_at_as_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symptoms, "_SOON_READ", 9_999)
    stream = StreamedRows(MemorySource("rows", torch.rand(10_000, 2)), 0, None)
    (found,) = symptoms._thinned(Fixed(), stream)
    assert len(found) == symptoms._MOST_ROWS


@pytest.mark.parametrize("count", [50, 3_000, 4_096, 4_097, 20_000, 70_001])
def test_rows_in_memory_are_thinned_to_those_that_are_kept_of_a_stream(count: int) -> None:
    x = torch.arange(2.0 * count).view(count, 2)
    (memory,), (stream,) = (
        symptoms._thinned(Fixed(), rows)
        for rows in (MemoryRows("rows", x), StreamedRows(MemorySource("rows", x), 0, None))
    )
    assert torch.equal(memory, stream)
