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
    """One file, loaded. Raises ExportError if it is missing, or onnxruntime cannot load or run it.

    `inputs` and `outputs` are onnxruntime's, with `name`, `type` and `shape`; `metadata`: what the file says of itself.
    """

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
        self.inputs, self.outputs = self._session.get_inputs(), self._session.get_outputs()
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, value: Tensor) -> Outputs:
        """What the file gives for one batch."""
        try:
            outputs: Outputs = self._session.run(None, {self.inputs[0].name: value.cpu().numpy()})
        except Exception as error:
            raise ExportError(f"{self.path}: onnxruntime fails at batch {len(value)}: {first_line(error)}") from error
        return outputs
