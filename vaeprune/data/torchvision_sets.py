"""MNIST and Fashion-MNIST through torchvision's own dataset classes and download."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.errors import DataError

NAMES = ("mnist", "fashion-mnist")


def default_folder() -> Path:
    """$VAEPRUNE_DATA_DIR, else the user's cache folder."""
    named = os.environ.get("VAEPRUNE_DATA_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaeprune" / "datasets"


def load(name: str, folder: Path | None) -> tuple[Tensor, Tensor]:
    """(training, test) images as uint8 (N, 28, 28), downloaded into `folder` when they are not there.

    Raises DataError if they are neither there nor to be had, or damaged.
    """
    datasets = import_torchvision("datasets")
    folder = folder or default_folder()
    dataset = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision's download talks; stdout is for data
            train = dataset(str(folder), train=True, download=True).data
            test = dataset(str(folder), train=False, download=True).data
    except Exception as error:
        raise DataError(
            f"{name}: not in {folder} and cannot be downloaded or read: {str(error) or type(error).__name__}",
            f"put torchvision's {dataset.__name__}/raw folder there or name another folder with --data-dir",
        ) from error
    for images in (train, test):
        if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or not len(images):
            raise DataError(
                f"{name}: got {tuple(images.shape)} {images.dtype} from {folder}, expected 28x28 uint8 images"
            )
    return train, test
