"""Command lines to run next."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeprune.errors import StorageError

if TYPE_CHECKING:
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.analysis import Analysis
    from vaeprune.architectures import BuiltVAE
    from vaeprune.training_run import Recipe

    from .options import Limits, Reading, Rows

_LONGER = 1.5  # times the epochs, where a training was not at rest


def command_for(
    analysis: Analysis, vae: BuiltVAE | AdaptedVAE, model: str, rows: Rows, reading: Reading, limits: Limits
) -> str | None:
    """The command that follows the advice, with all options its verdicts rest on; None where there is none to give."""
    from vaeprune.analysis.advice import unsettled

    advice, recipe = analysis.advice, _recipe(vae, model)
    name = Path(model.rpartition(":")[0] or model).resolve().stem
    if advice.action == "shrink":
        words = ["vaeprune", "shrink", model, *reading.words(), *spoken(rows), *spoken(limits)]
        return shlex.join([*words, "--out", f"{name}-{advice.latent_size}"])
    causes = {finding.cause for finding in analysis.diagnosis.findings}
    if advice.action == "refuse" and "learned-variance" in causes and not reading.scale:
        return _scaled(analysis, model, rows, reading, limits)
    if recipe is None:
        return _grown(model, advice.latent_size, name, rows, reading) if advice.action == "grow" else None
    waiting = advice.action in ("grow", "keep") and unsettled(analysis.latents, vae.provenance)
    if waiting or (advice.action == "retrain" and causes & {"annealing", "grown", "untrained"}):
        return _resumed(model, recipe, rows)
    if advice.action == "grow" and advice.latent_size:
        fresh = dataclasses.replace(recipe, latent=advice.latent_size, grown=())
        return _trained(fresh, f"{name}-{advice.latent_size}", rows)
    right = dataclasses.replace(recipe, kl="full", beta=1.0, sampling=True, grown=())
    if advice.action in ("retrain", "refuse") and right != recipe:
        return _trained(right, f"{name}-again", rows)
    return None


def _recipe(vae: BuiltVAE | AdaptedVAE, model: str) -> Recipe | None:
    """How the model was trained here; None where it was not, or was shrunk since."""
    from vaeprune.training_run import Recipe

    training = vae.provenance.get("training")
    if not training or vae.provenance.get("shrunk"):
        return None
    try:
        return Recipe.from_json(training, model)
    except StorageError:  # trained elsewhere
        return None


def _trained(recipe: Recipe, out: str, rows: Rows) -> str:
    return " ".join([recipe.command(out), shlex.join(_folder(rows))]).rstrip()


def _resumed(model: str, recipe: Recipe, rows: Rows) -> str | None:
    """Going on with the training, where the folder holds what that needs and the data can be named."""
    from vaeprune.model_folder import TRAINING_STATE

    if not (Path(model) / TRAINING_STATE).is_file():
        return None
    words = ["vaeprune", "train", "--resume", "--out", model, "--epochs", str(math.ceil(_LONGER * recipe.epochs))]
    return shlex.join([*words, *(["--data", recipe.data] if ":" in recipe.data else []), *_folder(rows)])


def _grown(model: str, size: int | None, name: str, rows: Rows, reading: Reading) -> str:
    """A wider copy of a model whose training is not known here."""
    words = ["vaeprune", "grow", model, *reading.words(), "--data", rows.data, *_folder(rows)]
    words += ["--condition", rows.condition] if rows.condition else []
    return shlex.join([*words, "--latent", str(size), "--out", f"{name}-{size}"])


def _scaled(analysis: Analysis, model: str, rows: Rows, reading: Reading, limits: Limits) -> str | None:
    """The same analysis with the scale that was learned; only for a model whose likelihood is not in its folder."""
    scale = analysis.diagnosis.learned_scale
    if scale is None or ":" not in model:
        return None
    words = dataclasses.replace(reading, likelihood=None, scale=scale).words()
    return shlex.join(["vaeprune", "analyze", model, *words, *spoken(rows), *spoken(limits)])


def _folder(rows: Rows) -> list[str]:
    return ["--data-dir", str(rows.data_dir)] if rows.data_dir else []


def spoken(group: Any) -> list[str]:
    """The options of a group that differ from their defaults, as words."""
    words = []
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if value != field.default and value is not None:
            words += ["--" + field.name.replace("_", "-"), str(getattr(value, "value", value))]
    return words
