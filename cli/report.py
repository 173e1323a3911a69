"""`vaeprune report`: everything about a model on one page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .groups import takes
from .opened_pair import open_pair
from .output import note, note_variance_law, print_json, progress, show
from .suggest import command_for


@takes(o.Reading, o.Rows, o.Limits, o.Gates)
def report(
    model: o.Model,
    rows: o.Rows,
    reading: o.Reading,
    limits: o.Limits,
    gates: o.Gates,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="SHRUNK", help="The folder that shrink made of MODEL.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="The plan that led to SHRUNK; found there when it is there.")
    ] = None,
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Write one HTML page with figures, pictures and evidence.

    It needs nothing else: no network, no script. Exit code 1 if SHRUNK fails a check; the page is written all the same
    and says so.
    """
    from vaeprune.analysis import analyze
    from vaeprune.report import Against, write_report
    from vaeprune.storage import refuse_existing

    refuse_existing(out, force)
    if against is not None:
        pair = open_pair(model, against, rows, reading, plan, device, quiet)
        vae, sets = pair.original, pair.sets
        other = Against(
            pair.smaller, str(against), pair.plan, pair.onnx, bool(pair.fine_tuned_epochs), gates.tolerances()
        )
    else:
        sets, other = rows.open(input_range=reading.input_range), None
        vae = o.open_model(model, reading, sets, device, quiet)
    with progress(quiet or json) as seen:
        analysis = analyze(vae, sets, thresholds=limits.thresholds(), ablate=limits.ablate.value, progress=seen)
        command = command_for(analysis, vae, model, rows, reading, limits)
        analysis = dataclasses.replace(analysis, advice=dataclasses.replace(analysis.advice, command=command))
        written = write_report(vae, sets, out, against=other, name=model, analysis=analysis, force=force, progress=seen)
    note_variance_law(vae, analysis, quiet)
    failed = written.evidence is not None and not written.evidence.passed
    if json:
        print_json({"model": model, "against": str(against) if against else None} | written.to_json())
    else:
        counts = ", ".join(f"{len(analysis.indices(v))} {v}" for v in ("active", "inactive", "mixed"))
        show(f"{out}: {written.file_bytes:,} bytes; {counts} of {analysis.latent_size} latents")
    for warning in written.warnings:
        note(f"warning: {warning}", quiet)
    return int(failed)
