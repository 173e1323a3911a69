"""`vaeprune train --latent auto`: a latent size found by training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeprune.errors import VerificationFailed

from .output import note, print_evidence, print_json, print_sizes, show, stdout
from .training_display import training_display

if TYPE_CHECKING:
    from vaeprune.search_path import LatentSearch, Oversized
    from vaeprune.training import Trained
    from vaeprune.training_run import Recipe


def train_auto(recipe: Recipe, out: Path, again: list[str], json: bool, quiet: bool, **shared: Any) -> int:
    """Search, print the path and the evidence; returns the exit code. `again`: options a repeated command needs."""
    from vaeprune.latent_search import oversized_folder, search_latent_size
    from vaeprune.oversized import Watch

    path: list[Oversized] = []
    epochs: list[int] = []
    try:
        with training_display(quiet or json) as display:

            def on_epoch(trained: Trained) -> None:
                epochs.append(len(trained.history.epochs))
                display.on_epoch(trained)

            def on_judged(training: Oversized) -> None:
                path.append(training)
                display.say(f"{training.decision}: {training.reason}")

            watch = Watch(
                on_start=lambda size, seed: display.say(f"{size} latents, seed {seed}"),
                on_step=display.on_step, on_epoch=on_epoch, on_judged=on_judged, progress=display.report,
            )  # fmt: skip
            found = search_latent_size(recipe, out, watch=watch, **shared)
    except VerificationFailed as error:
        note(f"vaeprune: {error}")
        _print_failed(path, error, out, json)
        return 1
    except KeyboardInterrupt:
        if epochs or path:
            words = _words(recipe, out, again)
            note(f"{oversized_folder(out)} holds the finished epochs; go on with: {shlex.join(words)}")
        raise
    for line in found.notes:
        note(line, quiet)
    if json:
        print_json(_entry(found))
    else:
        _print(found, oversized_folder(out), recipe.data)
    return 0


def _print_failed(path: list[Oversized], error: VerificationFailed, out: Path, json: bool) -> None:
    from vaeprune.latent_search import oversized_folder

    if json:
        print_json({"out": None, "trainings": [t.to_json() for t in path], "evidence": error.evidence.to_json()})
        return
    _print_path(path)
    print_evidence(error.evidence)
    show(f"nothing was written to {out}; the oversized networks stay in {oversized_folder(out)}")


def _words(recipe: Recipe, out: Path, again: list[str]) -> list[str]:
    """The command that goes on with the search."""
    words = shlex.split(recipe.command(str(out)))
    words[words.index("--latent") + 1] = "auto"
    return [*words, *again, "--resume"]


def _entry(found: LatentSearch) -> dict[str, Any]:
    shrunk = found.shrunk.to_json() if found.shrunk else None
    return found.to_json() | {"reason": found.reason, "shrink": shrunk}


def _print(found: LatentSearch, trainings: Path, data: str) -> None:
    show(f"{found.components} principal components hold 99% of the variance of {data}\n")
    _print_path(found.trainings)
    show(f"\n{found.reason}")
    if found.shrunk and found.shrunk.plan:
        print_sizes(found.shrunk.latent_size, found.shrunk.parameters, found.shrunk.plan.kept_latents)
    if found.shrunk and found.shrunk.evidence:
        print_evidence(found.shrunk.evidence)
    show(f"\n{found.out}: the result" if found.out else "\nno result was written")
    show(f"{trainings}: the oversized networks, and the path as search.json")


def _print_path(trainings: list[Oversized] | tuple[Oversized, ...]) -> None:
    """A line for each training: what it was, what was found, what was decided and why."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("latents", "seed", "epochs", "loss", "active", "inactive", "mixed"):
        table.add_column(name, justify="right")
    table.add_column("decided")
    for training in trainings:
        count = training.count
        table.add_row(
            *map(str, (training.latent_size, training.seed, training.epochs)),
            f"{training.loss:.2f}",
            *map(str, (count.active, count.inactive, count.mixed)),
            f"{training.decision}: {training.reason}",
        )
    stdout().print(table)
    show("loss = -ELBO of rows that no weight was trained on, nats per row")
