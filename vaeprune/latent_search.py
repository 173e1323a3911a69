"""A latent size found by training: oversized from scratch, doubled only while all are in use, then shrunk.

An idle latent certifies that there were enough. So one training that has some tells the size, where a grid of sizes
takes one training for each; and what has been trained is kept, less what is idle.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vaeprune.data import DataSets, open_data, training_images
from vaeprune.data.principal_components import principal_components
from vaeprune.data.rows import limited_blocks
from vaeprune.data.sets import open_sources
from vaeprune.errors import DataError, StorageError, UsageError
from vaeprune.model_folder import CONFIG, ModelFolder, read_model_folder, write_model_folder
from vaeprune.oversized import OversizedTrainings, Watch
from vaeprune.search_path import LatentSearch, Oversized, start_size
from vaeprune.shrinking import shrink
from vaeprune.storage import new_file, refuse_existing, refuse_foreign_folder, write_json
from vaeprune.training_run import Recipe, trained_card

PATH = "search.json"


def oversized_folder(out: Path) -> Path:
    """Where the oversized networks of a search stay, one model folder each, beside the result."""
    return out.parent / f"{out.name or out.absolute().name}-oversized"


def search_latent_size(
    recipe: Recipe,
    out: str | Path,
    *,
    seeds: int = 1,
    starts: int = 3,
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
    does it. Of `starts` seeds, from the recipe's on, only the one with the lowest loss is trained to the end. `seeds`
    repeats all that with further seeds, from the size that was enough before. The oversized networks stay in
    `oversized_folder(out)`, with the path in `search.json`; `go_on` takes up what an interrupted search left there.
    Raises UsageError, StorageError or DataError before any training; TrainingError; VerificationFailed, with the
    oversized networks kept.
    """
    target = Path(out)
    _refuse(recipe, seeds, starts)
    _refuse_targets(target, force, go_on)
    sets = _opened(recipe, folder)
    rows = training_images(recipe.data, folder, rows=recipe.rows)
    components = principal_components(rows)
    if not components:
        raise _equal(recipe.data)
    shared = {"data_folder": folder, "device": device, "keep_state": keep_state, "watch": watch or Watch()}
    shared |= {"force": force or go_on, "go_on": go_on}
    job = OversizedTrainings.on(rows, recipe, oversized_folder(target), sets, **shared)
    size = start_size(components, job.ceiling)
    trainings: list[Oversized] = []
    for seed in range(recipe.seed, recipe.seed + seeds * starts, starts):
        trainings += job.from_seeds(range(seed, seed + starts), size)
        size = trainings[-1].latent_size
    found = _result(LatentSearch(recipe.data, components, tuple(trainings)), job, target)
    if force and not go_on:
        _remove_others(oversized_folder(target), {Path(training.count.model) for training in trainings})
    with new_file(oversized_folder(target) / PATH, force=True) as path:
        write_json(path, found.to_json())
    return found


def _refuse(recipe: Recipe, seeds: int, starts: int) -> None:
    recipe.options()
    for option, count in (("--seeds", seeds), ("--starts", starts)):
        if count < 1:
            raise UsageError(f"{option}: got {count}, expected at least 1")
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


def _result(found: LatentSearch, job: OversizedTrainings, out: Path) -> LatentSearch:
    """The finished network with the lowest loss, shrunk into the model folder `out`."""
    usable = [training for training in found.finished if training.decision != "collapsed"]
    if not usable:
        return found
    best = min(usable, key=lambda training: training.loss)
    source = Path(best.count.model)
    known = read_model_folder(source)
    shrunk = shrink(
        known.vae.to(job.device),
        job.sets,
        out,
        analysis=job.analyses[source],
        force=job.force,
        source=str(source),
        progress=job.watch.progress,
    )
    if shrunk.model is None:
        card = trained_card(known, Recipe.from_json(known.training, str(source)), out)
        whole = ModelFolder(known.vae, known.training, None, known.history, known.state)
        write_model_folder(whole, out, card, force=job.force)
    return dataclasses.replace(
        found,
        chosen=best.seed,
        latent_size=shrunk.latent_size[1],
        out=out,
        notes=_notes(best, job),
        shrunk=shrunk,
    )


def _notes(best: Oversized, job: OversizedTrainings) -> tuple[str, ...]:
    """What limits the answer."""
    notes = []
    used = best.count.active + best.count.mixed
    if job.recipe.architecture == "dense" and used >= min(job.recipe.hidden):
        notes.append(
            f"{used} latents are in use and the narrowest hidden layer has {min(job.recipe.hidden)} units: "
            "the count may be this network's limit, not what the data can use; try wider --hidden"
        )
    if best.settled is None:
        notes.append(
            f"the number of latents in use had not stayed the same for long enough ({job.patience} epochs at this "
            "learning rate and number of rows) when training ended, and may end elsewhere: give the same command "
            "again with --resume and more --epochs"
        )
    return tuple(notes)
