"""What a training depends on beside the weights, so that it can go on to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vaeprune.errors import TrainingError
from vaeprune.posterior import VAE


def trainable(vae: VAE) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Raises TrainingError if there are none."""
    trainable = {name: p for name, p in vae.network.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingError(
            f"{type(vae.network).__name__}: has no parameter that requires a gradient, so nothing can be trained",
            "call requires_grad_(True) on what shall be trained",
        )
    return trainable


def state_of(vae: VAE, optimiser: torch.optim.Adam, generator: torch.Generator) -> dict[str, Tensor]:
    """Everything beside the weights that the next step depends on, as named tensors."""
    state = {"generator": generator.get_state()}
    for name, parameter in trainable(vae).items():
        blank = torch.zeros_like(parameter)  # what Adam would start from, where no loss has reached a parameter yet
        moments = optimiser.state.get(parameter) or {"step": torch.zeros(()), "exp_avg": blank, "exp_avg_sq": blank}
        for key, value in moments.items():
            state[f"{key}:{name}"] = value.detach().clone()
    return state


def restore(vae: VAE, optimiser: torch.optim.Adam, generator: torch.Generator, state: dict[str, Tensor]) -> None:
    """Put back what `state_of` gave. Raises TrainingError if it does not belong to this network or is damaged."""
    parameters = trainable(vae)
    keys = ("step", "exp_avg", "exp_avg_sq")
    expected = {f"{key}:{name}" for key in keys for name in parameters} | {"generator"}
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise TrainingError(f"training state: does not belong to this network ({', '.join(odd[:3])} …)")
    for name, parameter in parameters.items():
        if state[f"step:{name}"].numel() != 1:
            raise TrainingError(f"training state: step of {name} is not one number")
        for key in keys[1:]:
            values = state[f"{key}:{name}"]
            if not torch.isfinite(values).all() or (key == "exp_avg_sq" and (values < 0).any()):
                raise TrainingError(f"training state: {key} of {name} holds values that no training leaves")
            if state[f"{key}:{name}"].shape != parameter.shape:
                raise TrainingError(
                    f"training state: {key} of {name} has shape {tuple(state[f'{key}:{name}'].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
        # in the memory layout of the parameter, which Adam's fused step takes for granted
        moments = {key: torch.empty_like(parameter).detach().copy_(state[f"{key}:{name}"]) for key in keys[1:]}
        optimiser.state[parameter] = {"step": state[f"step:{name}"].clone(), **moments}
    try:
        generator.set_state(state["generator"])
    except (RuntimeError, TypeError) as error:
        raise TrainingError(f"training state: its random state is damaged: {error}") from error
