"""What a smaller model must compute: the original at full size, with all that a plan removes held at its constants."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vaeprune.posterior import VAE, Posterior
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Subject, Watcher
from vaeprune.surgery.sites import Site


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
