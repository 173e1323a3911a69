"""`vaeprune encode`: the means of all rows as an array."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .groups import takes
from .output import print_json, progress, show


@takes(o.Reading, o.Rows)
def encode(
    model: o.Model,
    data: o.Rows,
    reading: o.Reading,
    out: Annotated[Path, typer.Option("--out", help="The .npy file to write.")],
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the posterior means of all rows.

    In their order, as a float32 array (rows, latents). Of a named data set: the rows of its training split.
    """
    from vaeprune.encoding import encode_to_file
    from vaeprune.storage import refuse_existing

    refuse_existing(out, force)
    sets = data.open(input_range=reading.input_range)
    vae = o.open_model(model, reading, sets, device, quiet)
    with progress(quiet or json) as report:
        shape = encode_to_file(vae, sets.whole, out, force=force, progress=report)
    if json:
        print_json({"out": str(out), "shape": list(shape)})
    else:
        show(f"{out}: {shape[0]:,} rows of {shape[1]} means")
