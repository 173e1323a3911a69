"""`shrink`: analyze → plan → cut → recover → export → verify; a folder appears only if every gate is passed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vaeprune import ranks
from vaeprune.adapters import AdaptedVAE, as_vae
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.analysis import Ablate, Progress
from vaeprune.analysis.latents import Thresholds
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ModelError, UsageError, VerificationFailed
from vaeprune.evidence import Evidence, Tolerances
from vaeprune.model_folder import CARD, ModelFolder, write_model_folder
from vaeprune.onnx_export import export_onnx
from vaeprune.posterior import VAE, count_weights
from vaeprune.recovering import Recovery, Step, deepest_within
from vaeprune.shrunk_card import shrunk_card
from vaeprune.storage import refuse_existing, write_json
from vaeprune.surgery.cut import cut, refuse_broken
from vaeprune.surgery.firing import Fired
from vaeprune.surgery.plan import Left, Plan, Scope, write_plan
from vaeprune.surgery.scopes import Own, planner, refuse_budget
from vaeprune.surgery.spending import Aim
from vaeprune.verification import verify

EVIDENCE, ANALYSIS = "evidence.json", "analysis.json"


@dataclass(frozen=True)
class Wanted:
    """How much to cut, and what to do afterwards; see `shrink`."""

    scope: Scope = "network"
    budget: float | None = None
    aim: Aim = "size"
    factorize: bool = False
    recover_epochs: int = 0
    fair: bool = False
    keep: Collection[int] = ()
    remove: Collection[int] = ()

    def __post_init__(self) -> None:
        refuse_budget(self.budget)
        if self.scope not in ("latents", "network"):
            raise UsageError(f"scope: got {self.scope!r}, expected 'latents' or 'network'")
        if self.scope == "latents" and self.budget is not None:
            raise UsageError("budget: pays for hidden channels, but the scope is 'latents'", "use the scope 'network'")
        if self.factorize and self.budget is None:
            raise UsageError("factorize: costs something, so it needs a budget", "give one in nats")
        if self.aim not in ("size", "latency"):
            raise UsageError(f"aim: got {self.aim!r}, expected 'size' or 'latency'")
        if self.recover_epochs < 0:
            raise UsageError(f"recover-epochs: got {self.recover_epochs}, expected at least 0")
        if self.fair and not self.recover_epochs:
            raise UsageError("fair: the original can only be trained as long if recover-epochs is more than 0")


@dataclass(frozen=True)
class Shrunk:
    """The result of `shrink`. Without anything to cut, `model` is None and so are `plan` and `evidence`.

    `analysis` is None where a given plan was replayed. `out` is the folder written, if any. `notes`, `left`: what could
    not be done and what has to stay, with reasons. `fired`: channels taken for constant that were not on verify rows.
    """

    analysis: Analysis | None
    plan: Plan | None
    model: Own | None
    evidence: Evidence | None
    parameters: tuple[int, int]
    latent_size: tuple[int, int]
    out: Path | None = None
    notes: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    fired: tuple[Fired, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON contract of `shrink`."""
        channels = self.plan.channels if self.plan else ()
        return {
            "out": str(self.out) if self.out else None,
            "latent_size": {"before": self.latent_size[0], "after": self.latent_size[1]},
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "removed_latents": self.plan.removed_latents if self.plan else [],
            "removed_channels": len(channels),
            "scope": self.plan.scope if self.plan else None,
            "evidence": self.evidence.to_json() if self.evidence else None,
            "advice": self.analysis.to_json()["advice"] if self.analysis else None,
            "left": [dataclasses.asdict(entry) for entry in self.left],
            "notes": list(self.notes),
        }


def shrink(
    model: VAE | nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    out: str | Path | None = None,
    *,
    scope: Scope = "network",
    budget: float | None = None,
    aim: Aim = "size",
    factorize: bool = False,
    recover_epochs: int = 0,
    fair: bool = False,
    keep: Collection[int] = (),
    remove: Collection[int] = (),
    analysis: Analysis | None = None,
    replay: Plan | None = None,
    dry_run: bool = False,
    thresholds: Thresholds | None = None,
    tolerances: Tolerances | None = None,
    ablate: Ablate = "candidates",
    force: bool = False,
    source: str | None = None,
    progress: Progress | None = None,
    on_step: Step | None = None,
) -> Shrunk:
    """Make `model` smaller and prove it; with `out`, write a model folder with ONNX files, plan and evidence.

    `scope`: "latents" alone, or "network": hidden channels, too, that are constant. `budget`: nats of ELBO per row that
    further channels may cost; `aim` "size" spends them on weights, "latency" on FLOPs; `factorize`: layers may become
    two of low rank, which changes their state-dict keys. `recover_epochs`: fine-tune for so many epochs after the cut,
    with `fair` held against the original trained as long. `keep`, `remove`: latents,
    whatever their verdict. `analysis`: verdicts of this very model on these data, where they are known already.
    `replay` applies a given plan instead of making one. `dry_run` stops at the plan. Where
    nothing can go, nothing is written and `model` is None in the result. `model` itself stays as it is.
    Raises VerificationFailed, with nothing written, if a gate is not passed; PlanError, TraceError, DataError.
    """
    wanted = Wanted(scope, budget, aim, factorize, recover_epochs, fair, keep, remove)
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
    recovery = Recovery(vae, sets, wanted.recover_epochs, wanted.fair and not dry_run, on_step)
    if replay is not None:
        found = Shrunk(None, replay, None, None, (0, 0), (0, 0))
    else:
        analysis = analysis or analyze(vae, sets, thresholds=thresholds, ablate=ablate, progress=progress)
        verdicts, tried = analysis, recovery if not dry_run else None
        found = ranks.from_first(lambda: _planned(vae, sets, verdicts, wanted, tried, progress))
    if found.plan is None:
        size = count_weights(vae)
        return dataclasses.replace(found, parameters=(size, size), latent_size=(vae.latent_size,) * 2)
    smaller = cut(vae, found.plan)
    if replay is not None:
        refuse_broken(smaller, sets.verify)
    found = dataclasses.replace(
        found,
        parameters=(count_weights(vae), count_weights(smaller)),
        latent_size=(found.plan.latent_size, len(found.plan.kept_latents)),
    )
    if dry_run:
        return found
    job = _Job(vae, smaller, sets, found, recovery, tolerances, source)
    try:
        return job.verified() if target is None else job.written(target, force)
    except VerificationFailed as error:
        error.result = dataclasses.replace(found, evidence=error.evidence)
        raise


def _planned(
    vae: Own, sets: DataSets, analysis: Analysis, wanted: Wanted, recovery: Recovery | None, progress: Progress | None
) -> Shrunk:
    """The plan for what is wanted, with what was learned on the way."""
    collapsed = len(analysis.indices("inactive")) == analysis.latent_size
    diagnosed = (collapsed or analysis.advice.action == "refuse") and not wanted.remove and wanted.budget is None
    made = planner(
        vae,
        sets,
        analysis,
        hidden=wanted.scope != "latents" and not diagnosed,
        budget=wanted.budget,
        keep=wanted.keep,
        remove=wanted.remove,
        progress=progress,
    )
    if diagnosed and wanted.scope != "latents":
        made.notes.append(
            f"hidden channels stay: the advice is to {analysis.advice.action}, and what must be trained again is not "
            "worth cutting; a budget, or latents to remove, overrule that"
        )
    plan = made.exact
    if wanted.budget is not None:
        plan = deepest_within(made, wanted.budget, wanted.aim, wanted.factorize, recovery, progress)
    left = plan.left if plan is not None and plan.left else made.left
    return Shrunk(analysis, plan, None, None, (0, 0), (0, 0), notes=tuple(made.notes), left=left, fired=made.fired)


@dataclass(frozen=True)
class _Job:
    """A cut model that is to be recovered, verified and written."""

    model: Own
    smaller: Own
    sets: DataSets
    found: Shrunk
    recovery: Recovery
    tolerances: Tolerances | None
    source: str | None

    @property
    def plan(self) -> Plan:
        return cast(Plan, self.found.plan)

    def verified(self, onnx: Path | None = None, recovered: Own | None = None) -> Shrunk:
        """Every gate; raises VerificationFailed."""
        final = recovered or self.recovered()
        tuned = self.recovery.epochs > 0
        evidence = verify(
            self.model,
            final,
            self.sets,
            self.plan,
            onnx=onnx,
            tolerances=self.tolerances,
            fine_tuned=tuned,
            same_epochs=self.recovery.original,
        )
        evidence = dataclasses.replace(evidence, fired=self.found.fired)
        if not evidence.passed and "budget" in self.plan.data:
            raise VerificationFailed(evidence, _missed(evidence))
        if not evidence.passed:
            raise VerificationFailed(evidence)
        return dataclasses.replace(self.found, model=final, evidence=evidence)

    def recovered(self) -> Own:
        """The cut model after its epochs; the cut itself must be exact before."""
        if not self.recovery.epochs:
            return self.smaller
        before = verify(self.model, self.smaller, self.sets, self.plan, tolerances=self.tolerances)
        if any(gate.name.startswith("exact") for gate in before.failed_gates):
            raise VerificationFailed(before)
        return self.recovery.of(self.smaller)

    def written(self, target: Path, force: bool) -> Shrunk:
        """A model folder at `target`, once every gate is passed; of several ranks the first writes it."""
        final = self.recovered()
        if ranks.rank() != 0:
            return self.verified(recovered=final)
        provenance = self.model.provenance
        final.provenance = provenance | {
            "attributes": {**provenance.get("attributes", {}), **self.plan.attributes},
            "made_plain": [*provenance.get("made_plain", ()), *self.plan.made_plain],
        }
        entry = {
            "source": self.source,
            "latent_size": self.plan.latent_size,
            "kept_latents": self.plan.kept_latents,
            "plan_sha256": hashlib.sha256(json.dumps(self.plan.to_json(), sort_keys=True).encode()).hexdigest(),
            "recovered_epochs": self.recovery.epochs,
            "before": provenance.get("shrunk"),
        }
        final.provenance |= {"shrunk": entry}  # the ONNX files say so, too
        shrunk = ModelFolder(final, provenance.get("training"), entry)
        results: list[Shrunk] = []

        def more(folder: Path) -> None:
            export_onnx(final, folder)
            result = self.verified(folder, final)
            evidence = cast(Evidence, result.evidence)
            write_plan(self.plan, folder)
            write_json(folder / EVIDENCE, evidence.to_json())
            if self.found.analysis:
                write_json(folder / ANALYSIS, self.found.analysis.to_json())
            card = shrunk_card(shrunk, self.plan, evidence, self.found.parameters)
            (folder / CARD).write_text(card, encoding="utf-8")
            results.append(result)

        write_model_folder(shrunk, target, force=force, more=more)
        return dataclasses.replace(results[0], out=target)


def _missed(evidence: Evidence) -> str:
    """What to do where a budget that was met on the rows that chose is missed on those that judge."""
    return (
        f"the best that was found loses {(evidence.fair or evidence.sampling).elbo_difference:.3g} nats on the rows "
        "that judge, which are others than those that chose: ask for another --budget, or give more rows"
    )
