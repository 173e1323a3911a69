"""Random VAEs of many shapes, with latents and hidden units that are idle, nearly idle or dead by construction."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.own_vae import OwnVAE
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

IDLE_MEAN = 0.04
KINDS = ("dense", "convolutional", "residual", "concatenating", "two readers")
HEADS = ("separate", "fused", "interleaved")


@dataclass(frozen=True)
class Drawn:
    """What a network was drawn as; the same words build it again."""

    kind: str
    heads: str
    latents: int
    width: int
    norm: bool
    activation: str
    seed: int


class RandomVAE(OwnVAE):
    """Rows of 12 numbers, or pictures of 2×4×4, to `latents` latents and back; the protocol and nothing more."""

    likelihood = Likelihood("gaussian", "mean")

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.kind, self.heads = drawn.kind, drawn.heads
        self.input_shape = (2, 4, 4) if drawn.kind == "convolutional" else (12,)
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}[drawn.activation]
        width, latents = drawn.width, drawn.latents
        if drawn.kind == "convolutional":
            self.body: nn.Module = nn.Sequential(
                nn.Conv2d(2, width, 3, padding=1, stride=2),
                *([nn.BatchNorm2d(width)] if drawn.norm else []),
                activation(),
                nn.Conv2d(width, width, 1),
                activation(),
                nn.Flatten(),
            )
            features = 4 * width
        else:
            norm = [nn.BatchNorm1d(width)] if drawn.norm else []
            self.body = nn.Sequential(nn.Linear(12, width), *norm, activation())
            features = width
        self.inner = nn.Linear(features, features) if drawn.kind == "residual" else None
        self.side = nn.Linear(12, 5) if drawn.kind == "concatenating" else None
        features += 5 if self.side is not None else 0
        if drawn.heads == "separate":
            self.mean, self.logvar = nn.Linear(features, latents), nn.Linear(features, latents)
        else:
            self.head = nn.Linear(features, 2 * latents)
        self.read = nn.Linear(latents, width)
        self.also = nn.Linear(latents, width) if drawn.kind == "two readers" else None
        self.hidden = nn.Linear(width, width)
        self.activation = activation()
        self.norm = nn.BatchNorm1d(width) if drawn.norm else None
        if drawn.kind == "convolutional":
            self.out: nn.Module = nn.Sequential(nn.Unflatten(1, (width, 1, 1)), nn.ConvTranspose2d(width, 2, 4))
        else:
            self.out = nn.Linear(width, 12)
        self.skip = nn.Linear(width, 12) if drawn.kind == "residual" else None

    @property
    def latent_size(self) -> int:
        return self.read.weight.shape[1]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.body(x)
        if self.inner is not None:
            h = h + self.activation(self.inner(h))
        if self.side is not None:
            h = torch.cat([h, torch.tanh(self.side(x))], 1)
        if self.heads == "separate":
            return Posterior(self.mean(h), self.logvar(h))
        both = self.head(h)
        if self.heads == "fused":
            return Posterior(*both.chunk(2, 1))
        return Posterior(*both.view(len(x), -1, 2).unbind(2))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        h = self.read(z)
        if self.also is not None:
            h = h * torch.sigmoid(self.also(z))
        h = self.activation(h if self.norm is None else self.norm(h))
        deeper = self.activation(self.hidden(h))
        if self.skip is not None:
            return self.out(deeper + h) + self.skip(h)
        return self.out(deeper)

    def forward(self, x: Tensor) -> Any:
        posterior = self.encode(x)
        return self.decode(posterior.sample(torch.randn_like(posterior.mean))), *posterior


def draw(seed: int) -> Drawn:
    """The words of network number `seed`."""
    rng = random.Random(f"network {seed}")
    return Drawn(
        rng.choice(KINDS), rng.choice(HEADS), rng.randint(2, 9), rng.choice((4, 7, 12)), rng.random() < 0.4,
        rng.choice(("relu", "relu", "tanh", "silu", "sigmoid")), seed,
    )  # fmt: skip


def build(drawn: Drawn) -> tuple[RandomVAE, list[int]]:
    """The network in float64 with what is planted in it, and the latents that are idle; at least one is not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn.seed)
        vae = RandomVAE(drawn).double().eval()
        for part in vae.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
                nn.init.normal_(part.weight, 1, 0.2)
                nn.init.normal_(part.bias, 0, 0.2)
    rng = random.Random(f"planted {drawn.seed}")
    fates = [rng.choice(("idle", "nearly idle", "live", "live")) for _ in range(drawn.latents)]
    fates[rng.randrange(drawn.latents)] = "live"
    with torch.no_grad():
        for latent, fate in enumerate(fates):
            _plant(vae, latent, fate)
        dead = rng.sample(range(drawn.width), rng.randint(0, 2))
        for unit in dead:
            _kill(vae, unit, drawn)
    return vae, [i for i, fate in enumerate(fates) if fate == "idle"]


def _plant(vae: RandomVAE, latent: int, fate: str) -> None:
    mean, logvar = _rows(vae, latent)
    if fate == "live":
        mean[0].mul_(6)
        logvar[0].mul_(0.1)
        logvar[1].fill_(-3.0)
        return
    strength = 0.0 if fate == "idle" else 0.05
    for weight, bias, value in ((*mean, IDLE_MEAN), (*logvar, -strength)):
        weight.mul_(strength)
        bias.fill_(value)
    for reader in (vae.read, vae.also):
        if reader is not None:
            reader.weight[:, latent] *= strength


def _rows(vae: RandomVAE, latent: int) -> list[tuple[Tensor, Tensor]]:
    """Weight row and bias entry that make a latent's mean, and those of its logvar."""
    if vae.heads == "separate":
        return [(h.weight[latent], h.bias[latent]) for h in (vae.mean, vae.logvar)]
    size = vae.latent_size
    places = (latent, size + latent) if vae.heads == "fused" else (2 * latent, 2 * latent + 1)
    return [(vae.head.weight[i], vae.head.bias[i]) for i in places]


def _kill(vae: RandomVAE, unit: int, drawn: Drawn) -> None:
    """A unit of the deeper hidden layer that always has one value: 0 behind a ReLU, else some constant."""
    vae.hidden.weight[unit] = 0
    vae.hidden.bias[unit] = -1.0 if drawn.activation == "relu" else 0.7
