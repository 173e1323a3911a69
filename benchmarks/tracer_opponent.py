"""Torch-Pruning as its documentation says to use it, in every way that it leaves open.

A graph is traced from the model's own forward, from one that returns decode(mean), or from one that always samples;
the group of the layer that makes the means is asked for with the rows of the means, and where the layer makes the
logvars, too, with those of both. What a user who knows the model would then see left over (another head, a reader that
the graph did not tie to the latents, a size it notes) is put right by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.tracer_models import LATENTS, Head, Tiny, weight_and_bias

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class _Traced(nn.Module):
    """The model under another forward."""

    def __init__(self, network: Tiny, sampled: bool) -> None:
        super().__init__()
        self.network, self.sampled = network, sampled

    def forward(self, x: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:
        mean, logvar = self.network.encode(x, *condition)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.sampled else mean
        return self.network.decode(z, *condition), mean, logvar


def torch_pruning_ways(model: Tiny, example: tuple[Tensor, ...]) -> Iterator[Callable[[Tiny], None]]:
    """Functions that cut the idle latents out of a model in place."""
    head = next(head for head in model.heads if head.mean)
    means = Head(head.path, mean=head.mean).rows(model.idle)
    for rows in (means, head.rows(model.idle)) if head.spread else (means,):
        for forward in ("own", "mean", "sampled"):
            yield functools.partial(_cut, example=example, forward=forward, rows=rows)


def _cut(model: Tiny, example: tuple[Tensor, ...], forward: str, rows: list[int]) -> None:
    import torch_pruning as tp

    traced = model if forward == "own" else _Traced(model, sampled=forward == "sampled")
    sizes = {head.path: _rows_of(model, head) for head in model.heads}
    readers = {path: _channels_read(model, path) for path in model.readers}
    graph = tp.DependencyGraph().build_dependency(
        traced,
        example_inputs=example,
        unwrapped_parameters=[(model.get_parameter(path), axis) for path, axis in model.bare.items()],
        ignored_params=[p for path, p in model.named_parameters(recurse=False) if path not in model.bare],
    )
    head = next(head for head in model.heads if head.mean)
    root = model.get_parameter(head.path) if head.bias else model.get_submodule(head.path)
    # its history has no names for bare parameters, and would raise after the cut
    graph.get_pruning_group(root, _writer_function(tp, root), idxs=rows).prune(record_history=False)
    for head in model.heads:
        if _rows_of(model, head) == sizes[head.path]:
            _cut_rows(tp, model, head)
    for path in model.readers:
        if _channels_read(model, path) == readers[path] == LATENTS:
            _cut_columns(tp, model, path)
    for name in model.sizes:
        setattr(model, name, LATENTS - len(model.idle))


def _rows_of(model: Tiny, head: Head) -> int:
    return len(weight_and_bias(model, head)[0])


def _channels_read(model: Tiny, path: str) -> int:
    if path in model.bare:
        return model.get_parameter(path).shape[model.bare[path]]
    layer = model.get_submodule(path)
    return int(layer.in_channels if isinstance(layer, _CONVOLUTIONS) else layer.in_features)


def _writer_function(tp: ModuleType, root: nn.Module | nn.Parameter) -> Callable[..., object]:
    if isinstance(root, nn.Parameter):
        return tp.prune_parameter_out_channels
    return tp.prune_conv_out_channels if isinstance(root, _CONVOLUTIONS) else tp.prune_linear_out_channels


def _cut_rows(tp: ModuleType, model: Tiny, head: Head) -> None:
    rows = head.rows(model.idle)
    if head.bias is None:
        layer = model.get_submodule(head.path)
        _writer_function(tp, layer)(layer, rows)
        return
    for path in (head.path, head.bias):
        _keep(model, path, 0, rows)


def _cut_columns(tp: ModuleType, model: Tiny, path: str) -> None:
    if path in model.bare:
        _keep(model, path, model.bare[path], list(model.idle))
        return
    layer = model.get_submodule(path)
    cut = tp.prune_conv_in_channels if isinstance(layer, _CONVOLUTIONS) else tp.prune_linear_in_channels
    cut(layer, list(model.idle))


def _keep(model: Tiny, path: str, axis: int, gone: list[int]) -> None:
    """By hand, as its function for parameters takes the axis from a graph."""
    owner, _, name = path.rpartition(".")
    before = model.get_parameter(path)
    kept = torch.tensor([i for i in range(before.shape[axis]) if i not in gone])
    setattr(model.get_submodule(owner), name, nn.Parameter(before.detach().index_select(axis, kept)))
