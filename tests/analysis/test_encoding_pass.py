from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planted import convolutional, dense, rows
from vaeprune.adapters import measuring
from vaeprune.analysis import Moments, Thresholds, analyze
from vaeprune.analysis import encoding_pass as passes
from vaeprune.analysis.encoding_pass import How, accumulate, until_certain
from vaeprune.analysis.latents import latents_of
from vaeprune.analysis.precision import Precision, effect_of_bf16
from vaeprune.analysis.verdict import clear
from vaeprune.data import MemoryRows
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior


class Lending(nn.Module):
    """An encoder that hands out the memory of the rows themselves: mean and logvar are columns of x."""

    latent_size, latent_shape, input_shape, likelihood = 2, (2,), (4,), Likelihood("gaussian", "mean")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def network(self) -> nn.Module:
        return self

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(x[:, :2], x[:, 2:])


def lent(count: int, centre: float = 0.0) -> MemoryRows:
    return MemoryRows("rows", centre + torch.randn(count, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("batch", [1, 7, 64, 5000])
@pytest.mark.parametrize("pooled", [1, 30, 1 << 16])
def test_batches_and_pools_of_any_size_give_the_moments_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, batch: int, pooled: int
) -> None:
    monkeypatch.setattr(passes, "batch_rows", lambda *_: batch)
    monkeypatch.setattr(passes, "_POOLED_VALUES", pooled)
    data = lent(501, centre=3.0)
    (x,) = data.tensors
    with measuring(Lending()):
        found, expected = accumulate(Lending(), data), Moments.of(Posterior(x[:, :2], x[:, 2:]))
    assert found.count == 501
    for name in ("mean", "comoment", "low", "high", "kl_high", "used", "variance", "variance_error"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=0)
    for a, b in zip((*found.kl, *found.sigma2), (*expected.kl, *expected.sigma2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_many_small_batches_make_one_set_of_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging costs as much as a batch of a few latents; where they are many, a batch is enough by itself."""
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 64)
    with measuring(Lending()):
        assert [moments.count for moments in passes.running(Lending(), lent(5000), None, How())] == [5000]
        monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
        assert len(list(passes.running(Lending(), lent(5000), None, How()))) == 79


def test_memory_that_is_used_again_for_the_next_batch_is_not_kept() -> None:
    x = torch.randint(0, 256, (3000, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    class Reused(MemoryRows):
        def batches(self, size, dtype=torch.float32, device=None):
            room = torch.empty(100, 4)
            for part in self.tensors[0].split(100):
                yield (torch.div(part, 255, out=room[: len(part)]),)

    with measuring(Lending()):
        found, expected = accumulate(Lending(), Reused("rows", x)), accumulate(Lending(), MemoryRows("rows", x))
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.comoment, expected.comoment, rtol=1e-12, atol=0)


def test_moments_far_from_zero_are_those_of_long_doubles() -> None:
    x = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, :2] = x[:, :2] * torch.tensor([1.0, 0.1]) + 1e6
    exact = x.numpy().astype(np.longdouble)
    c = exact[:, :2] - exact[:, :2].mean(0)
    with measuring(Lending().double()):
        found = accumulate(Lending().double(), MemoryRows("rows", x))
    np.testing.assert_allclose(found.variance.numpy(), (c**2).mean(0).astype(float), rtol=1e-9)
    np.testing.assert_allclose(found.powers[4, 0].numpy(), (c**4).sum(0).astype(float), rtol=1e-9)
    third = (abs(c) ** 3).sum(0).astype(float)
    np.testing.assert_allclose(found.powers[3, 0].numpy() / third, (c**3).sum(0).astype(float) / third, atol=1e-9)


def test_moments_of_a_convolutional_vae_are_those_of_its_own_encoder() -> None:
    vae = convolutional()
    x = rows(300, vae.input_shape)
    with measuring(vae):
        found, expected = accumulate(vae, MemoryRows("rows", x)), Moments.of(vae.encode(x))
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=1e-6)


# ---- without co-moments


def test_without_comoments_everything_else_is_the_same() -> None:
    vae, data = dense(), rows(400)
    whole, less = analyze(vae, data), analyze(vae, data, how=How(comoments=False))
    assert less.latents == whole.latents
    assert whole.self_checks.aggregate.effective_rank is not None
    assert less.self_checks.aggregate.effective_rank is None


# ---- until certain


def test_reading_stops_at_the_first_look_that_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_FIRST_LOOK", 256)
    monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 64)
    vae = dense((1, 4))
    data = MemoryRows("rows", rows(5000))
    with measuring(vae):
        moments, early = until_certain(vae, data, Thresholds(), None, How())
    assert early
    assert moments.count == 256
    assert all(clear(latent, Thresholds()) for latent in latents_of(moments))


def test_a_latent_on_its_limit_is_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_FIRST_LOOK", 256)
    monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 64)
    data = lent(5000)  # every variance is 1
    with measuring(Lending()):
        moments, early = until_certain(Lending(), data, Thresholds(variance=1.0), None, How())
    assert not early
    assert moments.count == 5000


def test_one_latent_on_its_limit_is_enough_to_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_FIRST_LOOK", 256)
    monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 64)
    (x,) = lent(2000).tensors
    wide = x.clone()
    wide[:, 0] *= 5  # variances 25 and 1
    for data, limit, early in ((wide, 1.0, False), (wide, 25.0, False), (wide, 5.0, True)):
        with measuring(Lending()):
            moments, stopped = until_certain(
                Lending(), MemoryRows("rows", data), Thresholds(variance=limit), None, How()
            )
        assert stopped is early
        assert moments.count == (256 if early else 2000)


def test_it_looks_again_when_twice_as_many_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look that is not clear doubles the next: after 64, 128, 256, 512 rows."""
    looks = []
    monkeypatch.setattr(passes, "_FIRST_LOOK", 64)
    monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 32)
    monkeypatch.setattr(passes, "latents_of", lambda moments: (looks.append(moments.count), latents_of(moments))[1])
    with measuring(Lending()):
        until_certain(Lending(), lent(1000), Thresholds(variance=1.0), None, How())
    assert looks == [64, 128, 256, 512]


def test_analyze_says_how_many_rows_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_FIRST_LOOK", 128)
    monkeypatch.setattr(passes, "_POOLED_VALUES", 1)
    monkeypatch.setattr(passes, "batch_rows", lambda *_: 64)
    analysis = analyze(dense((1, 4)), rows(2000), certain=True, ablate="none")
    assert analysis.stopped_early
    assert 128 <= analysis.n_samples < 300
    assert analysis.to_json()["stopped_early"] is True
    assert type(analysis).from_json(analysis.to_json()) == analysis
    assert not analyze(dense((1, 4)), rows(2000), ablate="none").stopped_early


def test_intervals_that_reach_a_limit_when_half_as_wide_again_are_not_clear() -> None:
    (latent,) = latents_of(Moments.of(Posterior(*(torch.randn(2, 300, 1, generator=torch.Generator().manual_seed(0))))))
    low, high = latent.variance_ci95
    reach = 1.5 * (high - latent.variance)
    for limit, expected in ((high * 1.001, False), (latent.variance + reach * 1.001, True), (low, False)):
        assert clear(latent, Thresholds(variance=limit, posterior_variance=50.0)) == expected


# ---- bfloat16


def test_the_effect_of_bfloat16_is_measured_on_the_same_rows() -> None:
    vae, data = dense((1, 4)), MemoryRows("rows", rows(600))
    with measuring(vae):
        found = effect_of_bf16(vae, data, Thresholds())
        exact = latents_of(accumulate(vae, data))
        with torch.autocast("cpu", torch.bfloat16):
            moments = Moments.of(vae.encode(data.tensors[0]))
    rough = latents_of(moments)
    assert found.rows == 600
    assert found.changed == ()
    assert found.variance == pytest.approx(
        max(abs(a.variance - b.variance) for a, b in zip(exact, rough, strict=True)), rel=1e-3
    )
    assert 0 < found.variance < 0.05


def test_a_verdict_that_bfloat16_changes_is_named() -> None:
    vae, data = dense((1, 4)), MemoryRows("rows", rows(600))
    with measuring(vae):
        exact = latents_of(accumulate(vae, data))
        off = latents_of(accumulate(vae, data, how=How(bf16=True)))
        chosen = max((0, 2, 3, 5), key=lambda i: abs(exact[i].variance_ci95[0] / off[i].variance_ci95[0] - 1))
        limit = (exact[chosen].variance_ci95[0] + off[chosen].variance_ci95[0]) / 2
        found = effect_of_bf16(vae, data, Thresholds(variance=limit))
    assert chosen in found.changed
    assert f"those of latents {', '.join(map(str, found.changed))} differ" in str(found)
    assert Precision.from_json({"rows": 1, "changed": [2], "variance": 0.5, "posterior_variance": 0.1}) == Precision(
        1, (2,), 0.5, 0.1
    )


def test_bfloat16_is_for_the_pass_alone_and_on_request() -> None:
    vae, data = dense((1, 4)), rows(600)
    plain, rough = analyze(vae, data), analyze(vae, data, how=How(bf16=True))
    assert plain.precision is None
    assert rough.precision is not None
    assert rough.latents[0].variance != plain.latents[0].variance
    assert rough.latents[0].variance == pytest.approx(plain.latents[0].variance, rel=0.05)
    assert type(rough).from_json(rough.to_json()) == rough


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_moments_from_a_gpu_are_those_from_the_cpu() -> None:
    vae, data = dense((1, 4)), MemoryRows("rows", rows(6000))
    with measuring(vae):
        expected = accumulate(vae, data)
    vae = vae.to("cuda")
    with measuring(vae):
        found = accumulate(vae, data)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=1e-6)
