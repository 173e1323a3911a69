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

    def both(self) -> list[VAE]:
        """The models there are."""
        return [vae for vae in (self.before, self.after) if vae is not None]

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

    `after` is None without another side, `original`, the rows themselves, where there are none.
    """

    before: Tensor
    after: Tensor | None = None
    original: Tensor | None = None

    @property
    def difference(self) -> Tensor | None:
        """|after − before|."""
        return None if self.after is None else (self.after.double() - self.before.double()).abs()


@dataclass(frozen=True, eq=False)
class Traversal(Drawn):
    """What becomes of one row while one latent moves: N steps of it."""

    latent: int = 0

    @property
    def moves(self) -> float:
        """RMS distance of `before` from its mean over the steps, in data units."""
        values = self.before.double()
        return float((values - values.mean(0)).square().mean().sqrt())


def rows_to_draw(vae: VAE, sets: DataSets, count: int, seed: int) -> Batch:
    """At most `count` of the verify rows, drawn at random, in the model's shape, with their conditions."""
    return next(batches_for(vae, some_of(sets.verify, count, seed)))


@dataclass(frozen=True)
class Held:
    """Latents that stand still: `latents[j]` at `at[j]`, or all at 0 where `at` is empty."""

    latents: tuple[int, ...] = ()
    at: tuple[float, ...] = ()

    def hold(self, z: Tensor) -> Tensor:
        """A copy of z (B, D, ...) in which they do."""
        z = z.clone()
        for position, latent in enumerate(self.latents):
            z[:, latent] = self.at[position] if self.at else 0.0
        return z


NOTHING_HELD = Held()


@dataclass(frozen=True)
class Sides:
    """What is compared: a model before and after a cut, or, without a second one, with and without latents held.

    With both, the first model has them held.
    """

    models: Compared
    held: Held = NOTHING_HELD

    def decode(self, z: Tensor, condition: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """E[x | z] on both sides for z (B, D, ...) of the first model; None without a second side."""
        models = self.models
        if models.after is not None:
            first = models.before.decode(self.held.hold(z), *condition)
            return first, models.after.decode(models.narrowed(z), *condition)
        held = models.before.decode(self.held.hold(z), *condition) if self.held.latents else None
        return models.before.decode(z, *condition), held

    def names(self) -> tuple[str, ...]:
        """How the sides are called."""
        held = "inactive held"
        if self.models.after is not None:
            return (f"before, {held}" if self.held.latents else "before", "after")
        return ("model", held) if self.held.latents else ("model",)


def reconstructions(sides: Sides, batch: Batch) -> Drawn:
    """Rows x, decode(mean of x), and the same on the other side."""
    x, *condition = batch
    models = sides.models
    with measuring(*models.both()):
        mean = models.before.encode(x, *condition).mean
        if models.after is None:
            return Drawn(*sides.decode(mean, condition), x)
        first = models.before.decode(sides.held.hold(mean), *condition)
        return Drawn(first, models.after.decode(models.after.encode(x, *condition).mean, *condition), x)


def prior_samples(sides: Sides, count: int, seed: int, condition: Sequence[Tensor] = ()) -> Drawn:
    """decode(z) for `count` z from N(0, I), the same on both sides (Asperti, Fig. 4); `condition`: of so many rows."""
    z = noise(sides.models.before, count, seed)
    with measuring(*sides.models.both()):
        return Drawn(*sides.decode(z, condition))


def conditions(batch: Batch, count: int) -> list[Tensor]:
    """The conditions of a batch's rows, `count` of them, from the first again where there are fewer."""
    return [part[torch.arange(count, device=part.device) % len(part)] for part in batch[1:]]


def noise(vae: VAE, count: int, seed: int) -> Tensor:
    """z (count, *latent_shape) from N(0, I), the same on every device."""
    if count < 1:
        raise UsageError(f"count: got {count}, expected at least 1")
    dtype, device = element_type(vae)
    z = torch.randn((count, *vae.latent_shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return z.to(dtype=dtype, device=device)


def traversals(
    sides: Sides,
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
    size = sides.models.before.latent_size
    if any(not 0 <= latent < size for latent in latents):
        raise UsageError(f"latents: got {', '.join(map(str, latents))}, expected numbers from 0 to {size - 1}")
    values = torch.linspace(-reach, reach, steps).to(start)
    found = []
    with measuring(*sides.models.both()):
        again = [c.expand(steps, *c.shape[1:]) for c in condition]
        for latent in latents:
            z = start.repeat(steps, *[1] * (start.dim() - 1))
            shift = values.view(-1, *[1] * (start.dim() - 2))
            z[:, latent] = z[:, latent] + shift if start.dim() > 2 else shift
            found.append(Traversal(*sides.decode(z, again), latent=latent))
    return found


def start_of(vae: VAE, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Where a traversal starts: the mean of the first row's posterior (1, *latent_shape), and the row's conditions."""
    x, *condition = (part[:1] for part in batch)
    with measuring(vae):
        return vae.encode(x, *condition).mean, condition


def amplification(difference: Tensor, span: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … by which a difference may be multiplied and stay within `span`."""
    largest = float(difference.max())
    if not largest > 0:
        return 1
    room = span / largest
    factors = [m * 10**power for power in range(12) for m in (1, 2, 5)]
    return max((factor for factor in factors if factor <= room), default=1)
