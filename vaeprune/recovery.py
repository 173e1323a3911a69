"""`recover`: fine-tune a model after something was cut out of it, with the objective it was trained by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vaeprune.adapters.measuring import batch_rows, element_type
from vaeprune.data import Batch, DataSets, MemoryRows, Rows
from vaeprune.errors import DataError, TrainingError
from vaeprune.training import Objective, Options, train
from vaeprune.training.loop import DIVERGED, Model, Step

_MOST_BYTES = 1 << 32
_NUMBER: tuple[type, ...] = (int, float)
_RECORDED = {"kl": (str,), "beta": _NUMBER, "sampling": (bool,), "learning_rate": _NUMBER, "batch_size": (int,)}


def recover(
    vae: Model,
    sets: DataSets,
    epochs: int,
    *,
    training: Mapping[str, Any] | None = None,
    objective: Objective | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Model:
    """A copy of `vae` trained for `epochs` on the calibration rows, in eval mode; `vae` itself stays as it is.

    Adam, its learning rate falling linearly to 0. `training` is how the model was trained, as its folder's config has
    it; by default what its `provenance` records. What is not given is taken from there, see `objective_of`. Parameters
    that require no gradient stay as they are.
    Raises TrainingError if the loss stops being finite, there is nothing to train or `epochs` is less than 1; DataError
    if the calibration rows are more than 4 GiB.
    """
    recorded, rate, size = objective_of(_recorded(vae) if training is None else training)
    options = Options(
        epochs=epochs,
        batch_size=size if batch_size is None else batch_size,
        learning_rate=rate if learning_rate is None else learning_rate,
        objective=recorded if objective is None else objective,
        seed=seed,
        decay=True,
    )
    rows = in_memory(sets.calibrate, element_type(vae)[0])
    try:
        return train(vae, rows, options, on_step=on_step).vae
    except TrainingError as error:
        hint = "fine-tune with a lower learning rate" if error.hint == DIVERGED else error.hint
        raise TrainingError(f"recovery: {error.message}", hint) from error


def objective_of(training: Mapping[str, Any] | None) -> tuple[Objective, float, int]:
    """Objective, learning rate and batch size of a recorded training: the `training` of a model folder's config.

    What it does not record is as in `Options`: the ELBO, 1e-3, 128. Raises TrainingError on values that make no sense.
    """
    usual = Options()
    entry: dict[str, Any] = {"kl": usual.objective.penalty, "beta": usual.objective.beta}
    entry |= {"sampling": usual.objective.sampling, "learning_rate": usual.learning_rate}
    entry |= {"batch_size": usual.batch_size}
    entry |= {name: value for name, value in (training or {}).items() if name in _RECORDED}
    for name, kinds in _RECORDED.items():
        value = entry[name]
        if type(value) not in kinds or not (isinstance(value, str) or abs(value) < 1e300):
            raise TrainingError(f"training: its record has {name} {value!r:.60}", "restore the config, or say it anew")
    objective = Objective(entry["kl"], float(entry["beta"]), entry["sampling"])
    return objective, float(entry["learning_rate"]), entry["batch_size"]


def in_memory(rows: Rows, dtype: torch.dtype) -> MemoryRows:
    """All rows and their conditions in memory: uint8 as uint8, others in `dtype`, the type of the model.

    While they are put together they take twice their room. Raises DataError if they are more than 4 GiB.
    """
    if isinstance(rows, MemoryRows):
        return rows
    span, taken = rows.scaled_to, 0
    gathered: list[Batch] = []
    for x, *conditions in rows.batches(batch_rows(rows.row_shape), torch.float32 if span else dtype):
        if span:  # back to the bytes they were scaled from, a quarter of the room
            x = x.sub(span[0]).mul_(255 / (span[1] - span[0] or 1.0)).round_().to(torch.uint8)
        block = tuple(part.clone() for part in (x, *conditions))  # a batch's memory may be used again for the next
        gathered.append(block)
        taken += sum(part.nbytes for part in block)
        if taken > _MOST_BYTES:
            raise DataError(
                f"{rows.name}: its calibration rows take more than {_MOST_BYTES / 2**30:g} GiB, too much to train on",
                "take fewer with --rows, or rows= in open_data",
            )
    parts = [torch.cat(part) for part in zip(*gathered, strict=True)]
    return MemoryRows(rows.name, *parts, span=span or (0.0, 1.0))


def _recorded(vae: object) -> Mapping[str, Any] | None:
    """How a model says it was trained, or None."""
    provenance = getattr(vae, "provenance", None)
    training = provenance.get("training") if isinstance(provenance, Mapping) else None
    return training if isinstance(training, Mapping) else None
