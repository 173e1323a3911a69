"""What is served: the model, the original beside it where one was named, and what is told of their latents."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaeprune import __version__
from vaeprune.errors import UsageError
from vaeprune.service.lineage import ANALYSIS, Lineage, read_lineage
from vaeprune.service.model import OnnxModel, open_model
from vaeprune.service.own_samples import own_samples, shown_range

_lock = threading.Lock()


@dataclass(frozen=True)
class Served:
    """`constants`: of the original's latents that went, what the small network takes them for; empty without one."""

    model: OnnxModel
    lineage: Lineage
    original: OnnxModel | None = None
    constants: Mapping[int, float] | None = None

    def named(self, name: str) -> OnnxModel | None:
        """The model that a request names: "shrunk", or "original"."""
        return self.original if name == "original" else self.model

    @property
    def numbers_in_a_row(self) -> int:
        """Of the longest row that any route takes."""
        shapes = [
            shape for model in (self.model, self.original) if model for shape in (model.row_shape, model.latent_shape)
        ]
        return max(math.prod(shape) for shape in shapes)

    def describe(self) -> dict[str, Any]:
        """What `GET /model` says. Slow the first time, since samples are drawn; call it in a thread."""
        with _lock:
            return self._described

    @functools.cached_property
    def _described(self) -> dict[str, Any]:
        kl, kl_from = dict(self.lineage.kl), ANALYSIS
        low, high = 0.0, 1.0
        if not kl or self.lineage.likelihood != "bernoulli":
            samples = own_samples(self.model)
            low, high = shown_range(self.lineage.likelihood, samples)
            if not kl:
                kl = dict(zip(self.lineage.kept, samples.kl.tolist(), strict=True))
                kl_from = f"{samples.rows} samples of its own, encoded again"
        return {
            "name": self.model.folder.resolve().name,
            "version": __version__,
            "row_shape": list(self.model.row_shape),
            "latent_shape": list(self.model.latent_shape),
            "original_latent_size": self.lineage.original_size,
            "likelihood": self.lineage.likelihood,
            "shown_range": [low, high],
            "kl_from": kl_from,
            "latents": self._latents(kl),
            "against": self.original.folder.resolve().name if self.original else None,
        }

    def _latents(self, kl: Mapping[int, float]) -> list[dict[str, Any]]:
        """Every latent of the original, those that stayed first, each by descending KL."""
        places = {number: place for place, number in enumerate(self.lineage.kept)}
        latents = []
        for number in range(self.lineage.original_size):
            gone = self.lineage.removed.get(number)
            constant = None
            if gone is not None:
                constant = self.constants.get(number) if self.constants else gone.constant
            latents.append(
                {
                    "number": number,
                    "place": places.get(number),
                    "kl": kl.get(number),
                    "constant": constant,
                    "evidence": gone.evidence if gone else "",
                }
            )
        return sorted(latents, key=lambda latent: (latent["place"] is None, -(latent["kl"] or 0), latent["number"]))


def open_served(folder: Path, against: Path | None, threads: int) -> Served:
    """Load DIR and, beside it, ORIGINAL. Raises StorageError, ModelError, or UsageError where the two do not fit."""
    model = open_model(folder, threads)
    lineage = read_lineage(model)
    if against is None:
        return Served(model, lineage)
    original = open_model(against, threads)
    expected = (lineage.original_size, *model.latent_shape[1:])
    if original.row_shape != model.row_shape:
        raise UsageError(
            f"--against {against}: takes x of shape {original.row_shape}, {folder} takes {model.row_shape}",
            "name the model that it was cut from",
        )
    if original.latent_shape != expected:
        raise UsageError(
            f"--against {against}: has latents of shape {original.latent_shape}, {folder} was cut from {expected}",
            "name the model that it was cut from",
        )
    return Served(model, lineage, original, _constants(lineage, original))


def _constants(lineage: Lineage, original: OnnxModel) -> dict[int, float]:
    """From the plan; where that is not there, the mean of mu on the original's own samples."""
    constants = {number: gone.constant for number, gone in lineage.removed.items() if gone.constant is not None}
    missing = lineage.removed.keys() - constants.keys()
    if missing:
        mean = own_samples(original).mean
        constants |= {number: float(mean[number]) for number in missing}
    return constants
