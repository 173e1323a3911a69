"""A whole training: a recipe, a model folder that is renewed after each epoch, and resuming."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vaeprune import ranks
from vaeprune.architectures import BuiltVAE, Initialisation, build, initialise
from vaeprune.architectures.convolutional import DECODER_CHANNELS, ENCODER_CHANNELS
from vaeprune.data import MemoryRows, training_images
from vaeprune.errors import StorageError, TrainingError, UsageError, in_markdown, one_line
from vaeprune.likelihood import Kind, Likelihood, Output
from vaeprune.model_folder import ModelFolder, describe, read_model_folder, write_model_folder
from vaeprune.posterior import count_weights
from vaeprune.storage import refuse_existing, refuse_foreign_folder
from vaeprune.training import Growth, History, Objective, Options, Trained, train
from vaeprune.training.growth import came_alive
from vaeprune.training.loop import Step
from vaeprune.training.objective import Penalty

_OPTIONS = {"architecture": "--arch", "initialisation": "--init", "compiled": "--compile"}


@dataclass(frozen=True)
class Recipe:
    """All that a training depends on, beside the rows themselves; a model folder's config records it.

    `hidden`: dense encoder widths, the decoder's mirrored; not used by the convolutional architecture.
    `rows`: train on the first so many rows only. The rest as in `Options`, `Objective` and `Likelihood`.
    """

    data: str
    rows: int | None = None
    architecture: str = "dense"
    hidden: tuple[int, ...] = (256, 32, 24)
    latent: int = 16
    likelihood: Kind = "bernoulli"
    scale: float = 1.0
    initialisation: Initialisation = "glorot"
    kl: Penalty = "full"
    beta: float = 1.0
    sampling: bool = True
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    trace_every: int = 0
    seed: int = 0
    bf16: bool = False
    compiled: bool = False
    grown: tuple[Growth, ...] = ()

    def options(self) -> Options:
        """The part the training loop needs. Raises TrainingError on values that make no sense."""
        objective = Objective(self.kl, self.beta, self.sampling)
        steps = (self.epochs, self.batch_size, self.learning_rate)
        how = {"bf16": self.bf16, "compiled": self.compiled}
        return Options(*steps, objective, self.seed, self.trace_every, grown=self.grown, **how)

    def network(self, row_shape: tuple[int, ...]) -> BuiltVAE:
        """The untrained network for rows of this shape. Raises ModelError."""
        image = (1, *row_shape) if len(row_shape) == 2 else row_shape
        entry: dict[str, Any] = {"name": self.architecture, "input_shape": image, "latent_size": self.latent}
        if self.architecture == "dense":
            entry |= {"encoder_widths": self.hidden, "decoder_widths": self.hidden[::-1]}
        elif self.architecture == "convolutional":
            entry |= {"encoder_channels": ENCODER_CHANNELS, "decoder_channels": DECODER_CHANNELS}
        output: Output = "logits" if self.likelihood == "bernoulli" else "mean"
        vae = build(entry, Likelihood(self.likelihood, output, self.scale))
        initialise(vae, self.initialisation, self.seed)
        return vae

    def command(self, out: str) -> str:
        """The command line that trains by this recipe; for each growth two more, joined by &&."""
        if self.grown:
            return self._grown_command(out)
        words = ["vaeprune", "train"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            unused = field.name == "hidden" and self.architecture != "dense"
            usual = value == field.default and field.name not in ("latent", "epochs", "seed")
            if unused or usual or field.name == "grown":
                continue
            option = _OPTIONS.get(field.name, "--" + field.name.replace("_", "-"))
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-"))
            else:
                words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join([*words, "--out", out])

    def _grown_command(self, out: str) -> str:
        """Train what was there before the latest growth, grow it, go on."""
        *earlier, growth = self.grown
        before = f"{out}-{growth.latents}"
        first = dataclasses.replace(self, latent=growth.latents, epochs=growth.epoch, grown=tuple(earlier))
        sizes = ["--latent", str(self.latent), "--warm-up", f"{growth.warm_up:g}"]
        grow = shlex.join(["vaeprune", "grow", before, *sizes, "--out", out])
        go_on = shlex.join(["vaeprune", "train", "--resume", "--out", out, "--epochs", str(self.epochs)])
        return " && ".join([first.command(before), grow, *([go_on] if self.epochs > growth.epoch else [])])

    def refuse_changes(self, changes: dict[str, Any], out: Path) -> None:
        """Raise UsageError where `changes` hold something else than the training in `out` was begun with.

        Only `epochs` may differ.
        """
        for name, value in changes.items():
            if name != "epochs" and getattr(self, name) != value:
                raise UsageError(f"--resume: {name} is {getattr(self, name)!r} in {out}, got {value!r}", "leave it out")

    def to_json(self) -> dict[str, Any]:
        """The provenance entry of a config."""
        entry = dataclasses.asdict(self) | {"hidden": list(self.hidden)}
        return entry | {"grown": [dataclasses.asdict(growth) for growth in self.grown]}

    @classmethod
    def from_json(cls, entry: dict[str, Any] | None, where: str) -> Recipe:
        """Read a provenance entry. Raises StorageError if the model was not trained here."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not entry or not {"data", "hidden"} <= set(entry) <= names or not isinstance(entry["hidden"], list):
            raise StorageError(f"{where}: does not record a training that could be resumed")
        grown = entry.get("grown", [])
        try:
            growths = tuple(Growth.from_json(growth) for growth in (grown if isinstance(grown, list) else [grown]))
        except TrainingError as error:
            raise StorageError(f"{where}: its training records a {error.message}", "restore its config") from error
        recipe = cls(**entry | {"hidden": tuple(entry["hidden"]), "grown": growths})
        for field in dataclasses.fields(cls):
            value, usual = getattr(recipe, field.name), field.default
            wanted: tuple[type, ...] = (float, int) if isinstance(usual, float) else (type(usual),)
            wanted = {"data": (str,), "rows": (int, type(None))}.get(field.name, wanted)
            whole = field.name != "hidden" or all(type(width) is int for width in value)
            if type(value) not in wanted or not whole:
                raise StorageError(f"{where}: its training records {field.name} as {value!r:.60}", "restore its config")
        return recipe


def run(
    recipe: Recipe,
    out: Path,
    *,
    folder: Path | None = None,
    device: str = "cpu",
    keep_state: bool = True,
    force: bool = False,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Trained], None] | None = None,
) -> Trained:
    """Train from scratch into the model folder `out`, which is whole after each epoch.

    Raises StorageError before the first step if `out` is in the way.
    """
    recipe.options()  # anything that makes no sense there is said before the data are read
    refuse_existing(out, force)
    if force:
        refuse_foreign_folder(out)
    rows = training_images(recipe.data, folder, rows=recipe.rows)
    vae = recipe.network(rows.row_shape).to(device)
    return _run(recipe, vae, rows, out, None, keep_state, force, on_step, on_epoch)


def resume(
    out: Path,
    changes: dict[str, Any],
    *,
    folder: Path | None = None,
    device: str = "cpu",
    keep_state: bool = True,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Trained], None] | None = None,
) -> Trained:
    """Go on with the training in `out`; the weights become those of an uninterrupted run, bit for bit.

    `changes` may hold `epochs`; anything else that differs from the recorded recipe raises UsageError.
    """
    refuse_existing(out, force=True)
    known = read_model_folder(out)
    recipe = Recipe.from_json(known.training, str(out))
    if not isinstance(known.vae, BuiltVAE) or known.shrunk or not known.state:
        why = "was shrunk" if known.shrunk else "was saved without its training state"
        raise TrainingError(f"{out}: {why}, so its training cannot be resumed")
    if ":" in recipe.data and changes.get("data") != recipe.data:
        raise UsageError(
            f"{out}: was trained on {recipe.data!r}, and no import path is taken from a file",
            f"name it again: --data {recipe.data}",
        )
    recipe.refuse_changes(changes, out)
    recipe = dataclasses.replace(recipe, epochs=changes.get("epochs", recipe.epochs))
    rows = training_images(recipe.data, folder, rows=recipe.rows)
    so_far = (known.history, known.state)
    return _run(recipe, known.vae.to(device), rows, out, so_far, keep_state, True, on_step, on_epoch)


def _run(
    recipe: Recipe,
    vae: BuiltVAE,
    rows: MemoryRows,
    out: Path,
    so_far: tuple[History, dict[str, torch.Tensor]] | None,
    keep_state: bool,
    force: bool,
    on_step: Callable[[Step], None] | None,
    on_epoch: Callable[[Trained], None] | None,
) -> Trained:
    before = len(so_far[0].epochs) if so_far else 0

    def save(trained: Trained) -> None:
        epochs = len(trained.history.epochs)
        state = trained.state if keep_state or epochs < recipe.epochs else {}
        model = ModelFolder(trained.vae, recipe.to_json(), None, trained.history, state)
        if ranks.rank() == 0:
            write_model_folder(model, out, trained_card(model, recipe, out), force=force or epochs > before + 1)
        if on_epoch:
            on_epoch(trained)

    return train(vae, rows, recipe.options(), resume=so_far, on_step=on_step, on_epoch=save)


def trained_card(model: ModelFolder, recipe: Recipe, out: Path) -> str:
    """The README.md of a freshly trained model."""
    last = model.history.epochs[-1]
    weights = count_weights(model.vae)
    grown = came_alive(model.training, last)
    return f"""# A VAE of {in_markdown(recipe.data)}

{describe(model.vae)}; {weights:,} weights.

    {one_line(recipe.command(out.name))}

After {last.epoch} epochs its loss is {last.loss:.2f} nats per row on the training rows (reconstruction
{last.reconstruction:.2f}, KL {last.kl:.2f}). Of its {len(last.variance)} latents {last.n_inactive} have a variance
below 0.01 and a posterior variance above 0.8.{f" Grown: {grown.words()}." if grown else ""}
"""
