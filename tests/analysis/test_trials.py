import pytest
import torch
from torch import Tensor, nn

from planted import OwnVAE, dense, rows
from vaeprune.adapters import measuring
from vaeprune.analysis import Latent, Thresholds
from vaeprune.analysis.analysis import accumulate
from vaeprune.analysis.latents import latents_of
from vaeprune.analysis.trials import tried
from vaeprune.data import as_data
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

_WEAK = 0.08


class _Copies(OwnVAE):
    """x = (strong, weak): the last latent carries the strong one, all others are copies of the weak one.

    The decoder needs any one of them: it takes the mean of those near ±0.08, or 0 if none is. `heard`: how loud noise
    in a copy is.
    """

    input_shape = (2,)
    likelihood = Likelihood("gaussian", "mean", 0.05)

    def __init__(self, copies: int, heard: float = 0.0) -> None:
        super().__init__()
        self.copies, self.heard = copies, nn.Parameter(torch.tensor(heard))

    @property
    def latent_size(self) -> int:
        return self.copies + 1

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        mean = torch.cat([x[:, 1:].expand(-1, self.copies), x[:, :1]], 1)
        logvar = torch.zeros(self.copies + 1)
        logvar[-1] = -6.0
        return Posterior(mean, logvar.to(mean).expand_as(mean))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        copies = z[:, :-1]
        there = (copies.abs() - _WEAK).abs() < 0.01
        weak = (copies * there).sum(1) / there.sum(1).clamp_min(1)
        noise = self.heard * (copies * ~there).sum(1)
        return torch.stack([z[:, -1] + noise, weak], 1)


def judged(vae: OwnVAE, **limits: float) -> tuple[list[Latent], object, dict[str, int]]:
    x = torch.randn(6000, 2, generator=torch.Generator().manual_seed(3))
    x[:, 1] = _WEAK * x[:, 1].sign()
    sets, passes = as_data(x), dict.fromkeys(("trying active latents", "ablating", "ablating together"), 0)

    def count(what: str, more: int, total: int | None) -> None:
        passes[what] += more

    with measuring(vae):
        moments = accumulate(vae, sets.calibrate)
        moments.mean[:-1] = 0.0  # fixing a copy there takes it out of the decoder's mean
        latents, joint = tried(vae, sets, moments, latents_of(moments), "candidates", Thresholds(**limits), count)
    passes["ablating together"] //= sets.select.count
    return latents, joint, passes


def test_of_many_copies_all_but_one_may_go() -> None:
    """Each is free while another stays; together they cost 0.5 · 0.08²/0.05² = 1.28 nats."""
    latents, joint, passes = judged(_Copies(9))
    words = [latent.verdict for latent in latents]
    assert (words.count("inactive"), words.count("mixed"), words.count("active")) == (8, 1, 1)
    assert joint.cost == pytest.approx(0, abs=1e-6)
    (kept,) = (latent for latent in latents if latent.verdict == "mixed")
    assert kept.reason == "redundant: free alone, 1.28 nats with the others"
    assert passes["ablating together"] <= 1 + 4  # all of them, then halving


def test_noise_of_several_may_show_twice_as_much_as_that_of_one_and_no_more() -> None:
    """A copy alone moves the output by 0.06/√2 of a range near 6: 0.7%; k of them by √k as much, up to 2%: eight."""
    latents, joint, _ = judged(_Copies(9, heard=0.06))
    inactive = [latent for latent in latents if latent.verdict == "inactive"]
    assert all(latent.noise_reaction < 0.01 for latent in inactive)
    assert 3 <= len(inactive) <= 8
    assert 0.01 < joint.noise < 0.02
    assert any(latent.reason.startswith("redundant: unheard alone, with the other idle ones") for latent in latents)


class _Spare(OwnVAE):
    """x = (strong, weak): 0.45 of latent 0 and 0.55 of latent 2 are the weak one, 3 the strong one; 1 is not read."""

    input_shape = (2,)
    likelihood = Likelihood("gaussian", "mean", 0.144)

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.tensor(40.0))

    @property
    def latent_size(self) -> int:
        return 4

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        mean = torch.stack([x[:, 1], 0 * x[:, 1], x[:, 1], x[:, 0] / self.wide], 1)
        return Posterior(mean, torch.tensor([0.0, 0.0, 0.0, -6.0]).to(mean).expand_as(mean))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return torch.stack([z[:, 3] * self.wide, 0.45 * z[:, 0] + 0.55 * z[:, 2]], 1)


def test_of_latents_that_are_too_dear_together_the_dearest_stay_and_what_costs_nothing_goes() -> None:
    x = torch.randn(1500, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([40.0, 0.07])
    sets, vae = as_data(x), _Spare()
    with measuring(vae):
        moments = accumulate(vae, sets.calibrate)
        latents, joint = tried(vae, sets, moments, latents_of(moments), "all", Thresholds())
    costs = [latent.ablation_cost for latent in latents]
    dearest = max((0, 2), key=lambda i: costs[i])
    assert costs[1] == 0
    assert min(costs[0], costs[2]) > 0
    assert [latent.index for latent in latents if latent.verdict == "inactive"] == sorted({0, 1, 2} - {dearest})
    assert latents[dearest].reason.startswith("redundant: free alone, ")
    assert joint.cost == pytest.approx(min(costs[0], costs[2]))


def test_latents_that_are_free_together_are_tried_together_once() -> None:
    for ablate in ("all", "candidates"):
        sets, vae, done = as_data(rows()), dense(idle=[0, 1, 4]), []

        def count(what: str, more: int, total: int | None, done: list[int] = done) -> None:
            done.append(more if what == "ablating together" else 0)

        with measuring(vae):
            moments = accumulate(vae, sets.calibrate)
            latents, joint = tried(vae, sets, moments, latents_of(moments), ablate, Thresholds(), count)
        assert [latent.index for latent in latents if latent.verdict == "inactive"] == [0, 1, 4]
        assert joint.cost == 0
        assert sum(done) == sets.select.count


def test_where_nothing_is_idle_nothing_is_tried_together() -> None:
    sets, vae = as_data(rows()), dense(idle=[])
    with measuring(vae):
        moments = accumulate(vae, sets.calibrate)
        latents, joint = tried(vae, sets, moments, latents_of(moments), "all", Thresholds())
    assert joint is None
    assert "inactive" not in {latent.verdict for latent in latents}


def test_the_decoder_is_not_run_where_it_is_not_wanted() -> None:
    vae = _Copies(2)
    vae.decode_parameters = lambda *_: pytest.fail("decoded")
    sets = as_data(torch.rand(400, 2, generator=torch.Generator().manual_seed(0)))
    with measuring(vae):
        moments = accumulate(vae, sets.calibrate)
        latents, joint = tried(vae, sets, moments, latents_of(moments), "none", Thresholds())
    assert joint is None
    assert all(latent.ablation_cost is None and latent.reason for latent in latents)
