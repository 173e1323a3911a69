"""The three disjoint sets every judgement rests on: calibrate (moments), select (ablation), verify (evidence)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeprune.data import torchvision_sets
from vaeprune.data.batch_source import BatchSource
from vaeprune.data.hashing import unit_interval
from vaeprune.data.images import load_images
from vaeprune.data.rows import Choose, MemoryRows, Rows, Span, StreamedRows, sample_rows, samples
from vaeprune.data.shards import ShardedSource, is_sharded
from vaeprune.data.sources import FileSource, MemorySource, Source
from vaeprune.data.tiles import HELD_OUT_ROWS, TRAINING_ROWS, tiles
from vaeprune.errors import DataError
from vaeprune.factory import call, import_path

NAMED = ("tiles", *torchvision_sets.NAMES)
MOST_JUDGED_ROWS = 10_000
_MOST_JUDGED_BYTES = 1 << 28
_LEAST_CALIBRATE, _LEAST_VERIFY = 30, 20
_TILES_SEED = 0
_DATASET_BATCH = 512


@dataclass(frozen=True)
class DataSets:
    """Calibrate, select and verify rows of one data set, and the seed that parted them.

    Select and verify hold a uniform sample of at most 10,000 rows each in memory; calibrate may be a stream.
    `whole`: all rows calibrate is taken from, in their order.
    """

    name: str
    seed: int
    calibrate: Rows
    select: MemoryRows
    verify: MemoryRows
    whole: Rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row as it is stored."""
        return self.calibrate.row_shape

    def describe(self) -> dict[str, Any]:
        """What a plan records of the data: name, seed and how many rows judged it."""
        return {
            "name": self.name,
            "seed": self.seed,
            "select_rows": self.select.count,
            "verify_rows": self.verify.count,
        }


def open_data(
    data: str | Path,
    held_out: str | Path | None = None,
    *,
    folder: Path | None = None,
    seed: int = 0,
    rows: int | None = None,
    condition: str | None = None,
    input_range: Span = (0.0, 1.0),
) -> DataSets:
    """Open DATA: a named set, an `.npy` or `.npz` file, a folder of pictures or of `.npy` files, `module:factory`.

    Named sets calibrate on their training split and halve their test split by the hash of each row; others are
    parted 60, 20, 20, or, with `held_out`, used whole for calibration with the halves of `held_out` for the rest.
    `rows` takes the first rows of each split only. `condition` names what goes beside each row into a conditional VAE:
    an array of the `.npz`, an `.npy` file, a key or position in a factory's batches. uint8 is scaled to `input_range`.
    Raises DataError.
    """
    _refuse_rows(rows)
    if not 0 <= seed < 2**63:
        raise DataError(f"seed: got {seed}, expected a whole number from 0 to 2^63")
    first, second = open_sources(str(data), folder, condition)
    if held_out is not None:
        second = open_sources(str(held_out), folder, condition)[0]
    return part(str(data), first, second, seed, rows, input_range)


def as_data(data: DataSets | Tensor | NDArray[Any] | str | Path | Iterable[Any], seed: int = 0) -> DataSets:
    """Whatever a Python caller has, as three sets: sets stay, names and paths are opened, rows are parted 60, 20, 20.

    An iterable yields batches (B, ...) and must be readable more than once.
    """
    if isinstance(data, DataSets):
        return data
    if isinstance(data, (str, Path)):
        return open_data(data, seed=seed)
    return part("data", as_source("data", data, None), None, seed, None)


def as_source(name: str, data: Any, condition: str | None) -> Source:
    """Rows of an array, a torch Dataset, or any iterable of batches. Raises DataError."""
    if isinstance(data, (Tensor, np.ndarray)):
        return MemorySource(name, data)
    if isinstance(data, torch.utils.data.Dataset):
        data = torch.utils.data.DataLoader(data, batch_size=_DATASET_BATCH)
    if not isinstance(data, Iterable):
        raise DataError(f"{name}: got a {type(data).__name__}, expected an array, a Dataset or batches of rows")
    return BatchSource(name, data, condition)


def part(
    name: str, first: Source, second: Source | None, seed: int, rows: int | None, span: Span = (0.0, 1.0)
) -> DataSets:
    """Part one source 60, 20, 20, or take `first` for calibration and halve `second`."""
    if second is not None and second.row_shape != first.row_shape:
        raise DataError(f"{second.name}: rows have shape {second.row_shape}, those of {first.name} {first.row_shape}")
    judged = second or first
    low, high = (0.0, 0.5) if second else (0.6, 0.8)
    most = _most_judged(judged.row_shape)
    (select, verify), others = samples(judged, seed, (_share(low, high), _share(high, 1.0)), most, rows, span)
    sets = DataSets(
        name=name,
        seed=seed,
        calibrate=StreamedRows(first, seed, None if second else _share(0.0, low), rows, span, count=others),
        select=select,
        verify=verify,
        whole=StreamedRows(first, seed, None, rows, span),
    )
    _refuse_too_few(sets)
    return sets


def training_images(data: str | Path, folder: Path | None = None, seed: int = 0, rows: int | None = None) -> MemoryRows:
    """All rows a network may be trained on, in memory: the training split, or the 60% that calibrate uses."""
    _refuse_rows(rows)
    first, second = open_sources(str(data), folder)
    choose = _share(0.0, 1.0 if second else 0.6)
    return sample_rows(first, seed, choose, keep=1 << 62, limit=rows)


def open_sources(data: str, folder: Path | None, condition: str | None = None) -> tuple[Source, Source | None]:
    """(training rows, test rows) of a named set; (all rows, None) of a file, folder or factory."""
    if condition is not None and (data in NAMED or Path(data).is_dir()):
        raise DataError(
            f"{data}: has no condition {condition!r} beside its rows", "give rows and conditions as an .npz"
        )
    if data == "tiles":
        train, test = tiles(TRAINING_ROWS, _TILES_SEED), tiles(HELD_OUT_ROWS, _TILES_SEED, held_out=True)
    elif data in torchvision_sets.NAMES:
        train, test = torchvision_sets.load(data, folder)
    else:
        return _open_path(data, condition), None
    return MemorySource(f"{data} training split", train), MemorySource(f"{data} test split", test)


def _open_path(data: str, condition: str | None) -> Source:
    path = Path(data)
    if not data:
        raise DataError("data: got an empty name", f"name {', '.join(NAMED)}, a file or a folder")
    if ":" in data and not path.exists():
        return as_source(data, call(import_path(data), {}, data, DataError), condition)
    if path.is_dir():
        return ShardedSource(path) if is_sharded(path) else MemorySource(data, load_images(path))
    if path.suffix in (".npy", ".npz"):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        return FileSource(path, condition)
    known = ", ".join(NAMED)
    raise DataError(
        f"data: got {data!r}, expected {known}, an .npy or .npz file, a folder of pictures or of .npy files, or "
        "path/or.module:factory"
    )


def _share(low: float, high: float) -> Choose:
    def choose(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        u = unit_interval(hashes)
        return np.asarray((u >= low) & (u < high))

    return choose


def _most_judged(row_shape: tuple[int, ...]) -> int:
    largest_row_bytes = 8 * int(np.prod(row_shape))
    return max(1000, min(MOST_JUDGED_ROWS, _MOST_JUDGED_BYTES // largest_row_bytes))


def _refuse_rows(rows: int | None) -> None:
    if rows is not None and rows < 1:
        raise DataError(f"rows: got {rows}, expected at least 1")


def _refuse_too_few(sets: DataSets) -> None:
    calibrate = 0
    for batch in sets.calibrate.batches(_LEAST_CALIBRATE):
        calibrate += len(batch[0])
        if calibrate >= _LEAST_CALIBRATE:
            break
    if calibrate < _LEAST_CALIBRATE or min(sets.select.count, sets.verify.count) < _LEAST_VERIFY:
        raise DataError(
            f"{sets.name}: got {calibrate} calibration, {sets.select.count} selection and {sets.verify.count} "
            f"verification rows, expected at least {_LEAST_CALIBRATE}, {_LEAST_VERIFY} and {_LEAST_VERIFY}",
            "give more rows; an interval from fewer means nothing",
        )


def to_shape(row_shape: tuple[int, ...], input_shape: tuple[int, ...], where: str) -> torch.Size:
    """The shape rows take before a model that wants `input_shape`; raises DataError if they cannot.

    Axes are added, dropped or flattened, never permuted.
    """
    stored, wanted = ([size for size in shape if size > 1] for shape in (row_shape, input_shape))
    permuted = stored != wanted and sorted(stored) == sorted(wanted)
    if permuted or np.prod(row_shape) != np.prod(input_shape):
        raise DataError(f"{where}: rows have shape {tuple(row_shape)}, the model expects {tuple(input_shape)}")
    return torch.Size(input_shape)
