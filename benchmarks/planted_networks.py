"""Synthetic VAEs in which it is known of every latent what it does, with the data that they are analysed on.

x = f(Q u) with Q orthogonal and f the identity (a linear decoder, of known rank) or asinh (a nonlinear one, of known
factors). The encoder finds u exactly and hands each latent one coordinate of it, scaled to the variance that is
planted; the decoder reads back what it should read. No training is involved, so what is planted is true by definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.own_vae import OwnVAE
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

OUTPUTS = 32
MOST_FACTORS = 20  # the other coordinates of u are noise that nothing reads
MARGINALS = ("gaussian", "bimodal", "lognormal", "rare")
KINDS = ("live", "idle", "decoder-dead", "encoder-dead")
LEAST_LIVE, MOST_IDLE = 0.02, 0.005  # planted variances of the mean


@dataclass(frozen=True)
class Truth:
    """What is planted in one latent: what it does, the variance of its mean and how that is distributed."""

    kind: str
    variance: float
    marginal: str


class PlantedVAE(OwnVAE):
    """The protocol and nothing more."""

    input_shape = (OUTPUTS,)

    def __init__(
        self, rotation: Tensor, read: Tensor, offset: Tensor, sigma2: Tensor, write: Tensor, bent: bool
    ) -> None:
        super().__init__()
        self.rotation = nn.Parameter(rotation)  # u → x, (M, M)
        self.read, self.offset, self.write = nn.Parameter(read), nn.Parameter(offset), nn.Parameter(write)
        self.sigma2 = nn.Parameter(sigma2)
        self.bent = bent
        self.likelihood = Likelihood("gaussian", "mean", 1.0 if not bent else 0.2)

    @property
    def latent_size(self) -> int:
        return len(self.sigma2)

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        u = (torch.sinh(x) if self.bent else x) @ self.rotation
        mean = u @ self.read + self.offset
        return Posterior(mean, self.sigma2.log().expand_as(mean))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        x = z @ self.write @ self.rotation.T
        return torch.asinh(x) if self.bent else x


def planted(latents: int, rows: int, seed: int) -> tuple[PlantedVAE, Tensor, list[Truth]]:
    """A network of so many latents, its data (rows, 32), and what is true of each latent."""
    generator = torch.Generator().manual_seed(seed)
    truths = _truths(latents, generator)
    rotation = torch.linalg.qr(torch.randn(OUTPUTS, OUTPUTS, generator=generator))[0]
    u = torch.randn(rows, OUTPUTS, generator=generator)
    read, write = torch.zeros(OUTPUTS, latents), torch.zeros(latents, OUTPUTS)
    sigma2, offset = torch.empty(latents), 0.1 * torch.randn(latents, generator=generator)
    factor, noise = 0, _noise(rows, generator)
    u[:, MOST_FACTORS : MOST_FACTORS + len(MARGINALS)] = noise
    for i, truth in enumerate(truths):
        v = truth.variance
        if truth.kind in ("live", "decoder-dead"):
            gain = math.sqrt(v / max(1 - v, 0.01))  # the best linear decoder's, for noise of variance 1 beside it
            spread = math.sqrt(1 + gain**2)
            u[:, factor] = spread * _unit(truth, rows, generator)
            read[factor, i] = math.sqrt(v) / spread
            sigma2[i] = max(1 - v, 0.01)
            write[i, factor] = gain if truth.kind == "live" else 0.0
            factor += 1
        else:
            read[MOST_FACTORS + MARGINALS.index(truth.marginal), i] = math.sqrt(v)
            sigma2[i] = 0.95 + 0.05 * _uniform(generator)
            if truth.kind == "encoder-dead":
                write[i] = 3.0 * torch.nn.functional.one_hot(torch.tensor(OUTPUTS - 1), OUTPUTS)
    bent = seed % 2 == 1
    x = u @ rotation.T
    return PlantedVAE(rotation, read, offset, sigma2, write, bent), torch.asinh(x) if bent else x, truths


def _truths(latents: int, generator: torch.Generator) -> list[Truth]:
    """Between one and 20 latents with a coordinate of their own; a third of the others may be heard by the decoder."""
    own = 1 + int(_uniform(generator) * min(latents - 1, MOST_FACTORS))
    found = []
    for i in range(latents):
        kind = "live" if _uniform(generator) < 0.8 else "decoder-dead"
        if i >= own:
            kind = "encoder-dead" if i == own and _uniform(generator) < 1 / 3 else "idle"
        marginal = MARGINALS[int(_uniform(generator) * len(MARGINALS))]
        live = kind in ("live", "decoder-dead")
        low, high = (LEAST_LIVE, 0.1 if marginal == "rare" else 0.99) if live else (1e-6, MOST_IDLE)
        found.append(Truth(kind, low * (high / low) ** _uniform(generator), marginal))
    return found


def _unit(truth: Truth, rows: int, generator: torch.Generator) -> Tensor:
    """Draws (rows,) of mean 0 and variance 1; a rare mode lies 2 to 3.5 away in units of z."""
    distance = 2 + 1.5 * _uniform(generator)
    share = min(0.5, truth.variance / distance**2)
    return draw(truth.marginal, (rows,), generator, share)


def _noise(rows: int, generator: torch.Generator) -> Tensor:
    """(rows, 4): one coordinate of each marginal, for what idle latents see."""
    return torch.stack([draw(m, (rows,), generator, 0.001) for m in MARGINALS], 1)


def draw(marginal: str, shape: tuple[int, ...], generator: torch.Generator, share: float = 0.01) -> Tensor:
    """Draws of mean 0 and variance 1. `share`: of rows in the rare mode."""
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if marginal == "gaussian":
        found = normal
    elif marginal == "bimodal":
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        found = (sign + 0.3 * normal) / math.sqrt(1.09)
    elif marginal == "lognormal":
        s2 = 0.64
        found = (torch.exp(0.8 * normal) - math.exp(s2 / 2)) / math.sqrt((math.exp(s2) - 1) * math.exp(s2))
    else:
        hit = (torch.rand(shape, generator=generator) < share).double()
        base = 0.02  # a little of the variance is not the mode's
        found = math.sqrt(1 - base) * (hit - share) / math.sqrt(share * (1 - share)) + math.sqrt(base) * normal
    return found.float()


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
