"""Who cuts two latents right out of small VAEs of many shapes, who is silently wrong, who raises: beside Torch-Pruning.

Asked for: ours all right or refused, none silently wrong. The same judge for both, in float64: kept means and logvars
as they were, and decode(kept z) what the original decodes with the removed latents held at a constant.
Ours folds the constants E[mu] and is held to them. Torch-Pruning folds nothing, so it is judged twice: with the same
constants, and with the removed latents held at 0. It is used in each of the ways its documentation leaves open
(`torch_pruning_ways`) and the best one counts (at 0); in the last column, how many of the ways
ran and were wrong even so.
"""

from __future__ import annotations

import copy
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.tracer_models import CLASSES, HEAD_MODELS, IDLE_MEAN, LATENTS, READER_MODELS, Tiny, planted
from benchmarks.tracer_opponent import torch_pruning_ways
from benchmarks.tracer_paths import MAP_MODELS, PATH_MODELS
from vaeprune import adapt, analyze, cut, plan
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource
from vaeprune.errors import ModelError, PlanError, TraceError

TOLERANCE = 1e-8
_ORDER = ("right", "raises", "WRONG")


@dataclass(frozen=True)
class Outcome:
    """What came of a cut: "right", "WRONG" (it runs, values are off by `error` of the largest), "refused", "raises"."""

    kind: str
    error: float = 0.0
    words: str = ""

    def __str__(self) -> str:
        if self.kind == "WRONG":
            return "WRONG, other size" if math.isinf(self.error) else f"WRONG, off by {self.error:.2g}"
        return f"{self.kind}: {self.words}" if self.words else self.kind


def inputs(model: Tiny, count: int) -> tuple[Tensor, ...]:
    """Rows on [0, 1], and one-hot classes where the model wants them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *model.input_shape, generator=generator, dtype=torch.float64)
    classes = torch.eye(CLASSES, dtype=torch.float64)[torch.arange(count) % CLASSES]
    return (x, classes) if model.classes else (x,)


def judged(model: Tiny, smaller: nn.Module, constants: Mapping[int, float]) -> Outcome:
    """Compare values. A smaller model whose own forward fails has raised; one that runs is right or silently wrong."""
    x, *condition = inputs(model, 40)
    z = 1.5 * torch.randn(40, *model.latent_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for latent, constant in constants.items():
        z[:, latent] = constant
    kept = [i for i in range(LATENTS) if i not in constants]
    with torch.no_grad():
        try:
            smaller(x, *condition)
        except Exception as error:  # noqa: BLE001  whatever it is, the user sees it
            return Outcome("raises", words=_first_words(error))
        try:
            mean, logvar = model.encode(x, *condition)
            references = (mean[:, kept], logvar[:, kept], model.decode(z, *condition))
            found = (*smaller.encode(x, *condition), smaller.decode(z[:, kept], *condition))
        except Exception:  # noqa: BLE001  forward runs, with another number of latents than asked for
            return Outcome("WRONG", math.inf)
    error = max(_relative(a, b) for a, b in zip(references, found, strict=True))
    return Outcome("right" if error <= TOLERANCE else "WRONG", error)


def _relative(reference: Tensor, found: Tensor) -> float:
    if reference.shape != found.shape:
        return math.inf
    error = ((found - reference).abs().max() / reference.abs().max()).item()
    return math.inf if math.isnan(error) else error


def ours(model: Tiny) -> tuple[Outcome, dict[int, float]]:
    """The outcome, and the constants of the plan."""
    rows = inputs(model, 300)
    data = part("rows", MemorySource("rows", *rows), None, seed=0, rows=None)
    constants = dict.fromkeys(model.idle, IDLE_MEAN)
    others = sorted(set(range(LATENTS)) - set(model.idle))
    try:
        adapted = adapt(model, data)
        analysis = analyze(adapted, data, ablate="none")
        made = plan(adapted, analysis, data, remove=model.idle, keep=others)
        smaller = cut(adapted, made).network
    except (TraceError, ModelError, PlanError) as error:
        return Outcome("refused", words=error.message), constants
    except Exception as error:  # noqa: BLE001  anything but a refusal is a bug, and is shown
        return Outcome("raises", words=_first_words(error)), constants
    constants = {removal.latent: removal.constant for removal in made.removals}
    return judged(model, smaller, constants), constants


def theirs(model: Tiny, constants: Mapping[int, float]) -> tuple[Outcome, Outcome, str]:
    """The best way, judged with the constants folded and with the removed latents at 0; how many are wrong at 0."""
    tried = [
        [_tried(model, way, held) for held in (dict.fromkeys(constants, 0.0), constants)]
        for way in torch_pruning_ways(model, inputs(model, 2))
    ]
    best = min(tried, key=lambda pair: [(_ORDER.index(outcome.kind), outcome.error) for outcome in pair])
    wrong = sum(at_zero.kind == "WRONG" for at_zero, _ in tried)
    return best[1], best[0], f"{wrong} of {len(tried)}"


def _tried(model: Tiny, way: Callable[[Tiny], None], held: Mapping[int, float]) -> Outcome:
    smaller = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way(smaller)
    except Exception as error:  # noqa: BLE001  that it raises is the finding
        return Outcome("raises", words=_first_words(error))
    return judged(model, smaller.eval(), held)


def _first_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def main() -> None:
    try:
        version = importlib.metadata.version("torch-pruning")  # the package's own __version__ lags behind
    except importlib.metadata.PackageNotFoundError:
        print("left out: pip install torch-pruning")
        return
    table = Table("shape", "ours", "Torch-Pruning", "removed at 0", "wrong ways")
    columns: list[list[Outcome]] = [[], [], []]
    for kind in (*HEAD_MODELS, *READER_MODELS, *PATH_MODELS, *MAP_MODELS):
        model = planted(kind)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        mine, constants = ours(model)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        folded, at_zero, ways = theirs(model, constants)
        for column, outcome in zip(columns, (mine, folded, at_zero), strict=True):
            column.append(outcome)
        constant = f" at {max(constants.values()):.1g}" if mine.kind == "right" else ""
        table.add_row(kind.title, _short(mine) + constant, _short(folded), _short(at_zero), ways)
    # a fixed width, so that a table in a log is the one on a terminal; markup would eat the brackets in messages
    Console(width=180, markup=False).print(table)
    _print_counts(columns, version)


def _print_counts(columns: list[list[Outcome]], version: str) -> None:
    def counted(column: list[Outcome], kind: str) -> int:
        return sum(outcome.kind == kind for outcome in column)

    mine, *others = columns
    print(
        f"ours: {counted(mine, 'right')} right, {counted(mine, 'refused')} refused, {counted(mine, 'WRONG')} silently "
        f"wrong, {counted(mine, 'raises')} raise; asked for: all of {len(mine)} right or refused, none silently wrong"
    )
    errors = [outcome.error for outcome in mine if outcome.kind == "right"]
    print(f"largest relative error of ours: {max(errors, default=math.nan):.2g}; asked for: <= 1e-10 in float64")
    for name, column in zip(("constants folded", "removed latents at 0"), others, strict=True):
        counts = ", ".join(f"{counted(column, kind)} {kind}" for kind in _ORDER)
        print(f"Torch-Pruning {version}, {name}, its best way: {counts}")


def _short(outcome: Outcome, width: int = 62) -> str:
    words = str(outcome)
    return words if len(words) <= width else words[: width - 1] + "…"
