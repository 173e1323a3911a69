"""What is drawn of a model, or of one before and after a cut: reconstructions, prior samples, traversals; tensors only.

Everything is drawn from a seed, and both models get the same rows and the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaeprune.adapters import batches_for, element_type, measuring
from vaeprune.analysis.ablation import some_of
from vaeprune.data import Batch, DataSets
from vaeprune.errors import ModelError, UsageError
from vaeprune.posterior import VAE
from vaeprune.surgery.plan import Plan

REACH = 3.0  # prior standard deviations: a traversal goes from -3 to 3


@dataclass(frozen=True)
class Compared:
    """A model, and where there is one the model it became: latent `kept[j]` of the first is latent j of the second.

    `kept` is None where that is not known; only reconstructions can be compared then.
    """

    before: VAE
    after: VAE | None = None
    kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.after is None or self.kept is None:
            return
        if len(self.kept) != self.after.latent_size or max(self.kept) >= self.before.latent_size:
            raise ModelError(
                f"models: have {self.before.latent_size} and {self.after.latent_size} latents, but "
                f"{len(self.kept)} are said to be kept",
                "name the model the plan was made for first and the one it led to with --against",
            )

    @classmethod
    def of(cls, before: VAE, after: VAE | None, plan: Plan | None) -> Compared:
        """By the plan between the two; without one, the same latents in both where there are as many."""
        kept = tuple(plan.kept_latents) if plan else None
        if plan is None and after is not None and after.latent_size == before.latent_size:
            kept = tuple(range(before.latent_size))
        return cls(before, after, kept)

    def narrowed(self, z: Tensor) -> Tensor:
        """Latents z (B, D, ...) of the first as the second takes them."""
        if self.kept is None:
            raise ModelError(
                "--against: which latents it kept is not known, so the two cannot be given the same noise",
                "name a folder that shrink wrote, with its plan.json",
            )
        return z[:, list(self.kept)]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Outputs for the same rows or the same noise, (N, *input_shape) each, in data units.

    `original`: the rows themselves, None where there are none. `after` is None without a second model or a set of
    latents to hold.
    """

    before: Tensor
    original: Tensor | None = None
    after: Tensor | None = None

    @property
    def difference(self) -> Tensor | None:
        """|after − before|."""
        return None if self.after is None else (self.after.double() - self.before.double()).abs()


@dataclass(frozen=True, eq=False)
class Traversal:
    """What becomes of one row while one latent moves: (steps, *input_shape) each.

    `moves`: RMS change of `before` from its mean over the steps, in data units. `after` is None where the second model
    has not got the latent.
    """

    latent: int
    before: Tensor
    after: Tensor | None

    @property
    def moves(self) -> float:
        """RMS distance of the steps from their mean."""
        values = self.before.double()
        return float((values - values.mean(0)).square().mean().sqrt())


def rows_to_draw(vae: VAE, sets: DataSets, count: int, seed: int) -> Batch:
    """At most `count` of the verify rows, drawn at random, in the model's shape, with their conditions."""
    return next(batches_for(vae, some_of(sets.verify, count, seed)))


def held(z: Tensor, latents: Sequence[int], at: Sequence[float] | None = None) -> Tensor:
    """A copy of z (B, D, ...) in which `latents` stand at a value each, 0 unless `at` says otherwise."""
    z = z.clone()
    for position, latent in enumerate(latents):
        z[:, latent] = 0.0 if at is None else at[position]
    return z


def reconstructions(
    models: Compared, batch: Batch, idle: Sequence[int] = (), at: Sequence[float] | None = None
) -> Drawn:
    """Rows x, decode(mean of x), and the same by the second model, or with the latents `idle` held."""
    x, *condition = batch
    with measuring(*_both(models)):
        mean = models.before.encode(x, *condition).mean
        after = None
        if models.after is not None:
            after = models.after.decode(models.after.encode(x, *condition).mean, *condition)
        elif idle:
            after = models.before.decode(held(mean, idle, at), *condition)
        return Drawn(models.before.decode(mean, *condition), x, after)


def prior_samples(
    models: Compared,
    count: int,
    seed: int,
    condition: Sequence[Tensor] = (),
    idle: Sequence[int] = (),
    at: Sequence[float] | None = None,
) -> Drawn:
    """decode(z) for `count` z from N(0, I), and the same z for the second model, or with `idle` held (Asperti, Fig. 4).

    `condition`: of `count` rows each.
    """
    z = noise(models.before, count, seed)
    with measuring(*_both(models)):
        after = None
        if models.after is not None:
            after = models.after.decode(models.narrowed(z), *condition)
        elif idle:
            after = models.before.decode(held(z, idle, at), *condition)
        return Drawn(models.before.decode(z, *condition), None, after)


def noise(vae: VAE, count: int, seed: int) -> Tensor:
    """z (count, *latent_shape) from N(0, I), the same on every device."""
    if count < 1:
        raise UsageError(f"count: got {count}, expected at least 1")
    dtype, device = element_type(vae)
    z = torch.randn((count, *vae.latent_shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return z.to(dtype=dtype, device=device)


def traversals(
    models: Compared,
    start: Tensor,
    latents: Sequence[int],
    steps: int,
    condition: Sequence[Tensor] = (),
    reach: float = REACH,
) -> list[Traversal]:
    """From z = `start` (1, *latent_shape), each of `latents` alone goes from −reach to reach in `steps` steps.

    A latent that is a map is moved by that much at all its places; one that is a number is set to it.
    `condition`: of one row.
    """
    if steps < 2:
        raise UsageError(f"steps: got {steps}, expected at least 2")
    values = torch.linspace(-reach, reach, steps).to(start)
    found = []
    with measuring(*_both(models)):
        again = [c.expand(steps, *c.shape[1:]) for c in condition]
        for latent in latents:
            z = start.repeat(steps, *[1] * (start.dim() - 1))
            shift = values.view(-1, *[1] * (start.dim() - 2))
            z[:, latent] = z[:, latent] + shift if start.dim() > 2 else shift
            after = None
            if models.after is not None and models.kept is not None and latent in models.kept:
                after = models.after.decode(models.narrowed(z), *again)
            found.append(Traversal(latent, models.before.decode(z, *again), after))
    return found


def amplification(difference: Tensor, span: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … by which a difference may be multiplied and stay within `span`."""
    largest = float(difference.max())
    if not largest > 0:
        return 1
    room = span / largest
    factors = [m * 10**power for power in range(12) for m in (1, 2, 5)]
    return max((factor for factor in factors if factor <= room), default=1)


def _both(models: Compared) -> list[VAE]:
    return [vae for vae in (models.before, models.after) if vae is not None]
