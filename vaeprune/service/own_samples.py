"""What a model says of its latents on its own samples: z ~ N(0, 1) decoded, and encoded again.

For where no analysis on data lies beside the ONNX files. A latent that the decoder neglects cannot be found again in
what it draws, so its KL is near 0 here too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from vaeprune.service.model import OnnxModel
from vaeprune.service.npy import Array

_SEED = 0
_ROWS_AT_ONCE = 32
MOST = 256


@dataclass(frozen=True)
class OwnSamples:
    """`kl` (D,): nats per row, summed over positions; `mean` (D,): of mu; `low`, `high`: the span of x_hat.

    `rows`: how many were drawn.
    """

    rows: int
    kl: Array
    mean: Array
    low: float
    high: float


def own_samples(model: OnnxModel, most: int = MOST, seconds: float = 3.0) -> OwnSamples:
    """Draw up to `most` samples and encode them, always the same ones in the same order, as many as `seconds` allow."""
    generator = np.random.default_rng(_SEED)
    kls: list[Array] = []
    means, lows, highs = [], [], []
    done, count, end = 0, 1, time.monotonic() + seconds
    while not done or (done < most and time.monotonic() < end):
        count = min(2 * count, _ROWS_AT_ONCE, most - done)  # few at first: a large model takes seconds for each
        (x_hat,) = model.decoder(generator.standard_normal((count, *model.latent_shape), np.float32))
        mean, logvar = (value.reshape(count, model.latent_size, -1) for value in model.encoder(x_hat))
        with np.errstate(over="ignore"):
            kls.append(0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(2))
        means.append(mean.mean(2))
        lows.append(float(x_hat.min()))
        highs.append(float(x_hat.max()))
        done += count
    kl, mean = (np.concatenate(values).mean(0) for values in (kls, means))
    return OwnSamples(done, kl, mean, min(lows), max(highs))


def shown_range(likelihood: str | None, samples: OwnSamples) -> tuple[float, float]:
    """The values that are drawn as black and white: [0, 1] or [-1, 1] where the outputs keep to it, else their span."""
    if likelihood == "bernoulli":
        return 0.0, 1.0
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        slack = 0.25 * (high - low)  # a Gaussian's mean overshoots what the data keep to
        if samples.low >= low - slack and samples.high <= high + slack:
            return low, high
    return samples.low, max(samples.high, samples.low + 1e-6)
