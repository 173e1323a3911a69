"""What can be wrong with a training or a measurement, what to change, and whether the network can still be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "pixel-mean", "latent-mean", "kl-pixel-mean", "squared-error", "annealing", "free-bits", "batch-norm", "train-mode",
    "learned-variance", "untrained", "no-kl", "no-sampling", "dead-decoder", "clamped", "beta", "early-collapse",
    "no-structure", "other-likelihood", "other-objective", "grown",
]  # fmt: skip
Way = Literal["retrain", "refuse"]


@dataclass(frozen=True)
class Known:
    """A cause in a phrase, what to change, and the advice where it is named.

    `way`: "retrain" where a training put right makes the latents mean something, "refuse" where the measurement or the
    model itself has to change first.
    """

    title: str
    remedy: str
    way: Way


CAUSES: dict[Cause, Known] = {
    "pixel-mean": Known(
        "the reconstruction is averaged over pixels while the KL is summed",
        "sum the reconstruction over the pixels and average over the batch only: F.mse_loss(x_hat, x, reduction='sum') "
        "/ len(x), and binary_cross_entropy alike",
        "retrain",
    ),
    "latent-mean": Known(
        "the KL is averaged over latents",
        "sum the KL over latents and average over the batch only: kl.sum(1).mean(), not kl.mean()",
        "retrain",
    ),
    "kl-pixel-mean": Known(
        "the KL is divided by the number of pixels while the reconstruction is summed",
        "divide the KL by what the reconstruction is divided by, the batch size: kl.sum() / len(x)",
        "retrain",
    ),
    "squared-error": Known(
        "the squared error is taken without its half",
        "use 0.5 * (x - x_hat)**2, or call the weight that is meant beta",
        "retrain",
    ),
    "annealing": Known(
        "the KL's weight was still rising",
        "train on at the full weight until the count of idle latents stands still, then measure again",
        "retrain",
    ),
    "grown": Known(
        "latents were added, and their KL does not have its full weight yet",
        "train on until it has: vaeprune train --resume",
        "retrain",
    ),
    "free-bits": Known(
        "free bits: some nats of every latent cost nothing, so none is driven to sigma² = 1 and no test of it is valid",
        "take away the floor (kl.clamp(min=...), torch.maximum(kl, ...)) at least for the last epochs",
        "retrain",
    ),
    "batch-norm": Known(
        "a batch normalisation forces the variance of the mean",
        "take the BatchNorm between the encoder and the mean away, or let its weight be trained; it holds Var mu at "
        "a value that says nothing about use",
        "retrain",
    ),
    "train-mode": Known(
        "the model is not in eval mode when it is told to be",
        "pass training=self.training to F.dropout and F.batch_norm, return the mean and not a sample, and leave "
        "BatchNorm its running statistics",
        "refuse",
    ),
    "learned-variance": Known(
        "the observation's variance was learned, so a nat is not what the likelihood takes it for",
        "give the learned standard deviation to the likelihood: Likelihood('gaussian', 'mean', s)",
        "refuse",
    ),
    "untrained": Known(
        "the weights are not trained ones, where sigma² ≈ 1 only mimics inactivity",
        "check that the checkpoint was loaded and that rows are scaled as in training; else train first",
        "retrain",
    ),
    "no-kl": Known(
        "a plain autoencoder: without the full KL nothing holds a latent's scale or drives an idle one to the prior",
        "add the full KL to the loss, ½(mu² + sigma² − ln sigma² − 1) summed over latents, and train again",
        "refuse",
    ),
    "no-sampling": Known(
        "trained without sampling, so sigma² answers to the KL alone",
        "decode mu + sigma·eps in training",
        "refuse",
    ),
    "dead-decoder": Known(
        "the decoder is dead: its output does not depend on z at all",
        "check that decode uses z; if its first units are dead ReLUs, lower the learning rate or use LeakyReLU, and "
        "train again",
        "retrain",
    ),
    "clamped": Known(
        "the posterior's variance is clamped",
        "widen the clamp of logvar so that sigma² can reach 1 and fall as low as training drives it",
        "retrain",
    ),
    "beta": Known(
        "the KL is weighed otherwise than in the ELBO",
        "check the weight of the KL against the reduction of the reconstruction; if it is meant, say so: "
        "--objective beta=...",
        "retrain",
    ),
    "early-collapse": Known(
        "the posterior collapsed early in training, although latents would pay at this weight",
        "raise the weight of the KL from 0 over the first epochs, or lower the learning rate",
        "retrain",
    ),
    "no-structure": Known(
        "the rows hold nothing that pays for its KL",
        "check the data and their scale: noise has no latents, and rows in another unit need another likelihood scale",
        "refuse",
    ),
    "other-likelihood": Known(
        "the loss scored rows by another likelihood than they are scored by here",
        "say which: summed squared errors are --likelihood gaussian with --scale 0.7071, their halves with --scale 1",
        "refuse",
    ),
    "other-objective": Known(
        "the objective as stated is not the one these weights come from, or training did not come to rest",
        "check the statement against the training code, and train until the loss stands still",
        "retrain",
    ),
}
