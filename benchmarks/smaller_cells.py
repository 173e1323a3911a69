"""One cell of the table of smaller networks: ours, Torch-Pruning's, or one trained from scratch."""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import vaeprune
from benchmarks.structured_pruning import IMPORTANCES, pruned_to
from benchmarks.trained_networks import Network, held_out
from vaeprune import cut, shrink
from vaeprune.adapters import AdaptedVAE
from vaeprune.architectures import BuiltVAE, build, initialise
from vaeprune.data import MemoryRows, open_data
from vaeprune.errors import VerificationFailed
from vaeprune.posterior import count_weights
from vaeprune.recovery import in_memory, recover
from vaeprune.training import train
from vaeprune.verification import elbo_difference

EPOCHS = 2
PRUNED, SCRATCH = "torch-pruning", "from scratch"
# what decides how small a network gets; a change of the rest leaves the kept results as they are
_DECIDING = ("surgery", "analysis", "shrinking.py", "recovering.py", "recovery.py", "verification.py")


@dataclass(frozen=True)
class Column:
    """One way to call `shrink`; `opponents`: who else is measured at the same number of weights."""

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    opponents: tuple[str, ...] = ()

    @property
    def recovered(self) -> bool:
        """Whether the smaller network is trained after the cut."""
        return "recover_epochs" in self.options


_ALL = (
    Column("exact"),
    Column("0.1 nat", {"budget": 0.1}),
    Column("1 nat", {"budget": 1.0}, (PRUNED, SCRATCH)),
    Column("1 nat, two epochs", {"budget": 1.0, "recover_epochs": EPOCHS, "fair": True}, (PRUNED,)),
    Column("1 nat factorized", {"budget": 1.0, "factorize": True}),
)
COLUMNS = tuple(column for column in _ALL if set(column.options) <= set(inspect.signature(shrink).parameters))


def _library() -> str:
    home = Path(vaeprune.__file__).parent
    files = sorted(f for name in _DECIDING for f in (home / name, *(home / name).glob("*.py")) if f.suffix == ".py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


LIBRARY = _library()  # as imported: a hash of the sources that decide how small a network gets


class Bench:
    """A trained network and its rows. Raises DataError where its data are not to be had."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sets = open_data(network.recipe.data)
        self.model = network.model()
        self.rows = held_out(self.sets)
        self.training = network.recipe.to_json()

    @functools.cached_property
    def trained_on(self) -> BuiltVAE:
        """The original after as many epochs as a recovered network has."""
        return self._recovered(self.model)

    def ours(self, column: Column) -> dict[str, Any]:
        """What `shrink` makes of the network; where it refuses to hand it back, `refused` says which gate it missed."""
        start, refused = time.perf_counter(), ""
        try:
            found = shrink(self.model, self.sets, scope="network", **column.options)
            smaller = found.model or self.model
        except VerificationFailed as error:
            found = error.result
            refused = ", ".join(f"{g.name} {g.measured:.3g} > {g.limit:g}" for g in error.evidence.failed_gates)
            assert found.plan
            smaller = cut(self.model, found.plan)
            smaller = self._recovered(smaller) if column.recovered else smaller
        latents = list(found.plan.kept_latents if found.plan else range(self.model.latent_size))
        entry = self._entry(column, smaller, torch.tensor(latents), start)
        assert isinstance(smaller, BuiltVAE)
        return entry | {
            "architecture": smaller.architecture(),
            "kept_latents": latents,
            "notes": list(found.notes),
            "refused": refused,
        }

    def torch_pruning(self, column: Column, ours: dict[str, Any]) -> dict[str, Any]:
        """The better of its importances, from our model without its idle latents."""
        start = time.perf_counter()
        base, latents = self._without_idle_latents
        tried = []
        for importance in IMPORTANCES:
            smaller = pruned_to(base, ours["weights"], importance, self._calibrate)
            final = self._recovered(smaller) if column.recovered else smaller
            entry = self._entry(column, final, latents, start)
            tried.append(entry | {"importance": importance, "architecture": smaller.architecture()})
        best = min(tried, key=lambda entry: entry["loss"])
        losses = {entry["importance"]: entry["loss"] for entry in tried}
        return best | {"seconds": time.perf_counter() - start, "losses": losses}

    def from_scratch(self, column: Column, ours: dict[str, Any]) -> dict[str, Any]:
        """A network of the same widths as ours, trained by the one setting of all networks."""
        start = time.perf_counter()
        smaller = build(ours["architecture"], self.model.likelihood)
        initialise(smaller, "glorot", self.network.recipe.seed)
        final = train(smaller, self._calibrate, replace(self.network.recipe.options(), trace_every=0)).vae
        return self._entry(column, final, None, start)  # its latents are its own, and so is its noise

    def _entry(
        self, column: Column, smaller: BuiltVAE | AdaptedVAE, latents: torch.Tensor | None, start: float
    ) -> dict[str, Any]:
        reference = self.trained_on if column.recovered else self.model
        loss = elbo_difference(reference, smaller, self.rows, latents)
        return {
            "weights": count_weights(smaller),
            "times": count_weights(self.model) / count_weights(smaller),
            "loss": loss.elbo_difference,
            "ci95": list(loss.ci95),
            "seconds": time.perf_counter() - start,
        }

    @functools.cached_property
    def _without_idle_latents(self) -> tuple[BuiltVAE, torch.Tensor]:
        found = shrink(self.model, self.sets, scope="latents")
        if found.plan is None:
            return self.model, torch.arange(self.model.latent_size)
        return cut(self.model, found.plan), torch.tensor(found.plan.kept_latents)

    @functools.cached_property
    def _calibrate(self) -> MemoryRows:
        return in_memory(self.sets.calibrate, torch.float32)

    def _recovered(self, model: BuiltVAE) -> BuiltVAE:
        return recover(model, self.sets, EPOCHS, training=self.training)
