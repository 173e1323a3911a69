"""What running a model shows, whatever its modules are called: facts that settle a diagnosis by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vaeprune.adapters import batches_for
from vaeprune.data import Rows
from vaeprune.posterior import VAE, Posterior

_ROWS = 64
_UNSTEADY = 1e-4  # of the means' standard deviation: above what rounding in another order can do
_SAME = 1 - 1e-5  # correlation of a channel with a latent that differs from it by a shift and a scale alone
_PINNED = 0.05
_REACHES_ONE = math.log(0.95)  # a ceiling at sigma² = 1 or above is no obstacle to being idle
_FILLED = 0.9
_LARGE = 64  # weights, enough of them to fill the range they were drawn from


@dataclass(frozen=True)
class LearnedScale:
    """A trained parameter that neither encoder nor decoder reads: `variances`, the values it may mean as s²."""

    name: str
    variances: tuple[float, ...]


@dataclass(frozen=True)
class Structure:
    """Each None where there is nothing of the kind, else in words what was seen.

    `unsteady`: encode or decode gives something else when called again, or in other company, in eval mode.
    `normalised`: a batch normalisation is the last thing before the mean; `scale_fixed`: it has no trainable weight.
    `clamped`: the posterior's logvar stands at a limit. `untouched`: the weights are as they were drawn.
    """

    unsteady: str | None = None
    normalised: str | None = None
    scale_fixed: bool = False
    clamped: str | None = None
    untouched: str | None = None
    learned_scales: tuple[LearnedScale, ...] = ()


def look(vae: VAE, rows: Rows, decodes: bool = True) -> Structure:
    """Run the first of `rows` a few times; `decodes`: whether there is a decoder to run.

    Call it in eval mode, outside of inference mode. No parameter's gradient is touched.
    """
    batch = next(iter(batches_for(vae, rows, size=_ROWS)))
    x, *condition = (part.clone() for part in batch)
    with torch.no_grad(), _Normalisations() as seen:
        posterior = vae.encode(x, *condition)
    normalised, fixed = _normalised(vae, posterior.mean, seen.found)
    return Structure(
        unsteady=_unsteady(vae, x, condition, posterior.mean, decodes),
        normalised=normalised,
        scale_fixed=fixed,
        clamped=_clamped(posterior),
        untouched=_untouched(vae.network),
        learned_scales=tuple(_unread(vae, x, condition)) if decodes else (),
    )


def _unsteady(vae: VAE, x: Tensor, condition: list[Tensor], mean: Tensor, decodes: bool) -> str | None:
    half = (len(x) + 1) // 2
    with torch.no_grad():
        again = vae.encode(x, *condition).mean
        if _apart(again, mean):
            return "encode gives other means each time it is called with the same rows"
        if half > 1:
            alone = vae.encode(x[:half], *(c[:half] for c in condition)).mean
            if _apart(alone, mean[:half]):
                return "the means of a row depend on the rows it is encoded together with"
        if decodes and _apart(*(vae.decode_parameters(mean, *condition) for _ in range(2))):
            return "decode gives another output each time it is called with the same z"
    return None


def _apart(a: Tensor, b: Tensor) -> bool:
    spread = b.std().item() if b.numel() > 1 else 0.0
    return bool((a - b).abs().amax().item() > _UNSTEADY * max(spread, 1e-6))


class _Normalisations(TorchFunctionMode):
    """Notes what every batch normalisation gives, as a module or as a function, and whether it can learn its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "batch_norm":
            # torch.batch_norm(x, weight, …), F.batch_norm(x, running_mean, running_var, weight, …)
            place = 1 if func is torch.batch_norm else 3
            weight = kwargs.get("weight", args[place] if len(args) > place else None)
            self.found.append((value.detach(), weight))
        return value


def _normalised(vae: VAE, mean: Tensor, seen: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[str | None, bool]:
    """Whether each latent is, but for a shift and a scale, a channel that a batch normalisation gave."""
    wanted = _standardised(mean)
    for value, weight in seen:
        if value.shape[2:] != mean.shape[2:] or len(value) != len(mean):
            continue
        match = (_standardised(value).T @ wanted).abs().amax(0)
        moving = wanted.square().sum(0) > 0.5
        if moving.any() and bool((match[moving] > _SAME).all()):
            fixed = weight is None or not weight.requires_grad
            names = [
                name
                for name, module in vae.network.named_modules()
                if isinstance(module, nn.modules.batchnorm._NormBase)
                and module.weight is weight
                and module.num_features == value.shape[1]
            ]
            which = f"the batch normalisation {names[0]}" if len(names) == 1 else "a batch normalisation"
            return f"{which} is the last thing before the mean", fixed
    return None, False


def _standardised(values: Tensor) -> Tensor:
    """Columns of mean 0 and length 1, one a channel, of (B, C, ...); those that do not vary are 0."""
    flat = values.double().movedim(1, -1).flatten(0, -2)
    flat = flat - flat.mean(0)
    length = flat.norm(dim=0)
    return torch.where(length > 1e-9, flat / length.clamp_min(1e-30), torch.zeros_like(flat))


def _clamped(posterior: Posterior) -> str | None:
    """A limit at which several latents stand exactly, or one of them in some rows."""
    logvar = posterior.logvar.movedim(1, -1).flatten(0, -2)
    for limit, word in ((logvar.amax(), "above"), (logvar.amin(), "below")):
        at = (logvar == limit).double().mean(0)
        at = torch.where(at > 2 / len(logvar), at, torch.zeros_like(at))
        partly = bool(((at > 0) & (at < 1)).any())
        if (word == "below" and not partly) or (word == "above" and limit.item() > _REACHES_ONE):
            continue
        share = at.mean().item()
        if share > _PINNED and (partly or (at > 0).sum() > 1):  # one latent may stand still by itself
            end = math.exp(limit.item())
            return f"sigma² goes no further {word} than {end:.3g}, where {share:.0%} of its values are"
    return None


def _untouched(network: nn.Module) -> str | None:
    """Whether all layers are within the range that a usual initialisation draws from, and fill it."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    large = [layer for layer in layers if layer.weight.numel() >= _LARGE]
    if len(large) < 2:
        return None
    for name, gain, zero_bias in (("PyTorch's default", None, False), ("Glorot's", 6.0, True), ("He's", 6.0, True)):
        limits = [_limit(layer, name, gain) for layer in layers]
        inside = all(_within(layer, limit, zero_bias) for layer, limit in zip(layers, limits, strict=True))
        filled = [
            layer.weight.abs().amax().item() > _FILLED * limit
            for layer, limit in zip(layers, limits, strict=True)
            if layer.weight.numel() >= _LARGE
        ]
        if inside and sum(filled) >= 2:
            return f"no weight of its {len(layers)} layers lies outside the range that {name} initialisation draws from"
    return None


def _limit(layer: nn.Linear | nn.modules.conv._ConvNd, name: str, gain: float | None) -> float:
    incoming, outgoing = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    if gain is None:
        return 1 / math.sqrt(incoming)
    return math.sqrt(gain / (incoming + outgoing if name == "Glorot's" else incoming))


def _within(layer: nn.Linear | nn.modules.conv._ConvNd, limit: float, zero_bias: bool) -> bool:
    limit *= 1 + 1e-5
    bias = 0.0 if layer.bias is None else layer.bias.abs().amax().item()
    return layer.weight.abs().amax().item() <= limit and bias <= (0.0 if zero_bias else limit)


def _unread(vae: VAE, x: Tensor, condition: list[Tensor]) -> Iterator[LearnedScale]:
    """Trainable numbers that neither encode nor decode reads, one or as many as a row has values."""
    named = {n: p for n, p in vae.network.named_parameters() if p.requires_grad}
    few = {n: p for n, p in named.items() if p.numel() in (1, x[0].numel(), x.shape[1])}
    if not few:
        return
    try:
        gradients = _gradients(vae, x[:2], [c[:2] for c in condition], list(few.values()))
    except RuntimeError:  # autograd cannot go back through what is changed in place
        return
    for (name, parameter), gradient in zip(few.items(), gradients, strict=True):
        if gradient is None:
            p = parameter.detach().double()
            readings = (p.exp(), (2 * p).exp(), p.square(), p, nn.functional.softplus(p))
            values = [v.mean().item() for v in readings if bool((v > 0).all())]
            yield LearnedScale(name, tuple(dict.fromkeys(v for v in values if math.isfinite(v))))


def _gradients(vae: VAE, x: Tensor, condition: list[Tensor], of: list[nn.Parameter]) -> Sequence[Tensor | None]:
    """By each parameter, of everything the two halves compute; None where a parameter has no part in it."""
    with torch.enable_grad():
        posterior = vae.encode(x, *condition)
        output = vae.decode_parameters(posterior.mean, *condition)
        total = posterior.mean.sum() + posterior.logvar.sum() + output.sum()
        return torch.autograd.grad(total, of, allow_unused=True)
