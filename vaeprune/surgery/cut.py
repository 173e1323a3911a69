"""`cut`: apply a plan to a model, or to a state dict alone, and return a new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE
from vaeprune.adapters.adapted import unwrapped
from vaeprune.adapters.copying import copied, make_plain, replace_tensors
from vaeprune.architectures.low_rank import split_layers
from vaeprune.errors import ModelError, PlanError
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


def cut_any_weights(model: M, plan: Plan) -> M:
    """As `cut`, but the weights may be others of the same shapes: the same ones in float64, or grown from them."""
    network = copied(network_of(model))
    if plan.made_plain:
        make_plain(network)
    try:
        replace_tensors(network, apply(network.state_dict(), plan), plan.attributes)
        _split(network, plan)
    except ModelError as error:
        raise PlanError(error.message, error.hint) from error
    if isinstance(model, AdaptedVAE):
        return model.with_network(network, len(plan.kept_latents))  # type: ignore[return-value]
    return network  # type: ignore[return-value]


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
    return apply(state, plan)


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
    """The arithmetic of a plan in the precision of `state`, which need not be the weights it was made for."""
    smaller = {key: value.detach().clone() for key, value in state.items()}
    for key, change in plan.bias_changes.items():
        _add(smaller, key, change)
    for part in plan.slices:
        tensor = smaller.get(part.key)
        if tensor is None or tensor.dim() <= part.axis or tensor.shape[part.axis] != part.size:
            got = None if tensor is None else tuple(tensor.shape)
            raise PlanError(f"plan: cuts {part.key} on axis {part.axis} of {part.size}, the weights have {got}")
        smaller[part.key] = tensor.index_select(part.axis, torch.tensor(part.kept, device=tensor.device))
    for key, change in plan.refits.items():
        _add(smaller, key, change)
    return smaller


def _add(state: dict[str, Tensor], key: str, change: Tensor) -> None:
    """Add in float64, in the type of the weights."""
    if key not in state or state[key].shape != change.shape:
        raise PlanError(f"plan: changes {key} by {tuple(change.shape)}, the weights have no such tensor")
    state[key] = (state[key].double() + change.to(state[key].device)).to(state[key].dtype)


def network_of(model: object) -> nn.Module:
    """The module whose state dict a plan speaks of. Raises PlanError if there is none."""
    if isinstance(model, AdaptedVAE):
        return model.network
    if not isinstance(model, nn.Module):
        raise PlanError(f"cut: got {type(model).__name__}, expected an nn.Module")
    return unwrapped(model)
