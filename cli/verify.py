"""`vaeprune verify`: do two models give the same outputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .groups import takes
from .opened_pair import open_pair
from .output import print_evidence, print_json


@takes(o.Reading, o.Rows, o.Gates)
def verify(
    original: Annotated[str, typer.Argument(metavar="A", help="The original, named like MODEL elsewhere.")],
    smaller: Annotated[Path, typer.Argument(metavar="B", help="The model folder to compare with it.")],
    data: o.Rows,
    reading: o.Reading,
    gates: o.Gates,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="The plan that led from A to B; found in B when it is there.")
    ] = None,
    device: o.OnDevice = o.Device.auto,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Compare the outputs of two models.

    On rows that neither analysis nor selection has seen. Exit code 1 if a check fails. If A is named by import path,
    the same class is used for B.
    """
    from vaeprune.verification import verify as verify_models

    pair = open_pair(original, smaller, data, reading, plan, device, quiet)
    evidence = verify_models(
        pair.original, pair.smaller, pair.sets, pair.plan, onnx=pair.onnx, tolerances=gates.tolerances(),
        fine_tuned=bool(pair.fine_tuned_epochs),
    )  # fmt: skip
    if json:
        print_json(evidence.to_json())
    else:
        print_evidence(evidence)
    return int(not evidence.passed)
