"""Copies of modules, resizing of their tensors, and parametrised weights made plain; all on copies only."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vaeprune.errors import ModelError

M = TypeVar("M", bound=nn.Module)


def copied(module: M, sharing: Collection[Tensor] = ()) -> M:
    """An independent copy, also of modules that keep computed tensors, which `deepcopy` refuses. Raises ModelError.

    Parameters in `sharing` get parameters of their own in the copy, in the same memory: for those that are only read,
    or replaced at once.
    """
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach(), tensor.requires_grad)
        for tensor in sharing
        if type(tensor) is nn.Parameter
    }
    for part in module.modules():
        for tensor in _tensors(vars(part)):
            if not tensor.is_leaf:  # a cached activation, or the weight that weight_norm computes
                memo[id(tensor)] = tensor.detach().clone()
    try:
        twin = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{type(module).__name__}: cannot be copied: {error}", "surgery needs a copy") from error
    for part in twin.modules():
        if parametrize.is_parametrized(part):
            _own_class(part)
    return twin


def make_plain(network: nn.Module) -> tuple[str, ...]:
    """Replace weights that are computed (weight norm, spectral norm, other parametrisations) by their values, in place.

    Returns the paths of the modules concerned.
    """
    plain = []
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            plain.append(path)
        elif _remove_hook_norms(module):
            plain.append(path)
    return tuple(plain)


def replace_tensors(network: nn.Module, tensors: Mapping[str, Tensor], attributes: Mapping[str, int]) -> None:
    """Give a module tensors of other shapes under the same keys, and set the sizes it notes, in place.

    Tied tensors stay tied. `attributes`: path of an integer ("decoder.in_features") → value. Raises ModelError where
    there is none.
    """
    for tensor, keys in aliases(network):
        value = tensors.get(keys[0])
        if value is None or value.shape == tensor.shape:
            continue
        replacement = (
            nn.Parameter(value.clone(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value.clone()
        )
        for key in keys:
            owner, _, name = key.rpartition(".")
            setattr(network.get_submodule(owner), name, replacement)
    set_attributes(network, attributes)
    network.load_state_dict(dict(tensors))


def set_attributes(network: nn.Module, attributes: Mapping[str, int]) -> None:
    """Set integers that modules note about themselves, in place. Raises ModelError where there is none."""
    for path, size in attributes.items():
        owner, _, name = path.rpartition(".")
        try:
            module = network.get_submodule(owner)
        except AttributeError:
            module = nn.Module()
        if type(getattr(module, name, None)) is not int:
            raise ModelError(f"{path}: is not an integer of {type(network).__name__}, but the plan sets it")
        setattr(module, name, size)


def aliases(network: nn.Module) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Each parameter and buffer once, with all state-dict keys it goes by."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for key, tensor in tensors:
        found.setdefault(id(tensor), (tensor, []))[1].append(key)
    return [(tensor, tuple(keys)) for tensor, keys in found.values()]


def _own_class(module: nn.Module) -> None:
    """torch keeps a parametrised weight's property on a class made for the module, which a copy would share."""
    kind = type(module)
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, own)


def _remove_hook_norms(module: nn.Module) -> bool:
    """The older weight_norm and spectral_norm, which are forward hooks."""
    removed = False
    for hook in list(module._forward_pre_hooks.values()):
        kind = type(hook).__name__
        if kind == "WeightNorm":
            torch.nn.utils.remove_weight_norm(module, hook.name)  # type: ignore[attr-defined]
        elif kind == "SpectralNorm":
            torch.nn.utils.remove_spectral_norm(module, hook.name)  # type: ignore[attr-defined]
            for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):  # torch leaves them behind
                for key, left in list(hooks.items()):
                    if "SpectralNorm" in type(getattr(left, "hook", left)).__name__:
                        del hooks[key]
        else:
            continue
        removed = True
    return removed


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
