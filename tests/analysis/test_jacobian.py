import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planted import MapVAE, PlainVAE, convolutional, dense, rows
from vaeprune.adapters import measuring
from vaeprune.analysis.jacobian import DecoderPull, decoder_pull
from vaeprune.data import MemoryRows
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE, Posterior


def pull_of(vae: VAE, x: Tensor, beta: float = 1.0) -> DecoderPull | str:
    with measuring(vae):
        return decoder_pull(vae, MemoryRows("rows", x), beta)


def by_autograd(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """diag(JᵀFJ) at z = mu, (N, D), and ‖∂x̂/∂z_i‖² (N, D), of a vector VAE."""
    pulls, squares = [], []
    for row in x:
        z = vae.encode(row[None]).mean.detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: vae.decode_parameters(z)[0].flatten(), z)[:, 0]
        of_mean = torch.autograd.functional.jacobian(lambda z: vae.decode(z)[0].flatten(), z)[:, 0]
        fisher = vae.likelihood.curvature(vae.decode_parameters(z)).flatten().detach()
        pulls.append((fisher[:, None] * jacobian.square()).sum(0))
        squares.append(of_mean.square().sum(0))
    return torch.stack(pulls), torch.stack(squares)


@pytest.mark.parametrize(
    "likelihood", [Likelihood(), Likelihood("bernoulli", "mean"), Likelihood("gaussian", "mean", 0.5)], ids=str
)
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_pull_and_its_prediction_are_those_of_autograd(likelihood: Likelihood, beta: float) -> None:
    vae, x = PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))).double(), rows(40, (5,)).double()
    if likelihood.output == "mean" and likelihood.kind == "bernoulli":
        vae.decoder.append(nn.Sigmoid().double())
    vae.likelihood = likelihood
    with torch.no_grad():
        vae.logvar.bias -= 4  # steps of a tenth of sigma are short where tanh bends
    found = pull_of(vae, x, beta)
    pull, squares = by_autograd(vae, x)
    assert isinstance(found, DecoderPull)
    assert found.rows == 40
    np.testing.assert_allclose(found.pull, pull.mean(0), rtol=2e-3)
    np.testing.assert_allclose(found.predicted, (1 / (1 + pull / beta)).mean(0), rtol=2e-3)
    np.testing.assert_allclose(found.sensitivity, squares.mean(0), rtol=2e-3)
    with torch.no_grad():
        np.testing.assert_allclose(found.measured, vae.encode(x).logvar.exp().mean(0), rtol=1e-9)


def test_the_best_linear_vae_has_the_posterior_variance_that_is_predicted() -> None:
    """x = g z + s eps with orthogonal columns: sigma² = s²/(g² + s²), Lucas et al. 2019; also in float32."""
    gains, s = torch.tensor([3.0, 1.0, 0.3, 0.0]), 0.5
    vae = PlainVAE(nn.Linear(4, 5))
    vae.likelihood = Likelihood("gaussian", "mean", s)
    with torch.no_grad():
        vae.decoder.weight.copy_(torch.eye(5)[:, :4] * gains)
    sigma2 = s**2 / (gains**2 + s**2)
    vae.encode = lambda x: Posterior(x[:, :4] * gains / (gains**2 + s**2), sigma2.log().expand(len(x), 4))
    found = pull_of(vae, rows(300, (5,)))
    np.testing.assert_allclose(found.predicted, sigma2.double(), rtol=1e-4)
    np.testing.assert_allclose(found.predicted, found.measured, rtol=1e-4)


def test_a_latent_map_has_the_mean_pull_of_its_positions() -> None:
    vae, x = MapVAE(nn.Conv2d(3, 2, 3, padding=1)).double(), rows(200, (2, 4, 4)).double()
    with torch.no_grad():
        z = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda z: vae.decode_parameters(z).flatten(), z)
        expected = jacobian[:, 0].square().sum(0).mean((1, 2))
    found = pull_of(vae, x)
    np.testing.assert_allclose(found.pull, expected, rtol=0.1)  # by random signs


class _Told(PlainVAE):
    """Its decoder stretches z by what the condition says: one number a row, or two of which the first counts."""

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        (told,) = condition
        return self.decoder(z * (told[:, :1] if told.dim() > 1 else told[:, None]))


@pytest.mark.parametrize("width", [1, 2])
def test_the_condition_goes_with_its_row(width: int) -> None:
    vae, x = _Told(nn.Linear(4, 5)).double(), rows(70, (5,)).double()
    stretch = 1 + torch.arange(70, dtype=torch.float64) / 10
    condition = stretch if width == 1 else torch.stack([stretch, -stretch], 1)
    with measuring(vae):
        found = decoder_pull(vae, MemoryRows("rows", x, condition))
    assert isinstance(found, DecoderPull)
    columns = vae.decoder.weight.detach().square().sum(0)
    np.testing.assert_allclose(found.pull, columns * stretch.square().mean(), rtol=1e-6)


def test_the_weight_is_that_of_the_elbo_unless_another_is_given() -> None:
    vae, x = PlainVAE().double(), rows(40, (5,)).double()
    with measuring(vae):
        assert torch.equal(decoder_pull(vae, MemoryRows("rows", x)).predicted, pull_of(vae, x, 1.0).predicted)


def test_convolutions_are_decoded_in_chunks_that_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = convolutional().double(), rows(40, (1, 17, 18)).double()
    whole = pull_of(vae, x)
    monkeypatch.setattr("vaeprune.analysis.jacobian.batch_rows", lambda _shape: 1)
    np.testing.assert_allclose(pull_of(vae, x).pull, whole.pull, rtol=1e-9)


class _Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).round()


class _Noisy(_Rounded):
    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + 0.1 * torch.randn(len(z), 5)


class _Broken(_Rounded):
    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) / 0.0


class _Numpy(_Rounded):
    def forward(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.linear(z).detach().numpy())


@pytest.mark.parametrize("decoder", [_Rounded, _Noisy])
def test_a_decoder_without_slopes_is_not_measured_and_it_is_said_why(decoder: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = pull_of(PlainVAE(decoder()), rows(200, (5,)))
    assert isinstance(found, str)
    assert found.startswith("the decoder is not smooth: slopes over a step and over two differ by ")


def test_a_decoder_that_gives_nan_is_not_measured() -> None:
    assert pull_of(PlainVAE(_Broken()), rows(40, (5,))) == "the decoder gives NaN or infinite outputs near the means"


def test_half_precision_is_too_coarse() -> None:
    found = pull_of(PlainVAE().bfloat16(), rows(40, (5,)).bfloat16())
    assert found == "the model computes in torch.bfloat16, too coarse for slopes"


def test_autograd_need_not_know_the_decoder() -> None:
    vae = PlainVAE(_Numpy())
    expected = vae.decoder.linear.weight.detach().double().square().sum(0)
    np.testing.assert_allclose(pull_of(vae, rows(100, (5,))).pull, expected, rtol=1e-3)


def test_a_dead_decoder_predicts_the_prior() -> None:
    vae = dense(idle=range(6))
    found = pull_of(vae, rows(60))
    assert found.predicted.tolist() == [1.0] * 6
    assert found.pull.tolist() == [0.0] * 6


def test_decodings_are_bounded_for_many_latents() -> None:
    decoded: list[int] = []
    vae = dense(idle=(), latents=200)
    decode = vae.decode_parameters
    vae.decode_parameters = lambda z, *c: (decoded.append(len(z)), decode(z, *c))[1]
    found = pull_of(vae, rows(1000))
    assert found.rows == (1 << 16) // (4 * 200)
    assert sum(decoded) <= (1 << 16) + 1000
    assert max(decoded) <= 4096


def test_decodings_of_wide_rows_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 100 decodings of 12 float32 values, four for each of six latents: four rows, but eight are the least."""
    for room, expected in ((100, 8), (240, 10), (2400, 100), (10**6, 256)):
        monkeypatch.setattr("vaeprune.analysis.jacobian._MOST_DECODED_BYTES", room * 12 * 4)
        assert pull_of(dense(), rows(1000)).rows == expected


def test_the_model_is_left_as_it_was() -> None:
    vae = dense().train()
    pull_of(vae, rows(40))
    assert all(module.training for module in vae.modules())
    assert all(p.grad is None for p in vae.parameters())
    assert math.isfinite(pull_of(vae, rows(40)).pull.sum())
