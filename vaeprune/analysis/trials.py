"""Which latents are tried on the decoder, alone and together, on how many rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from vaeprune.analysis.ablation import Reaction, reactions, some_of
from vaeprune.analysis.latents import Latent, Thresholds
from vaeprune.analysis.moments import Moments
from vaeprune.analysis.verdict import judge, plainly_active
from vaeprune.data import DataSets, Rows
from vaeprune.posterior import VAE

Ablate = Literal["all", "candidates", "none"]
Progress = Callable[[str, int, int | None], None]  # what is being done, rows more, rows in all

_FIRST_ROWS = 256
_TOGETHER = 2.0  # times the noise tolerance for a whole set: the reactions of independent latents add in squares


def tried(
    vae: VAE,
    sets: DataSets,
    moments: Moments,
    latents: Sequence[Latent],
    ablate: Ablate,
    limits: Thresholds,
    progress: Progress | None = None,
) -> tuple[list[Latent], Reaction | None]:
    """The latents with what the decoder does with each, judged; and its reaction to fixing all inactive ones at once.

    "all": every latent on all select rows. "candidates": those plainly active on 256 of them, and on all if their cost
    is not plain from these; the others on all. "none": no decoder is run. Call it inside `measuring(vae)`.
    """
    if ablate == "none":
        return [judge(latent, limits, moments.count) for latent in latents], None
    trial = _Trial(vae, sets, moments, limits, progress)
    plain = [la.index for la in latents if ablate == "candidates" and plainly_active(la, limits)]
    found = trial.on(some_of(sets.select, _FIRST_ROWS, sets.seed), latents, plain, "trying active latents")
    settled = {i for i in plain if judge(found[i], limits, moments.count).verdict == "active"}
    rest = [latent.index for latent in latents if latent.index not in settled]
    found = trial.on(sets.select, found, rest, "ablating")
    return trial.jointly([judge(latent, limits, moments.count) for latent in found])


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The decoder of one model on one data set."""

    vae: VAE
    sets: DataSets
    moments: Moments
    limits: Thresholds
    progress: Progress | None

    def on(self, rows: Rows, latents: Sequence[Latent], chosen: Sequence[int], what: str) -> list[Latent]:
        """The latents, with the reactions to fixing each of the chosen ones alone."""
        found = list(latents)
        for i, reaction in zip(chosen, self._reactions(rows, [[i] for i in chosen], what), strict=True):
            found[i] = dataclasses.replace(
                found[i],
                ablation_cost=reaction.cost,
                ablation_cost_ci95=reaction.cost_ci95,
                noise_reaction=reaction.noise,
                noise_reaction_ci95=reaction.noise_ci95,
            )
        return found

    def jointly(self, latents: list[Latent]) -> tuple[list[Latent], Reaction | None]:
        """Fix all inactive ones at once: two redundant latents each look free alone.

        Where that costs something, the dearest leave until the rest is free; how many, is found by halving.
        """
        inactive = [latent for latent in latents if latent.verdict == "inactive"]
        inactive.sort(key=lambda la: (la.ablation_cost or 0.0, la.noise_reaction or 0.0))
        free, dear, size = 0, len(inactive) + 1, len(inactive)
        joint, reason = None, ""
        while size > free:
            together = [latent.index for latent in inactive[:size]]
            (reaction,) = self._reactions(self.sets.select, [together], "ablating together")
            if self._is_free(reaction, size):
                free, joint = size, reaction
            else:
                dear, reason = size, self._reason(reaction)
            size = (free + dear) // 2
        for latent in inactive[free:]:
            latents[latent.index] = dataclasses.replace(latent, verdict="mixed", reason=reason)
        return latents, joint

    def _reactions(self, rows: Rows, chosen: Sequence[Sequence[int]], what: str) -> list[Reaction]:
        def report(done: int) -> None:
            if self.progress:
                self.progress(what, done, None if what.endswith("together") else rows.count)

        return reactions(self.vae, rows, self.moments.mean, chosen, self.sets.seed, report)

    def _is_free(self, joint: Reaction, size: int) -> bool:
        heard = self.limits.noise * min(math.sqrt(size), _TOGETHER)
        return joint.cost_ci95[1] < self.limits.ablation and joint.noise_ci95[1] < heard

    def _reason(self, joint: Reaction) -> str:
        if joint.cost_ci95[1] < self.limits.ablation:
            return f"redundant: unheard alone, with the other idle ones noise moves the output by {joint.noise:.1%} RMS"
        return f"redundant: free alone, {joint.cost:.3g} nats with the others"
