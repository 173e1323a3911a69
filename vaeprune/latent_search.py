"""A latent size found by training: oversized from scratch, doubled only while all are in use, then shrunk.

An idle latent certifies that there were enough. So one training that has some tells the size, where a grid of sizes
takes one training for each; and what has been trained is kept, less what is idle.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from vaeprune.adapters import batches_for, measuring
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.analysis import Progress
from vaeprune.data import DataSets, Rows, open_data, training_images
from vaeprune.data.principal_components import principal_components
from vaeprune.data.rows import limited_blocks
from vaeprune.data.sets import open_sources
from vaeprune.errors import DataError, StorageError, UsageError
from vaeprune.latent_counts import Count
from vaeprune.model_folder import CONFIG, ModelFolder, read_model_folder, write_model_folder
from vaeprune.posterior import VAE, negative_elbo
from vaeprune.search_path import LARGEST, LatentSearch, Oversized, decide, in_use, patience, settled, start_size
from vaeprune.shrinking import shrink
from vaeprune.storage import new_file, refuse_existing, refuse_foreign_folder, write_json
from vaeprune.training import History, Trained
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe, resume, run, trained_card

PATH = "search.json"


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


def search_latent_size(
    recipe: Recipe,
    out: str | Path,
    *,
    seeds: int = 1,
    folder: Path | None = None,
    device: str = "cpu",
    keep_state: bool = True,
    force: bool = False,
    go_on: bool = False,
    watch: Watch | None = None,
) -> LatentSearch:
    """Find how many latents the data of `recipe` can use, whose own `latent` is not looked at, and train that network.

    Trains from scratch at a start size taken from the data. As soon as it has settled that all latents are in use, that
    training is given up for one of twice the size; the last is shrunk into the model folder `out`, as `shrink`
    does it. `seeds` repeats that with so many seeds from the recipe's on, from the size that was enough before. The
    oversized networks stay in `oversized_folder(out)`, with the path in `search.json`; `go_on` takes up what an
    interrupted search left there. Raises UsageError, StorageError or DataError before any training;
    TrainingError; VerificationFailed, with the oversized networks kept.
    """
    target = Path(out)
    _refuse(recipe, seeds)
    _refuse_targets(target, force, go_on)
    sets = _opened(recipe, folder)
    rows = training_images(recipe.data, folder, rows=recipe.rows)
    components = principal_components(rows)
    if not components:
        raise _equal(recipe.data)
    ceiling = min(math.prod(rows.row_shape), max(1, rows.count - 1), LARGEST)
    wait = patience(recipe.epochs, math.ceil(rows.count / recipe.batch_size), recipe.learning_rate)
    job = _Search(
        recipe, target, sets, ceiling, wait, folder, device, keep_state, force or go_on, go_on, watch or Watch()
    )
    size = start_size(components, ceiling)
    trainings: list[Oversized] = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        trainings += job.one_seed(seed, size)
        size = trainings[-1].latent_size
    found = job.result(LatentSearch(recipe.data, components, tuple(trainings)))
    if force and not go_on:
        _remove_others(oversized_folder(target), {Path(training.count.model) for training in trainings})
    with new_file(oversized_folder(target) / PATH, force=True) as path:
        write_json(path, found.to_json())
    return found


def _refuse(recipe: Recipe, seeds: int) -> None:
    recipe.options()
    if seeds < 1:
        raise UsageError(f"--seeds: got {seeds}, expected at least 1")
    if recipe.kl != "full" or not recipe.sampling or recipe.beta == 0:
        said = f"kl {recipe.kl!r}" if recipe.kl != "full" else "beta 0" if recipe.beta == 0 else "no sampling"
        raise UsageError(
            f"--latent auto: got {said}, but latents become idle only where they are sampled, under the full KL",
            "name a size, like --latent 16",
        )


def _opened(recipe: Recipe, folder: Path | None) -> DataSets:
    """The three sets. Equal rows all fall into one of them, so where one is too small that is looked for first."""
    try:
        return open_data(recipe.data, folder=folder, rows=recipe.rows)
    except DataError:
        first: NDArray[Any] | None = None
        for block in limited_blocks(open_sources(recipe.data, folder)[0], recipe.rows):
            first = block[0][:1].copy() if first is None else first
            if (block[0] != first).any():
                raise
        raise _equal(recipe.data) from None


def _equal(data: str) -> DataError:
    return DataError(f"{data}: all rows are equal, so there is nothing for latents to tell apart", "check the data")


def _refuse_targets(out: Path, force: bool, go_on: bool) -> None:
    trainings = oversized_folder(out)
    if go_on and not trainings.is_dir():
        raise StorageError(f"{trainings}: no such folder, so there is no search to go on with", "leave --resume out")
    for target in (out, trainings):
        refuse_existing(target, force or go_on)
    if out.exists():
        refuse_foreign_folder(out)
    if trainings.exists() and not trainings.is_dir():
        raise StorageError(f"{trainings}: is a file, expected a folder for oversized networks", "choose another name")


def _remove_others(trainings: Path, own: set[Path]) -> None:
    """Remove model folders that an earlier search left, now that this one replaces it."""
    for child in trainings.glob("seed*-latents*"):
        if child not in own and (child / CONFIG).is_file():
            shutil.rmtree(child)


class _Enough(Exception):
    """All latents are in use and that has settled: the rest of the epochs would be for nothing."""


@dataclass(frozen=True)
class _Search:
    """What all trainings of a search share."""

    recipe: Recipe
    out: Path
    sets: DataSets
    ceiling: int
    patience: int
    data_folder: Path | None
    device: str
    keep_state: bool
    force: bool
    go_on: bool
    watch: Watch
    analyses: dict[Path, Analysis] = field(default_factory=dict)

    def one_seed(self, seed: int, size: int) -> Iterator[Oversized]:
        """Train and double until something is idle, or nothing larger makes sense."""
        while True:
            training = self._trained(dataclasses.replace(self.recipe, latent=size, seed=seed))
            self.watch.on_judged(training)
            yield training
            if training.decision != "double":
                return
            size = min(2 * size, self.ceiling)

    def result(self, found: LatentSearch) -> LatentSearch:
        """The finished network with the lowest loss, shrunk into the model folder `out`."""
        usable = [training for training in found.finished if training.decision != "collapsed"]
        if not usable:
            return found
        best = min(usable, key=lambda training: training.loss)
        source = Path(best.count.model)
        known = read_model_folder(source)
        shrunk = shrink(
            known.vae.to(self.device),
            self.sets,
            self.out,
            analysis=self.analyses[source],
            force=self.force,
            source=str(source),
            progress=self.watch.progress,
        )
        if shrunk.model is None:
            card = trained_card(known, Recipe.from_json(known.training, str(source)), self.out)
            whole = ModelFolder(known.vae, known.training, None, known.history, known.state)
            write_model_folder(whole, self.out, card, force=self.force)
        return dataclasses.replace(
            found,
            chosen=best.seed,
            latent_size=shrunk.latent_size[1],
            out=self.out,
            notes=self._notes(best),
            shrunk=shrunk,
        )

    def _notes(self, best: Oversized) -> tuple[str, ...]:
        """What limits the answer."""
        notes = []
        used = best.count.active + best.count.mixed
        if self.recipe.architecture == "dense" and used >= min(self.recipe.hidden):
            notes.append(
                f"{used} latents are in use and the narrowest hidden layer has {min(self.recipe.hidden)} units: "
                "the count may be this network's limit, not what the data can use; try wider --hidden"
            )
        if best.settled is None:
            notes.append(
                f"the number of latents in use had not stayed the same for long enough ({self.patience} epochs at this "
                "learning rate and number of rows) when training ended, and may end elsewhere: give the same command "
                "again with --resume and more --epochs"
            )
        return tuple(notes)

    def _trained(self, recipe: Recipe) -> Oversized:
        """One training, judged."""
        folder = oversized_folder(self.out) / f"seed{recipe.seed}-latents{recipe.latent}"
        self.watch.on_start(recipe.latent, recipe.seed)
        self._train(recipe, folder)
        known = read_model_folder(folder)
        vae = known.vae.to(self.device)
        analysis = self.analyses[folder] = analyze(vae, self.sets, progress=self.watch.progress)
        count, since = Count.of(str(folder), analysis), settled(known.history, self.patience)
        decision, reason = decide(count, since, len(known.history.epochs), recipe.epochs, self.ceiling)
        loss = held_out_loss(vae, self.sets.select)
        return Oversized(recipe.seed, recipe.latent, len(known.history.epochs), loss, since, count, decision, reason)

    def _train(self, recipe: Recipe, folder: Path) -> None:
        """Make the model folder whole, or go on with what is there."""

        def on_epoch(trained: Trained) -> None:
            self.watch.on_epoch(trained)
            if self._enough(trained.history, recipe):
                raise _Enough

        shared: dict[str, Any] = {"folder": self.data_folder, "device": self.device, "keep_state": self.keep_state}
        shared |= {"on_step": self.watch.on_step, "on_epoch": on_epoch}
        try:
            if not (self.go_on and (folder / CONFIG).is_file()):
                run(recipe, folder, **shared, force=self.force)
                return
            known = read_model_folder(folder)
            changes = dataclasses.asdict(recipe)
            Recipe.from_json(known.training, str(folder)).refuse_changes(changes, folder)
            if len(known.history.epochs) < recipe.epochs and not self._enough(known.history, recipe):
                resume(folder, changes, **shared)
        except _Enough:
            return

    def _enough(self, history: History, recipe: Recipe) -> bool:
        """Whether the training can be given up for a larger one before its end."""
        all_in_use = in_use(history.epochs[-1]) == recipe.latent
        return recipe.latent < self.ceiling and all_in_use and settled(history, self.patience) is not None


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
