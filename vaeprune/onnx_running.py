"""ONNX files run by onnxruntime on torch tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vaeprune.errors import ExportError
from vaeprune.onnx_figures import first_line

Outputs = list[np.ndarray[Any, Any]]


class OnnxFile:
    """One file, loaded. Raises ExportError if it is missing, or onnxruntime cannot load or run it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime  # heavy, and only needed here

        if not path.is_file():
            raise ExportError(f"{path}: no such file, expected an ONNX model", "run `vaeprune export`")
        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, value: Tensor) -> Outputs:
        """What the file gives for one batch."""
        try:
            outputs: Outputs = self._session.run(None, {self._input: value.cpu().numpy()})
        except Exception as error:
            raise ExportError(f"{self.path}: onnxruntime fails at batch {len(value)}: {first_line(error)}") from error
        return outputs
