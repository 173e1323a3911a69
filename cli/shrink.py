"""`vaeprune shrink`: cut the idle latents out and prove it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import UsageError, VerificationFailed

from . import options as o
from .groups import takes
from .output import note, note_variance_law, print_analysis, print_evidence, print_json, print_sizes, progress, show

if TYPE_CHECKING:
    from vaeprune.shrinking import Shrunk


@takes(o.Reading, o.Rows, o.Limits, o.Gates)
def shrink(
    model: o.Model,
    data: o.Rows,
    reading: o.Reading,
    limits: o.Limits,
    gates: o.Gates,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write. Needed unless --dry-run.")] = None,
    keep: Annotated[str, typer.Option("--keep", help="Latents to keep whatever their verdict, like 1,4.")] = "",
    remove: Annotated[str, typer.Option("--remove", help="Latents to remove whatever their verdict.")] = "",
    plan: Annotated[Path | None, typer.Option("--plan", help="Apply this plan.json instead of making one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Cut out the idle latents and prove it.

    Writes a smaller model, ONNX files, the plan and the evidence. If any check fails nothing is written.
    """
    from vaeprune.shrinking import shrink as shrink_model
    from vaeprune.storage import refuse_existing
    from vaeprune.surgery.plan import read_plan

    kept, removed = o.integers(keep, "--keep"), o.integers(remove, "--remove")
    if out is None and not dry_run:
        raise UsageError("--out: is missing", "name a folder to write, or pass --dry-run")
    if out is not None and not dry_run:
        refuse_existing(out, force)
    if plan is not None and (kept or removed):
        raise UsageError("--plan: a given plan is applied as it is", "leave out --keep and --remove")
    replay = read_plan(plan) if plan else None
    split = int(replay.data.get("seed", data.seed)) if replay else data.seed
    sets = data.open(split, reading.input_range)
    vae = o.open_model(model, reading, sets, device, quiet)
    failed = False
    with progress(quiet or json) as report:
        try:
            shrunk = shrink_model(
                vae, sets, out, keep=kept, remove=removed, replay=replay, dry_run=dry_run,
                thresholds=limits.thresholds(), tolerances=gates.tolerances(), ablate=limits.ablate.value,
                force=force, source=model, progress=report,
            )  # fmt: skip
        except VerificationFailed as error:
            if error.result is None:
                raise
            shrunk, failed = error.result, True
            note(f"vaeprune: {error}")
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
        return
    print_sizes(shrunk.latent_size, shrunk.parameters, shrunk.plan.kept_latents)
    if dry_run:
        show(f"\nplan: remove latents {', '.join(map(str, shrunk.plan.removed_latents))}")
        for cut in shrunk.plan.slices:
            show(f"    {cut.key}: axis {cut.axis}, {cut.size} to {len(cut.kept)}")
        for key in shrunk.plan.bias_changes:
            show(f"    {key}: takes over the removed latents' constants")
        show("dry run: nothing was written")
    if shrunk.evidence:
        print_evidence(shrunk.evidence)
    if shrunk.out:
        show("\nfiles:")
        for path in sorted(shrunk.out.iterdir()):
            show(f"    {path}  {path.stat().st_size:,} bytes")
