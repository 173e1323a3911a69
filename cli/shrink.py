"""`vaeprune shrink`: cut the idle latents out and prove it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import UsageError, VerificationFailed

from . import options as o
from .output import note, print_analysis, print_evidence, print_json, print_sizes, progress

if TYPE_CHECKING:
    from vaeprune.shrinking import Shrunk


def shrink(
    model: o.Model,
    data: o.Data,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write. Needed unless --dry-run.")] = None,
    keep: Annotated[str, typer.Option("--keep", help="Latents to keep whatever their verdict, like 1,4.")] = "",
    remove: Annotated[str, typer.Option("--remove", help="Latents to remove whatever their verdict.")] = "",
    plan: Annotated[Path | None, typer.Option("--plan", help="Apply this plan.json instead of making one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    held_out: o.HeldOut = None,
    data_dir: o.DataDir = None,
    rows: o.Rows = None,
    seed: o.SplitSeed = 0,
    ablate: o.AblateOption = o.Ablate.candidates,
    max_variance: o.MaxVariance = 0.01,
    min_posterior_variance: o.MinPosteriorVariance = 0.8,
    max_ablation_cost: o.MaxAblationCost = 0.05,
    max_noise: o.MaxNoise = 0.01,
    tolerance: o.Tolerance = 0.02,
    max_elbo_loss: o.MaxElboLoss = 0.1,
    onnx_tolerance: o.OnnxTolerance = 1e-4,
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Cut out the idle latents and prove it.

    Writes a smaller model, ONNX files, the plan and the evidence. If any check fails nothing is written.
    """
    from vaeprune.analysis import Thresholds
    from vaeprune.shrinking import shrink as shrink_model
    from vaeprune.storage import refuse_existing
    from vaeprune.surgery.plan import read_plan
    from vaeprune.verification import Tolerances

    kept, removed = o.integers(keep, "--keep"), o.integers(remove, "--remove")
    if out is None and not dry_run:
        raise UsageError("--out: is missing", "name a folder to write, or pass --dry-run")
    if out is not None and not dry_run:
        refuse_existing(out, force)
    if plan is not None and (kept or removed):
        raise UsageError("--plan: a given plan is applied as it is", "leave out --keep and --remove")
    replay = read_plan(plan) if plan else None
    split = int(replay.data.get("seed", seed)) if replay else seed
    vae = o.open_model(model, device)
    sets = o.open_rows(data, held_out, data_dir, split, rows)
    failed = False
    with progress(quiet or json) as report:
        try:
            shrunk = shrink_model(
                vae, sets, out, keep=kept, remove=removed, replay=replay, dry_run=dry_run,
                thresholds=Thresholds(max_variance, min_posterior_variance, max_ablation_cost, max_noise),
                tolerances=Tolerances(tolerance, max_elbo_loss, onnx_tolerance),
                ablate=ablate.value, force=force, source=str(model), progress=report,
            )  # fmt: skip
        except VerificationFailed as error:
            if error.result is None:
                raise
            shrunk, failed = error.result, True
            note(f"vaeprune: {error}", quiet)
    if json:
        print_json(shrunk.to_json() | ({"plan": shrunk.plan.to_json()} if dry_run and shrunk.plan else {}))
    else:
        _print(shrunk, f"{model} on {sets.name}", dry_run)
    return int(failed)


def _print(shrunk: Shrunk, title: str, dry_run: bool) -> None:
    if shrunk.analysis:
        print_analysis(shrunk.analysis, f"{title}, {shrunk.analysis.n_samples:,} rows")
    if shrunk.plan is None:
        print("\nnothing to cut, so nothing was written")
        return
    print_sizes(shrunk.latent_size, shrunk.parameters)
    if dry_run:
        print(f"\nplan: remove latents {', '.join(map(str, shrunk.plan.removed_latents))}")
        for cut in shrunk.plan.slices:
            print(f"    {cut.key}: axis {cut.axis}, {cut.size} to {len(cut.kept)}")
        for key in shrunk.plan.bias_changes:
            print(f"    {key}: takes over the removed latents' constants")
        print("dry run: nothing was written")
    if shrunk.evidence:
        print_evidence(shrunk.evidence)
    if shrunk.out:
        print("\nfiles:")
        for path in sorted(shrunk.out.iterdir()):
            print(f"    {path}  {path.stat().st_size:,} bytes")
