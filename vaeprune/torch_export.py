"""`.pt2` files: the parts of a VAE as torch.export writes them, to be run by PyTorch without the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vaeprune.adapters import as_vae, measuring
from vaeprune.data import Rows
from vaeprune.errors import ExportError
from vaeprune.onnx_export import Difference, checked_batches
from vaeprune.onnx_figures import first_line
from vaeprune.parts import Part, parts_of
from vaeprune.posterior import VAE
from vaeprune.quiet import quiet


def export_pt2(model: VAE, folder: Path, rows: Rows, *, autoencoder: bool = False) -> dict[str, float]:
    """Write `encoder.pt2`, `decoder.pt2` and maybe `autoencoder.pt2`, and load each again to run it on `rows`.

    Returns the largest difference of each part from the model, as a share of the output's range. Raises ExportError
    with what torch said.
    """
    vae = as_vae(model)
    with measuring(vae), quiet("torch.export"):
        return {
            part.name: _written(vae, part, folder / f"{part.name}.pt2", rows) for part in parts_of(vae, autoencoder)
        }


def _written(vae: VAE, part: Part, path: Path, rows: Rows) -> float:
    try:
        with torch.no_grad():
            torch.export.save(_program(part), path)
        loaded = torch.export.load(path).module()
    except Exception as error:
        raise ExportError(f"{path.name}: torch.export failed: {first_line(error)}") from error
    difference = Difference()
    for x in checked_batches(vae, rows):
        value = vae.encode(x).mean if part.input == "z" else x
        expected, found = part.module(value), loaded(value)
        pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
        for reference, again in pairs:
            difference.see(reference, again.float().cpu().numpy())
    return difference.largest / max(difference.span, 1e-12)


def _program(part: Part) -> Any:
    """The part with the weights it reads alone: a module holds those of the whole model."""

    def traced(module: nn.Module) -> Any:
        return torch.export.export(module, (part.example,), dynamic_shapes=part.dynamic_shapes)

    try:
        module = traced(part.module).module()
    except torch._dynamo.exc.UserError:  # the batch became a number
        module = traced(part.from_bytecode().module).module()
    module.graph.eliminate_dead_code()
    module.recompile()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module.state_dict() if name not in read]:
        path, _, own = name.rpartition(".")
        delattr(module.get_submodule(path), own)
    return traced(module)
