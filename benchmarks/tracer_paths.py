"""More tiny VAEs for the dependency tracers: z changes on its way to its reader, or latents are maps."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn

from benchmarks.tracer_models import LATENTS, SEPARATE, Fused, Head, Tiny, after_all, same

SIDE, IMAGE, MAPS = 4, 2, 5


class Between(Tiny):
    """Something between z and its reader."""

    between: Callable[[], nn.Module]

    def build(self) -> None:
        super().build()
        self.first = type(self).between()

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(self.first(z))


class NanToNum(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.nan_to_num(z)


class Floor(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > -0.5, z, -0.5)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(LATENTS))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(LATENTS, LATENTS)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.inner(z)


class BatchNormed(Between):
    title = "BatchNorm1d on z"
    readers = ()
    between = staticmethod(lambda: nn.BatchNorm1d(LATENTS))


class Scaled(Between):
    title = "z times a vector of parameters"
    bare = MappingProxyType({"first.scale": 0})
    between = Scale


class Squashed(Between):
    title = "sigmoid(z) is read: a constant 0.57 to fold"
    between = nn.Sigmoid


class WithoutNan(Between):
    title = "nan_to_num(z) is read"
    between = NanToNum


class Floored(Between):
    title = "where(z > -0.5, z, -0.5) is read"
    between = Floor


class LayerNormed(Between):
    title = "LayerNorm on z"
    between = staticmethod(lambda: nn.LayerNorm(LATENTS))


class GroupNormed(Between):
    title = "GroupNorm(2, 6) on z"
    between = staticmethod(lambda: nn.GroupNorm(2, LATENTS))


class Softmaxed(Between):
    title = "softmax over z"
    between = staticmethod(lambda: nn.Softmax(-1))


class Skipped(Between):
    title = "z + inner(z) is read"
    readers = ()
    between = Residual


class Maps(Fused):
    """x (2, 4, 4) → fused convolution → z (6, 4, 4) → x̂ (2, 4, 4)."""

    title = "maps: fused conv head, 1x1 quant convs"
    heads: tuple[Head, ...] = (Head("quant", mean=same, spread=after_all),)
    readers: tuple[str, ...] = ("reader",)
    input_shape = (IMAGE, SIDE, SIDE)
    latent_shape: tuple[int, ...] = (LATENTS, SIDE, SIDE)

    def build(self) -> None:
        self.body = nn.Conv2d(IMAGE, 2 * LATENTS, 3, padding=1)
        self.quant, self.reader = nn.Conv2d(2 * LATENTS, 2 * LATENTS, 1), nn.Conv2d(LATENTS, LATENTS, 1)
        self.out = nn.Conv2d(LATENTS, IMAGE, 3, padding=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant(self.body(x)).chunk(2, 1)
        return mean, logvar


class PaddedReader(Maps):
    title = "maps: z is read by a padded 3x3 conv"

    def build(self) -> None:
        super().build()
        self.reader = nn.Conv2d(LATENTS, LATENTS, 3, padding=1)


class TransposedReader(Maps):
    title = "maps: z is read by a ConvTranspose2d"

    def build(self) -> None:
        super().build()
        self.reader = nn.ConvTranspose2d(LATENTS, MAPS, 4, stride=2, padding=1)
        self.out = nn.Conv2d(MAPS, IMAGE, 3, stride=2, padding=1)


class FlattenedMaps(Maps):
    title = "maps: fused conv head, z.flatten(1) to a Linear"
    readers = ()

    def build(self) -> None:
        super().build()
        self.reader = nn.Linear(LATENTS * SIDE * SIDE, MAPS)
        self.out = nn.Linear(MAPS, IMAGE * SIDE * SIDE)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.flatten(1)).view(-1, IMAGE, SIDE, SIDE)


class FlattenedApart(FlattenedMaps):
    title = "maps: two conv heads, z.flatten(1) to a Linear"
    heads = SEPARATE

    def build(self) -> None:
        super().build()
        del self.quant
        self.mean, self.logvar = (nn.Conv2d(2 * LATENTS, LATENTS, 1) for _ in range(2))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.body(x))
        return self.mean(h), self.logvar(h)


class ConvToVector(Maps):
    title = "conv, flatten, Linear heads; z.view(B, -1, 1, 1)"
    heads = SEPARATE
    latent_shape = (LATENTS,)

    def build(self) -> None:
        self.body = nn.Conv2d(IMAGE, MAPS, 3, padding=1)
        self.mean, self.logvar = (nn.Linear(MAPS * SIDE * SIDE, LATENTS) for _ in range(2))
        self.reader, self.out = nn.ConvTranspose2d(LATENTS, MAPS, SIDE), nn.Conv2d(MAPS, IMAGE, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.body(x)).flatten(1)
        return self.mean(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.view(len(z), -1, 1, 1))


PATH_MODELS = (BatchNormed, Scaled, Squashed, WithoutNan, Floored, LayerNormed, GroupNormed, Softmaxed, Skipped)
MAP_MODELS = (Maps, PaddedReader, TransposedReader, FlattenedMaps, FlattenedApart, ConvToVector)
