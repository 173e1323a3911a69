"""`vaeprune verify`: do two models give the same outputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .groups import takes
from .output import note, print_evidence, print_json


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
    from vaeprune.onnx_export import DECODER, ENCODER
    from vaeprune.surgery.cut import refuse_other_weights
    from vaeprune.surgery.plan import PLAN, read_plan
    from vaeprune.verification import verify as verify_models

    found = plan or (smaller if (smaller / PLAN).exists() else None)
    known = read_plan(found) if found else None
    split = int(known.data.get("seed", data.seed)) if known else data.seed
    sets = data.open(split, reading.input_range)
    a = o.open_model(original, reading, sets, device, quiet)
    imported = reading.factory or (original if ":" in original and not Path(original).exists() else None)
    b = o.open_model(str(smaller), o.Reading(factory=imported), sets, device, quiet)
    if known:
        refuse_other_weights(a.network.state_dict(), known)
    else:
        note(f"{smaller} holds no plan: what was removed is not known, so nothing is compared exactly", quiet)
    there = [name for name in (ENCODER, DECODER) if (smaller / name).exists()]
    if len(there) == 1:
        note(f"{smaller} holds {ENCODER if there == [DECODER] else DECODER} no more: ONNX is not compared", quiet)
    onnx = smaller if (smaller / ENCODER).exists() and (smaller / DECODER).exists() else None
    epochs = (b.provenance.get("shrunk") or {}).get("recovered_epochs", 0)
    if epochs:
        note(f"{smaller} was fine-tuned for {epochs} epochs after the cut, so nothing is compared exactly", quiet)
    evidence = verify_models(a, b, sets, known, onnx=onnx, tolerances=gates.tolerances(), fine_tuned=bool(epochs))
    if json:
        print_json(evidence.to_json())
    else:
        print_evidence(evidence)
    return int(not evidence.passed)
