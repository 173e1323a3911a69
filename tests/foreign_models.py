"""Other people's VAEs, small and literal, each with idle latents planted, and the oracle their cuts are held against.

Their classes know nothing of this package. What is true of them is told by `Family`, not read off the adapter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planted import assert_untouched, randomise, snapshot
from vaeprune.adapters import AdaptedVAE, adapt
from vaeprune.analysis import Analysis, analyze
from vaeprune.data import DataSets
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.planning import plan

LATENTS, IDLE = 5, (1, 3)
KEPT = (0, 2, 4)
MEAN = 0.03
WIDTH = 8


def quietly(make: Callable[[], Any]) -> Any:
    """Other people's libraries warn about their own dependencies when they are imported and built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def own_posterior(network: Any, x: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor]:
    """The habit `encode(x) -> (mean, logvar)`."""
    mean, logvar = network.encode(x, *condition)[:2]
    return mean, logvar


def own_decoded(network: Any, z: Tensor, *condition: Tensor) -> Tensor:
    """The habit `decode(z) -> x_hat`."""
    return network.decode(z, *condition)


@dataclass(frozen=True)
class Family:
    """A module with idle latents, and what is true of it.

    `posterior`, `decoded`: how its author would get (mean, logvar) and the decoder's output.
    `smaller`: builds the class with k latents, where it takes a latent size.
    """

    network: nn.Module
    x: Tensor
    conditions: tuple[Tensor, ...] = ()
    idle: tuple[int, ...] = IDLE
    posterior: Callable[..., tuple[Tensor, Tensor]] = own_posterior
    decoded: Callable[..., Tensor] = own_decoded
    smaller: Callable[[int], nn.Module] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> DataSets:
        """The rows as three sets."""
        return part("rows", MemorySource("rows", self.x, *self.conditions), None, 0, None)


@dataclass(frozen=True)
class Result:
    """All that the road of a family gave."""

    vae: AdaptedVAE
    analysis: Analysis
    plan: Plan
    smaller: AdaptedVAE


def rows(*shape: int, count: int = 900, seed: int = 0) -> Tensor:
    """Rows of uniform noise on [0, 1]."""
    return torch.rand(count, *(shape or (WIDTH,)), generator=torch.Generator().manual_seed(seed))


def analysed(family: Family) -> tuple[AdaptedVAE, DataSets, Analysis]:
    """The family adapted and analysed; its idle latents must be found, and no others."""
    data = family.data
    vae = adapt(family.network, data, **family.options)
    analysis = analyze(vae, data, ablate="all")
    assert analysis.indices("inactive") == list(family.idle), [(la.verdict, la.reason) for la in analysis.latents]
    return vae, data, analysis


def planned_cut(family: Family) -> Result:
    """adapt → analyze → plan → cut, without looking at the values."""
    vae, data, analysis = analysed(family)
    made = plan(vae, analysis, data)
    assert made.removed_latents == list(family.idle)
    return Result(vae, analysis, made, cut(vae, made))


def cut_exactly(family: Family, dtype: torch.dtype = torch.float64, tolerance: float = 1e-10) -> Result:
    """Cut the family's idle latents out and hold the result against the original, as its author would use both."""
    network = family.network.to(dtype)
    before = snapshot(network)
    result = planned_cut(family)
    assert_untouched(network, before)
    small = result.smaller.network
    assert type(small) is type(result.vae.network)
    flags = [(module, module.training) for module in (*network.modules(), *small.modules())]
    network.eval()
    small.eval()
    try:
        assert_same_values(family, result.vae.network, small, result.plan, dtype, tolerance)
        if family.smaller is not None:
            built = family.smaller(len(result.plan.kept_latents)).to(dtype).eval()
            built.load_state_dict(small.state_dict())
            assert_same_values(family, result.vae.network, built, result.plan, dtype, tolerance)
    finally:
        for module, training in flags:
            module.training = training
    return result


def assert_same_values(
    family: Family, network: nn.Module, small: nn.Module, made: Plan, dtype: torch.dtype, tolerance: float
) -> None:
    """Kept means, kept logvars and decode at random z, the removed latents held at the plan's constants."""
    x = family.x[:20].to(dtype)
    conditions = tuple(c[:20].to(dtype) if c.is_floating_point() else c[:20] for c in family.conditions)
    kept = made.kept_latents
    with torch.no_grad():
        mean, logvar = family.posterior(network, x, *conditions)
        small_mean, small_logvar = family.posterior(small, x, *conditions)
        z = 1.5 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
        for removal in made.removals:
            z[:, removal.latent] = removal.constant
        pairs = {
            "mean": (mean[:, kept], small_mean),
            "logvar": (logvar[:, kept], small_logvar),
            "decoded": (family.decoded(network, z, *conditions), family.decoded(small, z[:, kept], *conditions)),
        }
    for name, (expected, found) in pairs.items():
        assert found.shape == expected.shape, name
        error = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
        assert error <= tolerance, f"{name} differs by {error:.3g} of its largest value"


# ---- planting


def idle_rows(layer: nn.Module, means: Collection[int], logvars: Collection[int], live: Collection[int] = ()) -> None:
    """Rows of idle means (≈ MEAN) and of idle logvars (0); `live`: rows of live logvars, made small."""
    with torch.no_grad():
        for row in live:
            layer.weight[row] *= 0.2
            layer.bias[row] -= 2
        for row in means:
            layer.weight[row] *= 1e-4
            layer.bias[row] = MEAN
        for row in logvars:
            layer.weight[row] = 0
            layer.bias[row] = 0


def idle_columns(weight: Tensor, axis: int, columns: Collection[int]) -> None:
    """Columns that hardly read: small enough to be idle, large enough that a constant lost shows."""
    with torch.no_grad():
        weight.movedim(axis, 0)[list(columns)] *= 1e-3


# ---- heads


def separate(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    return network.fc_mu(h), network.fc_var(h)


def chunked(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = network.head(h).chunk(2, 1)
    return mean, logvar


def split(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = network.head(h).split(network.latent_dim, 1)
    return mean, logvar


def sliced(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    both = network.head(h)
    return both[:, : network.latent_dim], both[:, network.latent_dim :]


def halves(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    both = network.head(h).view(len(h), 2, -1)
    return both[:, 0], both[:, 1]


def interleaved(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = network.head(h).view(len(h), network.latent_dim, 2).unbind(-1)
    return mean, logvar


def flipped(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    """Means in the order of the rows, logvars in the opposite one: the mean path does not show a mistake."""
    return network.fc_mu(h), network.fc_var(h).flip(1)


HEADS = (separate, chunked, split, sliced, halves, interleaved, flipped)


class Reader(nn.Module):
    """The decoder: something that reads z, then tanh and a Linear."""

    reads = (("read.weight", 1),)

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.read = nn.Linear(latents, 6)
        self.out = nn.Linear(6, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z)))


class OwnVAE(nn.Module):
    """x (8) → 7 → heads of `latent_dim` latents → `reader`; `heads` says how the two are parted."""

    def __init__(
        self,
        latent_dim: int = LATENTS,
        heads: Callable[..., tuple[Tensor, Tensor]] = separate,
        reader: Callable[[int], nn.Module] = Reader,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self._heads = heads
        self.body = nn.Linear(WIDTH, 7)
        if heads in (separate, flipped):
            self.fc_mu, self.fc_var = nn.Linear(7, latent_dim), nn.Linear(7, latent_dim)
        else:
            self.head = nn.Linear(7, 2 * latent_dim)
        self.reader = reader(latent_dim)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def encode(self, x: Tensor) -> Any:
        return self._heads(self, self.hidden(x))

    def decode(self, z: Tensor) -> Any:
        return self.reader(z)

    def reparameterize(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)

    def forward(self, x: Tensor) -> Any:
        mean, logvar = self.encode(x)[:2]
        return self.decode(self.reparameterize(mean, logvar)), mean, logvar


def plant(network: Any, idle: Collection[int] = IDLE, seed: int = 0) -> Any:
    """Random weights, and idle latents where the heads of an `OwnVAE` put them."""
    randomise(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, parameter in network.named_parameters(recurse=True):
            if parameter.dim() == 2 and not parameter.abs().sum():
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
    size, heads = network.latent_dim, network._heads
    if heads in (separate, flipped):
        idle_rows(network.fc_mu, idle, ())
        rows_of_logvars = [size - 1 - i for i in idle] if heads is flipped else list(idle)
        idle_rows(network.fc_var, (), rows_of_logvars, live=range(size))
    elif heads is interleaved:
        idle_rows(network.head, [2 * i for i in idle], [2 * i + 1 for i in idle], live=range(1, 2 * size, 2))
    else:
        idle_rows(network.head, idle, [size + i for i in idle], live=range(size, 2 * size))
    for name, axis in getattr(network.reader, "reads", ()):
        idle_columns(network.reader.get_parameter(name), axis, idle)
    return network.eval()


def family(kind: type[OwnVAE] = OwnVAE, idle: tuple[int, ...] = IDLE, **options: Any) -> Family:
    """An `OwnVAE` or a class made from it, with what it takes."""
    return Family(plant(kind(**options), idle), rows(), idle=idle, smaller=lambda k: kind(latent_dim=k, **options))


# ---- what reads z


class Biasless(Reader):
    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.read = nn.Linear(latents, 6, bias=False)


class Functional(Reader):
    """F.linear with a parameter of one's own."""

    reads = (("w", 1),)

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        del self.read
        self.w, self.b = nn.Parameter(torch.zeros(6, latents)), nn.Parameter(torch.full((6,), 0.3))

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(nn.functional.linear(z, self.w, self.b)))


class RightMatrix(Functional):
    reads = (("w", 0),)

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.w = nn.Parameter(torch.zeros(latents, 6))

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(z @ self.w + self.b))


class TransposedMatrix(Functional):
    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(z @ self.w.t() + self.b))


class CalledByHand(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return self.out.forward(torch.tanh(self.read.forward(input=z)))


class Normalised(Reader):
    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.norm = nn.BatchNorm1d(latents)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(self.norm(z))


class Scaled(Reader):
    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, latents))

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z * self.scale)


class TwoReaders(Reader):
    reads = (("read.weight", 1), ("skip.weight", 1))

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.skip = nn.Linear(latents, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + self.skip(z)


class Aliased(Reader):
    """One layer under two names."""

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.again = self.read

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z)) + self.again(z))


class Convolved(Reader):
    """z as a map of one position."""

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.read = nn.Conv2d(latents, 6, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z[:, :, None, None])).flatten(1))


class ConvolvedUp(Reader):
    reads = (("read.weight", 0),)

    def __init__(self, latents: int) -> None:
        super().__init__(latents)
        self.read = nn.ConvTranspose2d(latents, 6, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z.view(len(z), -1, 1, 1))).flatten(1))


class Shaken(Reader):
    """View, permute, flatten and concat with a constant before z is read."""

    def forward(self, z: Tensor) -> Tensor:
        shaken = z.view(len(z), 1, -1).permute(0, 2, 1).flatten(1)
        both = torch.cat([shaken, torch.ones(len(z), 1).to(z)], 1)
        return self.out(torch.tanh(self.read(both[:, :-1])))


class ThroughSigmoid(Reader):
    """A constant latent is a constant sigmoid unit, which must fold."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(torch.sigmoid(z))


READERS = (
    Reader, Biasless, Functional, RightMatrix, TransposedMatrix, CalledByHand, Normalised, Scaled, TwoReaders,
    Aliased, Convolved, ConvolvedUp, Shaken, ThroughSigmoid,
)  # fmt: skip


# ---- maps and sequences


class MapVAE(nn.Module):
    """x (2, 8, 8) → maps of `z_channels`, 4×4; with 1×1 quant and post-quant convolutions, or without."""

    def __init__(self, z_channels: int = 4, quant: bool = True) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.moments = nn.Conv2d(6, 2 * z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1) if quant else None
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1) if quant else None
        self.conv_z = nn.Conv2d(z_channels, 6, 3, padding=1)
        self.conv_out = nn.ConvTranspose2d(6, 2, 2, stride=2)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.moments(torch.tanh(self.conv_in(x)))
        mean, logvar = (self.quant_conv(h) if self.quant_conv else h).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        z = self.post_quant_conv(z) if self.post_quant_conv else z
        return self.conv_out(torch.tanh(self.conv_z(z)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)), mean, logvar


def maps(quant: bool) -> Family:
    """Channels 0 and 2 of four idle."""
    network, idle = MapVAE(quant=quant), (0, 2)
    randomise(network, 3)
    idle_rows(network.quant_conv if quant else network.moments, idle, [4 + i for i in idle], live=range(4, 8))
    idle_columns((network.post_quant_conv if quant else network.conv_z).weight, 1, idle)
    smaller = None if quant else lambda k: MapVAE(k, quant=False)  # quant convs keep channels that no latent has
    return Family(network.eval(), rows(2, 8, 8, count=200), idle=idle, smaller=smaller)


class SequenceVAE(nn.Module):
    """x (3, 10) → sequences of latents (D, 10)."""

    def __init__(self, latent_dim: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.conv_mu, self.conv_logvar = nn.Conv1d(6, latent_dim, 1), nn.Conv1d(6, latent_dim, 1)
        self.read = nn.Conv1d(latent_dim, 6, 1)
        self.out = nn.Conv1d(6, 3, 3, padding=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.conv(x))
        return self.conv_mu(h), self.conv_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(z)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)), mean, logvar


def sequences() -> Family:
    """Channels 1 and 2 of four idle."""
    network, idle = SequenceVAE(), (1, 2)
    randomise(network, 1)
    idle_rows(network.conv_mu, idle, ())
    idle_rows(network.conv_logvar, (), idle, live=range(4))
    idle_columns(network.read.weight, 1, idle)
    return Family(network.eval(), rows(3, 10, count=200), idle=idle, smaller=SequenceVAE)


# ---- conditions


class ConditionalDecoder(nn.Module):
    """Reads [z, condition]."""

    reads = (("read.weight", 1),)

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.read = nn.Linear(latents + 3, 6)
        self.out = nn.Linear(6, WIDTH)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.out(torch.tanh(self.read(torch.cat([z, c], 1))))


class ConditionalVAE(OwnVAE):
    """encode(x, c), decode(z, c), c a vector of three."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim, reader=ConditionalDecoder)
        self.body = nn.Linear(WIDTH + 3, 7)

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(torch.cat([x, c], 1))

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return self.reader(z, c)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x, c)
        return self.decode(self.reparameterize(mean, logvar), c), mean, logvar


class ClassConditionalVAE(ConditionalVAE):
    """encode(x), decode(z, y), y a class number made one-hot inside; the condition on one side only."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.body = nn.Linear(WIDTH, 7)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return OwnVAE.encode(self, x)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        return self.reader(z, nn.functional.one_hot(y, 3).to(z))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        return self.decode(self.reparameterize(mean, logvar), y), mean, logvar


def conditional() -> Family:
    c = torch.eye(3)[torch.arange(900) % 3]
    return Family(plant(ConditionalVAE()), rows(), (c,), smaller=ConditionalVAE)


def class_conditional() -> Family:
    return Family(
        plant(ClassConditionalVAE()),
        rows(),
        (torch.arange(900) % 3,),
        posterior=lambda network, x, y: network.encode(x),
        smaller=ClassConditionalVAE,
    )
