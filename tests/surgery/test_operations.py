"""Operations that a probe must neither be confused by nor confuse: changes in place, padded depthwise convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vaeprune
from vaeprune.adapters import adapt


class InPlace(nn.Module):
    """In-place activations, which are not idempotent, behind every weight, and an in-place residual add."""

    def __init__(self, latent_dim: int = 5) -> None:
        super().__init__()
        self.body, self.more = nn.Linear(12, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2 * latent_dim)
        self.first, self.second, self.last = nn.Linear(latent_dim, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.act = nn.LeakyReLU(0.3, inplace=True)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(self.body(x))
        h += self.act(self.more(h))
        fused = self.head(h)
        fused *= 2
        mean, logvar = fused.chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        h = self.act(self.first(z))
        h += self.act(self.second(h))
        return self.last(h)


def test_in_place_operations_neither_break_the_trace_nor_the_values() -> None:
    torch.manual_seed(0)
    model, x = InPlace().double(), torch.rand(200, 12, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = adapt(model, x, spread="logvar")
    analysis = vaeprune.analyze(adapted, x, ablate="none")
    plan = vaeprune.plan(adapted, analysis, x, remove=[1, 3], keep=[0, 2, 4])
    small, kept = vaeprune.cut(model, plan), [0, 2, 4]
    with torch.no_grad():
        for old, new in zip(model.encode(x), small.encode(x), strict=True):
            torch.testing.assert_close(old[:, kept], new, rtol=0, atol=1e-14)  # products differ in their last bit
        z = torch.randn(50, 5, dtype=torch.float64)
        for removal in plan.removals:
            z[:, removal.latent] = removal.constant
        assert torch.allclose(model.decode(z.clone()), small.decode(z[:, kept].clone()), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Depthwise(nn.Module):
    """Maps that a padded depthwise convolution reads: a constant would not be constant at the borders, 0 is."""

    def __init__(self, latent_dim: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 2 * latent_dim, 1)
        self.spread = nn.Conv2d(latent_dim, latent_dim, 3, padding=1, groups=latent_dim, bias=False)
        self.out = nn.Conv2d(latent_dim, 1, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(x).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.spread(z))


def test_a_latent_is_held_at_0_where_a_constant_would_not_stay_one() -> None:
    torch.manual_seed(0)
    model, x = Depthwise().double(), torch.rand(200, 1, 5, 5, dtype=torch.float64)
    adapted = adapt(model, x, spread="logvar")
    plan = vaeprune.plan(adapted, vaeprune.analyze(adapted, x, ablate="none"), x, remove=[2], keep=[0, 1, 3])
    assert [removal.constant for removal in plan.removals] == [0.0]
    z = torch.randn(9, 4, 5, 5, dtype=torch.float64)
    z[:, 2] = 0
    small = vaeprune.cut(model, plan)
    assert small.spread.groups == 3
    assert torch.allclose(model.decode(z), small.decode(z[:, [0, 1, 3]]), rtol=1e-12, atol=1e-12)
