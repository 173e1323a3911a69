"""The oversized networks of a search for a latent size: trained, judged, and given up where that is certain."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vaeprune.adapters import batches_for, measuring
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.analysis import Progress
from vaeprune.data import DataSets, MemoryRows, Rows
from vaeprune.latent_counts import Count
from vaeprune.model_folder import CONFIG, read_model_folder
from vaeprune.posterior import VAE, negative_elbo
from vaeprune.search_path import LARGEST, Decision, Oversized, decide, in_use, patience, settled
from vaeprune.training import History, Trained
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe, resume, run


@dataclass(frozen=True)
class Watch:
    """What to call while a search runs: at the start of a training (size, seed), on its steps and epochs, when it was
    judged, and with the progress of measuring.
    """

    on_start: Callable[[int, int], None] = lambda _size, _seed: None
    on_step: Callable[[Step], None] | None = None
    on_epoch: Callable[[Trained], None] = lambda _trained: None
    on_judged: Callable[[Oversized], None] = lambda _training: None
    progress: Progress | None = None


def oversized_folder(out: Path) -> Path:
    """Where the oversized networks of a search stay, one model folder each, beside the result."""
    return out.parent / f"{out.name or out.absolute().name}-oversized"


class _Pause(Exception):
    """The rest of the epochs is not trained, or not yet."""


@dataclass(frozen=True)
class OversizedTrainings:
    """How the oversized networks of one search are trained, into model folders in `folder`.

    `recipe`: their training; `latent` and `seed` are set for each. `ceiling`: no network has more latents. `patience`:
    epochs after which a count that stayed the same is settled. `go_on`: take up what lies there already.
    """

    recipe: Recipe
    folder: Path
    sets: DataSets
    ceiling: int
    patience: int
    data_folder: Path | None = None
    device: str = "cpu"
    keep_state: bool = True
    force: bool = False
    go_on: bool = False
    watch: Watch = field(default_factory=Watch)
    analyses: dict[Path, Analysis] = field(default_factory=dict)
    begun: set[Path] = field(default_factory=set)

    @classmethod
    def on(cls, rows: MemoryRows, recipe: Recipe, folder: Path, sets: DataSets, **shared: Any) -> OversizedTrainings:
        """With the ceiling and the patience that the training rows ask for."""
        ceiling = min(math.prod(rows.row_shape), max(1, rows.count - 1), LARGEST)
        wait = patience(recipe.epochs, math.ceil(rows.count / recipe.batch_size), recipe.learning_rate)
        return cls(recipe, folder, sets, ceiling, wait, **shared)

    def from_seeds(self, seeds: range, size: int) -> Iterator[Oversized]:
        """From `size` on: train and double until something is idle, or nothing larger makes sense. The last one counts.

        Where some latents of the first seed are not in use after `patience` epochs, the other seeds are trained as
        long, and the one with the lowest loss alone goes on: latents that fade before the network is of any use leave
        it poorer for good, which its loss shows and its idle latents do not.
        """
        while True:
            kept = seeds[0]
            if self._tell_apart(seeds, size):
                kept, poorer = self._best(seeds, size)
                yield from poorer
            self._train(size, kept)
            training = self._judged(size, kept)
            yield training
            if training.decision != "double":
                return
            size = min(2 * size, self.ceiling)

    def _tell_apart(self, seeds: range, size: int) -> bool:
        """Whether more than one seed is worth a trial: the first leaves latents unused."""
        if len(seeds) == 1:
            return False
        epochs = self._train(size, seeds[0], self.patience).epochs
        return in_use(epochs[min(self.patience, len(epochs)) - 1]) < size

    def _best(self, seeds: range, size: int) -> tuple[int, list[Oversized]]:
        """The seed with the lowest training loss after `patience` epochs, and the others as they were given up."""
        epochs = min(self.patience, self.recipe.epochs)
        losses = {seed: self._train(size, seed, epochs).epochs[epochs - 1].loss for seed in seeds}
        best = min(losses, key=lambda seed: losses[seed])
        others = (seed for seed in seeds if seed != best)
        return best, [
            self._judged(
                size, seed, "poorer",
                f"{losses[seed]:.2f} nats per training row in epoch {epochs}, where seed {best} has {losses[best]:.2f}",
            )
            for seed in others
        ]  # fmt: skip

    def model(self, size: int, seed: int) -> Path:
        """Where one of the networks is."""
        return self.folder / f"seed{seed}-latents{size}"

    def _judged(self, size: int, seed: int, decision: Decision | None = None, reason: str = "") -> Oversized:
        """What a trained network comes to, and what follows if that is not decided yet."""
        folder = self.model(size, seed)
        known = read_model_folder(folder)
        vae = known.vae.to(self.device)
        analysis = self.analyses[folder] = analyze(vae, self.sets, progress=self.watch.progress)
        count, since = Count.of(str(folder), analysis), settled(known.history, self.patience)
        done = len(known.history.epochs)
        if decision is None:
            decision, reason = decide(count, since, done, self.recipe.epochs, self.ceiling)
        loss = held_out_loss(vae, self.sets.select)
        training = Oversized(seed, size, done, loss, since, count, decision, reason)
        self.watch.on_judged(training)
        return training

    def _train(self, size: int, seed: int, until: int | None = None) -> History:
        """Make the model folder whole, or so many epochs of it, going on with what is there."""
        recipe = dataclasses.replace(self.recipe, latent=size, seed=seed)
        folder = self.model(size, seed)
        until = min(until or recipe.epochs, recipe.epochs)

        def stop(history: History) -> bool:
            return len(history.epochs) >= until or self._enough(history, size)

        def on_epoch(trained: Trained) -> None:
            self.watch.on_epoch(trained)
            if stop(trained.history):
                raise _Pause

        shared: dict[str, Any] = {"folder": self.data_folder, "device": self.device, "keep_state": self.keep_state}
        shared |= {"on_step": self.watch.on_step, "on_epoch": on_epoch}
        begun = (self.go_on or folder in self.begun) and (folder / CONFIG).is_file()
        self.begun.add(folder)
        changes = dataclasses.asdict(recipe)
        if begun:
            known = read_model_folder(folder)
            Recipe.from_json(known.training, str(folder)).refuse_changes(changes, folder)
            if stop(known.history):
                return known.history
        self.watch.on_start(size, seed)
        with contextlib.suppress(_Pause):
            if begun:
                resume(folder, changes, **shared)
            else:
                run(recipe, folder, **shared, force=self.force)
        return read_model_folder(folder).history

    def _enough(self, history: History, size: int) -> bool:
        """Whether all latents are in use and that has settled: a larger one is trained instead of the rest."""
        all_in_use = in_use(history.epochs[-1]) == size
        return size < self.ceiling and all_in_use and settled(history, self.patience) is not None


def held_out_loss(vae: VAE, rows: Rows, seed: int = 0) -> float:
    """−ELBO averaged over `rows`, with one sample each, in nats per row."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    with measuring(vae):
        for x, *condition in batches_for(vae, rows):
            posterior = vae.encode(x, *condition)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            total += negative_elbo(vae, x, posterior.sample(noise), posterior, condition).double().sum().cpu()
            count += len(x)
    return float(total / count)
