"""`vaeprune traverse`: what each latent does, one row of pictures a latent."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from .drawing import Drawing, Model
from .groups import takes
from .values import integers


@takes(o.Reading, Drawing)
def traverse(
    model: Model,
    drawing: Drawing,
    reading: o.Reading,
    latents: Annotated[str, typer.Option("--latents", help="Which ones, like 0,3. [default: all]")] = "",
    steps: Annotated[int, typer.Option("--steps", min=2, help="Pictures in a row.")] = 11,
    reach: Annotated[float, typer.Option("--reach", help="From -REACH to REACH, in the prior's units.")] = 3.0,
    from_prior: Annotated[
        bool, typer.Option("--from-prior", help="Start from z = 0 instead of the mean of a row of the data.")
    ] = False,
) -> None:
    """Draw what becomes of one row while each latent alone moves, as a PNG sheet.

    One row of pictures a latent, from the first that was asked for; that of an idle latent does not move.
    """
    import torch

    from vaeprune.adapters import element_type
    from vaeprune.report.pictures import conditions, rows_to_draw, start_of, traversals
    from vaeprune.report.sheets import traversals_sheet

    chosen = integers(latents, "--latents")
    opened = drawing.open(model, reading, needs_rows=not from_prior)
    vae = opened.sides.models.before
    dtype, device = element_type(vae)
    start, condition = torch.zeros(1, *vae.latent_shape, dtype=dtype, device=device), []
    if opened.sets is not None:
        batch = rows_to_draw(vae, opened.sets, 1, drawing.seed)
        condition = conditions(batch, 1)
        start = start if from_prior else start_of(vae, batch)[0]
    found = traversals(opened.sides, start, chosen or range(vae.latent_size), steps, condition, reach)
    sheet = traversals_sheet(found, opened.sides, opened.view)
    moves = {str(row.latent): row.moves / opened.view.span() for row in found}
    shown = {"model": model, "latents": [row.latent for row in found], "moves": moves, "seed": drawing.seed}
    drawing.finish(sheet, f"a row for each of {len(found)} latents, in {steps} steps", shown)
