"""Sizes that a model notes about itself: `in_features` of its layers, and its own `latent_dim`.

Layers' sizes follow from the cut tensors. A module's own integers that equal the latent size may or may not mean it, so
they are set only if the cut model then still computes the same.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping

from torch import nn

from vaeprune.errors import ModelError, TraceError, VaepruneError
from vaeprune.factory import quoted
from vaeprune.surgery.plan import Slice

_LAYERS = {
    nn.Linear: {0: "out_features", 1: "in_features"},
    nn.Conv1d: {0: "out_channels", 1: "in_channels"},
    nn.Conv2d: {0: "out_channels", 1: "in_channels"},
    nn.Conv3d: {0: "out_channels", 1: "in_channels"},
    nn.ConvTranspose1d: {0: "in_channels", 1: "out_channels"},
    nn.ConvTranspose2d: {0: "in_channels", 1: "out_channels"},
    nn.ConvTranspose3d: {0: "in_channels", 1: "out_channels"},
    nn.BatchNorm1d: {0: "num_features"},
    nn.BatchNorm2d: {0: "num_features"},
    nn.BatchNorm3d: {0: "num_features"},
    nn.PReLU: {0: "num_parameters"},
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LATENT = re.compile(r"lat|(^|_)n?z($|_|dim)|code|embed", re.IGNORECASE)


def layer_sizes(network: nn.Module, slices: tuple[Slice, ...]) -> dict[str, int]:
    """What torch's layers note about tensors that are cut."""
    return sizes_of_layers(network, {(cut.key, cut.axis): len(cut.kept) for cut in slices})


def sizes_of_layers(network: nn.Module, resized: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """What torch's layers note about tensors, by key and axis, that get these sizes."""
    sizes: dict[str, int] = {}
    for (key, axis), after in resized.items():
        owner, _, name = key.rpartition(".")
        module = network.get_submodule(owner)
        if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
            if name == "weight" and axis == 0:
                groups = after * module.groups // module.out_channels
                inputs = groups * module.in_channels // module.groups
                of_groups = {"in_channels": inputs, "out_channels": after, "groups": groups}
                sizes |= {f"{owner}.{n}".lstrip("."): size for n, size in of_groups.items()}
            continue
        for kind, names in _LAYERS.items():
            told = name == "weight" or kind.__name__.startswith("BatchNorm")
            if isinstance(module, kind) and told and axis in names:
                sizes[f"{owner}.{names[axis]}".lstrip(".")] = after
    return sizes


def own_sizes(network: nn.Module, before: int, after: int, known: dict[str, int]) -> Iterator[dict[str, int]]:
    """Sets of a model's own integers to change from `before` to `after`, the likelier first; the last is none."""
    found = {}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            where = f"{path}.{name}".lstrip(".")
            if type(value) is int and value == before and where not in known and type(module) not in _LAYERS:
                found[where] = after
    latent = {where: size for where, size in found.items() if _LATENT.search(where.rpartition(".")[2])}
    yield from (latent, found, {})


def first_that_works(
    candidates: Iterator[dict[str, int]], check: Callable[[dict[str, int]], None], surgery: str = "cut"
) -> dict[str, int]:
    """The first set of sizes with which `check` raises nothing; raises TraceError with the first failure's words."""
    tried: list[dict[str, int]] = []
    failure: Exception | None = None
    for sizes in candidates:
        if sizes in tried:
            continue
        tried.append(sizes)
        try:
            check(sizes)
        except Exception as error:  # noqa: BLE001  the model's own code runs in there and may raise anything
            failure = failure or error
        else:
            return sizes
    words = failure.message if isinstance(failure, VaepruneError) else quoted(failure) if failure else "no sizes to try"
    raise TraceError(
        f"after the {surgery} the model no longer runs: {words}", "take the size from the weights, not from a number"
    )


def source_lines_with(network: nn.Module, size: int) -> str:
    """Where in the model's own source a size is written as a number; empty if nowhere, or there is no source."""
    found = []
    for kind in dict.fromkeys(type(m) for m in network.modules() if not type(m).__module__.startswith("torch.")):
        try:
            lines, first = inspect.getsourcelines(kind)
            file = inspect.getsourcefile(kind) or ""
        except (OSError, TypeError):
            continue
        pattern = re.compile(rf"(?<![\w.]){size}(?![\w.])")
        found += [
            f"{file.rsplit('/', 1)[-1]}:{first + i}: {line.strip()}"
            for i, line in enumerate(lines)
            if pattern.search(line)
        ]
    return "; ".join(found[:3])


def refuse_shape(found: tuple[int, ...], expected: tuple[int, ...], what: str, network: nn.Module, before: int) -> None:
    """Raise ModelError if a result of the cut model has the wrong shape, with the lines that may be at fault."""
    if found != expected:
        lines = source_lines_with(network, before)
        raise ModelError(
            f"{what} has shape {found}, expected {expected}; a size is written into the code"
            + (f", perhaps at {lines}" if lines else "")
        )
