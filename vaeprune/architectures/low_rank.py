"""One linear layer as two: down to a few combinations of what it reads, and up again to what it writes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from vaeprune.errors import ModelError

_CONVOLUTIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.Conv1d,
    nn.Conv2d: nn.Conv2d,
    nn.Conv3d: nn.Conv3d,
    nn.ConvTranspose1d: nn.Conv1d,
    nn.ConvTranspose2d: nn.Conv2d,
    nn.ConvTranspose3d: nn.Conv3d,
}


class LowRank(nn.Sequential):
    """`down`, the layer itself with `rank` outputs and no bias, then `up`, which has no kernel, with the bias."""

    @property
    def rank(self) -> int:
        """How many combinations go through."""
        return self._weight(0).shape[1 if self._transposed else 0]

    @property
    def out_features(self) -> int:
        """Of a linear layer."""
        return self._weight(1).shape[0]

    @property
    def out_channels(self) -> int:
        """Of a convolution."""
        return self.out_features

    def _weight(self, place: int) -> Tensor:
        return cast(Tensor, self[place].weight)

    @property
    def _transposed(self) -> bool:
        return bool(getattr(self[0], "transposed", False))


def low_rank(layer: nn.Module, rank: int) -> LowRank:
    """A pair of fresh layers in place of `layer`, of its type and place; raises ModelError if it cannot be split."""
    if not can_be_split(layer) or rank < 1:
        raise ModelError(f"{type(layer).__name__}: cannot be split into two layers of rank {rank}")
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias = layer.bias is not None
    place = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(weight.shape[1], rank, bias=False, **place)
        up: nn.Module = nn.Linear(rank, weight.shape[0], bias=bias, **place)
        return LowRank(down, up).train(layer.training)
    transposed = bool(layer.transposed)
    down = copy.deepcopy(layer)
    shape = list(weight.shape)
    shape[1 if transposed else 0] = rank
    down.weight = nn.Parameter(torch.zeros(shape, **place))  # type: ignore[call-overload]
    down.bias = None  # type: ignore[assignment]
    down.out_channels = rank  # type: ignore[assignment]
    pointwise = next(kind for whole, kind in _CONVOLUTIONS.items() if isinstance(layer, whole))
    outputs = weight.shape[1 if transposed else 0]
    return LowRank(down, pointwise(rank, outputs, 1, bias=bias, **place)).train(layer.training)


def can_be_split(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear map with one group of channels."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, tuple(_CONVOLUTIONS)) and layer.groups == 1  # type: ignore[return-value]


def split_layers(network: nn.Module, ranks: Mapping[str, int]) -> None:
    """Replace the layers at these paths by pairs of these ranks, in place. Raises ModelError."""
    for path, rank in ranks.items():
        owner, _, name = path.rpartition(".")
        try:
            layer = network.get_submodule(path)
        except AttributeError:
            raise ModelError(f"ranks: {type(network).__name__} has no layer {path!r:.80}") from None
        setattr(network.get_submodule(owner), name, low_rank(layer, rank))


def ranks_of(network: nn.Module) -> dict[str, int]:
    """Path and rank of every pair in a network."""
    return {path: layer.rank for path, layer in network.named_modules() if isinstance(layer, LowRank)}


def checked_ranks(entry: object, where: str) -> dict[str, int]:
    """Ranks as a config has them. Raises ModelError."""
    if not isinstance(entry, dict) or not all(
        type(path) is str and path and type(rank) is int and 0 < rank < 2**31 for path, rank in entry.items()
    ):
        raise ModelError(
            f"{where}: got ranks {entry!r:.80}, expected a path and a positive whole number for each layer"
        )
    return dict(entry)
