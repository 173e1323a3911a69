"""MNIST and Fashion-MNIST through torchvision's own dataset classes and download."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.errors import DataError

NAMES = ("mnist", "fashion-mnist")


_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_HEADER = 16  # bytes: magic number, images, height, width, each big-endian


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
    folder = folder or default_folder()
    at_hand = [_images(folder / _FOLDERS[name] / "raw" / f"{split}-images-idx3-ubyte") for split in ("train", "t10k")]
    if at_hand[0] is not None and at_hand[1] is not None:
        return at_hand[0], at_hand[1]
    datasets = import_torchvision("datasets")
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


def _images(path: Path) -> Tensor | None:
    """The images of an unpacked file as torchvision leaves it, None unless it is there and whole.

    Importing torchvision takes as long as importing torch, so it is left to downloads, and to saying what is wrong.
    Format: LeCun, Cortes and Burges, the MNIST database.
    """
    if not path.is_file() or path.stat().st_size <= _HEADER:
        return None
    magic, count, height, width = np.fromfile(path, ">i4", 4).tolist()
    if magic != 0x803 or (height, width) != (28, 28) or path.stat().st_size != _HEADER + count * height * width:
        return None
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=_HEADER).reshape(count, height, width))
