"""Which layer has to stay whole, because as two it rounds more than the exact check allows.

Two products instead of one round twice. Where a network's outputs hang on small differences of large numbers (logits of
hundreds, say), that can be more than float32 has digits for.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vaeprune.adapters import element_type, measuring
from vaeprune.data import Rows
from vaeprune.posterior import VAE
from vaeprune.surgery.cut import cut_any_weights
from vaeprune.surgery.observing import passes
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.reference import EXACT_TOLERANCE, Agreement, Reference

_SHARE = 0.7  # of what the exact check allows: it looks at other rows, and at what was cut before


def pair_that_rounds(vae: VAE, made: Plan, rows: Rows) -> str | None:
    """The path of the layer that had better not become two, None if all is well.

    Of those without which all is well it is the one that saves the fewest weights; where there is none, the one without
    which the least is rounded.
    """
    limit = _SHARE * EXACT_TOLERANCE[element_type(vae)[0]]
    if not made.factors or rounding(vae, made, rows) <= limit:
        return None
    left = {}
    for path in sorted(made.factors, key=lambda path: _saved(*made.factors[path])):
        left[path] = rounding(vae, _with_whole(made, path), rows)
        if left[path] <= limit:
            return path
    return min(left, key=lambda path: left[path])


def rounding(vae: VAE, made: Plan, rows: Rows) -> float:
    """Largest relative difference between what `made` leads to and the reference; it takes out no latents."""
    smaller, reference, found = cut_any_weights(vae, made), Reference(vae, made), Agreement()
    with measuring(vae, smaller):
        for inputs in passes(vae, rows, seed=1):
            condition = inputs.x[1:]
            held, posterior = reference.encode(*inputs.x), smaller.encode(*inputs.x)
            found.see("mean", held.mean, posterior.mean)
            found.see("logvar", held.logvar, posterior.logvar)
            for name, z in zip(("posterior", "prior"), inputs.latents(held), strict=True):
                found.see(name, reference.decode(z, *condition), smaller.decode(z, *condition))
    return found.largest()[1]


def _saved(down: Tensor, up: Tensor) -> int:
    """How many weights fewer the two layers have than the one."""
    whole = down.numel() // up.shape[1] * up.shape[0]
    return whole - down.numel() - up.numel()


def _with_whole(made: Plan, path: str) -> Plan:
    """The same plan, but one layer stays one: its weight is the product of the two."""
    return replace(made, factors={other: pair for other, pair in made.factors.items() if other != path})
