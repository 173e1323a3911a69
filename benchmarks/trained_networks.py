"""The five networks that are made smaller, each trained by the project's one setting, and the rows that judge them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from vaeprune import load
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, MemoryRows
from vaeprune.model_folder import read_model_folder
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe, resume, run

TRAINED_HERE = Path("out/benchmarks")
_WIDE = (512, 256, 64, 32)  # of the paper's network for the tiles


@dataclass(frozen=True)
class Network:
    """A network of the table: where its folder is, and the recipe it is trained by where it is not there yet."""

    key: str
    title: str
    recipe: Recipe
    folder: Path

    def model(self) -> BuiltVAE:
        """The trained network."""
        if not (self.folder / "config.json").is_file():
            self._train()
        model = load(self.folder)
        assert isinstance(model, BuiltVAE)
        return model

    def _train(self) -> None:
        print(f"training {self.title} into {self.folder}: {self.recipe.epochs} epochs", flush=True)

        def on_step(step: Step) -> None:
            if step.batch == step.batches and step.epoch % 10 == 0:
                print(f"  epoch {step.epoch}: {step.loss:.2f} nats", flush=True)

        # kept beside the network until it is whole, so that an interrupted training is never taken for a trained one
        unfinished = self.folder.with_name(self.folder.name + "-unfinished")
        if not (unfinished / "config.json").is_file():
            run(self.recipe, unfinished, on_step=on_step)
        elif len(read_model_folder(unfinished).history.epochs) < self.recipe.epochs:
            resume(unfinished, dataclasses.asdict(self.recipe), on_step=on_step)
        unfinished.rename(self.folder)


NETWORKS = (
    Network(
        "mnist-torch",
        "dense MNIST, PyTorch start",
        Recipe("mnist", initialisation="torch"),
        TRAINED_HERE / "mnist-torch",
    ),
    Network("mnist-glorot", "dense MNIST, Glorot start", Recipe("mnist"), Path("models/mnist-dense")),
    Network("tiles-dense", "dense tiles", Recipe("tiles", hidden=_WIDE), Path("models/tiles-dense")),
    Network("mnist-conv", "conv MNIST", Recipe("mnist", architecture="convolutional"), Path("models/mnist-conv")),
    Network("tiles-conv", "conv tiles", Recipe("tiles", architecture="convolutional"), Path("models/tiles-conv")),
)


def held_out(sets: DataSets) -> MemoryRows:
    """All rows no weight was trained on: of a named set, its whole test split."""
    parts = zip(sets.select.tensors, sets.verify.tensors, strict=True)
    span = sets.select.scaled_to or (0.0, 1.0)
    return MemoryRows(f"{sets.name}, held out", *(torch.cat(pair) for pair in parts), span=span)
