"""ONNX files of fewer bits, made of a float32 one with onnxruntime's own tools.

1. fp16: weights and arithmetic in 16 bits, inputs and outputs stay float32. A sigmoid that gives the output is computed
   in float32, since a probability near 1 has three digits in 16 bits, and a pixel's nats are read off its last ones.
2. int8-dynamic: the weights of linear layers in 8 bits, each output column with a scale of its own; what they read is
   scaled anew for every batch.
3. int8-static: linear and convolutional weights in 8 bits; what they read is scaled by ranges seen on calibration rows.
   What they give stays float32 until the next such layer reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vaeprune.errors import ExportError, UsageError
from vaeprune.onnx_figures import first_line
from vaeprune.onnx_saving import save_onnx
from vaeprune.quiet import quiet

Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_LINEAR = ["MatMul", "Gemm"]
_CONVOLUTIONAL = ["Conv", "ConvTranspose"]
_CALIBRATION_BATCH = 64
_SAME_VALUES = {"Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice"}


def refuse_precision(precision: str) -> None:
    """Raise UsageError for a name that is none."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")


def convert(
    source: Path,
    target: Path,
    precision: Precision,
    metadata: Mapping[str, str],
    calibration: np.ndarray[Any, Any] | None = None,
    *,
    external: bool = False,
) -> int:
    """Write `source`, a float32 file, to `target` in another precision; returns how many of its weights are in 8 bits.

    `calibration`: rows of the file's input, which int8-static needs. Raises ExportError with what the tool said.
    """
    import onnx_ir

    with tempfile.TemporaryDirectory(prefix="vaeprune-") as scratch, quiet("", "onnxruntime"):
        between = Path(scratch) / target.name
        try:
            if precision == "fp16":
                made = _in_half_precision(source)
            else:
                _quantize(source, between, precision, calibration)
                made = onnx_ir.load(between)
        except Exception as error:
            raise ExportError(f"{target.name}: cannot be made {precision}: {first_line(error)}") from error
        save_onnx(made, target, metadata, external=external)
        held = [value.const_value for value in made.graph.initializers.values()]
        return sum(t.size for t in held if t.dtype == onnx_ir.DataType.INT8 and len(t.shape) > 1)


def _in_half_precision(source: Path) -> Any:
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = _output_sigmoids(onnx.load(source, load_external_data=False).graph)
    made = onnx_ir.from_proto(convert_float_to_float16(str(source), keep_io_types=True, node_block_list=kept))
    made.graph.sort()  # the tool puts its casts at the end
    return made


def _output_sigmoids(graph: Any) -> list[str]:
    """Names of the sigmoids whose values are the graph's outputs, whatever their shape."""
    made_by = {name: node for node in graph.node for name in node.output}
    found, names = [], [output.name for output in graph.output]
    while names:
        node = made_by.get(names.pop())
        if node is None:
            continue
        if node.op_type == "Sigmoid":
            found.append(node.name)
        elif node.op_type in _SAME_VALUES:
            names.append(node.input[0])
    return found


def _quantize(source: Path, target: Path, precision: Precision, calibration: np.ndarray[Any, Any] | None) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str, rows: np.ndarray[Any, Any]) -> None:
            self._feeds: Iterator[Any] = iter(
                {name: rows[i : i + _CALIBRATION_BATCH]} for i in range(0, len(rows), _CALIBRATION_BATCH)
            )

        def get_next(self) -> Any:
            return next(self._feeds, None)

    large = source.with_name(f"{source.name}.data").exists()
    prepared = target.with_name(f"prepared-{target.name}")
    # folds BatchNorm into convolutions; the shapes are known already from torch
    quant_pre_process(
        source, prepared, skip_symbolic_shape=True, skip_optimization=large, save_as_external_data=large,
        all_tensors_to_one_file=large, external_data_location=f"{prepared.name}.data" if large else None,
    )  # fmt: skip
    name = _without_shapes_of_weights(prepared)
    if precision == "int8-dynamic":
        quantize_dynamic(
            prepared, target, _LINEAR, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large
        )
        return
    if calibration is None:
        raise ExportError(f"{target.name}: int8-static needs rows to calibrate on")
    kinds = [*_LINEAR, *_CONVOLUTIONAL]
    quantize_static(
        prepared, target, Reader(name, calibration), QuantFormat.QDQ, kinds, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, use_external_data_format=large,
        extra_options={"OpTypesToExcludeOutputQuantization": kinds},
    )  # fmt: skip


def _without_shapes_of_weights(path: Path) -> str:
    """Rewrite a graph: the tools transpose weights and leave the shapes that are noted; returns its input's name."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)
    onnx.save(model, path)
    name: str = model.graph.input[0].name
    return name
