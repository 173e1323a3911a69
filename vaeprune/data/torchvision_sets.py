"""MNIST and Fashion-MNIST through torchvision's own dataset classes and download."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import urllib.error
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vaeprune.errors import DataError

NAMES = ("mnist", "fashion-mnist")
_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


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
    datasets = import_datasets()
    folder = folder or default_folder()
    dataset = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision's download talks; stdout is for data
            train = dataset(str(folder), train=True, download=True).data
            test = dataset(str(folder), train=False, download=True).data
    except (OSError, RuntimeError, urllib.error.URLError, ValueError, EOFError) as error:
        raise DataError(
            f"{name}: not in {folder} and cannot be downloaded or read: {error}",
            f"put torchvision's {dataset.__name__}/raw folder there or name another folder with --data-dir",
        ) from error
    for images in (train, test):
        if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or not len(images):
            raise DataError(
                f"{name}: got {tuple(images.shape)} {images.dtype} from {folder}, expected 28x28 uint8 images"
            )
    return train, test


def import_datasets() -> ModuleType:
    """`torchvision.datasets`, also beside a torch that torchvision's compiled half was not built for.

    At import torchvision registers fake kernels for two operators of its compiled half, and fails where that half
    did not load (its wheels are built for CUDA torch). Only datasets are used here, so on that failure the two
    schemas are declared, which nothing ever calls, and the import is tried again.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for schema in _MISSING_SCHEMAS:
        torch.library.define(f"torchvision::{schema.partition('(')[0]}", schema[schema.index("(") :])
    return importlib.import_module("torchvision.datasets")
