"""The reference computes what the cut model does, and a wrong plan is seen by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hidden_models import HiddenVAE, convolutional, dense, sets_of
from planted import assert_untouched, planned, snapshot
from vaeprune.posterior import VAE
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.composing import composed
from vaeprune.surgery.cut import cut
from vaeprune.surgery.hidden import examine, plan_network
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.reference import Reference

Build = Callable[[], HiddenVAE]


def latents(vae: HiddenVAE) -> Plan:
    return planned(vae, [1])


def hidden(vae: HiddenVAE) -> Plan:
    made = plan_network(examine(vae, sets_of(vae)))
    assert made is not None
    return made


def both(vae: HiddenVAE) -> Plan:
    first = latents(vae)
    return composed(first, hidden(cut(vae, first)))


def live_units(vae: HiddenVAE) -> Plan:
    """One live unit of every layer, held at its mean where a bias can take that over, else at 0."""
    found = examine(vae, sets_of(vae))
    chosen = []
    for layer in found.layers:
        group = layer[0]
        sites = {call: found.channels.site(call) for call in group.reads}
        means = {call: found.ranges.of[call].mean[list(columns)] for call, columns in group.reads.items()}
        holds = all(site.holds_constant and site.bias for site in sites.values())
        chosen.append(Chosen(group, "cheap", "searched", None, means if holds else {}))
    return found.assembler.plan(chosen, "budget")


def largest_difference(vae: HiddenVAE, made: Plan, smaller: VAE) -> float:
    """Relative to the largest value of each tensor."""
    reference = Reference(vae, made)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(20, *vae.input_shape, generator=generator, dtype=torch.float64)
    z = torch.randn(20, *vae.latent_shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before, after = reference.encode(x), smaller.encode(x)
        pairs = [
            (before.mean, after.mean),
            (before.logvar, after.logvar),
            (reference.decode(z), smaller.decode(z[:, made.kept_latents])),
        ]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


PLANS = pytest.mark.parametrize("plan", [latents, hidden, both, live_units])
MODELS = pytest.mark.parametrize("build", [dense, convolutional])


@PLANS
@MODELS
def test_the_cut_model_computes_what_the_reference_does(build: Build, plan: Callable[[HiddenVAE], Plan]) -> None:
    vae = build()
    before = snapshot(vae)
    made = plan(vae)
    assert largest_difference(vae, made, cut(vae, made)) <= 1e-12
    assert_untouched(vae, before)


@PLANS
def test_a_bias_change_that_is_wrong_by_a_millionth_is_seen(plan: Callable[[HiddenVAE], Plan]) -> None:
    vae = dense()
    made = plan(vae)
    assert made.bias_changes
    for key, change in made.bias_changes.items():
        wrong = replace(made, bias_changes={**made.bias_changes, key: change + 1e-6})
        assert largest_difference(vae, made, cut(vae, wrong)) > 1e-9, key


@pytest.mark.parametrize("plan", [hidden, both, live_units])
def test_a_held_constant_that_is_wrong_by_a_millionth_is_seen(plan: Callable[[HiddenVAE], Plan]) -> None:
    vae = dense()
    made = plan(vae)
    smaller = cut(vae, made)
    for axis, values in made.held.items():
        wrong: Mapping[tuple[str, int], Tensor] = {**made.held, axis: values + 1e-6}
        assert largest_difference(vae, replace(made, held=wrong), smaller) > 1e-9, axis


def test_refits_are_made_to_the_weights_that_stay() -> None:
    vae = dense()
    made = both(vae)
    smaller = cut(vae, made)
    generator = torch.Generator().manual_seed(0)
    changes = {
        key: 0.1 * torch.randn(smaller.state_dict()[key].shape, generator=generator, dtype=torch.float64)
        for key in ("encoder.2.weight", "encoder.2.bias", "decoder.2.weight", "logvar.weight")
    }
    before = snapshot(vae)
    refitted = replace(made, refits=changes)
    assert largest_difference(vae, refitted, cut(vae, refitted)) <= 1e-12
    assert largest_difference(vae, refitted, smaller) > 1e-3
    assert_untouched(vae, before)


def test_refits_of_tied_weights_are_made_once() -> None:
    vae = dense()
    vae.logvar.weight = vae.mean.weight
    made = hidden(vae)
    change = torch.full(cut(vae, made).mean.weight.shape, 0.1, dtype=torch.float64)
    refitted = replace(made, refits={"mean.weight": change, "logvar.weight": change})
    assert largest_difference(vae, refitted, cut(vae, refitted)) <= 1e-12


def test_a_module_called_twice_reads_the_same_constants_at_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(5, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(self.first(x))
            return torch.sigmoid(self.again(torch.sigmoid(self.again(h))))

    vae = HiddenVAE(Twice())
    for layer in (vae.encoder.first, vae.encoder.again):
        layer.bias.data[2] = 60.0
    made = hidden(vae)
    assert {(c.weight, c.channel) for c in made.channels} == {("encoder.first.weight", 2), ("encoder.again.weight", 2)}
    assert largest_difference(vae, made, cut(vae, made)) <= 1e-12
