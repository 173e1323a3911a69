"""The one input of an ONNX file in onnxruntime: its name, the shape of a row, the type of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaeprune.errors import ModelError

_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class OnnxInput:
    """`row_shape` without the batch, which is free; `dtype` as numpy names it."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str


def onnx_input(session: Any, path: Path) -> OnnxInput:
    """Of an onnxruntime session. Raises ModelError unless it takes one tensor of floats with a free batch."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        found = ", ".join(f"{i.name} {i.type}" for i in inputs) or "nothing"
        raise ModelError(f"{path}: takes {found}, expected one input of float numbers")
    name, shape = inputs[0].name, inputs[0].shape
    if not shape or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise ModelError(f"{path}: {name} has shape {shape}, expected a free batch and fixed sizes after it")
    return OnnxInput(name, tuple(shape[1:]), _TYPES[inputs[0].type])
