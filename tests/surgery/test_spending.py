"""What can be given up of small networks whose costs are known, and on which rows that is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hidden_models import LATENTS, HiddenVAE, sets_of
from vaeprune.surgery import spending
from vaeprune.surgery.choices import LayerChoice, RankChoice
from vaeprune.surgery.hidden import examine
from vaeprune.surgery.regression import rank_costs
from vaeprune.surgery.spending import Spending


def spent(vae: HiddenVAE, factorize: bool = False, count: int = 400) -> Spending:
    sets = sets_of(vae, count=count)
    return Spending(examine(vae, sets), sets, "size", factorize, None)


def number_of(found: Spending, weight: str) -> int:
    """The choice of the layer that a weight writes."""
    return next(
        number
        for number, choice in enumerate(found.choices)
        if isinstance(choice, LayerChoice) and any(key == weight for group in choice.layer for key, _ in group.entries)
    )


# ---- links


def test_a_link_that_passes_one_combination_on_keeps_one_channel_and_loses_nothing() -> None:
    """Five channels of their own are read as their sum alone; no single one of them would do."""
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 6), nn.Tanh()))
    with torch.no_grad():
        vae.encoder[0].weight.copy_(torch.eye(5))
        vae.encoder[1].weight.copy_(torch.outer(torch.linspace(-1, 1, 6), torch.ones(5)))
    found = spent(vae)
    link = number_of(found, "encoder.0.weight")
    levels = [4 if number == link else 0 for number in range(len(found.choices))]
    assert found.choices[link].costs[3] == pytest.approx(0, abs=1e-6)
    loss, _ = found.loss(levels)
    assert loss == pytest.approx(0, abs=1e-4)
    made = found.plan(levels)
    assert [len(s.kept) for s in made.slices if (s.key, s.axis) == ("encoder.0.weight", 0)] == [1]
    assert "encoder.0.weight" in made.refits


def test_measuring_leaves_the_weights_as_they_were() -> None:
    found = spent(HiddenVAE())
    levels = [1] * len(found.choices)
    first = found.loss(levels)
    assert first[0] != 0
    assert found.loss([0] * len(found.choices)) == (0.0, 0.0)
    assert found.loss(levels) == first


# ---- ranks


def test_ranks_are_offered_as_long_as_two_layers_have_fewer_weights_than_one() -> None:
    vae = HiddenVAE(
        nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 18), nn.Tanh(), nn.Linear(18, 6), nn.Tanh()),
        decoder=nn.Sequential(nn.Linear(LATENTS, 12), nn.Tanh(), nn.Linear(12, 5)),
    )
    ranks = {c.weight: c.ranks for c in spent(vae, factorize=True).choices if isinstance(c, RankChoice)}
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Linear):
            one, two = layer.weight.numel(), sum(layer.weight.shape)
            smaller = [rank for rank in range(1, min(layer.weight.shape)) if rank * two < one]
            assert ranks.get(f"{name}.weight", (0,)) == (0, *reversed(smaller)), name
    assert ranks["encoder.2.weight"] == (0, 5, 4, 3, 2, 1)  # 6 would have as many weights as the layer itself


@pytest.mark.parametrize("bias", [True, False])
def test_a_rank_costs_what_its_combinations_miss_and_without_a_bias_also_of_the_mean(bias: bool) -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 9), nn.Sigmoid(), nn.Linear(9, 6, bias=bias), nn.Tanh()))
    found = spent(vae, factorize=True)
    choice = next(c for c in found.choices if isinstance(c, RankChoice) and c.weight == "encoder.2.weight")
    moments = found._moments["encode", 1]
    mean = moments.total / moments.count
    read = moments.gram / moments.count - (torch.outer(mean, mean) if bias else 0)
    expected = rank_costs(vae.encoder[2].weight.detach(), read, moments.fisher)
    assert choice.costs == pytest.approx([float(expected[rank]) for rank in choice.ranks[1:]], rel=1e-3)
    assert len(choice.costs) > 1


def test_only_the_weight_whose_rank_was_lowered_becomes_two() -> None:
    found = spent(HiddenVAE(nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh())), factorize=True)
    levels = [int(isinstance(c, RankChoice) and c.weight == "encoder.2.weight") for c in found.choices]
    assert sum(levels) == 1
    made = found.plan(levels)
    down, up = made.factors["encoder.2"]
    assert (set(made.factors), down.shape, up.shape) == ({"encoder.2"}, (3, 9), (6, 3))
    assert not found.plan([0] * len(levels)).factors


# ---- rows


def test_rows_to_fit_on_are_taken_evenly_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "_LEAST_FIT_ROWS", 1)
    monkeypatch.setattr(spending, "_FIT_ROWS", 64)
    vae = HiddenVAE()
    sets = sets_of(vae, count=900)
    every = torch.cat([x for (x, *_) in sets.calibrate.batches(100, torch.float64)])
    hidden = examine(vae, sets)
    taken = torch.cat([x for (x,) in spending._spread(hidden, sets, 64)])
    places = (every[:, None] == taken[None]).all(2).nonzero()[:, 0]
    assert 60 <= len(places) <= 66
    assert places[0] == 0
    gaps = places.diff()
    assert 0.5 * len(every) / 64 < gaps.min() <= gaps.max() < 1.5 * len(every) / 64 + 1
    assert Spending(hidden, sets, "size", False, None)._fit.rows["encode"] <= 66


def test_a_network_with_a_wide_layer_is_fitted_on_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest result decides, 200 numbers of 8 bytes a row."""
    monkeypatch.setattr(spending, "_LEAST_FIT_ROWS", 1)
    monkeypatch.setattr(spending, "_FIT_BYTES", 50 * 12 * 200 * 8)
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Linear(200, 6)))
    assert 40 <= spent(vae)._fit.rows["encode"] <= 55
