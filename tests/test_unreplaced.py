"""A reader of a folder is told when another took its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaeprune.errors import StorageError
from vaeprune.storage import new_folder
from vaeprune.unreplaced import unreplaced


def model_at(folder: Path, mark: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"format": 1, "architecture": {"name": "dense"}, "likelihood": {}}')
    (folder / "mark").write_text(mark)
    return folder


def test_a_reader_whose_folder_is_replaced_is_told_so(tmp_path: Path) -> None:
    target = model_at(tmp_path / "model", "old")

    def read() -> None:
        with unreplaced(target):
            with new_folder(target, force=True) as made:
                (made / "mark").write_text("new")
            if not (target / "config.json").exists():
                raise StorageError("config.json: no such file")

    with pytest.raises(StorageError) as caught:
        read()
    assert str(caught.value) == f"{target}: was replaced while it was read; run again"


def test_a_reader_of_a_folder_that_stays_hears_its_own_errors(tmp_path: Path) -> None:
    target = model_at(tmp_path / "model", "old")
    with pytest.raises(StorageError, match="its own"), unreplaced(target):
        raise StorageError("its own")
    with unreplaced(target):
        os.utime(target)
