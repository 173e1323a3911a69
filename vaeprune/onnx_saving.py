"""How an ONNX file is written: one way for what torch exported and for what was made of it.

A file says of itself what `metadata_of` tells and nothing else: what exporters note beside each operator (lines of
the source, paths of the machine) goes, so that the same weights give the same bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vaeprune.errors import ExportError
from vaeprune.onnx_figures import first_line

LARGEST_BYTES = 2_000_000_000  # protobuf ends at 2 GiB, and the graph itself needs room, too
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}


def save_onnx(
    model: Any, path: Path, metadata: Mapping[str, str], *, external: bool = False, largest: int = LARGEST_BYTES
) -> None:
    """Write an `onnx_ir.Model` to `path`; its weights go into `path`.data beside it if `external` or above `largest`.

    Raises ExportError if it draws random numbers, or onnx's checker or its shape inference does not pass the file.
    """
    import onnx
    import onnx_ir

    random = sorted({node.op_type for graph in _graphs(model) for node in graph} & _RANDOM)
    if random:
        raise ExportError(
            f"{path.name}: contains random operators {', '.join(random)}",
            "make encode and decode deterministic in eval mode",
        )
    _forget_sources(model)
    model.metadata_props.clear()
    model.metadata_props.update({"vaeprune.part": path.stem, **metadata})
    held = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = f"{path.name}.data" if external or held > largest else None
    onnx_ir.save(model, path, external_data=beside)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name}: onnx's checker refuses it: {first_line(error)}") from error


def _graphs(model: Any) -> Iterator[Any]:
    """Branches and functions, too."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _forget_sources(model: Any) -> None:
    for graph in _graphs(model):
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
