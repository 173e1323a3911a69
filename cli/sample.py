"""`vaeprune sample`: what a model makes of noise."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from .drawing import Drawing, Model
from .groups import takes


@takes(o.Reading, Drawing)
def sample(
    model: Model,
    drawing: Drawing,
    reading: o.Reading,
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples.")] = 64,
    columns: Annotated[int, typer.Option("--columns", min=1, help="How many in a row.")] = 8,
) -> None:
    """Draw samples from the prior as a PNG sheet.

    --zero-inactive shows the same noise with the inactive latents at 0 beside it (the paper's Fig. 4), --against what
    the shrunk model makes of it.
    """
    from vaeprune.report.pictures import conditions, prior_samples, rows_to_draw
    from vaeprune.report.sheets import samples_sheet

    opened = drawing.open(model, reading, needs_rows=False)
    vae, condition = opened.sides.models.before, []
    if opened.sets is not None:
        condition = conditions(rows_to_draw(vae, opened.sets, count, drawing.seed), count)
    drawn = prior_samples(opened.sides, count, drawing.seed, condition)
    sheet = samples_sheet(drawn, opened.sides, opened.view, columns)
    drawing.finish(sheet, f"{count} samples of {model}", {"model": model, "count": count, "seed": drawing.seed})
