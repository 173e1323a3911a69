"""`shrink`: analyze → plan → cut → export → verify, and a folder that appears only if every gate is passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE, as_vae
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.analysis import Ablate, Progress
from vaeprune.analysis.latents import Thresholds
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ModelError, VerificationFailed, one_line
from vaeprune.evidence import Evidence, Tolerances
from vaeprune.model_folder import CARD, ModelFolder, describe, write_model_folder
from vaeprune.onnx_export import export_onnx
from vaeprune.posterior import VAE
from vaeprune.storage import refuse_existing, write_json
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan, write_plan
from vaeprune.surgery.planning import chosen_latents, plan
from vaeprune.verification import verify

EVIDENCE = "evidence.json"


@dataclass(frozen=True)
class Shrunk:
    """The result of `shrink`. Without anything to cut, `model` is None and so are `plan` and `evidence`.

    `analysis` is None where a given plan was replayed. `out` is the folder written, if any.
    """

    analysis: Analysis | None
    plan: Plan | None
    model: BuiltVAE | AdaptedVAE | None
    evidence: Evidence | None
    parameters: tuple[int, int]
    latent_size: tuple[int, int]
    out: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON contract of `shrink`."""
        return {
            "out": str(self.out) if self.out else None,
            "latent_size": {"before": self.latent_size[0], "after": self.latent_size[1]},
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "removed_latents": self.plan.removed_latents if self.plan else [],
            "evidence": self.evidence.to_json() if self.evidence else None,
            "advice": self.analysis.to_json()["advice"] if self.analysis else None,
        }


def shrink(
    model: VAE | nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    out: str | Path | None = None,
    *,
    keep: Collection[int] = (),
    remove: Collection[int] = (),
    replay: Plan | None = None,
    dry_run: bool = False,
    thresholds: Thresholds | None = None,
    tolerances: Tolerances | None = None,
    ablate: Ablate = "candidates",
    force: bool = False,
    source: str | None = None,
    progress: Progress | None = None,
) -> Shrunk:
    """Cut the idle latents out of `model` and prove it; with `out`, write a model folder with ONNX files and evidence.

    `replay` applies a given plan instead of making one. `dry_run` stops at the plan. Where nothing is idle, nothing is
    written and `model` is None in the result. `model` itself stays as it is.
    Raises VerificationFailed, with nothing written, if a gate is not passed; PlanError, TraceError, DataError.
    """
    sets = as_data(data, int(replay.data.get("seed", 0)) if replay else 0)
    vae = as_vae(model, sets)
    if not isinstance(vae, (BuiltVAE, AdaptedVAE)):
        raise ModelError(
            f"{type(model).__name__}: has the VAE protocol of its own, so no folder can be written that loads again",
            "use analyze, plan, cut and verify, which take it as it is",
        )
    target = Path(out) if out is not None and not dry_run else None
    if target:
        refuse_existing(target, force)
    analysis, made = None, replay
    if made is None:
        analysis = analyze(vae, sets, thresholds=thresholds, ablate=ablate, progress=progress)
        if not chosen_latents(analysis, keep, remove):
            return _unchanged(analysis, vae)
        made = plan(vae, analysis, sets, keep=keep, remove=remove)
    smaller = cut(vae, made)
    sizes = (_parameters(vae), _parameters(smaller))
    latents = (made.latent_size, len(made.kept_latents))
    if dry_run:
        return Shrunk(analysis, made, None, None, sizes, latents)
    try:
        if target is None:
            evidence = _verified(vae, smaller, sets, made, None, tolerances)
        else:
            evidence = _write(vae, smaller, sets, made, target, tolerances, force, source)
    except VerificationFailed as error:
        error.result = Shrunk(analysis, made, None, error.evidence, sizes, latents)
        raise
    return Shrunk(analysis, made, smaller, evidence, sizes, latents, target)


def _write(
    model: BuiltVAE | AdaptedVAE,
    smaller: BuiltVAE | AdaptedVAE,
    sets: DataSets,
    made: Plan,
    target: Path,
    tolerances: Tolerances | None,
    force: bool,
    source: str | None,
) -> Evidence:
    provenance = model.provenance
    smaller.provenance = provenance | {
        "attributes": {**provenance.get("attributes", {}), **made.attributes},
        "made_plain": [*provenance.get("made_plain", ()), *made.made_plain],
    }
    entry = {
        "source": source,
        "latent_size": made.latent_size,
        "kept_latents": made.kept_latents,
        "plan_sha256": hashlib.sha256(json.dumps(made.to_json(), sort_keys=True).encode()).hexdigest(),
        "before": provenance.get("shrunk"),
    }
    shrunk = ModelFolder(smaller, provenance.get("training"), entry)
    found: list[Evidence] = []

    def more(folder: Path) -> None:
        export_onnx(smaller, folder)
        evidence = _verified(model, smaller, sets, made, folder, tolerances)
        write_plan(made, folder)
        write_json(folder / EVIDENCE, evidence.to_json())
        (folder / CARD).write_text(shrunk_card(shrunk, made, evidence), encoding="utf-8")
        found.append(evidence)

    write_model_folder(shrunk, target, force=force, more=more)
    smaller.provenance |= {"shrunk": entry}
    return found[0]


def shrunk_card(model: ModelFolder, plan: Plan, evidence: Evidence) -> str:
    """The README.md of a model that was cut."""
    source = one_line((model.shrunk or {}).get("source") or "a VAE")
    removed, kept = (", ".join(map(str, latents)) for latents in (plan.removed_latents, plan.kept_latents))
    gates = "\n".join(f"| {gate.name} | {gate.measured:.3g} | {gate.limit:.3g} |" for gate in evidence.gates)
    return f"""# Shrunk from {source}: {plan.latent_size} to {len(plan.kept_latents)} latents

{describe(model.vae)}. Removed: latents {removed}.
Its latents, in order, are latents {kept} of the original; whatever else was trained on the original's z must be
cut alike (`kept_latents` in `plan.json`).

Verified on {evidence.n_samples:,} rows that had no part in choosing what to cut:

| check | measured | limit |
|---|---|---|
{gates}

`encoder.onnx` takes `x` and gives `mu` and `logvar` (ln sigma²); `decoder.onnx` takes `z` and gives `x_hat`.
"""


def _verified(
    model: VAE, smaller: VAE, sets: DataSets, made: Plan, onnx: Path | None, tolerances: Tolerances | None
) -> Evidence:
    evidence = verify(model, smaller, sets, made, onnx=onnx, tolerances=tolerances)
    if not evidence.passed:
        raise VerificationFailed(evidence)
    return evidence


def _unchanged(analysis: Analysis, model: VAE) -> Shrunk:
    size = _parameters(model)
    return Shrunk(analysis, None, None, None, (size, size), (analysis.latent_size,) * 2)


def _parameters(model: VAE) -> int:
    """Number of weights, BatchNorm's running statistics included (as Keras counts them)."""
    tensors = model.network.state_dict().values()
    return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
