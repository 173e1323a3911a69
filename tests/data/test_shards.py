from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaeprune.data import open_data, sources
from vaeprune.data.shards import ShardedSource
from vaeprune.errors import DataError


def shards(folder: Path, *sizes: int, dtype: type = np.uint8) -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 256, (sum(sizes), 3, 2)).astype(dtype)
    for number, part in enumerate(np.split(x, np.cumsum(sizes)[:-1])):
        np.save(folder / f"part-{number:03}.npy", part)
    return x


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 5), (3, 30), (7, 8), (29, 31), (36, 99)])
def test_the_files_of_a_folder_are_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, stop: int | None
) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 50)
    x = shards(tmp_path, 7, 1, 22, 7)
    source = ShardedSource(tmp_path)
    assert (source.count, source.row_shape, source.dtype) == (37, (3, 2), np.dtype(np.uint8))
    assert np.array_equal(np.concatenate([block[0].copy() for block in source.blocks(start, stop)]), x[start:stop])


def test_a_folder_of_shards_is_parted_like_one_file(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    x = shards(tmp_path / "shards", 150, 90, 160)
    np.save(tmp_path / "whole.npy", x)
    many, one = open_data(tmp_path / "shards"), open_data(tmp_path / "whole.npy")
    assert np.array_equal(many.verify.tensors[0].numpy(), one.verify.tensors[0].numpy())
    assert many.calibrate.count == one.calibrate.count
    for (a,), (b,) in zip(many.whole.batches(400), one.whole.batches(400), strict=False):
        assert np.array_equal(a.numpy(), b.numpy()[: len(a)])
        break


def test_shards_of_two_kinds_are_refused_by_name(tmp_path: Path) -> None:
    shards(tmp_path, 30, 30)
    np.save(tmp_path / "part-001.npy", np.zeros((5, 3, 2), np.float32))
    with pytest.raises(DataError) as caught:
        open_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/part-001.npy: holds rows of shape (3, 2) and type float32, part-000.npy of shape (3, 2) and type "
        "uint8; the files of a folder are read as one data set; move others elsewhere"
    )


def test_pictures_beside_shards_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, 30)
    Image.new("L", (2, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds .npy files and pictures (a.png), expected one or the other; "
        "move those that are not meant elsewhere"
    )


def test_a_condition_of_a_folder_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, 300)
    with pytest.raises(DataError, match="has no condition 'labels' beside its rows"):
        open_data(tmp_path, condition="labels")
