"""Tiny VAEs, one for each shape a dependency tracer has to get right: how latents are made and how they are read.

All have 6 latents, and the ones named by `idle` are made idle: their means are 0.3 on every row, their logvars 0.
What reads them is left large, so a constant that is not folded into a bias is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENTS, HIDDEN, WIDTH, CLASSES = 6, 7, 5, 3
IDLE_MEAN = 0.3
Row = Callable[[int], int]


@dataclass(frozen=True)
class Head:
    """What makes latents: a layer, or with `bias` a bare weight; which of its rows make mean and spread of latent i."""

    path: str
    mean: Row | None = None
    spread: Row | None = None
    bias: str | None = None

    def rows(self, latents: Sequence[int]) -> list[int]:
        """The rows of these latents, means first."""
        return [row(i) for row in (self.mean, self.spread) if row for i in latents]


def same(latent: int) -> int:
    return latent


def after_all(latent: int) -> int:
    return latent + LATENTS


SEPARATE = (Head("mean", mean=same), Head("logvar", spread=same))


class Tiny(nn.Module):
    """x (5) → two heads → z (6) → one reader → x̂ (5). `readers`: layers that read z as it is.

    `bare`: parameters outside of layers, each with its axis of latents. `sizes`: attributes that hold their number.
    """

    title = "separate heads"
    idle: tuple[int, ...] = (1, 4)
    heads: tuple[Head, ...] = SEPARATE
    readers: tuple[str, ...] = ("reader",)
    bare: Mapping[str, int] = MappingProxyType({})
    sizes: tuple[str, ...] = ()
    input_shape: tuple[int, ...] = (WIDTH,)
    latent_shape: tuple[int, ...] = (LATENTS,)
    classes = 0

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def build(self) -> None:
        self.body = nn.Linear(WIDTH + self.classes, HIDDEN)
        self.mean, self.logvar = nn.Linear(HIDDEN, LATENTS), nn.Linear(HIDDEN, LATENTS)
        self.reader, self.out = nn.Linear(LATENTS, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.mean(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.reader(z)))

    def forward(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x, *condition)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.decode(z, *condition), mean, logvar


class Fused(Tiny):
    title = "fused head, p, q = h.chunk(2, 1)"
    heads = (Head("head", mean=same, spread=after_all),)

    def build(self) -> None:
        self.body, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 2 * LATENTS)
        self.reader, self.out = nn.Linear(LATENTS, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.hidden(x)).chunk(2, 1)
        return mean, logvar


class SplitBySize(Fused):
    title = "fused head, h.split(self.latents, 1)"
    sizes = ("latents",)

    def build(self) -> None:
        super().build()
        self.latents = LATENTS

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.hidden(x)).split(self.latents, 1)
        return mean, logvar


class SlicedByNumber(Fused):
    title = "fused head, h[:, :6] with the 6 in the code"

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.head(self.hidden(x))
        return h[:, :6], h[:, 6:]


class HalvesApart(Fused):
    title = "halves of h.chunk(2, 1) feed different layers"
    heads = (Head("head", mean=same), Head("spread", spread=same))

    def build(self) -> None:
        super().build()
        self.spread = nn.Linear(LATENTS, LATENTS)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, rest = self.head(self.hidden(x)).chunk(2, 1)
        return mean, self.spread(torch.tanh(rest))


class SecondHalf(Fused):
    title = "mean in the second half, eval: z = mean alone"
    heads = (Head("head", mean=after_all, spread=same),)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logvar, mean = self.head(self.hidden(x)).chunk(2, 1)
        return mean, logvar

    def forward(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        return super().forward(x) if self.training else self.decode(self.encode(x)[0])


class Stacked(Fused):
    title = "fused head, view(B, 2, -1)"

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.head(self.hidden(x)).view(len(x), 2, -1)
        return h[:, 0], h[:, 1]


class Interleaved(Fused):
    title = "fused head, view(B, -1, 2).unbind(-1)"
    heads = (Head("head", mean=lambda i: 2 * i, spread=lambda i: 2 * i + 1),)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.hidden(x)).view(len(x), -1, 2).unbind(-1)
        return mean, logvar


class TiedRows(Tiny):
    title = "two latents tied to one row, one to go"
    heads = (Head("mean", mean=lambda i: (0, 1, 1, 2, 3, 4)[i]), Head("logvar", spread=same))

    def build(self) -> None:
        super().build()
        self.mean = nn.Linear(HIDDEN, LATENTS - 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.mean(h)[:, [0, 1, 1, 2, 3, 4]], self.logvar(h)


class UnderNoGrad(Tiny):
    title = "encoder under no_grad"

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return super().encode(x)


class BareHeads(Tiny):
    title = "heads as F.linear(h, self.w, self.b)"
    heads = (Head("w_mean", mean=same, bias="b_mean"), Head("w_logvar", spread=same, bias="b_logvar"))
    bare = MappingProxyType({"w_mean": 0, "b_mean": 0, "w_logvar": 0, "b_logvar": 0})

    def build(self) -> None:
        super().build()
        del self.mean, self.logvar
        self.w_mean, self.w_logvar = (nn.Parameter(torch.empty(LATENTS, HIDDEN)) for _ in range(2))
        self.b_mean, self.b_logvar = (nn.Parameter(torch.empty(LATENTS)) for _ in range(2))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return F.linear(h, self.w_mean, self.b_mean), F.linear(h, self.w_logvar, self.b_logvar)


class BareReader(Tiny):
    title = "reader as z @ self.W + self.b"
    readers = ("W",)
    bare = MappingProxyType({"W": 0})

    def build(self) -> None:
        super().build()
        del self.reader
        self.W, self.b = nn.Parameter(torch.empty(LATENTS, HIDDEN)), nn.Parameter(torch.empty(HIDDEN))

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(z @ self.W + self.b))


class Conditional(Tiny):
    title = "class vector concatenated to x and z"
    readers = ()
    classes = CLASSES

    def build(self) -> None:
        super().build()
        self.reader = nn.Linear(LATENTS + CLASSES, HIDDEN)

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(torch.cat([x, c], 1))

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return super().decode(torch.cat([z, c], 1))


class TwoReaders(Tiny):
    title = "z has two readers"
    readers = ("reader", "gate")

    def build(self) -> None:
        super().build()
        self.gate = nn.Linear(LATENTS, HIDDEN)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.reader(z)) * torch.sigmoid(self.gate(z)))


class ChunkedLatents(Tiny):
    title = "halves of z.chunk(2, 1) to two readers"
    readers = ()

    def build(self) -> None:
        super().build()
        self.reader, self.other = (nn.Linear(LATENTS // 2, HIDDEN) for _ in range(2))

    def decode(self, z: Tensor) -> Tensor:
        first, second = z.chunk(2, 1)
        return self.out(torch.tanh(self.reader(first)) * torch.sigmoid(self.other(second)))


class OneHalfIdle(ChunkedLatents):
    title = "the same, both idle latents in the first half"
    idle = (0, 1)


class NoBias(Tiny):
    title = "reader without bias"

    def build(self) -> None:
        super().build()
        self.reader = nn.Linear(LATENTS, HIDDEN, bias=False)


HEAD_MODELS = (
    Tiny, Fused, SplitBySize, SlicedByNumber, HalvesApart, SecondHalf, Stacked, Interleaved, TiedRows, UnderNoGrad,
    BareHeads,
)  # fmt: skip
READER_MODELS = (BareReader, Conditional, TwoReaders, ChunkedLatents, OneHalfIdle, NoBias)


def planted(kind: type[Tiny], seed: int = 0) -> Tiny:
    """A model of this shape in float64 eval mode with random weights and its idle latents made idle."""
    generator = torch.Generator().manual_seed(seed)
    model = kind().double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.normal_(0.0, 0.6, generator=generator)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
        for head in model.heads:
            weight, bias = weight_and_bias(model, head)
            weight[head.rows(model.idle)] = 0
            for row, value in ((head.mean, IDLE_MEAN), (head.spread, 0.0)):
                if row is not None:
                    bias[[row(latent) for latent in model.idle]] = value
    return model


def weight_and_bias(model: nn.Module, head: Head) -> tuple[Tensor, Tensor]:
    if head.bias is not None:
        return model.get_parameter(head.path), model.get_parameter(head.bias)
    layer = model.get_submodule(head.path)
    return layer.get_parameter("weight"), layer.get_parameter("bias")
