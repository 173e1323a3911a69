"""Small ONNX pairs written node by node, with the same function in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
CONSTANTS = {1: 0.25, 4: -0.5}  # what the small model of the shared pair takes the two that went for
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Pair:
    """mu = x·A, logvar = -1 + x·A/8, x_hat = sigmoid(z·B), each over flattened rows."""

    folder: Path
    row_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    a: Array
    b: Array

    def encode(self, x: Array) -> tuple[Array, Array]:
        """mu and logvar in float64."""
        mu = (x.reshape(len(x), -1).astype(np.float64) @ self.a).reshape(len(x), *self.latent_shape)
        return mu, -1 + mu / 8

    def decode(self, z: Array) -> Array:
        """x_hat in float64."""
        flat = z.reshape(len(z), -1).astype(np.float64) @ self.b
        return (1 / (1 + np.exp(-flat))).reshape(len(z), *self.row_shape)


def write_pair(
    folder: Path,
    row_shape: tuple[int, ...] = (1, 6, 5),
    latent_shape: tuple[int, ...] = (4,),
    *,
    seed: int = 0,
    idle: tuple[int, ...] = (),
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> Pair:
    """Write encoder.onnx and decoder.onnx; the decoder does not read `idle` latents, and their mu is 0."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    row, latent = math.prod(row_shape), math.prod(latent_shape)
    a, b = generator.normal(size=(row, latent)), generator.normal(size=(latent, row))
    positions = latent // latent_shape[0]
    for i in idle:
        a[:, i * positions : (i + 1) * positions] = 0
        b[i * positions : (i + 1) * positions] = 0
    a, b = a.astype(dtype), b.astype(dtype)
    encoder = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "a"], ["mean"]),
        helper.make_node("Reshape", ["mean", "latent"], ["mu"]),
        helper.make_node("Mul", ["mu", "eighth"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["logvar"]),
    ]
    constants = {"a": a, "latent": _shape(latent_shape), "eighth": _one(1 / 8, dtype), "one": _one(1, dtype)}
    _write(
        folder / "encoder.onnx", encoder, ("x", row_shape), ("mu", "logvar"), latent_shape, constants, dtype, metadata
    )
    decoder = [
        helper.make_node("Flatten", ["z"], ["flat"]),
        helper.make_node("MatMul", ["flat", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["p"]),
        helper.make_node("Reshape", ["p", "row"], ["x_hat"]),
    ]
    constants = {"b": b, "row": _shape(row_shape)}
    _write(folder / "decoder.onnx", decoder, ("z", latent_shape), ("x_hat",), row_shape, constants, dtype, metadata)
    return Pair(folder, row_shape, latent_shape, a, b)


def write_lineage(folder: Path, before: int, constants: Mapping[int, float]) -> None:
    """A plan.json that says which latents of `before` went, as far as the service reads it."""
    kept = [i for i in range(before) if i not in constants]
    removals = [
        {"latent": i, "constant": value, "verdict": "inactive", "evidence": "observed on 60 samples"}
        for i, value in constants.items()
    ]
    plan = {"latent_size": {"before": before, "after": len(kept)}, "kept_latents": kept, "removals": removals}
    (folder / "plan.json").write_text(json.dumps(plan))


def _shape(shape: tuple[int, ...]) -> Array:
    return np.array([-1, *shape], np.int64)


def _one(value: float, dtype: str) -> Array:
    return np.array(value, dtype)


def _write(
    path: Path,
    nodes: list[Any],
    takes: tuple[str, tuple[int, ...]],
    gives: tuple[str, ...],
    given_shape: tuple[int, ...],
    constants: Mapping[str, Array],
    dtype: str,
    metadata: Mapping[str, str] | None,
) -> None:
    kind = _TYPES[dtype]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(takes[0], kind, ["batch", *takes[1]])],
        [helper.make_tensor_value_info(name, kind, ["batch", *given_shape]) for name in gives],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata:
        helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)
