"""`vaeprune analyze`: a verdict on every latent, and advice."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from vaeprune.errors import UsageError

from . import options as o
from .compare_counts import compare_counts
from .groups import takes
from .output import note_variance_law, print_analysis, print_json, progress
from .suggest import command_for

Criteria = Annotated[bool, typer.Option("--criteria", help="Also what other published rules say of the latents.")]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME=VALUE,...",
        help="What MODEL was trained to minimise, like reconstruction=pixel-mean,kl=sum,beta=4; see docs/diagnosis.md.",
    ),
]


@takes(o.Reading, o.Rows, o.Limits, o.Pass)
def analyze(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="As for the other commands; several are compared in their counts."),
    ],
    rows: o.Rows,
    reading: o.Reading,
    limits: o.Limits,
    reading_pass: o.Pass,
    criteria: Criteria = False,
    objective: Objective = None,
    device: o.OnDevice = o.Device.auto,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Find the idle latents and say what to do; of several models say how far their counts agree."""
    from vaeprune.analysis import analyze as analyze_model
    from vaeprune.analysis.stated_objective import StatedObjective

    stated = None if objective is None else StatedObjective.parse(objective)
    sets = rows.open(input_range=reading.input_range)
    if len(models) > 1:
        if criteria or objective is not None or reading_pass != o.Pass():
            raise UsageError(
                "--criteria, --objective, --until-certain, --no-comoments, --bf16: go with one MODEL",
                "analyze the models one by one",
            )
        compare_counts(models, sets, reading, limits, device, json, quiet)
        return
    (model,) = models
    vae = o.open_model(model, reading, sets, device, quiet)
    with progress(quiet or json) as report:
        analysis = analyze_model(
            vae,
            sets,
            thresholds=limits.thresholds(),
            ablate=limits.ablate.value,
            criteria=criteria,
            objective=stated,
            progress=report,
            **reading_pass.arguments(),
        )
    note_variance_law(vae, analysis, quiet)
    command = command_for(analysis, vae, model, rows, reading, limits)
    analysis = dataclasses.replace(analysis, advice=dataclasses.replace(analysis.advice, command=command))
    if json:
        print_json({"model": model} | analysis.to_json())
    else:
        early = " until certain" if analysis.stopped_early else ""
        print_analysis(analysis, f"{model} on {sets.name}, {analysis.n_samples:,} rows{early}")
