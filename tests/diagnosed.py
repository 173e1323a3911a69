"""Small networks trained into one wrong state each, and a right one: what a diagnosis is held against."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted import OwnVAE
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior

PIXELS, FACTORS, LATENTS, ROWS, NOISE = 32, 4, 8, 4000, 0.3
Loss = Callable[["SmallVAE", Tensor, Tensor, Posterior, float], Tensor]


TRAINED = 30  # epochs


@functools.cache
def factors(rows: int = ROWS) -> Tensor:
    """Rows (N, 32) that four factors of falling strength make, through tanh, with noise on top."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(rows, FACTORS, generator=generator)
    weights = torch.randn(FACTORS, PIXELS, generator=generator) * torch.tensor([1.2, 0.9, 0.7, 0.5])[:, None]
    return torch.tanh(f @ weights) + NOISE * torch.randn(rows, PIXELS, generator=generator)


class SmallVAE(OwnVAE):
    """32-48-48-8-48-48-32 with a Gaussian likelihood of s = 1; `dropout` is applied whatever the mode, as F.dropout is.

    `normalise`: batch normalisation without a scale of its own on the mean. `ceiling`: logvar goes no higher.
    """

    input_shape = (PIXELS,)
    likelihood = Likelihood("gaussian", "mean")

    def __init__(
        self, latents: int = LATENTS, normalise: bool = False, dropout: float = 0.0, ceiling: float | None = None
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.mu, self.spread = nn.Linear(48, latents), nn.Linear(48, latents)
        nn.init.zeros_(self.spread.bias)
        self.decoder = nn.Sequential(
            nn.Linear(latents, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, PIXELS)
        )
        self.norm = nn.BatchNorm1d(latents, affine=False) if normalise else nn.Identity()
        self.dropout, self.ceiling = dropout, ceiling

    @property
    def latent_size(self) -> int:
        return self.mu.weight.shape[0]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.encoder(x)
        h = F.dropout(h, self.dropout) if self.dropout else h
        logvar = self.spread(h)
        return Posterior(self.norm(self.mu(h)), logvar if self.ceiling is None else logvar.clamp(max=self.ceiling))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z)


def fresh(seed: int = 0, **options: object) -> SmallVAE:
    """Weights as torch draws them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallVAE(**options).eval()  # type: ignore[arg-type]


def trained(
    loss: Loss,
    epochs: int = TRAINED,
    rate: float = 2e-3,
    sampling: bool = True,
    data: Tensor | None = None,
    vae: SmallVAE | None = None,
) -> SmallVAE:
    """Adam on `loss` (vae, x, x̂, posterior, share of training done) with a learning rate that falls to 0."""
    vae = vae or fresh()
    x = factors() if data is None else data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(vae.parameters(), rate)
        vae.train()
        for epoch in range(epochs):
            for step, i in enumerate(torch.randperm(len(x)).split(100)):
                for group in optimiser.param_groups:
                    group["lr"] = rate * (1 - (epoch + step * 100 / len(x)) / epochs)
                posterior = vae.encode(x[i])
                z = posterior.sample(torch.randn_like(posterior.mean)) if sampling else posterior.mean
                value = loss(vae, x[i], vae.decode_parameters(z), posterior, epoch / epochs)
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
    return vae.eval()


@functools.cache
def state(name: str) -> SmallVAE:
    """The network trained into the state of that name; trained once for all tests."""
    if name == "untrained":
        return fresh()
    if name == "plain autoencoder":
        return trained(no_kl, sampling=False)
    if name == "no sampling":
        return trained(elbo, sampling=False)
    if name == "batch norm":
        return trained(elbo, vae=fresh(normalise=True))
    if name == "dropout that stays":
        return trained(elbo, vae=fresh(dropout=0.2))
    if name == "ceiling":
        return trained(elbo, vae=fresh(ceiling=-1.0))
    if name == "learned variance":
        vae = fresh()
        vae.register_parameter("log_s", nn.Parameter(torch.zeros(())))
        return trained(learned_scale, vae=vae)
    if name == "dead decoder":
        vae = fresh()
        nn.init.constant_(vae.decoder[0].bias, -20.0)  # no unit fires, so none gets a gradient
        return trained(elbo, vae=vae)
    if name == "noise":
        return trained(elbo, data=noise())
    if name == "squared errors of a sigmoid":
        return trained(squared_error, epochs=60, rate=5e-3, data=pictures(), vae=sigmoid())
    losses = {
        "healthy": elbo, "pixel mean": pixel_mean, "latent mean": latent_mean, "annealed half way": annealed_half_way,
        "free bits": free_bits, "no KL": no_kl, "squared error": squared_error, "KL per pixel": kl_per_pixel,
        "beta 4": beta(4.0),
    }  # fmt: skip
    return trained(losses[name])


def pictures() -> Tensor:
    """The rows of `factors`, between 0 and 1."""
    return torch.sigmoid(3 * factors())


def sigmoid() -> SmallVAE:
    """Fresh weights, a decoder that ends between 0 and 1, and the likelihood that is read from that."""
    vae = fresh()
    vae.decoder.append(nn.Sigmoid())
    vae.likelihood = Likelihood("bernoulli", "mean")
    return vae


def noise(rows: int = ROWS) -> Tensor:
    """Rows without any structure."""
    return torch.randn(rows, PIXELS, generator=torch.Generator().manual_seed(1))


def nats(x: Tensor, x_hat: Tensor) -> Tensor:
    """½ squared error of each row, summed over pixels."""
    return 0.5 * (x - x_hat).square().sum(1)


def elbo(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    """As it should be."""
    return (nats(x, x_hat) + posterior.kl().sum(1)).mean()


def pixel_mean(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return F.mse_loss(x_hat, x) + posterior.kl().sum(1).mean()


def latent_mean(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return nats(x, x_hat).mean() + posterior.kl().mean()


def annealed_half_way(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return nats(x, x_hat).mean() + 0.5 * done * posterior.kl().sum(1).mean()


def free_bits(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return nats(x, x_hat).mean() + posterior.kl().mean(0).clamp(min=0.5).sum()


def no_kl(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return nats(x, x_hat).mean()


def squared_error(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return (x - x_hat).square().sum(1).mean() + posterior.kl().sum(1).mean()


def kl_per_pixel(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    return nats(x, x_hat).mean() + posterior.kl().sum() / x.numel()


def learned_scale(vae: SmallVAE, x: Tensor, x_hat: Tensor, posterior: Posterior, done: float) -> Tensor:
    """−log p(x | z) with the s that `log_s` says, up to a constant."""
    log_s = vae.get_parameter("log_s")
    return (nats(x, x_hat) * torch.exp(-2 * log_s) + PIXELS * log_s + posterior.kl().sum(1)).mean()


def beta(weight: float) -> Loss:
    """The ELBO with the KL weighed."""
    return lambda vae, x, x_hat, posterior, done: (nats(x, x_hat) + weight * posterior.kl().sum(1)).mean()
