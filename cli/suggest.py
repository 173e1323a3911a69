"""Command lines to run next."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaeprune.analysis import Advice
    from vaeprune.architectures import BuiltVAE


def command_for(advice: Advice, vae: BuiltVAE, model: Path, data: str, data_dir: Path | None) -> str | None:
    """The command that follows the advice; None where there is none to give."""
    folder = ["--data-dir", str(data_dir)] if data_dir else []
    out = f"{model.resolve().name}-{advice.latent_size}"
    if advice.action == "shrink":
        return shlex.join(["vaeprune", "shrink", str(model), "--data", data, *folder, "--out", out])
    training = vae.provenance.get("training")
    if advice.action == "grow" and training and advice.latent_size:
        from vaeprune.training_run import Recipe

        recipe = dataclasses.replace(Recipe.from_json(training, str(model)), latent=advice.latent_size)
        return f"{recipe.command(out)} {shlex.join(folder)}".rstrip()
    return None
