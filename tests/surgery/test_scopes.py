"""Which plan a scope gives, and what happens to what cannot be followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foreign_models import Reader, family
from planted import dense, rows
from vaeprune.adapters import adapt
from vaeprune.analysis import analyze
from vaeprune.data import as_data
from vaeprune.errors import PlanError, TraceError
from vaeprune.surgery.cut import cut
from vaeprune.surgery.scopes import Planner, planner
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
