"""A model and the one that was cut from it, with what is known of the way between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import options as o
from .output import note

if TYPE_CHECKING:
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.architectures import BuiltVAE
    from vaeprune.data import DataSets
    from vaeprune.surgery.plan import Plan


class OpenedPair(NamedTuple):
    """Both models, the plan between them if there is one, the second's ONNX files, and what judges them.

    `fine_tuned_epochs`: how long the second was trained after the cut.
    """

    original: BuiltVAE | AdaptedVAE
    smaller: BuiltVAE | AdaptedVAE
    sets: DataSets
    plan: Plan | None
    onnx: Path | None
    fine_tuned_epochs: int


def open_pair(
    original: str, smaller: Path, data: o.Rows, reading: o.Reading, plan: Path | None, device: o.Device, quiet: bool
) -> OpenedPair:
    """Open A and the folder B; rows are parted by the plan's seed, so that none that chose the cut judges it.

    If A is somebody's own class, so is B: the one named by import path, or the one A was read into. Raises PlanError if
    the plan is for other weights.
    """
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.adapters.copying import copied
    from vaeprune.model_folder import load
    from vaeprune.onnx_export import DECODER, ENCODER
    from vaeprune.surgery.cut import refuse_other_weights
    from vaeprune.surgery.plan import PLAN, read_plan

    found = plan or (smaller if (smaller / PLAN).exists() else None)
    known = read_plan(found) if found else None
    split = int(known.data.get("seed", data.seed)) if known else data.seed
    sets = data.open(split, reading.input_range)
    a = o.open_model(original, reading, sets, device, quiet)
    if known:
        refuse_other_weights(a.network.state_dict(), known)
    imported = reading.factory or (original if ":" in original and not Path(original).exists() else None)
    if known and imported is None and isinstance(a, AdaptedVAE):
        whole = a.network
        b = load(smaller, lambda: copied(whole)).to(o.torch_device(device))
    else:
        b = o.open_model(str(smaller), o.Reading(factory=imported), sets, device, quiet)
    if not known:
        note(f"{smaller} holds no plan: what was removed is not known, so nothing is compared exactly", quiet)
    there = [name for name in (ENCODER, DECODER) if (smaller / name).exists()]
    if len(there) == 1:
        note(f"{smaller} holds {ENCODER if there == [DECODER] else DECODER} no more: ONNX is not compared", quiet)
    epochs = (b.provenance.get("shrunk") or {}).get("recovered_epochs", 0)
    if epochs:
        note(f"{smaller} was fine-tuned for {epochs} epochs after the cut, so nothing is compared exactly", quiet)
    return OpenedPair(a, b, sets, known, smaller if len(there) == 2 else None, epochs)
