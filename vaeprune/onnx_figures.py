"""What an ONNX file holds, read off its graph without running it: weights, bytes on disk, FLOPs of a row.

FLOPs are the multiplications and additions of the operators that do nearly all the work; they are not known where a
shape depends on values, or where a branch or a function decides what runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaeprune.errors import StorageError

# onnx is imported where it is used: the process that measures memory imports this file and must not load it

PARTS = ("encoder", "decoder")  # vaeprune.onnx_export names the files alike, but importing it would load torch
_EXPORT = "write one with `vaeprune export`"
_COUNTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"}
_SCALED = {"QuantizeLinear", "DequantizeLinear"}  # what they read: values, scale, zero point


@dataclass(frozen=True)
class OnnxFigures:
    """Of one file, or of several together.

    `weights`: elements of the initialisers but for shapes, and for the scales of weights in 8 bits. `file_bytes`: with
    external data. `flops_per_row`: multiplications and additions of Conv, ConvTranspose, Gemm and MatMul at batch 1, in
    8 bits, too; None where a shape stays unknown.
    """

    weights: int
    file_bytes: int
    flops_per_row: int | None

    def __add__(self, other: OnnxFigures) -> OnnxFigures:
        flops = (self.flops_per_row, other.flops_per_row)
        return OnnxFigures(
            self.weights + other.weights,
            self.file_bytes + other.file_bytes,
            None if flops[0] is None or flops[1] is None else flops[0] + flops[1],
        )


def onnx_pair(folder: Path) -> tuple[Path, Path]:
    """The paths of `encoder.onnx` and `decoder.onnx`. Raises StorageError if the folder or one of them is missing."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise StorageError(f"{folder}: {found}, expected a folder with encoder.onnx and decoder.onnx", _EXPORT)
    encoder, decoder = (folder / f"{part}.onnx" for part in PARTS)
    for path in (encoder, decoder):
        if not path.is_file():
            raise StorageError(f"{path}: no such file, expected an ONNX model", _EXPORT)
    return encoder, decoder


def onnx_figures(path: Path) -> OnnxFigures:
    """The figures of one ONNX file. Raises StorageError if it, or its weights beside it, are missing or damaged."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise StorageError(f"{path}: is no ONNX model: {first_line(error)}", _EXPORT) from error
    if not model.graph.output:  # an empty file, too, is a message that protobuf can read
        raise StorageError(f"{path}: is no ONNX model: it has no outputs", _EXPORT)
    kinds = onnx.TensorProto
    held = {kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16, kinds.INT8, kinds.UINT8, kinds.INT32}
    scales = _scales(model.graph.node)
    tensors = [t for t in model.graph.initializer if t.data_type in held and t.name not in scales]
    weights = sum(math.prod(tensor.dims) for tensor in tensors)
    return OnnxFigures(weights, path.stat().st_size + _external_bytes(path, model), _flops(path, model))


def _scales(nodes: Any) -> set[str]:
    """Names of the scales and zero points of weights in 8 bits; a dynamic scale is first multiplied by the input's."""
    of_inputs = {node.output[1] for node in nodes if node.op_type == "DynamicQuantizeLinear"}
    found: set[str] = set()
    for node in nodes:
        if node.op_type in _SCALED:
            found |= set(node.input[1:])
        elif node.op_type == "MatMulInteger":
            found |= set(node.input[2:])
        elif node.op_type == "Mul" and of_inputs & set(node.input):
            found |= set(node.input)
    return found


def _external_bytes(path: Path, model: Any) -> int:
    """Bytes of the files beside an ONNX file that hold its weights, each counted once."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    total = 0
    for name in {entry.value for entry in entries}:
        data = path.parent / name
        if Path(name).is_absolute() or ".." in Path(name).parts or data.is_symlink():
            raise StorageError(f"{path}: keeps its weights in {name!r}, expected a file beside it", _EXPORT)
        if not data.is_file():
            raise StorageError(f"{data}: no such file, expected the weights of {path.name}", _EXPORT)
        total += data.stat().st_size
    return total


def _flops(path: Path, model: Any) -> int | None:
    """Multiplications and additions at batch 1, biases apart; padded taps count. Changes `model`."""
    from onnx import shape_inference

    if model.functions or any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        return None  # what runs inside a function or a branch is not known without running it
    graph, initial = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    try:
        for value in graph.input:
            if value.name not in initial and value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = 1
        del graph.value_info[:]  # they say "batch" where 1 is to be found
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise StorageError(f"{path}: is no valid ONNX model: {first_line(error)}", _EXPORT) from error
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {value.name: _known_shape(value.type.tensor_type) for value in values}
    shapes |= {name: tuple(tensor.dims) for name, tensor in initial.items()}
    costs = [_node_flops(node, shapes) for node in graph.node if node.op_type in _COUNTED]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _known_shape(kind: Any) -> tuple[int, ...] | None:
    sizes = kind.shape.dim
    known = kind.HasField("shape") and all(size.HasField("dim_value") for size in sizes)
    return tuple(size.dim_value for size in sizes) if known else None


def _node_flops(node: Any, shapes: dict[str, tuple[int, ...] | None]) -> int | None:
    names = [*node.input[:2], *node.output[:1]]
    read, weight, made = (shapes.get(name) for name in names) if len(names) == 3 else (None, None, None)
    if not read or not weight or made is None:  # without names or sizes the graph is damaged; onnxruntime tells why
        return None
    if node.op_type == "Conv":  # weight (out, in / groups, *kernel): one dot product for each output
        return 2 * math.prod(made) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, *kernel): each input is spread over the outputs
        return 2 * math.prod(read) * math.prod(weight[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * math.prod(made) * read[0 if transposed else -1]


def first_line(error: object) -> str:
    """What an exception of another library says, in one line of at most 300 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
