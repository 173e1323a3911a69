"""Fisher information and second moments, against what is known of models of one layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from planted import BERNOULLI, GAUSSIAN, OwnVAE, randomise
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior
from vaeprune.surgery.curvature import DRAWS, FitRows, Moments, fit_rows, measure
from vaeprune.surgery.probe import Subject

MEAN, LOGVAR, DECODER = ("encode", 0), ("encode", 1), ("decode", 0)
CALLS = (MEAN, LOGVAR, DECODER)
ROWS = 3000


class Linear(OwnVAE):
    """x (4) → heads of 3 latents; z → 5 parameters."""

    input_shape = (4,)

    def __init__(self, likelihood: Likelihood, inplace: bool = False) -> None:
        super().__init__()
        self.likelihood, self._inplace = likelihood, inplace
        self.mean, self.logvar, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 5)
        randomise(self, 0)
        self.double().eval()

    @property
    def latent_size(self) -> int:
        return 3

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        mean = self.mean(x)
        return Posterior(mean.mul_(1.0) if self._inplace else mean, self.logvar(x))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.out(z)


def rows(vae: OwnVAE, count: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, *vae.input_shape, generator=generator, dtype=torch.float64)


def measured(vae: OwnVAE, count: int = ROWS, chunk: int = 1 << 20) -> tuple[FitRows, dict[tuple[str, int], Moments]]:
    subject = Subject(vae, (rows(vae, 2),))
    batches = ((part,) for part in rows(vae, count).split(chunk))
    fit = fit_rows(subject, batches, count, 1, seed=0)
    return fit, measure(subject, fit, CALLS)


def test_gaussian_fisher_of_the_output_is_the_precision_and_exact_on_the_diagonal() -> None:
    _, found = measured(Linear(GAUSSIAN))
    fisher = found[DECODER].fisher
    assert torch.allclose(fisher.diagonal(), torch.full((5,), 1 / GAUSSIAN.scale**2).double(), rtol=1e-12)
    error = 1 / GAUSSIAN.scale**2 / math.sqrt(ROWS * DRAWS)
    assert (fisher - fisher.diagonal().diag()).abs().max() < 5 * error


def test_bernoulli_fisher_of_the_output_is_the_variance_of_the_pixels() -> None:
    vae = Linear(BERNOULLI)
    fit, found = measured(vae)
    with torch.no_grad():
        p = vae.decode(fit.all("decode")[0])
    fisher = found[DECODER].fisher
    assert torch.allclose(fisher.diagonal(), (p * (1 - p)).mean(0), rtol=1e-12)
    assert (fisher - fisher.diagonal().diag()).abs().max() < 5 * 0.25 / math.sqrt(ROWS * DRAWS)


def test_fisher_of_the_means_is_the_kls_and_the_decoders() -> None:
    vae = Linear(GAUSSIAN)
    _, found = measured(vae)
    w = vae.out.weight.detach()
    expected = torch.eye(3).double() + w.T @ w / GAUSSIAN.scale**2
    assert torch.allclose(found[MEAN].fisher, expected, atol=0.06 * float(expected.max()))


def test_fisher_of_the_logvars_is_the_kls_and_the_samples() -> None:
    """z depends on logvar by ½ σ ε, so that side has E[(½ σ ε)²] of the decoder's; the KL has ½ σ²."""
    vae = Linear(GAUSSIAN)
    fit, found = measured(vae)
    with torch.no_grad():
        posterior = vae.encode(*fit.all("encode"))
    spread = 0.5 * torch.cat(fit.noise) * (0.5 * posterior.logvar).exp()
    w = vae.out.weight.detach()
    expected = (0.5 * posterior.logvar.exp()).mean(0).diag() + spread.T @ spread / ROWS * (w.T @ w) / GAUSSIAN.scale**2
    assert torch.allclose(found[LOGVAR].fisher, expected, atol=0.06 * float(expected.max()))


def test_second_moments_are_those_of_what_is_read() -> None:
    vae = Linear(GAUSSIAN)
    fit, found = measured(vae)
    for call, x in ((MEAN, fit.all("encode")[0]), (DECODER, fit.all("decode")[0])):
        seen = found[call]
        assert (seen.places, seen.taps, seen.count) == (1, 1, len(x))
        assert torch.allclose(seen.gram, x.T @ x)
        assert torch.allclose(seen.total, x.sum(0))
        assert torch.allclose(seen.covariance(), torch.cov(x.T, correction=0))


def test_squares_are_the_fishers_diagonal_row_by_row() -> None:
    vae = Linear(BERNOULLI)
    fit, found = measured(vae, 40)
    with torch.no_grad():
        p = vae.decode(fit.all("decode")[0])
    assert torch.allclose(torch.cat(found[DECODER].squares), p * (1 - p))


def test_chunks_add_up_to_the_whole() -> None:
    vae = Linear(GAUSSIAN)
    fit, whole = measured(vae, 90)
    parted, parts = measured(vae, 90, chunk=17)
    assert len(fit.chunks) == 1
    assert len(parted.chunks) == 6
    assert torch.allclose(parts[MEAN].gram, whole[MEAN].gram)
    assert parts[MEAN].count == 90
    assert sum(map(len, parts[MEAN].squares)) == 90
    assert torch.allclose(parts[DECODER].fisher.diagonal(), whole[DECODER].fisher.diagonal())


def test_fit_rows_stop_at_the_most_and_hold_a_share_of_prior_samples() -> None:
    subject = Subject(Linear(GAUSSIAN), (torch.rand(2, 4),))
    fit = fit_rows(subject, ((part,) for part in rows(subject.vae).split(30)), 100, 1, seed=0)
    assert [len(chunk[0]) for chunk in fit.chunks] == [30, 30, 30, 10]
    assert fit.rows == {"encode": 100, "decode": 100 + 8 + 8 + 8 + 3}


def test_fit_rows_are_small_where_rows_are_large() -> None:
    subject = Subject(Linear(GAUSSIAN), (torch.rand(2, 4),))
    fit = fit_rows(subject, iter([(rows(subject.vae, 20),)]), 20, 1 << 23, seed=0)
    assert {len(chunk[0]) for chunk in fit.chunks} == {4}
    assert torch.equal(fit.all("encode")[0], rows(subject.vae, 20))


def test_a_result_changed_in_place_is_no_obstacle() -> None:
    _, plain = measured(Linear(GAUSSIAN), 50)
    _, found = measured(Linear(GAUSSIAN, inplace=True), 50)
    assert torch.allclose(found[MEAN].fisher, plain[MEAN].fisher)


def test_the_model_is_left_without_gradients() -> None:
    subject = Subject(Linear(GAUSSIAN), (torch.rand(2, 4),))
    before = {key: value.clone() for key, value in subject.vae.state_dict().items()}
    fit = fit_rows(subject, iter([(rows(subject.vae, 20),)]), 20, 1, seed=0)
    measure(subject, fit, CALLS)
    assert all(p.grad is None for p in subject.vae.parameters())
    assert all(torch.equal(value, before[key]) for key, value in subject.vae.state_dict().items())


@pytest.mark.parametrize(("likelihood", "within"), [(GAUSSIAN, 0.05), (BERNOULLI, 0.3)], ids=["gaussian", "bernoulli"])
def test_prediction_is_what_a_small_change_costs(likelihood: Likelihood, within: float) -> None:
    """½ E[δᵀFδ] of a small change of the decoder's weights is the rise of −log p of what the decoder expects."""
    vae = Linear(likelihood)
    fit, found = measured(vae, 2000)
    z = fit.all("decode")[0]
    change = 1e-3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        logits = vae.decode_parameters(z)
        p = vae.likelihood.mean(logits)
        rise = (vae.likelihood.nats(p, logits + z @ change.T) - vae.likelihood.nats(p, logits)).mean()
    seen = found[DECODER]
    predicted = 0.5 * (seen.fisher @ change * (change @ seen.gram / seen.count)).sum()
    assert float(predicted) == pytest.approx(float(rise), rel=within)
