"""Command lines to run next."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeprune.errors import StorageError

if TYPE_CHECKING:
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.analysis import Advice
    from vaeprune.architectures import BuiltVAE

    from .options import Limits, Reading, Rows


def command_for(
    advice: Advice, vae: BuiltVAE | AdaptedVAE, model: str, rows: Rows, reading: Reading, limits: Limits
) -> str | None:
    """The command that follows the advice, with all options its verdicts rest on; None where there is none to give."""
    name = Path(model.rpartition(":")[0] or model).resolve().stem
    if advice.action == "shrink":
        words = ["vaeprune", "shrink", model, *reading.words(), *spoken(rows), *spoken(limits)]
        return shlex.join([*words, "--out", f"{name}-{advice.latent_size}"])
    training = vae.provenance.get("training")
    if advice.action == "grow" and training and advice.latent_size:
        from vaeprune.training_run import Recipe

        try:
            recipe = Recipe.from_json(training, model)
        except StorageError:  # trained elsewhere
            return None
        folder = ["--data-dir", str(rows.data_dir)] if rows.data_dir else []
        fresh = dataclasses.replace(recipe, latent=advice.latent_size, grown=())
        command = fresh.command(f"{name}-{advice.latent_size}")
        return " ".join([command, shlex.join(folder)]).rstrip()
    return None


def spoken(group: Any) -> list[str]:
    """The options of a group that differ from their defaults, as words."""
    words = []
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if value != field.default and value is not None:
            words += ["--" + field.name.replace("_", "-"), str(getattr(value, "value", value))]
    return words
