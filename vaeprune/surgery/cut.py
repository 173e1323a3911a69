"""`cut`: apply a plan to a model, or to a state dict alone, and return a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE, batches_for, measuring
from vaeprune.adapters.adapted import unwrapped
from vaeprune.adapters.copying import aliases, copied, make_plain, replace_tensors
from vaeprune.architectures.low_rank import split_layers
from vaeprune.data import Rows
from vaeprune.errors import ModelError, PlanError
from vaeprune.factory import quoted
from vaeprune.posterior import VAE
from vaeprune.storage import weights_sha256
from vaeprune.surgery.plan import Plan

M = TypeVar("M")  # a module, or an adapted one


def cut(model: M, plan: Plan) -> M:
    """A new, smaller model of the same class; `model` stays as it is, bit for bit.

    `model` may be any module with the weights the plan was made for, VAE protocol or not.
    Raises PlanError if the plan was made for other weights or does not fit them.
    """
    refuse_other_weights(network_of(model).state_dict(), plan)
    return cut_any_weights(model, plan)


def cut_any_weights(model: M, plan: Plan, sharing: bool = False) -> M:
    """As `cut`, but the weights may be others of the same shapes: the same ones in float64, or grown from them.

    With `sharing` parameters that the plan leaves alone are in the memory of the model's own: for a result that is
    run and dropped.
    """
    whole = network_of(model)
    try:
        network, smaller = _made_plain(whole, plan) if plan.made_plain else _resizable(whole, plan, sharing)
        replace_tensors(network, smaller, plan.attributes)
        _split(network, plan)
    except ModelError as error:
        raise PlanError(error.message, error.hint) from error
    if isinstance(model, AdaptedVAE):
        return model.with_network(network, len(plan.kept_latents))  # type: ignore[return-value]
    return network  # type: ignore[return-value]


def _made_plain(whole: nn.Module, plan: Plan) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy whose computed weights are plain, and its tensors after the cut."""
    network = copied(whole)
    make_plain(network)
    return network, apply(network.state_dict(), plan)


def _resizable(whole: nn.Module, plan: Plan, sharing: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy to be given tensors of other shapes, and all its tensors after that.

    What gets another shape is replaced, so it need not be copied first.
    """
    before = whole.state_dict()
    smaller = apply(before, plan)
    changed = {key: value for key, value in smaller.items() if value is not before[key]}
    replaced = [
        tensor
        for tensor, keys in aliases(whole)
        if (keys[0] in changed and changed[keys[0]].shape != tensor.shape)
        or (sharing and changed.keys().isdisjoint(keys))
    ]
    network = copied(whole, replaced)
    return network, {**network.state_dict(), **changed}


def refuse_broken(smaller: VAE, rows: Rows) -> None:
    """A plan that somebody else wrote may leave layers that do not fit each other: run two rows. Raises PlanError."""
    x, *condition = next(iter(batches_for(smaller, rows, 2)))
    try:
        with measuring(smaller):
            smaller.decode(smaller.encode(x, *condition).mean, *condition)
    except (RuntimeError, IndexError, ValueError) as error:
        raise PlanError(f"plan: what it leaves does not run: {quoted(error)}", "make a new plan") from error


def cut_state_dict(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The smaller weights under the same keys; `state` stays as it is.

    Raises PlanError, also where the plan makes computed weights (weight norm) plain, which takes the module itself.
    """
    refuse_other_weights(state, plan)
    if plan.made_plain:
        raise PlanError(
            f"plan: makes the weights of {', '.join(plan.made_plain)} plain", "apply it to the module with cut"
        )
    if plan.factors:
        raise PlanError(f"plan: makes {', '.join(plan.factors)} two layers each", "apply it to the module with cut")
    smaller = apply(state, plan)
    return {key: value.detach().clone() if value is state[key] else value for key, value in smaller.items()}


def _split(network: nn.Module, plan: Plan) -> None:
    """Make the layers in `factors` pairs, in place; the bias goes to the second."""
    for path, (down, up) in plan.factors.items():
        bias = network.get_submodule(path).bias
        split_layers(network, {path: up.shape[1]})
        pair = cast(nn.Sequential, network.get_submodule(path))
        for layer, value in zip(pair, (down, up), strict=True):
            weight = cast(nn.Parameter, layer.weight)
            if weight.shape != value.shape:
                raise PlanError(f"plan: splits {path} by {tuple(value.shape)}, the layer takes {tuple(weight.shape)}")
            layer.weight = nn.Parameter(value.to(weight), weight.requires_grad)
        if bias is not None:
            pair[1].bias = bias


def refuse_other_weights(state: Mapping[str, Tensor], plan: Plan) -> None:
    """Raise PlanError unless `state` are the weights the plan was made for."""
    if weights_sha256(state) != plan.weights_sha256:
        raise PlanError("plan: was made for other weights than these", "make a new plan, or load the weights it names")


def apply(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The arithmetic of a plan in the precision of `state`, which need not be the weights it was made for.

    What the plan leaves alone is the very tensor of `state`.
    """
    smaller = dict(state)
    for key, change in plan.bias_changes.items():
        _add(smaller, key, change)
    for part in plan.slices:
        tensor = smaller.get(part.key)
        if tensor is None or tensor.dim() <= part.axis or tensor.shape[part.axis] != part.size:
            got = None if tensor is None else tuple(tensor.shape)
            raise PlanError(f"plan: cuts {part.key} on axis {part.axis} of {part.size}, the weights have {got}")
        smaller[part.key] = tensor.detach().index_select(part.axis, torch.tensor(part.kept, device=tensor.device))
    for key, change in plan.refits.items():
        _add(smaller, key, change)
    return smaller


def _add(state: dict[str, Tensor], key: str, change: Tensor) -> None:
    """Add in float64, in the type of the weights."""
    if key not in state or state[key].shape != change.shape:
        raise PlanError(f"plan: changes {key} by {tuple(change.shape)}, the weights have no such tensor")
    state[key] = (state[key].detach().double() + change.to(state[key].device)).to(state[key].dtype)


def network_of(model: object) -> nn.Module:
    """The module whose state dict a plan speaks of. Raises PlanError if there is none."""
    if isinstance(model, AdaptedVAE):
        return model.network
    if not isinstance(model, nn.Module):
        raise PlanError(f"cut: got {type(model).__name__}, expected an nn.Module")
    return unwrapped(model)
