"""`cut`: apply a plan to a model, or to a state dict alone, and return a new one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vaeprune.adapters import as_vae
from vaeprune.errors import PlanError
from vaeprune.posterior import VAE
from vaeprune.storage import weights_sha256
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import aliases


def cut(model: VAE, plan: Plan) -> VAE:
    """A new, smaller model; `model` stays as it is, bit for bit.

    Raises PlanError if the plan was made for other weights or does not fit them.
    """
    vae = as_vae(model)
    refuse_other_weights(vae.network.state_dict(), plan)
    return cut_any_weights(vae, plan)


def cut_any_weights(vae: VAE, plan: Plan) -> VAE:
    """As `cut`, but the weights may be others of the same shapes: the same ones in float64, or grown from them."""
    vae = copy.deepcopy(vae)
    network = vae.network
    smaller = apply(network.state_dict(), plan)
    for tensor, keys in aliases(network):
        if keys[0] in smaller and smaller[keys[0]].shape != tensor.shape:
            value = smaller[keys[0]]
            replacement = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            for key in keys:
                owner, _, name = key.rpartition(".")
                setattr(network.get_submodule(owner), name, replacement)
    network.load_state_dict(smaller)
    for path, size in plan.attributes.items():
        owner, _, name = path.rpartition(".")
        if type(getattr(network.get_submodule(owner), name, None)) is not int:
            raise PlanError(f"plan: sets {path}, which is not an integer of this model")
        setattr(network.get_submodule(owner), name, size)
    return vae


def cut_state_dict(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The smaller weights under the same keys; `state` stays as it is. Raises PlanError."""
    refuse_other_weights(state, plan)
    return apply(state, plan)


def refuse_other_weights(state: Mapping[str, Tensor], plan: Plan) -> None:
    """Raise PlanError unless `state` are the weights the plan was made for."""
    if weights_sha256(state) != plan.weights_sha256:
        raise PlanError("plan: was made for other weights than these", "make a new plan, or load the weights it names")


def apply(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The arithmetic of a plan in the precision of `state`, which need not be the weights it was made for."""
    smaller = {key: value.detach().clone() for key, value in state.items()}
    for key, change in plan.bias_changes.items():
        if key not in smaller or smaller[key].shape != change.shape:
            raise PlanError(f"plan: changes {key} by {tuple(change.shape)}, the weights have no such vector")
        smaller[key] = (smaller[key].double() + change.to(smaller[key].device)).to(smaller[key].dtype)
    for part in plan.slices:
        tensor = smaller.get(part.key)
        if tensor is None or tensor.dim() <= part.axis or tensor.shape[part.axis] != part.size:
            got = None if tensor is None else tuple(tensor.shape)
            raise PlanError(f"plan: cuts {part.key} on axis {part.axis} of {part.size}, the weights have {got}")
        smaller[part.key] = tensor.index_select(part.axis, torch.tensor(part.kept, device=tensor.device))
    return smaller
