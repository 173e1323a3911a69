"""Trainings as model folders that are made once, gone on with where they were interrupted, and measured once."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vaeprune import analyze
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, open_data
from vaeprune.errors import StorageError
from vaeprune.model_folder import CONFIG, read_model_folder
from vaeprune.oversized import held_out_loss
from vaeprune.storage import new_file, new_folder, read_json, weights_sha256, write_json
from vaeprune.training import History, Trained
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe, resume, run

READY_MADE = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Run:
    """A finished training: its folder's name, its recipe as it is recorded, the network and its history."""

    name: str
    recipe: Recipe
    vae: BuiltVAE
    history: History

    @cached_property
    def mark(self) -> str:
        """SHA-256 of the weights."""
        return weights_sha256(self.vae.state_dict())


@dataclass(frozen=True)
class Runs:
    """The trainings below `out`. `data_dir`: where MNIST is. `rows`: of each split, for measuring; None for all.

    `may_train`: False takes what is finished and puts the rest into `missing`.
    """

    out: Path
    data_dir: Path | None = None
    rows: int | None = None
    may_train: bool = True
    missing: list[str] = field(default_factory=list)
    _opened: dict[str, DataSets] = field(default_factory=dict)

    def data(self, name: str) -> DataSets:
        """The rows that a network trained on `name` is measured on."""
        if name not in self._opened:
            self._opened[name] = open_data(name, folder=self.data_dir, rows=self.rows)
        return self._opened[name]

    def get(self, name: str, recipe: Recipe, on_step: Callable[[Step], None] | None = None) -> Run | None:
        """The training of that name, made, finished or taken as it is; None if it is not there and may not be made.

        Raises StorageError if the folder's training has another recipe; how often it was traced does not count.
        """
        folder = self.out / "runs" / name
        self._take_ready_made(name, recipe, folder)
        found = read_model_folder(folder) if (folder / CONFIG).is_file() else None
        if found:
            recorded = Recipe.from_json(found.training, str(folder))
            if _settings(recorded) != _settings(recipe):
                differs = [k for k, v in _settings(recipe).items() if _settings(recorded)[k] != v]
                raise StorageError(
                    f"{folder}: was trained by another recipe ({', '.join(differs)})", "name another --out"
                )
        if found is None or len(found.history.epochs) < recipe.epochs:
            if not self.may_train:
                self.missing.append(name)
                return None
            self._train(folder, recipe, found is not None, on_step)
            found = read_model_folder(folder)
        if not isinstance(found.vae, BuiltVAE):
            raise StorageError(f"{folder}: holds somebody else's network", "name another --out")
        return Run(name, Recipe.from_json(found.training, str(folder)), found.vae, found.history)

    def _take_ready_made(self, name: str, recipe: Recipe, folder: Path) -> None:
        ready = READY_MADE / name.removesuffix("-seed0")
        if not name.endswith("-seed0") or (folder / CONFIG).is_file() or not (ready / CONFIG).is_file():
            return
        if _settings(Recipe.from_json(read_model_folder(ready).training, str(ready))) == _settings(recipe):
            with new_folder(folder) as copy:
                shutil.copytree(ready, copy, dirs_exist_ok=True)

    def _train(self, folder: Path, recipe: Recipe, begun: bool, on_step: Callable[[Step], None] | None) -> None:
        def on_epoch(trained: Trained) -> None:
            last = trained.history.epochs[-1]
            say(f"{folder.name}: epoch {last.epoch} of {recipe.epochs}, loss {last.loss:.2f}, {last.n_inactive} idle")

        device = "cuda" if torch.cuda.is_available() else "cpu"
        how: dict[str, Any] = {"folder": self.data_dir, "device": device, "on_epoch": on_epoch, "on_step": on_step}
        if begun:
            resume(folder, {"epochs": recipe.epochs}, **how)
        else:
            run(recipe, folder, **how)

    def measured(self, run: Run) -> dict[str, Any]:
        """What `analyze` says of a run, and its held-out −ELBO; kept in a file for as long as the weights are those."""
        path = self.out / "measured" / f"{run.name}.json"
        mark = {"weights": run.mark, "rows": self.rows}
        known = read_json(path, "measurement") if path.is_file() else None
        if known is None or known["mark"] != mark:
            say(f"{run.name}: measuring")
            data = self.data(run.recipe.data)
            analysis, loss = analyze(run.vae, data), held_out_loss(run.vae, data.verify)
            with new_file(path, force=True) as fresh:
                write_json(fresh, {"mark": mark, "analysis": analysis.to_json(), "held_out_loss": loss})
            known = read_json(path, "measurement")
        return dict(known)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What the weights depend on."""
    entry = dataclasses.asdict(dataclasses.replace(recipe, trace_every=0))
    return entry | {"hidden": recipe.hidden if recipe.architecture == "dense" else None}
