"""The README.md of a model that latents were added to."""

from __future__ import annotations

from vaeprune.errors import in_markdown
from vaeprune.model_folder import ModelFolder, describe
from vaeprune.surgery.widening import Widening


def grown_card(widening: Widening, warm_up: float, why_not: str | None, model: ModelFolder) -> str:
    """What was added, that nothing changed, and how training goes on; `why_not`: why it is not resumed here."""
    return f"""# A VAE grown from {widening.latent_size} to {widening.latent_size + widening.added} latents

{describe(model.vae)}.

It computes what it did before: the means and logvars of latents 0 to {widening.latent_size - 1}, and a reconstruction
that no value of the new latents changes, since all that reads them is 0. `widening.json` says what was added to which
weights, and `widening.safetensors` with which values.

{warm_up_advice(widening, warm_up, None if why_not is None else in_markdown(why_not))}
"""


def warm_up_advice(widening: Widening, warm_up: float, why_not: str | None) -> str:
    """How the new latents are brought to life."""
    new = widening.new_latents
    which = f"latent {new[0]}" if len(new) == 1 else f"latents {new[0]} to {new[-1]}"
    if why_not is None:
        return (
            f"Train it on with `vaeprune train --resume`: the KL of {which} is weighted from 0 to 1 over the first "
            f"{warm_up:g} epochs."
        )
    return (
        f"Its training is not resumed here: {why_not}. Where it is trained on, weight the KL of {which} by "
        f"min(1, epoch / {warm_up:g}), epoch counted from 0 in fractions, and that of the others by 1: with their full "
        "KL from the start new latents may stay idle. Give the optimiser all parameters anew."
    )
