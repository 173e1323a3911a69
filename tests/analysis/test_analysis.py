import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planted import (
    BERNOULLI,
    GAUSSIAN,
    IDLE_MEAN,
    MapVAE,
    OwnVAE,
    PlainVAE,
    assert_untouched,
    convolutional,
    dense,
    rows,
    snapshot,
)
from vaeprune.adapters import measuring
from vaeprune.analysis import Analysis, Thresholds, analyze
from vaeprune.analysis.ablation import reactions
from vaeprune.data import as_data
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource
from vaeprune.errors import DataError, ModelError, UsageError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

# ---- verdicts on planted latents


@pytest.mark.parametrize("likelihood", [BERNOULLI, GAUSSIAN], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("ablate", ["all", "candidates", "none"])
def test_exactly_the_planted_latents_are_inactive(likelihood: Likelihood, ablate: str) -> None:
    analysis = analyze(dense(idle=[1, 4], likelihood=likelihood, listening=1e-4), rows(), ablate=ablate)
    assert analysis.indices("inactive") == [1, 4]
    assert (analysis.advice.action, analysis.advice.latent_size) == ("shrink", 4)


def test_exactly_the_planted_latents_of_a_convolutional_network_are_inactive() -> None:
    assert analyze(convolutional(idle=[0, 2]), rows(200, (1, 17, 18))).indices("inactive") == [0, 2]


def test_figures_of_a_latent_are_those_of_the_posterior_on_the_calibrate_rows() -> None:
    vae = dense().double()
    sets = as_data(rows().double())
    x = torch.cat([x for x, *_ in sets.calibrate.batches(64, torch.float64)])
    with torch.no_grad():
        p = vae.encode(x)
    analysis = analyze(vae, sets)
    assert analysis.n_samples == len(x)
    for i, latent in enumerate(analysis.latents):
        mean, sigma2 = p.mean[:, i], p.logvar[:, i].exp()
        kl = 0.5 * (mean**2 + sigma2 - p.logvar[:, i] - 1)
        found = (latent.index, latent.mean, latent.variance, latent.posterior_variance, latent.kl, latent.kl_max)
        expected = (i, mean.mean(), mean.var(correction=0), sigma2.mean(), kl.mean(), kl.max())
        assert found == pytest.approx(tuple(map(float, expected)), rel=1e-9, abs=1e-15)
        assert latent.largest_deviation == pytest.approx((mean - mean.mean()).abs().max().item(), abs=1e-15)


def test_an_idle_latent_has_the_planted_figures() -> None:
    latent = analyze(dense(idle=[1]), rows()).latents[1]
    assert latent.mean == pytest.approx(IDLE_MEAN, rel=1e-6)
    assert latent.variance == pytest.approx(0, abs=1e-12)
    assert latent.posterior_variance == 1
    assert (latent.ablation_cost, latent.noise_reaction) == (0, 0)
    assert latent.variance_law == pytest.approx(1)


def test_the_decoder_is_tried_on_the_select_rows() -> None:
    vae = dense().double()
    sets = as_data(rows().double())
    analysis = analyze(vae, sets, ablate="all")
    means = torch.tensor([latent.mean for latent in analysis.latents], dtype=torch.float64)
    with measuring(vae):
        expected = reactions(vae, sets.select, means, [[i] for i in range(6)], sets.seed)
    for latent, reaction in zip(analysis.latents, expected, strict=True):
        found = (latent.ablation_cost, latent.ablation_cost_ci95, latent.noise_reaction)
        assert found == (reaction.cost, reaction.cost_ci95, reaction.noise)


def _own_axes(count: int = 4000) -> tuple[PlainVAE, Tensor]:
    """x (5) = z (4) and noise by columns of the identity: each latent is worth 0.5 · 0.5² / 0.1² = 12.5 nats."""
    vae = PlainVAE(nn.Linear(4, 5, bias=False))
    vae.likelihood = Likelihood("gaussian", "mean", 0.1)
    vae.encode = lambda x, *_: Posterior(x[:, :4], torch.full_like(x[:, :4], -4.0))
    with torch.no_grad():
        vae.decoder.weight.copy_(torch.eye(5)[:, :4])
    return vae, 0.5 * torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


def test_candidates_are_tried_on_all_rows_and_what_is_plainly_active_on_few() -> None:
    vae, x = _own_axes()
    sizes: dict[str, int] = {}

    def count(stage: str, more: int, total: int | None) -> None:
        sizes[stage] = sizes.get(stage, 0) + more

    few, all_ = (analyze(vae, x, ablate=ablate, progress=count) for ablate in ("candidates", "all"))
    assert few.indices("active") == all_.indices("active") == [0, 1, 2, 3]
    widths = [[la.ablation_cost_ci95[1] - la.ablation_cost_ci95[0] for la in a.latents] for a in (few, all_)]
    assert all(a > 1.2 * b for a, b in zip(*widths, strict=True))
    assert [la.ablation_cost for la in all_.latents] == pytest.approx([12.5] * 4, rel=0.15)
    assert sizes["trying active latents"] == 256
    assert sizes["ablating"] == as_data(x).select.count


def test_what_looks_active_to_the_encoder_alone_must_be_read_by_the_decoder() -> None:
    vae, x = _own_axes()
    with torch.no_grad():
        vae.decoder.weight[:, 2] = 0
    for ablate in ("candidates", "all"):
        latent = analyze(vae, x, ablate=ablate).latents[2]
        assert latent.verdict == "mixed"
        assert latent.reason.startswith("encoder-live, decoder-dead: its KL is 1.6 nats, and fixing it costs 0 nats")


def test_an_active_latent_costs_reconstruction_and_one_that_does_harm_is_not_active() -> None:
    vae, x = _own_axes()
    with torch.no_grad():
        vae.decoder.weight[1, 1] = -1.0
    latent = analyze(vae, x).latents[1]
    assert latent.verdict == "mixed"
    gain = float(latent.reason.removeprefix("harmful: fixing it makes a row ").split()[0])
    assert gain == pytest.approx(3 * 12.5, rel=0.15)


def test_a_rare_mode_is_mixed_with_the_share_of_rows_that_use_it() -> None:
    """1% of rows use latent 3, at 3; its variance is 0.09, and its decoder's column is worth 0.09/2/2² = 0.011 nats."""
    vae, x = _own_axes()
    vae.likelihood = Likelihood("gaussian", "mean", 2.0)
    x[:, 3] = 3.0 * (torch.rand(len(x), generator=torch.Generator().manual_seed(2)) < 0.01)
    vae.encode = lambda x, *_: Posterior(x[:, :4], torch.where(x[:, 3:4] > 1, -2.0, -0.02).expand(-1, 4))
    latent = analyze(vae, x).latents[3]
    assert latent.verdict == "mixed"
    assert latent.reason.startswith("rare: used by ")
    assert "% of the data, where its KL reaches 5.1 nats; worth 0.0" in latent.reason
    assert float(latent.reason.split()[3].rstrip("%")) == pytest.approx(100 * latent.used_share, rel=0.05)
    assert latent.used_share_ci95[0] < 0.01 < latent.used_share_ci95[1]


def test_verdicts_without_ablation_are_provisional() -> None:
    analysis = analyze(dense(idle=[1]), rows(), ablate="none")
    assert analysis.latents[1].reason == "provisional: the decoder was not tried"
    assert all(latent.ablation_cost is None for latent in analysis.latents)
    assert analysis.joint_ablation_cost is None
    assert analysis.joint_ablation_cost_ci95 is None


def test_an_idle_latent_the_decoder_listens_to_is_mixed() -> None:
    analysis = analyze(dense(idle=[1], listening=3.0), rows())
    assert analysis.latents[1].verdict == "mixed"
    assert analysis.latents[1].reason.startswith("encoder-dead, decoder-live: noise in it moves the output by")


def test_a_collapsed_posterior_is_diagnosed() -> None:
    advice = analyze(dense(idle=range(6)), rows()).advice
    assert (advice.action, advice.latent_size) == ("retrain", 6)


# ---- few rows, few latents


@pytest.mark.parametrize(("idle", "verdict"), [([0], "inactive"), ([], "mixed")])
def test_a_single_latent_is_judged(idle: list[int], verdict: str) -> None:
    analysis = analyze(dense(idle=idle, latents=1), rows(), criteria=True)
    assert [latent.verdict for latent in analysis.latents] == [verdict]
    assert analysis.self_checks.aggregate.effective_rank is None
    assert analysis.advice.action == ("retrain" if idle else "keep")


def test_more_latents_than_rows_are_judged_each_and_the_rank_is_called_too_low() -> None:
    vae = dense(idle=range(10, 100), latents=100)
    with torch.no_grad():
        vae.logvar_head.weight[:10] = vae.logvar_head.bias[:10] = 0  # sigma² = 1: weak, whatever their variance
    analysis = analyze(vae, rows(130))
    assert analysis.n_samples < 100
    assert analysis.indices("inactive") == list(range(10, 100))
    assert "too low with so few rows" in analysis.self_checks.aggregate.line()
    assert analysis.unseen_share == 3 / analysis.n_samples


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, "data: got 1 row, which leaves none to check the result on; give more rows"),
        (40, "expected at least 30, 20"),
    ],
)
def test_too_few_rows_are_refused(count: int, told: str) -> None:
    with pytest.raises(DataError) as error:
        analyze(dense(), rows(count))
    assert told in str(error.value)


def test_constant_rows_are_refused_and_constant_samples_beside_others_are_not() -> None:
    constant = torch.full((400, 12), 0.5)
    with pytest.raises(DataError, match="got 400 rows that are all alike"):
        analyze(dense(), constant)
    sets = part("data", MemorySource("same", constant), MemorySource("others", rows()), 0, None)
    analysis = analyze(dense(idle=[1, 4]), sets)
    assert analysis.indices("inactive") == [1, 4]
    assert analysis.indices("active") == []


# ---- redundant latents


class _Redundant(OwnVAE):
    """x = (strong, weak): latent 2 carries the strong one; 0 and 1 both carry the weak one, and are averaged.

    Without one of the two the error is half the weak signal, without both it is all of it: four times the cost.
    """

    input_shape = (2,)
    likelihood = Likelihood("gaussian", "mean", 0.144)

    def __init__(self, twins: float = 1.0) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.tensor(20.0))
        self.twins = twins

    @property
    def latent_size(self) -> int:
        return 3

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        mean = torch.stack([x[:, 1] * self.twins, x[:, 1], x[:, 0] / self.wide], 1)
        return Posterior(mean, torch.tensor([0.0, 0.0, -6.0]).to(mean).expand_as(mean))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return torch.stack([z[:, 2] * self.wide, (z[:, 0] / self.twins + z[:, 1]) / 2], 1)


def _weak_and_strong() -> Tensor:
    x = torch.randn(1500, 2, generator=torch.Generator().manual_seed(3))
    return x * torch.tensor([20.0, math.sqrt(0.005)])


def test_of_two_latents_that_are_free_alone_and_dear_together_one_is_kept() -> None:
    alone = 0.5 * 0.005 / 4 / 0.144**2
    analysis = analyze(_Redundant(), _weak_and_strong())
    first, second, third = analysis.latents
    assert third.verdict == "active"
    assert first.ablation_cost == pytest.approx(alone, rel=0.2)
    assert second.ablation_cost == pytest.approx(alone, rel=0.2)
    assert max(first.ablation_cost_ci95[1], second.ablation_cost_ci95[1]) < Thresholds().ablation
    assert sorted([first.verdict, second.verdict]) == ["inactive", "mixed"]
    (kept,) = (latent for latent in analysis.latents if latent.verdict == "mixed")
    assert kept.reason.startswith("redundant: free alone, ")
    assert kept.reason.endswith(" nats with the others")
    joint = float(kept.reason.split()[3])
    assert joint == pytest.approx(4 * alone, rel=0.2)


def test_the_joint_cost_is_that_of_the_latents_that_remain_inactive() -> None:
    analysis = analyze(_Redundant(), _weak_and_strong())
    (gone,) = analysis.indices("inactive")
    assert analysis.joint_ablation_cost == pytest.approx(analysis.latents[gone].ablation_cost, rel=1e-6)
    assert analysis.joint_ablation_cost_ci95[1] < Thresholds().ablation


def test_independent_idle_latents_all_stay_inactive() -> None:
    analysis = analyze(dense(idle=[0, 1, 2, 3, 4]), rows())
    assert analysis.indices("inactive") == [0, 1, 2, 3, 4]
    assert analysis.joint_ablation_cost == 0


# ---- nothing the caller owns is changed


@pytest.mark.parametrize("build", [dense, convolutional], ids=["dense", "convolutional"])
def test_analyze_leaves_weights_gradients_modes_and_hooks_as_they_were(build: object) -> None:
    vae = build()
    vae.train()
    vae.decoder.eval()
    vae.mean_head.weight.requires_grad_(False)
    vae.logvar_head.weight.grad = torch.ones_like(vae.logvar_head.weight)
    vae.encoder.register_forward_hook(lambda *_: None)
    before = snapshot(vae)
    analyze(vae, rows(200, vae.input_shape), ablate="all")
    assert_untouched(vae, before)
    vae(rows(4, vae.input_shape))[0].sum().backward()  # and it can still be trained


def test_modes_are_put_back_when_the_analysis_fails() -> None:
    vae = dense().train()
    vae.encoder.eval()
    with torch.no_grad():
        vae.mean_head.bias[2] = math.nan
    before = snapshot(vae)["training"]
    with pytest.raises(DataError, match="first for latent 2"):
        analyze(vae, rows())
    assert snapshot(vae)["training"] == before


def test_a_model_in_train_mode_is_measured_in_eval_mode() -> None:
    vae = convolutional()
    x = rows(200, (1, 17, 18))
    assert analyze(vae.train(), x) == analyze(vae.eval(), x)


def test_the_global_random_numbers_are_left_alone() -> None:
    vae = dense()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    analyze(vae, rows(), ablate="all")
    assert torch.equal(torch.rand(3), expected)


# ---- what counts as data


def test_tensors_arrays_and_lists_of_batches_are_read_alike() -> None:
    vae, x = dense().double(), rows().double()
    whole = analyze(vae, x)
    for other in (
        x.numpy(),
        list(x.split(37)),
        [(batch, None) for batch in x.split(50)],
        list(x.numpy().reshape(8, 50, 3, 4)),
    ):
        found = analyze(vae, other)
        assert found.n_samples == whole.n_samples
        assert [la.verdict for la in found.latents] == [la.verdict for la in whole.latents]
        for a, b in zip(found.latents, whole.latents, strict=True):
            assert (a.mean, a.variance, a.kl) == pytest.approx((b.mean, b.variance, b.kl), rel=1e-9, abs=1e-15)


def test_bytes_are_scaled_to_the_unit_interval() -> None:
    vae = dense()
    x = (255 * rows()).round().to(torch.uint8)
    found = analyze(vae, x)
    sets = as_data(x)
    with torch.no_grad():
        mean = torch.cat([vae.encode(batch).mean for (batch,) in sets.calibrate.batches(100)]).mean(0)
    assert [latent.mean for latent in found.latents] == pytest.approx(mean.tolist(), rel=1e-4)
    assert max(batch.max().item() for (batch,) in sets.calibrate.batches(100)) <= 1


def test_an_iterator_that_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(DataError) as error:
        analyze(dense(), (batch for batch in rows().split(50)))
    assert str(error.value) == (
        "data: got a generator that can be read only once; "
        "pass a list or a DataLoader: analysis, selection and verification each read the data"
    )


def test_rows_of_another_size_are_refused() -> None:
    with pytest.raises(DataError) as error:
        analyze(dense(), rows(400, (13,)))
    assert str(error.value) == "data: rows have shape (13,), the model expects (12,)"


def test_rows_outside_the_range_of_a_bernoulli_likelihood_are_refused() -> None:
    with pytest.raises(ModelError, match=r"data: got values in \[.*\], the Bernoulli likelihood expects \[0, 1\]"):
        analyze(dense(), 2 * rows())
    assert analyze(dense(likelihood=GAUSSIAN), 2 * rows()).indices("inactive") == [1, 4]


def test_the_seed_parts_the_rows_and_is_recorded() -> None:
    vae = dense()
    first, again, other = (analyze(vae, rows(), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.seed, other.seed) == (1, 2)
    assert first.latents[0].mean != other.latents[0].mean


# ---- wrong questions


def test_an_unknown_way_to_ablate_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        analyze(dense(), rows(), ablate="some")
    assert str(error.value) == "ablate: got 'some', expected all, candidates or none"


def test_a_module_that_is_no_vae_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^Linear: no posterior can be read"):
        analyze(nn.Linear(3, 3), rows())


# ---- progress, JSON, other people's models


def test_progress_counts_every_row_once_for_each_stage() -> None:
    done: dict[str, int] = {}

    def count(stage: str, more: int, _total: int | None) -> None:
        done[stage] = done.get(stage, 0) + more

    sets = as_data(rows())
    analysis = analyze(dense(), sets, progress=count)
    tried = [la.index for la in analysis.latents]
    assert len(tried) == 6
    assert done["encoding"] == analysis.n_samples
    assert done["ablating"] == sets.select.count
    assert done["ablating together"] == sets.select.count
    assert done["decoder's slopes"] == min(256, sets.select.count)


@pytest.mark.parametrize("ablate", ["all", "none"])
def test_an_analysis_survives_json(ablate: str) -> None:
    analysis = analyze(dense(), rows(), ablate=ablate, thresholds=Thresholds(noise=0.02), seed=3, criteria=True)
    text = json.dumps(analysis.to_json(), allow_nan=False)
    assert Analysis.from_json(json.loads(text)) == analysis


def test_an_analysis_says_nothing_of_what_was_not_asked_for() -> None:
    found = analyze(dense(), rows(), ablate="none")
    bare = Analysis(
        found.data, found.seed, found.n_samples, found.latents, found.advice, found.thresholds, found.self_checks
    )
    for one in (bare, found, Analysis.from_json({k: v for k, v in found.to_json().items() if k != "stopped_early"})):
        assert one.stopped_early is False
        assert (one.criteria, one.precision) == (None, None)


def test_json_keeps_to_the_contract() -> None:
    entry = analyze(dense(idle=[1, 4]), rows(), ablate="none").to_json()
    assert {
        "data",
        "n_samples",
        "latent_size",
        "n_active",
        "n_inactive",
        "n_mixed",
        "latents",
        "advice",
    } <= entry.keys()
    assert entry["n_active"] + entry["n_inactive"] + entry["n_mixed"] == entry["latent_size"] == 6
    assert entry["n_inactive"] == 2
    wanted = {"index", "mean", "variance", "posterior_variance", "kl", "verdict", "ablation_cost", "noise_reaction"}
    assert all(wanted <= latent.keys() for latent in entry["latents"])
    assert entry["latents"][1]["ablation_cost"] is None
    assert entry["advice"].keys() == {"action", "latent_size", "reason", "command"}


def test_any_module_with_the_protocol_is_analyzed() -> None:
    vae = PlainVAE().double()
    with torch.no_grad():
        vae.mean.weight[2] = vae.logvar.weight[2] = vae.logvar.bias[2] = 0
        vae.decoder[0].weight[:, 2] = 0
    analysis = analyze(vae, rows(300, (5,)))
    assert analysis.indices("inactive") == [2]
    assert analysis.latents[2].kl == pytest.approx(0.5 * vae.mean.bias[2].item() ** 2)


def test_a_latent_that_is_a_map_is_one_latent() -> None:
    vae = MapVAE().double()
    x = rows(300, (2, 4, 4)).double()
    sets = as_data(x)
    analysis = analyze(vae, sets, ablate="none")
    with torch.no_grad():
        mu = torch.cat([vae.encode(batch).mean for (batch,) in sets.calibrate.batches(50, torch.float64)]).numpy()
    assert analysis.latent_size == 3
    np.testing.assert_allclose([la.variance for la in analysis.latents], mu.var((0, 2, 3)), rtol=1e-9)
