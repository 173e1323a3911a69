"""Torch-Pruning's structured pruning down to a number of weights, as its documentation says to use it.

Channels of all layers are ranked together (`global_pruning`), those that make latents or the output are left alone, and
the pruning ratio is bisected. Two of its importances: the group L2 norm, and Taylor, which sees gradients of the loss.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vaeprune.architectures import BuiltVAE
from vaeprune.architectures.convolutional import SameConvTranspose2d, same_padding
from vaeprune.data import MemoryRows
from vaeprune.posterior import count_weights, negative_elbo

IMPORTANCES = ("group L2 norm", "Taylor")
SPARE = 1.01  # it may keep so much more than asked for
_BISECTIONS = 24
_GRADIENT_ROWS, _BATCH = 8_000, 500
_M = TypeVar("_M", bound=nn.Module)


class _Traced(nn.Module):
    """The model under a forward without chance."""

    def __init__(self, vae: BuiltVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, logvar = self.vae.encode(x)
        return self.vae.decode_parameters(mean), mean, logvar


class _Cropped(nn.Module):
    """A `SameConvTranspose2d` as two modules: what is done to a layer's result inside of it is lost on its graph."""

    def __init__(self, layer: SameConvTranspose2d) -> None:
        super().__init__()
        self.same = [layer]  # in a list, so that it is no module of this one
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        self.plain = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, kernel, stride)
        self.plain.weight, self.plain.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.plain(x)
        (layer,) = self.same
        for axis, size in zip((2, 3), layer.image, strict=True):  # it takes axes counted from behind for channels
            before, _ = same_padding(size, layer.kernel_size[0], layer.stride[0])
            y = y.narrow(axis, before, size)
        return y

    def joined(self) -> SameConvTranspose2d:
        """The layer as it was, with what is left of its weights."""
        (layer,), plain = self.same, self.plain
        layer.weight, layer.bias = plain.weight, plain.bias
        layer.in_channels, layer.out_channels = plain.in_channels, plain.out_channels
        return layer


def version() -> str | None:
    """Which Torch-Pruning is installed; None if it is not."""
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    return importlib.metadata.version("torch-pruning")  # the package's own __version__ lags behind


def pruned_to(vae: BuiltVAE, most: int, importance: str, rows: MemoryRows) -> BuiltVAE:
    """The largest network it gives with at most `SPARE` times `most` weights; `vae` stays as it is."""
    gradients = _gradients(vae, rows) if importance == "Taylor" else {}
    low, high = 0.0, 1.0
    best = _pruned(vae, high, importance, gradients)
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        found = _pruned(vae, ratio, importance, gradients)
        if count_weights(found) <= SPARE * most:
            best, high = found, ratio
        else:
            low = ratio
    return best


def _pruned(vae: BuiltVAE, ratio: float, importance: str, gradients: Mapping[str, Tensor]) -> BuiltVAE:
    import torch_pruning as tp

    smaller = copy.deepcopy(vae).eval()
    for name, parameter in smaller.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    by: dict[str, Callable[[], Any]] = {
        "group L2 norm": tp.importance.GroupMagnitudeImportance,
        "Taylor": tp.importance.GroupTaylorImportance,
    }
    _replace(smaller, SameConvTranspose2d, _Cropped)
    layers = [m for m in smaller.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    heads = [smaller.get_submodule(name) for name in ("mean_head", "logvar_head")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            _Traced(smaller),
            torch.zeros(2, *vae.input_shape),
            importance=by[importance](),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[*heads, layers[-1]],
        )
        pruner.step()
    _replace(smaller, _Cropped, _Cropped.joined)
    for parameter in smaller.parameters():
        parameter.grad = None
    return smaller


def _replace(model: nn.Module, kind: type[_M], by: Callable[[_M], nn.Module]) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, kind):
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, by(module))


def _gradients(vae: BuiltVAE, rows: MemoryRows) -> dict[str, Tensor]:
    """Of the mean −ELBO over the first rows, with one sample each."""
    twin = copy.deepcopy(vae).eval()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(min(_GRADIENT_ROWS, rows.count))
    for part in torch.split(chosen, _BATCH):
        x = rows.take(part)[0].view(-1, *vae.input_shape)
        posterior = twin.encode(x)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
        (negative_elbo(twin, x, z, posterior).sum() / len(chosen)).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
