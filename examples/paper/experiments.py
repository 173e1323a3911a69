"""The numbers: idle latents over seeds, along training and by objective, growing as advised, Fig. 5's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import printed
import torch
from recipes import (
    FIRST_SIZE,
    NETWORKS,
    OBJECTIVES,
    STARTED_OTHERWISE,
    Scale,
    objective,
    of_size,
    plain,
    recipe,
    torch_start,
)
from runs import Run, Runs
from torch import Tensor, nn

from vaeprune.adapters import measuring
from vaeprune.posterior import INACTIVE_POSTERIOR_VARIANCE
from vaeprune.training import Epoch

_LARGEST_SIZE = 64
_OTHER_LIMITS = (0.001, 0.03, 0.1)


def networks(runs: Runs, scale: Scale, only: Sequence[str] = NETWORKS) -> dict[str, dict[str, Any]]:
    """Each of the four networks, seed by seed."""
    found = {}
    for network in only:
        trained = [runs.get(name, recipe) for name, recipe in plain(scale, network).items()]
        found[network] = {
            "paper_idle": printed.IDLE[network],
            "seeds": {str(run.recipe.seed): described(runs, run) for run in trained if run},
        }
    return found


def described(runs: Runs, run: Run) -> dict[str, Any]:
    """Counts, losses and latents of one training."""
    measured = runs.measured(run)
    analysis, last = measured["analysis"], run.history.epochs[-1]
    kept = ("index", "mean", "variance", "posterior_variance", "kl", "verdict", "ablation_cost")
    return {
        "command": run.recipe.command(run.name),
        "idle": analysis["n_inactive"],
        "active": analysis["n_active"],
        "mixed": analysis["n_mixed"],
        "advice": analysis["advice"]["action"],
        "advised_size": analysis["advice"]["latent_size"],
        "loss": last.loss,
        "reconstruction": last.reconstruction,
        "kl": last.kl,
        "held_out_loss": measured["held_out_loss"],
        "counts": [epoch.n_inactive for epoch in run.history.epochs],
        "counts_by_limit": {
            str(limit): [_below(epoch, limit) for epoch in run.history.epochs] for limit in _OTHER_LIMITS
        },
        "rates": [rate(epoch) for epoch in run.history.epochs],
        "latents": [{key: latent[key] for key in kept} for latent in analysis["latents"]],
    }


def _below(epoch: Epoch, limit: float) -> int:
    """How many latents are idle if that needs a variance below `limit`."""
    pairs = zip(epoch.variance, epoch.posterior_variance, strict=True)
    return sum(variance < limit and sigma2 > INACTIVE_POSTERIOR_VARIANCE for variance, sigma2 in pairs)


def rate(latents: Epoch | Sequence[tuple[float, float]]) -> float:
    """KL in nats per row as two columns of a table give it: ½ Σ (variance + σ² − ln σ² − 1), from means of σ².

    The same formula for the paper's Tables I and II and for ours. It is below the KL itself by the spread of ln σ².
    """
    pairs = (
        zip(latents.variance, latents.posterior_variance, strict=True) if isinstance(latents, Epoch) else iter(latents)
    )
    return sum(0.5 * (variance + sigma2 - math.log(sigma2) - 1) for variance, sigma2 in pairs)


def ablations(runs: Runs, scale: Scale, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Section VI: the dense networks with the full KL, its quadratic term, and none."""
    found: dict[str, dict[str, Any]] = {}
    for network in _dense(only):
        found[network] = {}
        for words in OBJECTIVES:
            run = runs.get(*objective(scale, network, words))
            if run:
                found[network][words] = described(runs, run)
    return found


def growing(runs: Runs, scale: Scale, only: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Section VII: from few latents on, as large as `analyze` advises, until some are idle."""
    found: dict[str, list[dict[str, Any]]] = {}
    for network in _dense(only):
        found[network], size = [], FIRST_SIZE
        while True:
            run = runs.get(*of_size(scale, network, size))
            if run is None:
                break
            found[network].append({"size": size} | described(runs, run))
            step = found[network][-1]
            if step["advice"] != "grow" or step["advised_size"] > _LARGEST_SIZE:
                break
            size = step["advised_size"]
    return found


def starts(runs: Runs, scale: Scale, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the start of the weights alone changes: networks from PyTorch's default, seed 0."""
    found = {}
    for network in (network for network in only if network in STARTED_OTHERWISE):
        run = runs.get(*torch_start(scale, network))
        if run:
            found[network] = described(runs, run)
    return found


def _dense(only: Sequence[str]) -> list[str]:
    return [network for network in only if network.endswith("dense")]


def figure_5() -> dict[str, Any]:
    """Fig. 5's encoder layer by layer: shape of the output and weights as Keras counts them, beside the paper's."""
    vae = recipe(Scale("full", 1, None, 1, 1), "mnist-conv").network((1, 28, 28))
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _given: tuple[Tensor, ...], made: Tensor) -> None:
        shapes[module] = (*made.shape[2:], made.shape[1])

    layers = [layer for layer in vae.modules() if not list(layer.children())]
    layers = layers[: len(printed.FIGURE_5) - 1]  # the decoder follows, which the figure does not list
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with measuring(vae):
        vae.encode(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    ours = [("input", (28, 28, 1), 0)] + [(_label(layer), shapes[layer], _keras_count(layer)) for layer in layers]
    rows = [
        {"layer": label, "shape": list(shape), "weights": count, "paper_label": told, "paper_weights": theirs}
        for (label, shape, count), (told, _, theirs) in zip(ours, printed.FIGURE_5, strict=True)
    ]
    return {
        "rows": rows,
        "weights": sum(row["weights"] for row in rows),
        "paper_weights": sum(theirs for _, _, theirs in printed.FIGURE_5),
        "running_statistics": sum(buffer.numel() for layer in layers for buffer in _running(layer)),
        "same_shapes": [row["shape"] for row in rows] == [list(shape) for _, shape, _ in printed.FIGURE_5],
    }


def _label(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return f"convolution {layer.kernel_size[0]}×{layer.kernel_size[1]}, stride {layer.stride[0]}"
    return {nn.BatchNorm2d: "batch normalisation", nn.ReLU: "ReLU"}[type(layer)]


def _keras_count(layer: nn.Module) -> int:
    """Parameters and running statistics: Keras lists all four vectors of a batch normalisation."""
    return sum(p.numel() for p in layer.parameters()) + sum(b.numel() for b in _running(layer))


def _running(module: nn.Module) -> list[Tensor]:
    return [buffer for buffer in module.buffers() if buffer.dim() > 0]
