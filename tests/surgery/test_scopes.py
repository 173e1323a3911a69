"""Which plan a scope gives, and what happens to what cannot be followed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from foreign_models import Reader, family
from planted import dense, rows
from vaeprune.adapters import adapt
from vaeprune.analysis import Analysis, analyze
from vaeprune.data import as_data
from vaeprune.errors import PlanError, TraceError
from vaeprune.surgery.cut import cut
from vaeprune.surgery.scopes import Planner, cheap_latents, planner
from vaeprune.verification import verify


class Mixing(Reader):
    """A decoder that sees all latents through a softmax."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.softmax(1))


def with_dead_units(*units: int) -> nn.Module:
    vae = dense([1, 4])
    with torch.no_grad():
        vae.encoder[0].weight[list(units)] = 0
        vae.encoder[0].bias[list(units)] = -1
    return vae


def planned(vae: nn.Module, **options: object) -> Planner:
    data = as_data(rows())
    return planner(vae, data, analyze(vae, data), **options)


def test_latents_alone() -> None:
    found = planned(with_dead_units(2), hidden=False)
    assert (found.exact.scope, found.exact.removed_latents, found.exact.channels) == ("latents", [1, 4], ())
    assert found.within(5.0) is found.exact


def test_network_takes_dead_units_besides() -> None:
    found = planned(with_dead_units(2), hidden=True)
    assert (found.exact.scope, found.exact.removed_latents) == ("network", [1, 4])
    assert ("encoder.0.weight", 2) in {(c.weight, c.channel) for c in found.exact.channels}
    assert found.notes == []


def test_network_without_an_idle_latent() -> None:
    found = planned(with_dead_units(2), hidden=True, keep=[1, 4])
    assert (found.exact.scope, found.exact.removed_latents) == ("network", [])


def test_both_at_once_are_exact() -> None:
    vae = with_dead_units(2, 5)
    found = planned(vae, hidden=True)
    evidence = verify(vae, cut(vae, found.exact), rows(), found.exact)
    assert evidence.passed
    assert evidence.exact.float64_max_relative_error <= 1e-10


def test_wishes_that_contradict_are_refused() -> None:
    with pytest.raises(PlanError, match="both to be kept and to be removed"):
        planned(with_dead_units(2), hidden=True, keep=[1], remove=[1])


def mixing(**options: object) -> Planner:
    made = family(reader=Mixing)
    vae = adapt(made.network, made.data)
    return planner(vae, made.data, analyze(vae, made.data, ablate="none"), **options)


def test_latents_that_cannot_be_followed_are_noted_and_the_rest_goes_on() -> None:
    found = mixing(hidden=True)
    assert found.notes[0].startswith("latents stay: ")
    assert "softmax in reader" in found.notes[0]
    assert found.exact is None or found.exact.removed_latents == []


def test_with_latents_alone_that_is_an_error() -> None:
    with pytest.raises(TraceError, match="softmax in reader"):
        mixing(hidden=False)


def test_latents_that_were_asked_for_by_number_are_never_left_out_with_a_note() -> None:
    with pytest.raises(TraceError, match="softmax in reader"):
        mixing(hidden=True, remove=[1])


def judged(*latents: tuple[str, float, float | None]) -> Analysis:
    """A real analysis whose latents are given another (verdict, KL, ablation cost)."""
    vae = dense([1, 4])
    found = analyze(vae, rows(), ablate="none")
    new = [
        replace(latent, verdict=verdict, kl=kl, ablation_cost=cost)
        for latent, (verdict, kl, cost) in zip(found.latents, latents, strict=False)
    ]
    return replace(found, latents=tuple(new))


def test_mixed_latents_go_for_a_tenth_of_the_budget_the_cheapest_first() -> None:
    """Fixing a latent costs its ablation and saves its KL: here -0.1, 0.04 and 0.5 nats."""
    analysis = judged(
        ("active", 2.0, 9.0), ("mixed", 0.3, 0.2), ("mixed", 0.1, 0.6), ("mixed", 0.06, 0.1), ("mixed", 0.5, None)
    )
    assert cheap_latents(analysis, 1.0) == [1, 3]
    assert cheap_latents(analysis, 0.3) == [1]
    assert cheap_latents(analysis, 10.0) == [1, 2, 3]
    assert cheap_latents(analysis, 1.0, keep=[1]) == [3]
    assert cheap_latents(analysis, 0.0) == []


def test_one_latent_always_stays() -> None:
    analysis = judged(("inactive", 0.0, 0.0), ("mixed", 1.0, 0.0), ("mixed", 1.0, 0.0))
    assert len(cheap_latents(analysis, 1.0)) == 1
