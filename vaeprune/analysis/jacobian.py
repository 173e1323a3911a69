"""How strongly the decoder pulls on each latent: the diagonal of JᵀFJ, and the sigma² it predicts.

Where training has come to rest on −log p(x | z) + beta·KL, sigma_i²(x) = 1 / (1 + [JᵀFJ]_ii / beta), to the second
order about z = mu: J is the decoder's Jacobian, F the Fisher information of its output (1/s² for a Gaussian, p(1 − p)
on the logits of a Bernoulli). See Rolínek, Zietlow and Martius 2019, and Lucas et al. 2019 for linear decoders.

J's columns are central differences, a tenth of sigma to each side, so no decoder need be differentiable by autograd;
twice the step must give the same, or the decoder is not smooth. Where a latent is a map, all its positions move at once
by random signs: the expected square is the sum over positions (Hutchinson 1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.adapters import batches_for
from vaeprune.adapters.measuring import batch_rows
from vaeprune.analysis.ablation import some_of
from vaeprune.data import MemoryRows
from vaeprune.posterior import VAE

_STEP = 0.1  # of a latent's posterior standard deviation
_LEAST_STEP = 1e-3
_SIDES = 4  # one and two steps, up and down
_MOST_ROWS, _LEAST_ROWS = 256, 8
_MOST_DECODED = 1 << 16
_MOST_DECODED_BYTES = 1 << 28
_ALIKE = 0.2  # how far the totals of one and of two steps may be apart


@dataclass(frozen=True, eq=False)
class DecoderPull:
    """What the decoder's slopes say of each latent (D,), over `rows` rows, float64.

    `pull`: E[JᵀFJ]_ii, in nats per squared unit of z. `predicted`: E[1 / (1 + [JᵀFJ]_ii / beta)]. `measured`: E[sigma²]
    over the same rows. `sensitivity`: E‖∂x̂/∂z_i‖², in squared units of the data. Means over positions, for maps.
    """

    rows: int
    pull: Tensor
    predicted: Tensor
    measured: Tensor
    sensitivity: Tensor


def decoder_pull(
    vae: VAE, rows: MemoryRows, beta: float = 1.0, seed: int = 0, on_batch: Callable[[int, int], None] | None = None
) -> DecoderPull | str:
    """The pull on each latent over some of `rows`, or in words why it cannot be measured.

    Call it inside `measuring(vae)`. `on_batch` is told how many rows were done, of how many.
    """
    rows = some_of(rows, _rows_for(vae), seed)
    generator = torch.Generator().manual_seed(seed)
    sums: list[Tensor] = []
    for x, *condition in batches_for(vae, rows, size=32):
        posterior = vae.encode(x, *condition)
        if torch.finfo(posterior.mean.dtype).bits < 32:
            return f"the model computes in {posterior.mean.dtype}, too coarse for slopes"
        sigma = posterior.logvar.exp().flatten(2).mean(2) if posterior.mean.dim() > 2 else posterior.logvar.exp()
        slopes = _slopes(vae, posterior.mean, sigma.sqrt(), condition, generator)
        sums.append(_summed(slopes.double().cpu(), sigma.double().cpu(), beta))
        if on_batch:
            on_batch(len(x), rows.count)
    total = torch.stack(sums).sum(0) / rows.count
    if not torch.isfinite(total).all():
        return "the decoder gives NaN or infinite outputs near the means"
    near, far = (total[i].sum().item() for i in (4, 5))
    if abs(near - far) > _ALIKE * max(near, far, 1e-3):
        return (
            f"the decoder is not smooth: slopes over a step and over two differ by {abs(math.log(near / far)):.0%}"
            if min(near, far) > 0
            else "the decoder is not smooth: it has slopes over one of two steps only"
        )
    return DecoderPull(rows.count, *total[:4])


def _rows_for(vae: VAE) -> int:
    """How many rows keep the decodings within bounds of number and of bytes."""
    row_bytes = 4 * math.prod(vae.input_shape)
    decoded = min(_MOST_DECODED, _MOST_DECODED_BYTES // row_bytes)
    return max(_LEAST_ROWS, min(_MOST_ROWS, decoded // (_SIDES * vae.latent_size)))


def _summed(slopes: Tensor, sigma2: Tensor, beta: float) -> Tensor:
    """Sums over rows (6, D): pull, predicted, measured, sensitivity, and the pull in posterior units for both steps."""
    pull, twice, sensitivity = slopes
    rows = (pull, 1 / (1 + pull / beta), sigma2, sensitivity, pull * sigma2, twice * sigma2)
    return torch.stack([row.sum(0) for row in rows])


def _slopes(vae: VAE, mean: Tensor, sigma: Tensor, condition: list[Tensor], generator: torch.Generator) -> Tensor:
    """Of each row and latent (3, B, D): JᵀFJ by one step, by two, and the squared slope of the output."""
    n, latents = mean.shape[:2]
    places = math.prod(mean.shape[2:])
    step = (_STEP * sigma).clamp_min(_LEAST_STEP)
    signs = torch.ones_like(mean)
    if places > 1:
        signs = torch.randint(0, 2, mean.shape, generator=generator).to(mean) * 2 - 1
    at = vae.decode_parameters(mean, *condition)
    fisher = vae.likelihood.curvature(at).flatten(1)
    to_mean = (
        fisher if vae.likelihood.output == "logits" else torch.ones_like(fisher)
    )  # of logits, dp/dlogit = p(1 − p)
    found = torch.empty(3, n, latents, dtype=mean.dtype, device=mean.device)
    several = max(1, batch_rows(vae.input_shape) // (_SIDES * n))
    for start in range(0, latents, several):
        here = range(start, min(start + several, latents))
        moved = torch.stack([_moved(mean, signs, step, i, sides) for i in here for sides in (1, -1, 2, -2)])
        again = [c.repeat(len(moved), *[1] * (c.dim() - 1)) for c in condition]
        out = vae.decode_parameters(moved.flatten(0, 1), *again).reshape(len(here), _SIDES, n, -1)
        by = step.T[start : here.stop, :, None]
        one, two = (out[:, 0] - out[:, 1]) / (2 * by), (out[:, 2] - out[:, 3]) / (4 * by)
        parts = (fisher * one.square(), fisher * two.square(), (to_mean * one).square())
        for slot, part in zip(found, parts, strict=True):
            slot[:, start : here.stop] = part.sum(2).T / places
    return found


def _moved(mean: Tensor, signs: Tensor, step: Tensor, latent: int, sides: int) -> Tensor:
    """The means with one latent moved by so many steps along its signs."""
    moved = mean.clone()
    moved[:, latent] += sides * step[:, latent].view(-1, *[1] * (mean.dim() - 2)) * signs[:, latent]
    return moved
