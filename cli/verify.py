"""`vaeprune verify`: do two models give the same outputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .output import note, print_evidence, print_json


def verify(
    original: Annotated[Path, typer.Argument(metavar="A", help="The original model folder.")],
    smaller: Annotated[Path, typer.Argument(metavar="B", help="The model folder to compare with it.")],
    data: o.Data,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan that led from A to B; found in B when it is there."),
    ] = None,
    held_out: o.HeldOut = None,
    data_dir: o.DataDir = None,
    rows: o.Rows = None,
    seed: o.SplitSeed = 0,
    tolerance: o.Tolerance = 0.02,
    max_elbo_loss: o.MaxElboLoss = 0.1,
    onnx_tolerance: o.OnnxTolerance = 1e-4,
    device: o.OnDevice = o.Device.auto,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Compare the outputs of two models.

    On rows that neither analysis nor selection has seen. Exit code 1 if a check fails.
    """
    from vaeprune.onnx_export import DECODER, ENCODER
    from vaeprune.surgery.cut import refuse_other_weights
    from vaeprune.surgery.plan import PLAN, read_plan
    from vaeprune.verification import Tolerances
    from vaeprune.verification import verify as verify_models

    a, b = o.open_model(original, device), o.open_model(smaller, device)
    found = plan or (smaller if (smaller / PLAN).exists() else None)
    known = read_plan(found) if found else None
    if known:
        refuse_other_weights(a.state_dict(), known)
    else:
        note(f"{smaller} holds no plan: what was removed is not known, so nothing is compared exactly", quiet)
    split = int(known.data.get("seed", seed)) if known else seed
    onnx = smaller if (smaller / ENCODER).exists() and (smaller / DECODER).exists() else None
    sets = o.open_rows(data, held_out, data_dir, split, rows)
    limits = Tolerances(tolerance, max_elbo_loss, onnx_tolerance)
    evidence = verify_models(a, b, sets, known, onnx=onnx, tolerances=limits)
    if json:
        print_json(evidence.to_json())
    else:
        print_evidence(evidence)
    return int(not evidence.passed)
