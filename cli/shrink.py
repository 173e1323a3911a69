"""`vaeprune shrink`: cut out what is idle, or what a budget pays for, and prove it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeprune.errors import UsageError, VerificationFailed

from . import options as o
from .groups import takes
from .output import (
    note,
    note_variance_law,
    print_analysis,
    print_channels,
    print_evidence,
    print_json,
    print_sizes,
    progress,
    show,
    training_progress,
)
from .values import integers

if TYPE_CHECKING:
    from vaeprune.shrinking import Shrunk


class Scope(str, Enum):
    """What may go."""

    latents = "latents"
    network = "network"


class Aim(str, Enum):
    """What a budget is spent on."""

    size = "size"
    latency = "latency"


@dataclass(frozen=True)
class Cut:
    """How much to cut, and what to do afterwards."""

    scope: Annotated[
        Scope, typer.Option("--scope", help="Latents alone, or hidden channels, too, that are constant.")
    ] = Scope.network
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="NATS", help="Give up further channels for so much ELBO per row."),
    ] = None
    aim: Annotated[Aim, typer.Option("--for", help="Spend the budget on weights or on FLOPs.")] = Aim.size
    factorize: Annotated[
        bool, typer.Option("--factorize", help="Let the budget split layers into two of low rank; changes their keys.")
    ] = False
    recover_epochs: Annotated[
        int, typer.Option("--recover-epochs", metavar="N", help="Fine-tune for N epochs after the cut.")
    ] = 0
    fair: Annotated[
        bool, typer.Option("--fair", help="Hold the result against the original trained for N epochs, too.")
    ] = False
    keep: Annotated[str, typer.Option("--keep", help="Latents to keep whatever their verdict, like 1,4.")] = ""
    remove: Annotated[str, typer.Option("--remove", help="Latents to remove whatever their verdict.")] = ""

    def arguments(self) -> dict[str, Any]:
        """The library's form."""
        return {
            "scope": self.scope.value,
            "budget": self.budget,
            "aim": self.aim.value,
            "factorize": self.factorize,
            "recover_epochs": self.recover_epochs,
            "fair": self.fair,
            "keep": integers(self.keep, "--keep"),
            "remove": integers(self.remove, "--remove"),
        }


@takes(o.Reading, o.Rows, Cut, o.Limits, o.Gates)
def shrink(
    model: o.Model,
    data: o.Rows,
    reading: o.Reading,
    cut: Cut,
    limits: o.Limits,
    gates: o.Gates,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write. Needed unless --dry-run.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Apply this plan.json instead of making one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Cut out what is idle and prove it.

    Idle latents, hidden channels that are constant, and with --budget what costs least. Writes a smaller model, ONNX
    files, the plan and the evidence. If any check fails nothing is written.
    """
    from vaeprune.shrinking import Wanted
    from vaeprune.shrinking import shrink as shrink_model
    from vaeprune.storage import refuse_existing
    from vaeprune.surgery.plan import read_plan

    arguments = cut.arguments()
    Wanted(**arguments)  # what makes no sense is said before anything is read
    if out is None and not dry_run:
        raise UsageError("--out: is missing", "name a folder to write, or pass --dry-run")
    if out is not None and not dry_run:
        refuse_existing(out, force)
    if plan is not None and cut != Cut(recover_epochs=cut.recover_epochs, fair=cut.fair):
        raise UsageError("--plan: a given plan is applied as it is", "leave out --scope, --budget, --keep and --remove")
    replay = read_plan(plan) if plan else None
    split = int(replay.data.get("seed", data.seed)) if replay else data.seed
    sets = data.open(split, reading.input_range)
    vae = o.open_model(model, reading, sets, device, quiet)
    failed = False
    with progress(quiet or json) as report:
        try:
            shrunk = shrink_model(
                vae, sets, out, **arguments, replay=replay, dry_run=dry_run, thresholds=limits.thresholds(),
                tolerances=gates.tolerances(), ablate=limits.ablate.value, force=force, source=model,
                progress=report, on_step=training_progress(report),
            )  # fmt: skip
        except VerificationFailed as error:
            if error.result is None:
                raise
            shrunk, failed = error.result, True
            note(f"vaeprune: {error}")
    for line in shrunk.notes:
        note(line, quiet)
    if shrunk.analysis:
        note_variance_law(vae, shrunk.analysis, quiet)
    if json:
        print_json(shrunk.to_json() | ({"plan": shrunk.plan.to_json()} if dry_run and shrunk.plan else {}))
    else:
        _print(shrunk, f"{model} on {sets.name}", dry_run)
    return int(failed)


def _print(shrunk: Shrunk, title: str, dry_run: bool) -> None:
    if shrunk.analysis:
        print_analysis(shrunk.analysis, f"{title}, {shrunk.analysis.n_samples:,} rows")
    if shrunk.plan is None:
        show("\nnothing to cut, so nothing was written")
        print_channels((), shrunk.left)
        return
    print_sizes(shrunk.latent_size, shrunk.parameters, shrunk.plan.kept_latents)
    print_channels(shrunk.plan.channels, shrunk.left)
    if dry_run:
        removed = ", ".join(map(str, shrunk.plan.removed_latents))
        show(f"\nplan: remove latents {removed}" if removed else "\nplan: no latent is removed")
        for part in shrunk.plan.slices:
            show(f"    {part.key}: axis {part.axis}, {part.size} to {len(part.kept)}")
        for key in shrunk.plan.bias_changes:
            show(f"    {key}: takes over constants of what is removed")
        for key in shrunk.plan.refits:
            show(f"    {key}: fitted anew")
        show("dry run: nothing was written")
    if shrunk.evidence:
        print_evidence(shrunk.evidence)
    if shrunk.out:
        show("\nfiles:")
        for path in sorted(shrunk.out.iterdir()):
            show(f"    {path}  {path.stat().st_size:,} bytes")
