"""The parts of a report that are drawn from rows and noise: reconstructions, prior samples, traversals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vaeprune.analysis import Analysis
from vaeprune.data import Batch
from vaeprune.report.pictures import (
    Compared,
    Drawn,
    Held,
    Sides,
    amplification,
    conditions,
    prior_samples,
    reconstructions,
    start_of,
    traversals,
)
from vaeprune.report.rows_seen import Seen
from vaeprune.report.strips import CELL, Strip, difference_view, strip

COLUMNS = 10
STEPS = 9
FIRST = 24  # latents whose traversals, bars and numbers stand open; the rest is folded
_FOLDED_STEPS = 7
_FOLDED_BYTES = 1_500_000
_MOST_FOLDED = 500


@dataclass(frozen=True)
class Section:
    """Strips below each other, with what is to be said of them."""

    strips: tuple[Strip, ...]
    told: str


@dataclass(frozen=True)
class Gallery:
    """All that is drawn from rows and noise. `folded`: traversals of the latents after the first."""

    reconstructions: Section
    samples: Section | None
    traversals: Section
    folded: tuple[Strip, ...] = ()


def gallery(models: Compared, view: Seen, analysis: Analysis, rows: Batch, seed: int, by_kl: Sequence[int]) -> Gallery:
    """Draw everything; `rows` to reconstruct, `by_kl`: latents in the order they are shown."""
    idle = tuple(analysis.indices("inactive")) if models.after is None else ()
    sides = Sides(models, Held(idle, tuple(analysis.latents[i].mean for i in idle)))
    what = _Words(models.after is not None)
    found = reconstructions(sides, rows)
    samples = None
    if models.after is None or models.kept is not None:
        samples = _samples(prior_samples(sides, COLUMNS, seed, conditions(rows, COLUMNS)), view, what)
    first, rest = by_kl[:FIRST], by_kl[FIRST : FIRST + _MOST_FOLDED]
    walk = _Walk(Sides(Compared(models.before)), view, analysis, *start_of(models.before, rows))
    return Gallery(
        Section(_compared(found, view, what, "reconstruction"), _told_of(found, view, what)),
        samples,
        Section(walk.strips(first, STEPS, CELL), walk.told()),
        walk.strips(rest, _FOLDED_STEPS, _cell(view, len(rest)), points=24),
    )


@dataclass(frozen=True)
class _Walk:
    """From the mean of one row's posterior, latent by latent."""

    sides: Sides
    view: Seen
    analysis: Analysis
    start: Tensor
    condition: list[Tensor]

    def told(self) -> str:
        maps = ", moved by that much at all its places" if self.start.dim() > 2 else ""
        return (
            f"One row of the data, its latents at their means; in each strip one latent alone goes from −3 to 3 in "
            f"{STEPS} steps{maps}. Beside its number: how far the output moves, RMS, as a share of its range. An idle "
            "latent's strip does not move."
        )

    def strips(self, latents: Sequence[int], steps: int, cell: int, points: int = 80) -> tuple[Strip, ...]:
        made = []
        for found in traversals(self.sides, self.start, latents, steps, self.condition):
            moves = f"{found.moves / self.view.span():.1%}"
            alt = f"what the decoder gives while latent {found.latent} goes from -3 to 3: it moves by {moves}"
            label = f"{found.latent} {self.analysis.latents[found.latent].verdict} {moves}"
            made.append(strip(self.view, found.before, label, alt, f"traversal{found.latent}", cell, points))
        return tuple(made)


@dataclass(frozen=True)
class _Words:
    """How the two sides of a comparison are called."""

    cut: bool

    @property
    def before(self) -> str:
        return "before" if self.cut else "model"

    @property
    def after(self) -> str:
        return "after" if self.cut else "idle held"


def _compared(drawn: Drawn, view: Seen, what: _Words, kind: str) -> tuple[Strip, ...]:
    count = len(drawn.before)
    strips = []
    if drawn.original is not None:
        strips.append(
            strip(view, drawn.original, "original", f"{count} rows of the data, as they are", f"{kind}-original")
        )
    told = f"{count} {kind}s by the model{' before the cut' if what.cut else ''}"
    strips.append(strip(view, drawn.before, what.before, told, f"{kind}-before"))
    if drawn.after is None or drawn.difference is None:
        return tuple(strips)
    other = "by the model after the cut" if what.cut else "with the idle latents held at their means"
    strips.append(strip(view, drawn.after, what.after, f"{count} {kind}s {other}", f"{kind}-after"))
    factor = amplification(drawn.difference, view.span())
    told = f"the absolute difference of the two, {factor} times as large; the largest is {drawn.difference.max():.3g}"
    label = f"difference × {factor}"
    strips.append(strip(difference_view(view, factor), drawn.difference, label, told, f"{kind}-difference"))
    return tuple(strips)


def _told_of(drawn: Drawn, view: Seen, what: _Words) -> str:
    """The difference in figures."""
    if drawn.difference is None:
        return "Each row is decoded from the mean of its posterior." if drawn.original is not None else ""
    largest, rms = float(drawn.difference.max()), math.sqrt(float(drawn.difference.square().mean()))
    sides = "before and after" if what.cut else "with and without the idle latents"
    return (
        f"The outputs {sides} differ by {largest:.3g} at most and {rms:.2g} RMS, on a range from {view.low:g} to "
        f"{view.high:g}."
    )


def _samples(drawn: Drawn, view: Seen, what: _Words) -> Section:
    start = "Decoded from the same noise z ~ N(0, I) in both (Asperti, Fig. 4). " if drawn.after is not None else ""
    return Section(_compared(drawn, view, what, "sample"), start + _told_of(drawn, view, what))


def _cell(view: Seen, count: int) -> int:
    """Pixels for a picture's longer side so that `count` folded strips stay within their share of the file."""
    if not view.is_picture or not count:
        return CELL
    channels, height, width = view.shape
    side = (
        math.sqrt(_FOLDED_BYTES / (count * _FOLDED_STEPS * channels)) * max(height, width) / math.sqrt(height * width)
    )
    return max(8, min(48, int(side)))
