"""Sheets of pictures in a file of their own: panels of rows, or of what a model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from vaeprune.adapters import measuring
from vaeprune.analysis.analysis import Progress, accumulate
from vaeprune.analysis.latents import Thresholds, latents_of
from vaeprune.analysis.trials import tried
from vaeprune.data import DataSets
from vaeprune.posterior import VAE
from vaeprune.report.drawing import png_of
from vaeprune.report.pictures import Drawn, Sides, Traversal, amplification
from vaeprune.report.rows_seen import Pixels, Seen
from vaeprune.report.strips import DOTS, difference_view, lines, png
from vaeprune.storage import new_file

_GROUND = 205
_GUTTER = 6
_LEAST_WIDTH = 900
_LINE_POINTS = 160


@dataclass(frozen=True, eq=False)
class Sheet:
    """A sheet ready to be written. `pixels` (H, W, 3) is empty where rows are no pictures; `said` tells so.

    `panels`: what stands where, from left to right or, of reconstructions, from top to bottom. `largest`: the largest
    difference between the two sides in data units, None without another side; `factor`: how often it is enlarged.
    """

    png: bytes
    panels: tuple[str, ...]
    largest: float | None = None
    factor: int | None = None
    said: str = ""
    pixels: Pixels = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))

    def write(self, out: Path, force: bool = False) -> None:
        """Write the PNG, whole or not at all. Raises StorageError if `out` exists and `force` is false."""
        with new_file(out, force) as file:
            file.write_bytes(self.png)


def idle_latents(vae: VAE, sets: DataSets, progress: Progress | None = None) -> tuple[int, ...]:
    """The latents that `analyze` calls inactive."""
    with measuring(vae):
        moments = accumulate(vae, sets.calibrate, progress)
        latents, _ = tried(vae, sets, moments, latents_of(moments), "candidates", Thresholds(), progress)
    return tuple(latent.index for latent in latents if latent.verdict == "inactive")


def samples_sheet(drawn: Drawn, sides: Sides, view: Seen, columns: int) -> Sheet:
    """Each side's samples as a panel, `columns` in a row, and their difference as a third."""
    groups = [[part[i : i + columns] for i in range(0, len(part), columns)] for part in _parts(drawn)]
    return _panels([drawn], groups, sides, view)


def traversals_sheet(found: Sequence[Traversal], sides: Sides, view: Seen) -> Sheet:
    """A row for each latent, a panel for each side, and their difference as a third."""
    parts = [_parts(traversal) for traversal in found]
    groups = [[part[side] for part in parts] for side in range(len(parts[0]))]
    return _panels(found, groups, sides, view)


def reconstructions_sheet(drawn: Drawn, sides: Sides, view: Seen, columns: int) -> Sheet:
    """Below each other: rows, what each side makes of them, and the difference; then the next `columns` rows."""
    assert drawn.original is not None  # noqa: S101  what `reconstructions` gives
    parts, (names, largest, factor, views) = _parts(drawn), _told([drawn], sides, view)
    parts, views = [drawn.original, *parts], [view, *views]
    names = ("original", *names)
    count = len(drawn.original)
    at = [(part[i : i + columns], v) for i in range(0, count, columns) for part, v in zip(parts, views, strict=True)]
    if not view.is_picture:
        return Sheet(_lines([[pair] for pair in at]), names, largest, factor, view.said)
    pixels = _enlarged(np.concatenate([_row(v.pixels(part), columns) for part, v in at]))
    return Sheet(png(pixels), names, largest, factor, view.said, pixels)


def _parts(drawn: Drawn) -> list[Tensor]:
    return [part for part in (drawn.before, drawn.after, drawn.difference) if part is not None]


def _told(
    found: Sequence[Drawn], sides: Sides, view: Seen
) -> tuple[tuple[str, ...], float | None, int | None, list[Seen]]:
    """Names of the parts, the largest difference, how often it is enlarged, and how each part is seen."""
    names = sides.names()
    differences = [drawn.difference for drawn in found]
    known = [difference for difference in differences if difference is not None]
    if not known:
        return names, None, None, [view]
    largest = max(float(difference.max()) for difference in known)
    factor = min(amplification(difference, view.span()) for difference in known if float(difference.max()) == largest)
    return (*names, f"difference x {factor}"), largest, factor, [view, view, difference_view(view, factor)]


def _panels(found: Sequence[Drawn], groups: Sequence[Sequence[Tensor]], sides: Sides, view: Seen) -> Sheet:
    """`groups`: for each panel its rows of cells."""
    names, largest, factor, views = _told(found, sides, view)
    columns = max(len(row) for row in groups[0])
    if not view.is_picture:
        rows = [[(group[r], v) for group, v in zip(groups, views, strict=True)] for r in range(len(groups[0]))]
        return Sheet(_lines(rows), names, largest, factor, view.said)
    made = [
        np.concatenate([_row(v.pixels(row), columns) for row in rows]) for rows, v in zip(groups, views, strict=True)
    ]
    gutter = np.full((made[0].shape[0], _GUTTER, 3), _GROUND, np.uint8)
    pixels = _enlarged(np.concatenate([part for panel in made for part in (panel, gutter)][:-1], axis=1))
    return Sheet(png(pixels), names, largest, factor, view.said, pixels)


def _lines(rows: Sequence[Sequence[tuple[Tensor, Seen]]]) -> bytes:
    """Rows of cells as lines between 0 and 1, since a difference has another scale than what it is one of."""
    unit = Seen(rows[0][0][1].shape, 0.0, 1.0)
    scaled = [np.concatenate([((v.rows(part) - v.low) / v.span()).numpy() for part, v in row]) for row in rows]
    return png_of(lines(unit, scaled, _LINE_POINTS), DOTS)


def _row(pixels: Pixels, columns: int, gap: int = 1) -> Pixels:
    """Pictures (N, H, W, C) beside each other in colour on light grey, as wide as `columns` of them."""
    count, height, width, _ = pixels.shape
    colour = pixels if pixels.shape[3] == 3 else pixels.repeat(3, 3)
    sheet = np.full((height + gap, columns * (width + gap), 3), _GROUND, np.uint8)
    for i in range(count):
        sheet[:height, i * (width + gap) : i * (width + gap) + width] = colour[i]
    return sheet


def _enlarged(sheet: Pixels) -> Pixels:
    """By a whole factor, until it is wide enough to be looked at."""
    factor = max(1, -(-_LEAST_WIDTH // sheet.shape[1]))
    return sheet.repeat(factor, 0).repeat(factor, 1)
