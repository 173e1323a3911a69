"""Command lines to run next."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.analysis import Advice
    from vaeprune.architectures import BuiltVAE

    from .options import Reading, Rows


def command_for(advice: Advice, vae: BuiltVAE | AdaptedVAE, model: str, rows: Rows, reading: Reading) -> str | None:
    """The command that follows the advice; None where there is none to give."""
    folder = ["--data-dir", str(rows.data_dir)] if rows.data_dir else []
    condition = ["--condition", rows.condition] if rows.condition else []
    name = Path(model.rpartition(":")[0] or model).resolve().stem
    if advice.action == "shrink":
        words = ["vaeprune", "shrink", model, *reading.words(), "--data", rows.data, *folder, *condition]
        return shlex.join([*words, "--out", f"{name}-{advice.latent_size}"])
    training = vae.provenance.get("training")
    if advice.action == "grow" and training and advice.latent_size:
        from vaeprune.training_run import Recipe

        recipe = dataclasses.replace(Recipe.from_json(training, model), latent=advice.latent_size)
        return f"{recipe.command(f'{name}-{advice.latent_size}')} {shlex.join(folder)}".rstrip()
    return None
