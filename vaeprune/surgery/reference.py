"""What a smaller model must compute: the original at full size, with all that a plan removes held at its constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vaeprune.errors import ModelError
from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.sites import Site
from vaeprune.surgery.watching import Watcher

# largest difference that rounding may cause, as a share of the largest value of the same tensor
EXACT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class Reference:
    """The original, whose weights read removed channels as the plan's constants; nothing is sliced.

    Least-squares changes are made to the weights that stay. `model` itself is not changed.
    """

    def __init__(self, model: VAE, plan: Plan) -> None:
        self._subject = Subject(model, double=False)
        self._plan = plan
        self._kept = torch.tensor(plan.kept_latents)
        self._holding = Holding(plan.held)
        with torch.no_grad():
            self._refit()

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """The posterior of the kept latents, mean and logvar (B, kept)."""
        posterior: Posterior = self._subject.run(lambda vae: vae.encode(x, *condition), self._holding)
        return Posterior(posterior.mean[:, self._kept], posterior.logvar[:, self._kept])

    def decode(self, z: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z] for z (B, D) of the original, whose removed latents are replaced by their constants."""
        z = z.clone()
        for removal in self._plan.removals:
            z[:, removal.latent] = removal.constant
        found: Tensor = self._subject.run(lambda vae: vae.decode(z, *condition), self._holding)
        return found

    def _refit(self) -> None:
        kept: dict[str, dict[int, Tensor]] = {}
        for part in self._plan.slices:
            kept.setdefault(part.key, {})[part.axis] = torch.tensor(part.kept)
        done: set[int] = set()
        for key, change in self._plan.refits.items():
            tensor = self._subject.weight(key)
            if id(tensor) in done:  # tied to one that was changed under another key
                continue
            done.add(id(tensor))
            axes = [kept.get(key, {}).get(axis, torch.arange(size)) for axis, size in enumerate(tensor.shape)]
            at = torch.meshgrid(*axes, indexing="ij")
            tensor[at] = (tensor[at].double() + change.to(tensor.device)).to(tensor.dtype)


class Holding(Watcher):
    """Gives every weight, in place of its removed input channels, the constants they are taken for."""

    def __init__(self, held: Mapping[tuple[str, int], Tensor]) -> None:
        self._held = held

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Replace the columns that are held."""
        constants = self._held.get((site.key, site.input_axis))
        if constants is None:
            return value
        gone = ~constants.isnan()
        moved = value.movedim(site.operand_dim, -1)
        values = constants.nan_to_num().to(moved)
        return torch.where(gone.to(moved.device), values, moved).movedim(-1, site.operand_dim)


class Agreement:
    """The largest differences between tensors that must be the same but for rounding, batch by batch."""

    def __init__(self) -> None:
        self._scale: dict[str, float] = {}
        self._difference: dict[str, float] = {}

    def see(self, name: str, reference: Tensor, found: Tensor) -> None:
        """One batch of a named tensor. Raises ModelError if the shapes differ."""
        if reference.shape != found.shape:
            raise ModelError(
                f"smaller model: {name} has shape {tuple(found.shape[1:])}, expected {tuple(reference.shape[1:])}"
            )
        difference = (reference.double() - found.double()).abs().max().item()
        self._difference[name] = larger(self._difference.get(name, 0.0), difference)
        self._scale[name] = larger(self._scale.get(name, 0.0), reference.abs().max().item())

    def merge(self, other: Agreement) -> None:
        """Take in what another one saw."""
        for name, scale in other._scale.items():
            self._scale[name] = larger(self._scale.get(name, 0.0), scale)
            self._difference[name] = larger(self._difference.get(name, 0.0), other._difference[name])

    def largest(self) -> tuple[float, float]:
        """The largest absolute difference, and the largest as a share of its tensor's largest value; NaN wins."""
        absolute = relative = 0.0
        for name, scale in self._scale.items():
            absolute = larger(absolute, self._difference[name])
            relative = larger(relative, self._difference[name] / max(scale, 1e-30))
        return absolute, relative


def larger(a: float, b: float) -> float:
    """The larger of two; NaN wins, so that it reaches a gate."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
