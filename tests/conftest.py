"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that holds torchvision's MNIST/raw; the test is skipped where there is none."""
    named = os.environ.get("VAEPRUNE_DATA_DIR")
    if not named:
        pytest.skip("VAEPRUNE_DATA_DIR is not set, so there is no real MNIST")
    folder = Path(named)
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"{folder} holds no MNIST/raw")
    return folder
