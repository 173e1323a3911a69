"""Where a served model's latents come from: their numbers in the original, what went, and what is known of each.

Read from what `shrink` wrote beside the ONNX files, else from the files' own metadata; where neither is there, the
model is taken for its own original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeprune.errors import StorageError
from vaeprune.json_files import read_json
from vaeprune.service.model import OnnxModel

# as the modules that write them name them, but importing those would load torch
PLAN, CONFIG, ANALYSIS = "plan.json", "config.json", "analysis.json"
_RESTORE = "restore the folder from its source"


@dataclass(frozen=True)
class Removed:
    """A latent of the original that went. `constant`: what the network takes it for, where that is known."""

    constant: float | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Lineage:
    """`kept`: the original's number of each latent, in order; `removed` by number; `kl` by number, nats per row."""

    original_size: int
    kept: tuple[int, ...]
    removed: Mapping[int, Removed] = field(default_factory=dict)
    kl: Mapping[int, float] = field(default_factory=dict)
    likelihood: str | None = None


def read_lineage(model: OnnxModel) -> Lineage:
    """What the folder tells of its latents. Raises StorageError where it is damaged or contradicts the ONNX files."""
    folder, size = model.folder, model.latent_size
    config = _object(folder / CONFIG, "model's config")
    plan = _object(folder / PLAN, "plan")
    try:
        kept, original_size, source = _kept(plan, config, model, size)
        removed = {i: Removed() for i in range(original_size) if i not in kept}
        removed |= {
            int(r["latent"]): Removed(float(r["constant"]), f"{r['verdict']}: {r['evidence']}"[:200])
            for r in (plan or {}).get("removals", ())
        }
        kl = _kl(_object(folder / ANALYSIS, "analysis"), original_size)
        likelihood = _likelihood(config, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = str(error) or type(error).__name__
        raise StorageError(f"{folder}: what it tells of its latents cannot be read: {what:.200}", _RESTORE) from error
    sound = sorted({*kept, *removed}) == list(range(original_size)) and list(kept) == sorted(set(kept))
    if len(kept) != size or not sound or len(kept) + len(removed) != original_size:
        raise StorageError(
            f"{source}: keeps the latents {list(kept)!s:.100} of {original_size}, but decoder.onnx takes {size}",
            _RESTORE,
        )
    return Lineage(original_size, kept, removed, kl, likelihood)


def _kept(
    plan: dict[str, Any] | None, config: dict[str, Any] | None, model: OnnxModel, size: int
) -> tuple[tuple[int, ...], int, str]:
    """The kept latents, how many there were, and who says so."""
    shrunk = (config or {}).get("shrunk")
    if plan is not None:
        return _integers(plan["kept_latents"]), int(plan["latent_size"]["before"]), str(model.folder / PLAN)
    if shrunk is not None:
        return _integers(shrunk["kept_latents"]), int(shrunk["latent_size"]), str(model.folder / CONFIG)
    metadata = model.metadata
    if "vaeprune.kept_latents" in metadata:
        kept = _integers(json.loads(metadata["vaeprune.kept_latents"]))
        before = int(metadata.get("vaeprune.original_latent_size", max(kept, default=-1) + 1))
        return kept, before, f"{model.decoder.path}: its metadata"
    return tuple(range(size)), size, str(model.folder)


def _kl(analysis: dict[str, Any] | None, original_size: int) -> dict[int, float]:
    if analysis is None:
        return {}
    kl = {int(latent["index"]): float(latent["kl"]) for latent in analysis["latents"]}
    if sorted(kl) != list(range(original_size)):
        raise ValueError(f"{ANALYSIS} is of {len(kl)} latents, the original had {original_size}")
    return kl


def _likelihood(config: dict[str, Any] | None, model: OnnxModel) -> str | None:
    entry = (config or {}).get("likelihood") or json.loads(model.metadata.get("vaeprune.likelihood", "null"))
    return None if entry is None else str(entry["kind"])


def _object(path: Path, what: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file."""
    if not path.is_file():
        return None
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise StorageError(f"{path}: is not the {what}, expected a JSON object", _RESTORE)
    return value


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"kept latents are {values!r:.80}, expected a list of whole numbers")
    return tuple(values)
