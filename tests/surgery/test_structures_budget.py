"""A budget on every structure: it takes channels out, whole or not at all, and the cut computes what the plan says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hidden_models import LATENTS, HiddenVAE, sets_of
from planted import assert_untouched, snapshot
from vaeprune.analysis import analyze
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.reference import Reference
from vaeprune.surgery.scopes import planner

PICTURE = (2, 4, 4)
BUDGET = 3.0


class Then(nn.Module):
    """Modules by name, and what is done with them; conditions come after x."""

    def __init__(self, does: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._does = does

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        return self._does(self, x, *condition)


def dense() -> HiddenVAE:
    return HiddenVAE(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.Tanh()))


def _pictures(*encoder: nn.Module, width: int = 48, decoder: nn.Module | None = None) -> HiddenVAE:
    usual = nn.Sequential(nn.Linear(LATENTS, 32), nn.Unflatten(1, PICTURE))
    return HiddenVAE(nn.Sequential(*encoder, nn.Flatten()), width, decoder or usual, PICTURE)


def batch_norm() -> HiddenVAE:
    return _pictures(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 3, 3, padding=1)
    )


def residual() -> HiddenVAE:
    def block(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(m.first(x))
        return torch.relu(h + m.second(torch.relu(m.inner(h))))

    made = Then(block, first=nn.Linear(5, 8), inner=nn.Linear(8, 9), second=nn.Linear(9, 8))
    return HiddenVAE(made, 8)


def concatenated() -> HiddenVAE:
    def skip(m: nn.Module, x: Tensor) -> Tensor:
        a = torch.relu(m.first(x))
        return torch.tanh(m.third(torch.cat([torch.relu(m.second(a)), a], 1)))

    return HiddenVAE(Then(skip, first=nn.Linear(5, 8), second=nn.Linear(8, 7), third=nn.Linear(15, 6)))


def flattened() -> HiddenVAE:
    encoder = (nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6), nn.Tanh())
    return _pictures(*encoder, width=6)


def viewed_and_upsampled() -> HiddenVAE:
    def decode(m: nn.Module, z: Tensor) -> Tensor:
        h = torch.relu(m.first(z)).view(len(z), -1, 2, 2)
        return m.last(torch.relu(m.second(F.interpolate(h, scale_factor=2.0))))

    first, second = nn.Linear(LATENTS, 32), nn.Conv2d(8, 6, 3, padding=1)
    decoder = Then(decode, first=first, second=second, last=nn.Conv2d(6, 2, 1))
    return _pictures(nn.Conv2d(2, 3, 3, padding=1), decoder=decoder)


def transposed() -> HiddenVAE:
    layers = (nn.Linear(LATENTS, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 8, 2, stride=2), nn.ReLU())
    return _pictures(nn.Conv2d(2, 3, 3, padding=1), decoder=nn.Sequential(*layers, nn.Conv2d(8, 2, 1)))


def depthwise() -> HiddenVAE:
    return _pictures(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )


def grouped() -> HiddenVAE:
    return _pictures(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )


def group_norm() -> HiddenVAE:
    normed = (nn.Conv2d(2, 8, 1), nn.GroupNorm(2, 8), nn.ReLU())
    return _pictures(*normed, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def layer_norm() -> HiddenVAE:
    return HiddenVAE(
        nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 6))
    )


def conditional() -> HiddenVAE:
    encoder = Then(lambda m, x, y: torch.relu(m.first(torch.cat([x, y], 1))), first=nn.Linear(8, 9))
    decoder = Then(
        lambda m, z, y: m.last(torch.cat([torch.relu(m.first(torch.cat([z, y], 1))), y], 1)),
        first=nn.Linear(LATENTS + 3, 9),
        last=nn.Linear(12, 5),
    )
    return HiddenVAE(encoder, 9, decoder)


def spent(vae: HiddenVAE, *conditions: Tensor) -> tuple[Plan, HiddenVAE]:
    """What the budget takes out, exactly as the plan says."""
    before, data = snapshot(vae), sets_of(vae, *conditions, count=500)
    made = planner(vae, data, analyze(vae, data, ablate="none"), hidden=True, budget=BUDGET)  # type: ignore[arg-type]
    plan = made.within(BUDGET)
    assert plan is not None
    assert plan.scope == "budget"
    smaller = cut(vae, plan)
    assert_untouched(vae, before)
    reference = Reference(vae, plan)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(20, *vae.input_shape, generator=generator, dtype=torch.float64)
    z = torch.randn(20, LATENTS, generator=generator, dtype=torch.float64)
    beside = [part[:20] for part in conditions]
    with torch.no_grad():
        expected, found = reference.encode(x, *beside), smaller.encode(x, *beside)
        pairs = [(expected.mean, found.mean), (expected.logvar, found.logvar)]
        pairs.append((reference.decode(z, *beside), smaller.decode(z, *beside)))
    for one, other in pairs:
        assert (one - other).abs().max() <= 1e-9 * one.abs().max()
    return plan, smaller


@pytest.mark.parametrize(
    ("structure", "weight"),
    [
        (dense, "encoder.0.weight"),
        (batch_norm, "encoder.0.weight"),
        (residual, "encoder.inner.weight"),
        (concatenated, "encoder.first.weight"),
        (flattened, "encoder.0.weight"),
        (viewed_and_upsampled, "decoder.first.weight"),
        (transposed, "decoder.2.weight"),
        (depthwise, "encoder.2.weight"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_channels_are_paid_for(structure: Callable[[], HiddenVAE], weight: str) -> None:
    torch.manual_seed(0)
    vae = structure()
    _, smaller = spent(vae)
    before, after = vae.state_dict()[weight].shape, smaller.state_dict()[weight].shape
    assert sum(after) < sum(before), (before, after)


def test_of_a_grouped_convolution_whole_groups_go() -> None:
    plan, smaller = spent(grouped())
    convolution = smaller.encoder[2]
    assert convolution.groups < 4
    assert convolution.in_channels == convolution.out_channels == 2 * convolution.groups
    gone = sorted(c.channel for c in plan.channels if c.weight == "encoder.0.weight")
    assert gone == sorted(2 * (channel // 2) + k for channel in gone[::2] for k in (0, 1))


@pytest.mark.parametrize(("structure", "norm"), [(group_norm, "group_norm"), (layer_norm, "layer_norm")])
def test_what_a_norm_mixes_is_left_alone_and_the_rest_is_paid_for(structure, norm: str) -> None:
    plan, smaller = spent(structure())
    assert plan.channels
    assert len(smaller.encoder[0].bias) == 8
    assert any(norm in left.reason and left.weight == "encoder.0.weight" for left in plan.left)


def test_conditions_stay_and_units_beside_them_are_paid_for() -> None:
    one_hot = F.one_hot(torch.arange(500) % 3, 3).double()
    _, smaller = spent(conditional(), one_hot)
    hidden = smaller.decoder.first.out_features
    assert hidden < 9
    assert smaller.decoder.last.in_features == hidden + 3
    assert smaller.decoder.first.in_features == LATENTS + 3
