"""torchvision beside a torch that its compiled half was not built for."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision(name: str) -> ModuleType:
    """`torchvision.<name>`; afterwards anybody's `import torchvision` works in this process, too.

    At import torchvision registers fake kernels for two operators of its compiled half, and fails where that half
    did not load (its wheels are built for CUDA torch). Only its Python half is used here, so on that failure the two
    schemas are declared, which nothing ever calls, and the import is tried again.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for schema in _MISSING_SCHEMAS:
        torch.library.define(f"torchvision::{schema.partition('(')[0]}", schema[schema.index("(") :])
    return importlib.import_module(f"torchvision.{name}")
