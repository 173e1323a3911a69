"""A shrunk model on disk, and the examples as a person starts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_places import EXAMPLES, SHAPE

from planted import dense
from vaeprune.model_folder import ModelFolder, write_model_folder
from vaeprune.shrinking import shrink

Example = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests share: rows.npy of uint8 pictures, `original`, and `small`, which has no latents 1 and 4."""
    folder = tmp_path_factory.mktemp("examples")
    rows = np.random.default_rng(0).integers(0, 256, (900, *SHAPE), np.uint8)
    np.save(folder / "rows.npy", rows)
    vae = dense([1, 4], input_shape=SHAPE)
    write_model_folder(ModelFolder(vae), folder / "original")
    shrink(vae, folder / "rows.npy", folder / "small", scope="latents", remove=[1, 4])
    return folder


@pytest.fixture(scope="session")
def small(shelf: Path) -> Path:
    """The folder that shrink wrote."""
    return shelf / "small"


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """Run an example as a process of its own in an empty folder, where warnings are errors."""

    def start(name: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return start
