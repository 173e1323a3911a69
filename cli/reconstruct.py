"""`vaeprune reconstruct`: rows of the data, and what a model makes of them."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from .drawing import Drawing, Model
from .groups import takes


@takes(o.Reading, Drawing)
def reconstruct(
    model: Model,
    drawing: Drawing,
    reading: o.Reading,
    count: Annotated[int, typer.Option("--count", min=1, help="How many rows of the data.")] = 10,
    columns: Annotated[int, typer.Option("--columns", min=1, help="How many beside each other.")] = 10,
) -> None:
    """Draw rows of the data above their reconstructions, as a PNG sheet.

    From rows that had no part in any verdict; each is decoded from the mean of its posterior.
    """
    from vaeprune.report.pictures import reconstructions, rows_to_draw
    from vaeprune.report.sheets import reconstructions_sheet

    opened = drawing.open(model, reading, needs_rows=True)
    assert opened.sets is not None  # noqa: S101  asked for
    batch = rows_to_draw(opened.sides.models.before, opened.sets, count, drawing.seed)
    sheet = reconstructions_sheet(reconstructions(opened.sides, batch), opened.sides, opened.view, columns)
    shown = {"model": model, "data": opened.sets.name, "count": len(batch[0]), "seed": drawing.seed}
    drawing.finish(sheet, f"{len(batch[0])} rows of {opened.sets.name}", shown)
