"""Small networks on pictures of tiles with planted idle latents and a decoder that was taught to read the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planted import keep_the_variance_law
from vaeprune.architectures import initialise
from vaeprune.architectures.dense import DenseVAE
from vaeprune.data import tiles

LATENTS = 6
ROWS = 600


def planted(idle: Sequence[int], latents: int = LATENTS, seed: int = 3) -> DenseVAE:
    """A network whose `idle` latents encode nothing and are read by nothing; its decoder was taught the others."""
    vae = DenseVAE((1, 28, 28), (32, 16), (16, 32), latents)
    initialise(vae, "glorot", seed)
    with torch.no_grad():
        vae.mean_head.weight *= 3
        vae.decoder[0].weight *= 8
        vae.logvar_head.bias.fill_(-3.0)
        for i in idle:
            vae.mean_head.weight[i] *= 1e-4
            vae.mean_head.bias[i] = 0.02
            vae.logvar_head.weight[i] = 0
            vae.logvar_head.bias[i] = 0
    keep_the_variance_law(vae, tiles(ROWS, seed=5).float().div(255).view(-1, 1, 28, 28))
    _teach(vae, seed)
    with torch.no_grad():
        vae.decoder[0].weight[:, list(idle)] = 0
    return vae


def _teach(vae: DenseVAE, seed: int) -> None:
    """Fit the decoder to the tiles as the random encoder encodes them, so that fixing a latent costs something."""
    pictures = tiles(ROWS, seed=5).float().div(255).view(-1, 1, 28, 28)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        posterior = vae.encode(pictures)
    adam = torch.optim.Adam([*vae.decoder.parameters(), *vae.output.parameters()], lr=1e-2)
    for _ in range(150):
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
        loss = vae.likelihood.nats(pictures, vae.decode_parameters(z)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad()
