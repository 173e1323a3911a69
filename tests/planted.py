"""Small networks whose idle latents are known, VAEs of somebody else, and the oracle a cut is held against."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from vaeprune.analysis import analyze
from vaeprune.architectures import BuiltVAE, ConvolutionalVAE, DenseVAE
from vaeprune.errors import TraceError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.planning import plan

BERNOULLI = Likelihood()
GAUSSIAN = Likelihood("gaussian", "mean", 0.5)
IDLE_MEAN = 0.03
Model = TypeVar("Model", bound=BuiltVAE)
_LIVE_LOGVAR = -2.0  # sigma² = 0.14, far below what an inactive latent has


def rows(count: int = 400, shape: Sequence[int] = (12,), seed: int = 0) -> Tensor:
    """Rows of uniform noise on [0, 1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def dense(
    idle: Collection[int] = (1, 4),
    latents: int = 6,
    *,
    input_shape: Sequence[int] = (12,),
    encoder: Sequence[int] = (9,),
    decoder: Sequence[int] = (7,),
    likelihood: Likelihood = BERNOULLI,
    listening: float = 0.0,
    seed: int = 0,
) -> DenseVAE:
    """A dense VAE of random weights in which the latents `idle` are idle and the others are not."""
    vae = DenseVAE(input_shape, encoder, decoder, latents, likelihood)
    return plant(vae, idle, listening, seed)


def convolutional(
    idle: Collection[int] = (1,),
    latents: int = 3,
    *,
    input_shape: Sequence[int] = (1, 17, 18),
    channels: int = 3,
    likelihood: Likelihood = BERNOULLI,
    listening: float = 0.0,
    seed: int = 0,
) -> ConvolutionalVAE:
    """The same, convolutional, with `channels` channels everywhere."""
    vae = ConvolutionalVAE(input_shape, [channels] * 8, [channels] * 8, latents, likelihood)
    return plant(vae, idle, listening, seed)


def plant(vae: Model, idle: Collection[int], listening: float = 0.0, seed: int = 0) -> Model:
    """Random weights, and idle latents: mean `IDLE_MEAN`, sigma² 1, decoder weights of size `listening`."""
    generator = randomise(vae, seed)
    reader = first_reader(vae)
    columns = reader.weight if isinstance(reader, nn.ConvTranspose2d) else reader.weight.T
    with torch.no_grad():
        vae.logvar_head.weight *= 0.2
        vae.logvar_head.bias += _LIVE_LOGVAR
        for latent in idle:
            vae.mean_head.weight[latent] = 0
            vae.mean_head.bias[latent] = IDLE_MEAN
            vae.logvar_head.weight[latent] = 0
            vae.logvar_head.bias[latent] = 0
            columns[latent] = listening * torch.randn(columns[latent].shape, generator=generator)
    keep_the_variance_law(vae, torch.rand(256, *vae.input_shape, generator=torch.Generator().manual_seed(1)))
    return vae.eval()


def keep_the_variance_law(vae: BuiltVAE, x: Tensor) -> None:
    """Scale the means of the latents that vary so that Var mu + E sigma² = 1 on rows x, as in a network at rest."""
    vae.eval()
    with torch.no_grad():
        posterior = vae.encode(x)
        variance, rest = posterior.mean.var(0), 1 - posterior.logvar.exp().mean(0)
        scale = torch.where((variance > 1e-6) & (rest > 0), (rest / variance).clamp_min(0).sqrt(), 1.0)
        vae.mean_head.weight *= scale.view(-1, *[1] * (vae.mean_head.weight.dim() - 1))
        live = scale != 1.0
        vae.mean_head.bias[live] *= scale[live]


def first_reader(vae: BuiltVAE) -> nn.Linear | nn.ConvTranspose2d:
    """The layer that reads z."""
    return vae.decoder[0] if len(vae.decoder) else vae.output


def randomise(network: nn.Module, seed: int) -> torch.Generator:
    """Draw every weight anew, wide enough that outputs vary and with biases that keep ReLU units alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
                layer.weight.normal_(0, 1.5 / math.sqrt(layer.weight[0].numel()), generator=generator)
                if layer.bias is not None:
                    layer.bias.normal_(0.3, 0.2, generator=generator)
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if layer.affine:
                    layer.weight.uniform_(0.5, 1.5, generator=generator)
                    layer.bias.normal_(0.3, 0.2, generator=generator)
                layer.running_mean.normal_(0, 0.3, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return generator


class OwnVAE(nn.Module):
    """A VAE of somebody else: the protocol and nothing more. Sizes are read off live weights."""

    input_shape: tuple[int, ...] = (5,)
    likelihood = Likelihood("gaussian", "mean")

    @property
    def latent_size(self) -> int:
        raise NotImplementedError

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_size,)

    @property
    def network(self) -> nn.Module:
        return self

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        raise NotImplementedError

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.likelihood.mean(self.decode_parameters(z, *condition))


class PlainVAE(OwnVAE):
    """x (5) → 6 → two heads of `latents`; `decoder` is any module from z to rows of 5."""

    def __init__(self, decoder: nn.Module | None = None, latents: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.mean = nn.Linear(6, latents)
        self.logvar = nn.Linear(6, latents)
        self.decoder = decoder or nn.Sequential(nn.Linear(latents, 6), nn.Tanh(), nn.Linear(6, 5))
        randomise(self, seed)
        self.eval()

    @property
    def latent_size(self) -> int:
        return self.mean.weight.shape[0]

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.hidden(x)
        return Posterior(self.mean(h), self.logvar(h))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z)


class MapVAE(OwnVAE):
    """x (2, 4, 4) → maps of `latents` channels, 4×4; `decoder` is any module from those to (2, 4, 4)."""

    input_shape = (2, 4, 4)

    def __init__(self, decoder: nn.Module | None = None, latents: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.head = nn.Conv2d(2, 2 * latents, 3, padding=1)
        self.decoder = decoder or nn.Sequential(nn.Conv2d(latents, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))
        randomise(self, seed)
        self.eval()

    @property
    def latent_size(self) -> int:
        return self.head.weight.shape[0] // 2

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_size, 4, 4)

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(*self.head(x).chunk(2, 1))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z)


def planned(vae: VAE, remove: Collection[int]) -> Plan:
    """A plan that takes out `remove` and nothing else, made on rows of noise, without ablation."""
    data = rows(300, vae.input_shape)
    others = set(range(vae.latent_size)) - set(remove)
    return plan(vae, analyze(vae, data, ablate="none"), data, remove=remove, keep=others)


def held(vae: VAE, made: Plan, z: Tensor) -> Tensor:
    """What the original decodes when the removed latents are held at the plan's constants: the oracle."""
    z = z.clone()
    for removal in made.removals:
        z[:, removal.latent] = removal.constant
    return vae.decode_parameters(z)


def assert_same_but_for_the_removed(vae: VAE, smaller: VAE, made: Plan, tolerance: float = 1e-10) -> None:
    """The kept means and logvars, and what is decoded, are those of the original with the removed latents held."""
    generator = torch.Generator().manual_seed(7)
    dtype = next(vae.network.parameters()).dtype
    x = torch.rand(40, *vae.input_shape, generator=generator, dtype=torch.float64).to(dtype)
    z = 1.5 * torch.randn(40, *vae.latent_shape, generator=generator, dtype=torch.float64).to(dtype)
    kept = made.kept_latents
    with torch.no_grad():
        before, after = vae.encode(x), smaller.encode(x)
        close = {
            "mean": (before.mean[:, kept], after.mean),
            "logvar": (before.logvar[:, kept], after.logvar),
            "decoded": (held(vae, made, z), smaller.decode_parameters(z[:, kept])),
        }
    for name, (expected, found) in close.items():
        assert found.shape == expected.shape, name
        error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name} differs by {error:.3g} of its largest value"


def cut_exactly(vae: VAE, remove: Collection[int]) -> tuple[Plan, VAE]:
    """Cut `remove` out of `vae` in float64 and hold the result against the oracle; returns the plan and the model."""
    vae.network.double().eval()
    made = planned(vae, remove)
    assert made.removed_latents == sorted(remove)
    smaller = cut(vae, made)
    assert smaller.latent_size == vae.latent_size - len(remove)
    assert_same_but_for_the_removed(vae, smaller, made)
    return made, smaller


def cut_exactly_or_refused(vae: VAE, remove: Collection[int]) -> None:
    """Where a model need not be followed: a TraceError, or a cut that agrees with the oracle; nothing between."""
    with contextlib.suppress(TraceError):
        cut_exactly(vae, remove)


def snapshot(network: nn.Module) -> dict[str, object]:
    """All that must not change in a model: weights and their gradients, flags, hooks, the modules themselves."""
    return {
        "weights": {key: value.clone() for key, value in network.state_dict().items()},
        "identities": {key: id(value) for key, value in network.named_parameters()},
        "grads": {key: None if p.grad is None else p.grad.clone() for key, p in network.named_parameters()},
        "requires_grad": {key: p.requires_grad for key, p in network.named_parameters()},
        "training": {key: module.training for key, module in network.named_modules()},
        "hooks": {key: list(module._forward_hooks.items()) for key, module in network.named_modules()},
    }


def assert_untouched(network: nn.Module, before: dict[str, object]) -> None:
    """`network` is, bit for bit, what it was when `before` was taken."""
    after = snapshot(network)
    for name in ("identities", "requires_grad", "training", "hooks"):
        assert after[name] == before[name], name
    for name in ("weights", "grads"):
        assert after[name].keys() == before[name].keys(), name
        for key, value in before[name].items():
            found = after[name][key]
            assert (found is None) == (value is None), f"{name} of {key}"
            assert value is None or (found.dtype == value.dtype and torch.equal(found, value)), f"{name} of {key}"
