"""From matplotlib's figures to SVG that stands inside a page and takes its colours from the page's scheme.

A figure is drawn in stand-in colours, which become CSS variables. The bytes depend on what is drawn alone.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#010101", "#010102", "#010103"
COLOURS = {"active": "#010104", "inactive": "#010105", "mixed": "#010106"}
MARKERS = {"active": "o", "inactive": "s", "mixed": "^"}
ZONES = {"active": "#010107", "inactive": "#010108"}
BEFORE, AFTER = "#010109", "#01010a"
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", FAINT: "--faint", COLOURS["active"]: "--active",
    COLOURS["inactive"]: "--inactive", COLOURS["mixed"]: "--mixed", ZONES["active"]: "--zone-active",
    ZONES["inactive"]: "--zone-inactive", BEFORE: "--before", AFTER: "--after",
}  # fmt: skip
_LIGHT = {FAINT: "#d8dce2", BEFORE: "#0a6aa8"}
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "vaeprune", "path.simplify": True}
_NOTHING_ELSE = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Plot:
    """An SVG element, and in words what it shows, for those who cannot see it."""

    svg: str
    alt: str


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches, laid out so that nothing is cut off."""
    return Figure(figsize=(width, height), layout="constrained")


def styled(axes: Axes, grid: str = "") -> Axes:
    """Axes in the page's ink; `grid`: "x", "y" or "both", or none."""
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.xaxis.label.set(color=INK, size=9.5)
    axes.yaxis.label.set(color=INK, size=9.5)
    axes.title.set(color=INK, size=10.5)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    return axes


def svg_of(drawn: Figure, name: str) -> str:
    """The figure as an SVG element; `name` keeps its ids apart from those of other figures on the page."""
    room = io.StringIO()
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        drawn.savefig(room, format="svg", transparent=True, metadata=_NOTHING_ELSE)
    text = room.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r"(id=\"|href=\"#|url\(#)", rf"\g<1>{name}-", text)
    text = re.sub(r"font(-family)?: (?=[^;\"]*'DejaVu)[^;\"]*", _sized, text)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"", r"\g<1>", text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


def png_of(drawn: Figure, scale: float) -> bytes:
    """A figure of lines as PNG, as on a light page, `scale` pixels for an inch."""
    room = io.BytesIO()
    for part in drawn.findobj(LineCollection):
        part.set_color([_LIGHT.get(to_hex(colour), INK) for colour in part.get_colors()])  # type: ignore[arg-type]
    drawn.savefig(room, format="png", dpi=scale, facecolor="white", metadata={"Software": None})
    return room.getvalue()


def _sized(found: re.Match[str]) -> str:
    """The page's own fonts: of matplotlib's font only the size stays."""
    size = re.search(r"[\d.]+px", found.group(0))
    return f"font-size: {size.group(0)}" if size and not found.group(1) else "font-family: inherit"
