"""A small picture in the terminal, two pixels to a character; nothing where the terminal cannot show it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .output import stdout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UPPER_HALF = "▀"
_MOST_LINES = 24


def can_preview() -> bool:
    """Whether stdout is a terminal of many colours that can show half blocks."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return False
    try:
        _UPPER_HALF.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return stdout().color_system in ("truecolor", "256")


def preview(pixels: NDArray[np.uint8]) -> None:
    """Show a picture (H, W, 3), made smaller until it fits; call it only where `can_preview`."""
    from PIL import Image
    from rich.color import Color
    from rich.segment import Segment, Segments
    from rich.style import Style

    console = stdout()
    height, width = pixels.shape[:2]
    share = min(1.0, (console.width - 1) / width, 2 * _MOST_LINES / height)
    size = (max(1, round(width * share)), 2 * max(1, round(height * share / 2)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    segments: list[Segment] = []
    for y in range(0, size[1], 2):
        for x in range(size[0]):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y + dy))) for dy in (0, 1))  # type: ignore[misc]
            segments.append(Segment(_UPPER_HALF, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    console.print(Segments(segments), end="")
