"""How many disturbances one run may carry, and what uses each bias."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, rows
from vaeprune.surgery.arrivals import Arrivals
from vaeprune.surgery.channels import runs
from vaeprune.surgery.probe import Subject


class Scaled(nn.Module):
    """z (4) → 6 → 5, and what `more` makes of this module's scale."""

    def __init__(self, more: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(4))
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)
        self.more = more

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(z))) + self.more(self, z)


def arrivals(more: Callable[[nn.Module, Tensor], Tensor]) -> Arrivals:
    subject = Subject(PlainVAE(Scaled(more)), (rows(2, (5,)),))
    z = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Arrivals(subject, runs(subject.example[:1], z)["decode"], "it is part of the output")


def test_disturbances_share_a_run_where_rows_keep_apart() -> None:
    assert arrivals(lambda m, z: (z * m.s).sum(1, keepdim=True)).at_once > 1


@pytest.mark.parametrize(
    "more",
    [lambda m, z: (z.new_ones(3, 4) * m.s).sum(), lambda m, z: m.first(z.new_ones(1, 4)).sum()],
    ids=["a scale", "a weight"],
)
def test_each_disturbance_has_a_run_of_its_own_where_anything_does_not_grow_with_the_batch(
    more: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    assert arrivals(more).at_once == 1


def test_every_use_of_a_bias_or_scale_is_noted() -> None:
    found = arrivals(lambda m, z: m.first(z * m.s).sum(1, keepdim=True) + m.first.bias.cumsum(0)[:1])
    uses = [(key.removeprefix("decoder."), user) for key, user in found.before.uses]
    assert uses == [
        ("first.bias", ("decoder.first.weight", 1)),
        ("last.bias", ("decoder.last.weight", 1)),
        ("s", "a parameter of each channel"),
        ("first.bias", ("decoder.first.weight", 1)),
    ]
