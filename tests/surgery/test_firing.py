"""Channels that were constant on the calibration rows and are not on others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hidden_models import HiddenVAE, sets_of
from vaeprune.data import MemoryRows
from vaeprune.posterior import negative_elbo
from vaeprune.surgery.firing import fired
from vaeprune.surgery.hidden import constant_channels, examine

RARE = 5  # rows of the verify set at which the unit fires


def rarely_firing() -> HiddenVAE:
    """Unit 2 of the encoder fires where the first input is above 1, which no calibration row has."""
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    with torch.no_grad():
        vae.encoder[0].weight[2] = 0
        vae.encoder[0].weight[2, 0] = 1
        vae.encoder[0].bias[2] = -1
        vae.encoder[0].bias[[0, 1, 3, 4, 5]] += 3
    return vae


def verify_rows(beyond: float) -> torch.Tensor:
    x = torch.rand(40, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x[:RARE, 0] = 1 + beyond
    return x


def test_a_unit_that_fires_elsewhere_is_counted_and_priced() -> None:
    vae = rarely_firing()
    hidden = examine(vae, sets_of(vae))
    chosen, _ = constant_channels(hidden)
    assert [choice.kind for choice in chosen] == ["constant"]
    x = verify_rows(0.5)
    (found,) = fired(hidden, chosen, MemoryRows("rows", x))
    assert (found.weight, found.channel, found.rows) == ("encoder.0.weight", 2, RARE)
    assert found.deviation == pytest.approx(0.5)

    held = rarely_firing()
    with torch.no_grad():
        held.encoder[0].weight[2] = 0
        noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)).to(x)
        losses = []
        for each in (held, vae):
            posterior = each.encode(x)
            losses.append(negative_elbo(each, x, posterior.sample(noise), posterior).mean())
    assert found.cost == pytest.approx(float(losses[0] - losses[1]), rel=1e-6)
    assert found.cost != 0


def test_a_unit_that_stays_constant_is_not_mentioned() -> None:
    vae = rarely_firing()
    hidden = examine(vae, sets_of(vae))
    chosen, _ = constant_channels(hidden)
    assert fired(hidden, chosen, MemoryRows("rows", verify_rows(-0.5))) == ()


def test_nothing_chosen_fires_nowhere() -> None:
    vae = rarely_firing()
    assert fired(examine(vae, sets_of(vae)), [], MemoryRows("rows", verify_rows(0.5))) == ()
