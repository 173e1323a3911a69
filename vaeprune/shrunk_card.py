"""The README.md of a model that was cut."""

from __future__ import annotations

from vaeprune.errors import in_markdown
from vaeprune.evidence import Evidence
from vaeprune.model_folder import ModelFolder, describe
from vaeprune.surgery.plan import Plan


def shrunk_card(model: ModelFolder, plan: Plan, evidence: Evidence, weights: tuple[int, int]) -> str:
    """What was cut, what was checked, and how to use the files; `weights` before and after."""
    entry = model.shrunk or {}
    source = in_markdown(entry.get("source") or "a VAE")
    gates = "\n".join(f"| {gate.name} | {gate.measured:.3g} | {gate.limit:.3g} |" for gate in evidence.gates)
    latents = f"{plan.latent_size} to {len(plan.kept_latents)} latents"
    return f"""# Shrunk from {source}: {weights[0]:,} to {weights[1]:,} weights, {latents}

{describe(model.vae)}. {_removed(plan)}
{_recovered(entry.get("recovered_epochs", 0))}
Verified on {evidence.n_samples:,} rows that had no part in choosing what to cut:

| check | measured | limit |
|---|---|---|
{gates}

`encoder.onnx` takes `x` and gives `mu` and `logvar` (ln sigma²); `decoder.onnx` takes `z` and gives `x_hat`.
"""


def _removed(plan: Plan) -> str:
    removed, kept = (", ".join(map(str, latents)) for latents in (plan.removed_latents, plan.kept_latents))
    text = "No latent was removed. "
    if plan.removed_latents:
        text = (
            f"Removed: latents {removed}.\nIts latents, in order, are latents {kept} of the original; whatever else "
            "was trained on the original's z must be\ncut alike (`kept_latents` in `plan.json`). "
        )
    if plan.channels:
        text += f"\nRemoved hidden channels: {len(plan.channels)}, each with its evidence in `plan.json`."
    if "budget" in plan.data:
        text += f"\nThe cut was given a budget of {plan.data['budget']:g} nats of ELBO per row."
    return text


def _recovered(epochs: int) -> str:
    if not epochs:
        return ""
    return (
        f"\nIt was fine-tuned for {epochs} epochs after the cut: its weights cannot be made from `plan.json` alone.\n"
    )
