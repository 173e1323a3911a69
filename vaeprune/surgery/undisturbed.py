"""What a model computes undisturbed: one row encoded and one z decoded, which every probe is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.data import Batch
from vaeprune.errors import TraceError
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.disturbing import differs
from vaeprune.surgery.probe import Recorder, Replayed, Subject
from vaeprune.surgery.watching import CannotShare, Watcher


@dataclass(frozen=True)
class Undisturbed:
    """One row encoded and one z decoded, with all that calls read and wrote.

    `example`: (1, ...); `z`: (1, *latent_shape).
    """

    subject: Subject
    example: Batch
    z: Tensor
    encoding: Recorder
    posterior: Posterior
    decoding: Recorder
    output: Tensor

    def encode(self, vae: VAE, rows: int) -> Posterior:
        """The posterior of the row, `rows` times."""
        return vae.encode(*repeated(self.example, rows))

    def decode(self, vae: VAE, rows: int, start: int = 0, change: float = 0.0) -> Tensor:
        """z, `rows` times; `change` is added to latent `start` in the first row, to the next in the second, and on."""
        disturbed, each = self.z.repeat(rows, *[1] * (self.z.dim() - 1)), torch.arange(rows)
        if change:
            disturbed[each, start + each] += change
        return vae.decode(disturbed, *repeated(self.example[1:], rows))


def undisturbed(subject: Subject) -> Undisturbed:
    """Run the subject on the first row of its example, and on a random z.

    Raises TraceError if means, logvars or outputs change between two identical calls in eval mode.
    """
    example = tuple(part[:1] for part in subject.example)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, *subject.vae.latent_shape, generator=generator, dtype=torch.float64).to(example[0])
    encoding, decoding = Recorder(), Recorder()

    def encode(vae: VAE) -> Posterior:
        return vae.encode(*example)

    def decode(vae: VAE) -> Tensor:
        return vae.decode(z.clone(), *example[1:])

    try:
        posterior, output = subject.run(encode, encoding), subject.run(decode, decoding)
    except (RuntimeError, TypeError) as error:  # types that do not go together: they do in a copy that is all float64
        if subject.shared:
            raise CannotShare(str(error)) from error
        raise
    # on weights of its own a model may change them unseen, and then must not be replayed
    once_more = (Replayed(encoding), Replayed(decoding)) if subject.shared else (Watcher(), Watcher())
    again = subject.run(encode, once_more[0], seed=1)
    compared = (
        ("means", posterior.mean, again.mean),
        ("logvars", posterior.logvar, again.logvar),
        ("decoded outputs", output, subject.run(decode, once_more[1], seed=1)),
    )
    for name, a, b in compared:
        if differs(b, a).any():
            raise TraceError(
                f"{type(subject.vae.network).__name__}: its {name} change between two identical calls in eval mode",
                "make encode and decode deterministic in eval mode: return mean and logvar, sample elsewhere",
            )
    return Undisturbed(subject, example, z, encoding, posterior, decoding, output)


def repeated(batch: Batch, rows: int) -> Batch:
    """One row, `rows` times, in memory of its own."""
    return tuple(part.expand(rows, *part.shape[1:]).clone() for part in batch)
