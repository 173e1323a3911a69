"""`train --latent auto` on MNIST and tiles beside three oversized trainings, and beside the time of a grid.

Asked for: the result ends inside the range of counts that three independent oversized trainings give, at well under the
time of a grid over {2, 4, 8, 16, 32, 64}. The search has seeds of its own. Times are CPU seconds of one process: an
epoch is measured at every size, a training costs its epochs, and the search also its analysis, shrink and verification.
What a grid would need to judge its six networks is left out, in its favour.
"""

from __future__ import annotations

import dataclasses
import time

from benchmarks.latent_counts import counted
from benchmarks.oversized_networks import SEEDS
from benchmarks.trained_networks import TRAINED_HERE
from vaeprune.data import MemoryRows, open_data, training_images
from vaeprune.errors import DataError
from vaeprune.latent_counts import Spread
from vaeprune.latent_search import oversized_folder, search_latent_size
from vaeprune.oversized import Watch
from vaeprune.search_path import LatentSearch
from vaeprune.training import train
from vaeprune.training_run import Recipe

GRID = (2, 4, 8, 16, 32, 64)
_SEED = 3
_MEASURED_ROWS = 12_800


def main() -> None:
    for name in ("mnist", "tiles"):
        try:
            data = open_data(name)
        except DataError as error:
            print(f"left out: {error}")
            continue
        found, judging = _searched(name)
        sizes = sorted({training.latent_size for training in found.trainings})
        beside = Spread.of([counted(data, sizes[-1], seed)["active"] for seed in SEEDS])
        (last,) = found.finished
        inside = "inside" if last.count.active in beside else "OUTSIDE"
        print(f"{name}: {found.latent_size} latents kept, {last.count.active} active, from {sizes}")
        print(f"  three oversized trainings of {sizes[-1]}: {beside} active: {inside}    asked for: inside")
        rows = training_images(name)
        seconds = {size: _epoch(name, rows, size) for size in sorted({*GRID, *sizes})}
        grid = sum(seconds[size] * Recipe(name).epochs for size in GRID)
        search = sum(t.epochs * seconds[t.latent_size] for t in found.trainings) + judging
        print(f"  {search:.0f} s of CPU, {judging:.0f} s of them to judge and shrink; a grid {grid:.0f} s")
        print(f"  share of the grid's time {search / grid:.2f}    asked for: well under 1")


def _searched(name: str) -> tuple[LatentSearch, float]:
    """The search, gone on with where it was interrupted, and the CPU seconds it spent on other things than training."""
    out = TRAINED_HERE / f"auto-{name}"
    mark, spent = time.process_time(), 0.0

    def trained(_: object) -> None:
        nonlocal mark
        mark = time.process_time()

    def judged(_: object) -> None:
        nonlocal mark, spent
        spent += time.process_time() - mark
        mark = time.process_time()

    watch = Watch(on_epoch=trained, on_judged=judged)
    begun = oversized_folder(out).is_dir()
    found = search_latent_size(Recipe(name, seed=_SEED), out, go_on=begun, watch=watch)
    judged(None)
    return found, spent


def _epoch(name: str, rows: MemoryRows, size: int) -> float:
    """CPU seconds of one epoch over all rows, from one over fewer."""
    some = MemoryRows(name, *(tensor[:_MEASURED_ROWS] for tensor in rows.tensors))
    recipe = dataclasses.replace(Recipe(name), latent=size, epochs=1)
    started = time.process_time()
    train(recipe.network(rows.row_shape), some, recipe.options())
    return (time.process_time() - started) * rows.count / some.count


if __name__ == "__main__":
    main()
