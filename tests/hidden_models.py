"""Small VAEs with hidden channels planted dead, saturated or unread, and the oracle their cuts are held against."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from planted import OwnVAE, assert_untouched, randomise, snapshot
from vaeprune.data import DataSets
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.cut import cut
from vaeprune.surgery.hidden import Hidden, constant_channels, examine, plan_network
from vaeprune.surgery.plan import Plan

LATENTS = 3
BELOW = -50.0  # a bias that no input in [0, 1] lifts above 0
ABOVE = 60.0  # a bias at which a sigmoid is 1 in float64
Gone = Mapping[str, Collection[int]]  # weight → output channels


class HiddenVAE(OwnVAE):
    """`encoder` makes rows of `width` from x, two heads of `LATENTS` read them, and `decoder` reads z.

    Each is called with the conditions, if there are any. Random weights in float64.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        width: int = 6,
        decoder: nn.Module | None = None,
        input_shape: tuple[int, ...] = (5,),
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.likelihood = likelihood or Likelihood("gaussian", "mean")
        self.encoder = encoder or nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.mean, self.logvar = nn.Linear(width, LATENTS), nn.Linear(width, LATENTS)
        self.decoder = decoder or nn.Linear(LATENTS, 5)
        generator = randomise(self, seed)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, (nn.MultiheadAttention, nn.GRU, nn.Embedding)):
                    for parameter in layer.parameters(recurse=False):
                        parameter.normal_(0, 0.3, generator=generator)
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    layer.weight *= 0.4  # few enough swings that ReLU units are dead only where it is planted
        self.double().eval()

    @property
    def latent_size(self) -> int:
        return self.mean.weight.shape[0]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.encoder(x, *condition)
        return Posterior(self.mean(h), self.logvar(h))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z, *condition)


# ---- planting


def dead(layer: nn.Module, *channels: int, bias: float = BELOW) -> None:
    """Channels without fan-in, far below 0; or, with another bias, constant at that."""
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    with torch.no_grad():
        layer.weight.movedim(axis, 0)[list(channels)] = 0
        layer.bias[list(channels)] = bias


def biased(layer: nn.Module, *channels: int, bias: float = BELOW) -> None:
    """Channels whose weights stay, with a bias that decides what comes out."""
    with torch.no_grad():
        layer.bias[list(channels)] = bias


def unread(layer: nn.Module, *channels: int) -> None:
    """Channels that a weight does not read."""
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    with torch.no_grad():
        layer.weight.movedim(axis, 0)[list(channels)] = 0


class Noted(nn.Module):
    """Notes the size of its layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(LATENTS, 4 * hidden)
        self.second = nn.ConvTranspose2d(hidden, 2, 2, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(z)).view(-1, self.hidden, 2, 2))


def dense() -> HiddenVAE:
    """Two saturated units in each half; the decoder's first layer reads the latents and is read in turn."""
    vae = HiddenVAE(
        nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Tanh()),
        decoder=nn.Sequential(nn.Linear(LATENTS, 7), nn.Sigmoid(), nn.Linear(7, 7), nn.Sigmoid(), nn.Linear(7, 5)),
    )
    biased(vae.encoder[0], 1, 4, bias=ABOVE)
    biased(vae.decoder[0], 2, bias=ABOVE)
    biased(vae.decoder[2], 0, bias=ABOVE)
    return vae


def convolutional() -> HiddenVAE:
    encoder = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1),
        nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(),
    )  # fmt: skip
    vae = HiddenVAE(encoder, 6, Noted(7), (2, 4, 4))
    vae.encoder[1].bias.data[3] = -90
    biased(vae.encoder[3], 1, bias=ABOVE)
    dead(vae.decoder.first, *range(4, 12))
    return vae


# ---- the road, and the oracle


def sets_of(vae: VAE, *conditions: Tensor, count: int = 200) -> DataSets:
    """Rows of uniform noise on [0, 1], with conditions beside them, as three sets."""
    x = torch.rand(count, *vae.input_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return part("rows", MemorySource("rows", x.to(next(vae.network.parameters()).dtype), *conditions), None, 0, None)


def removed(made: Plan | None) -> dict[str, list[int]]:
    """The plan's hidden channels by the weight that writes them."""
    found: dict[str, list[int]] = {}
    for channel in made.channels if made else ():
        found.setdefault(channel.weight, []).append(channel.channel)
    return {weight: sorted(channels) for weight, channels in found.items()}


def cut_hidden(vae: HiddenVAE, gone: Gone, *conditions: Tensor) -> tuple[Hidden, Plan, HiddenVAE]:
    """Cut the constant channels, which must be `gone` and no others, and hold the result against the original."""
    before = snapshot(vae)
    hidden = examine(vae, sets_of(vae, *conditions))
    made = plan_network(hidden)
    assert made is not None, hidden.left
    assert removed(made) == {weight: sorted(channels) for weight, channels in gone.items()}, (
        removed(made),
        left_of(made),
    )
    smaller = cut(vae, made)
    assert_untouched(vae, before)
    assert_same(vae, smaller, conditions)
    if not made.made_plain:
        assert list(smaller.state_dict()) == list(vae.state_dict())
    for weight, channels in gone.items():
        axis = next(c.axis for c in made.channels if c.weight == weight)
        full = vae.state_dict()[weight].shape[axis] if weight in vae.state_dict() else None
        assert full is None or smaller.state_dict()[weight].shape[axis] == full - len(channels)
    assert count(smaller) < count(vae)
    return hidden, made, smaller


def nothing_cut(vae: HiddenVAE, *conditions: Tensor) -> dict[str, str]:
    """Nothing may go; the reasons, weight by weight."""
    before = snapshot(vae)
    hidden = examine(vae, sets_of(vae, *conditions))
    made = plan_network(hidden)
    assert made is None, removed(made)
    assert_untouched(vae, before)
    return reasons(hidden)


def constant_but_left(vae: HiddenVAE) -> dict[str, str]:
    """No channel can go; the reasons of those that are constant."""
    chosen, left = constant_channels(examine(vae, sets_of(vae)))
    assert not chosen
    return {entry.weight: entry.reason for entry in left}


def reasons(hidden: Hidden) -> dict[str, str]:
    """Why channels of a weight have to stay, all reasons in one text."""
    found: dict[str, str] = {}
    for left in hidden.left:
        found[left.weight] = "; ".join(filter(None, (found.get(left.weight), left.reason)))
    return found


def left_of(made: Plan) -> dict[str, str]:
    """The same, of a plan."""
    found: dict[str, str] = {}
    for left in made.left:
        found[left.weight] = "; ".join(filter(None, (found.get(left.weight), left.reason)))
    return found


def assert_same(vae: VAE, smaller: VAE, conditions: Collection[Tensor] = (), tolerance: float = 1e-10) -> None:
    """Means, logvars and what is decoded at random z, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(11)
    dtype = next(vae.network.parameters()).dtype
    x = torch.rand(30, *vae.input_shape, generator=generator, dtype=torch.float64).to(dtype)
    z = 1.5 * torch.randn(30, *vae.latent_shape, generator=generator, dtype=torch.float64).to(dtype)
    beside = [condition[:30] for condition in conditions]
    with torch.no_grad():
        before, after = vae.encode(x, *beside), smaller.encode(x, *beside)
        pairs = {
            "mean": (before.mean, after.mean),
            "logvar": (before.logvar, after.logvar),
            "decoded": (vae.decode_parameters(z, *beside), smaller.decode_parameters(z, *beside)),
        }
    for name, (expected, found) in pairs.items():
        assert found.shape == expected.shape, name
        error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name} differs by {error:.3g} of its largest value"


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
