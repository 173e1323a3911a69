"""The plots of a report, drawn by matplotlib: each an SVG element with a sentence that says what is to be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vaeprune.analysis import Analysis
from vaeprune.analysis.latents import Latent
from vaeprune.report.drawing import COLOURS, INK, MARKERS, MUTED, ZONES, Plot, figure, styled, svg_of
from vaeprune.training import History

VERDICTS = ("active", "mixed", "inactive")
_NAMED = 40  # with more latents, numbers beside the points would hide them
_LEAST_VARIANCE = 1e-7
_LEAST_REACH = 0.05  # nats: shorter bars are not blown up
_POINTER = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}


def scatter(analysis: Analysis) -> Plot:
    """Var mu against E sigma² with 95% intervals, and where the limits of the verdicts run (Asperti, Table I)."""
    drawn = figure(5.2, 4.4)
    axes = styled(drawn.add_subplot())
    limits, latents = analysis.thresholds, analysis.latents
    variances = [max(latent.variance, _LEAST_VARIANCE) for latent in latents]
    low = min(*variances, limits.variance) / 4
    high = max(*variances, limits.variance, 1.0) * 4
    top = max(1.15, *(latent.posterior_variance_ci95[1] for latent in latents)) + 0.02
    axes.set(xscale="log", xlim=(low, high), ylim=(-0.16, top), xlabel="Var μ: how far its mean moves over the data")
    axes.set_ylabel("E σ²: how little its posterior knows (1: the prior)")
    idle = (low, limits.posterior_variance)
    axes.add_patch(Rectangle(idle, limits.variance - low, top - idle[1], color=ZONES["inactive"], linewidth=0))
    axes.add_patch(
        Rectangle((limits.variance, -1), high - limits.variance, top + 1, color=ZONES["active"], linewidth=0)
    )
    axes.axvline(limits.variance, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(
        [low, limits.variance], [limits.posterior_variance] * 2, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3))
    )
    law = np.geomspace(low, 1.0, 200)
    axes.plot(law, 1 - law, color=MUTED, linewidth=0.9)
    axes.text(0.4, 0.5, "Var μ + E σ² = 1", color=MUTED, size=8.5, ha="right")
    for latent, variance in zip(latents, variances, strict=True):
        spread = (
            _around(variance, latent.variance_ci95),
            _around(latent.posterior_variance, latent.posterior_variance_ci95),
        )
        axes.errorbar(
            variance, latent.posterior_variance, xerr=spread[0], yerr=spread[1], linestyle="none", elinewidth=1,
            color=COLOURS[latent.verdict], marker=MARKERS[latent.verdict], markersize=6, markeredgewidth=0,
        )  # fmt: skip
    _zone_names(axes, (low, high), (limits.variance, limits.posterior_variance))
    if len(latents) <= _NAMED:
        _number(axes, latents, variances)
    _verdict_legend(axes, latents)
    return Plot(svg_of(drawn, "scatter"), f"Scatter of {_counts(latents)}: variance of the mean against mean sigma²")


def bars(latents: Sequence[Latent], of: int) -> Plot:
    """KL and ablation cost of these latents, in nats; `of` so many in all."""
    drawn = figure(5.2, 0.8 + 0.235 * len(latents))
    left, right = drawn.subplots(1, 2, sharey=True)
    places = np.arange(len(latents))
    _bars(left, latents, [latent.kl for latent in latents], "KL, nats per row")
    _bars(right, latents, [latent.ablation_cost for latent in latents], "cost of fixing it, nats per row")
    left.set_yticks(places, [f"{latent.index}" for latent in latents])
    left.set_ylabel("latent")
    left.set_ylim(len(latents) - 0.4, -0.6)
    shown = f"the {len(latents)} of {of} latents with the largest KL" if len(latents) < of else f"{of} latents"
    return Plot(svg_of(drawn, "bars"), f"Bars of the KL and of what fixing it costs, in nats per row, for {shown}")


def training(history: History, verdicts: Sequence[str]) -> Plot | None:
    """E sigma² of each latent along training (Asperti, Fig. 11), and how many were idle; None without a history."""
    points = history.trace or history.epochs
    if len(points) < 2 or len(points[-1].variance) != len(verdicts):
        return None
    same = [point for point in points if len(point.variance) == len(verdicts)]  # latents may have been added
    at = [point.step if history.trace else point.epoch for point in same]  # type: ignore[union-attr]
    values = np.array([point.posterior_variance for point in same])
    drawn = figure(5.2, 4.4)
    upper, lower = drawn.subplots(2, 1, height_ratios=(3, 1))
    for i, verdict in enumerate(verdicts):
        upper.plot(at, values[:, i], color=COLOURS[verdict], linewidth=1.1, linestyle=_DASHES[verdict])
    styled(upper, "y").set(ylabel="E σ² of each latent", ylim=(-0.03, max(1.08, float(values.max()) + 0.03)))
    upper.set_xlabel("minibatch" if history.trace else "epoch")
    lines = [Line2D([], [], color=COLOURS[v], linestyle=_DASHES[v], label=v) for v in VERDICTS if v in verdicts]
    _legend(upper, lines)
    epochs = [epoch for epoch in history.epochs if len(epoch.variance) == len(verdicts)]
    active = [len(verdicts) - epoch.n_inactive for epoch in epochs]
    lower.step([epoch.epoch for epoch in epochs], active, where="mid", color=INK, linewidth=1.2)
    styled(lower, "y").set(ylabel="not idle", xlabel="epoch", ylim=(0, len(verdicts) + 0.5))
    risen = sum(verdict == "inactive" for verdict in verdicts)
    return Plot(
        svg_of(drawn, "training"),
        f"Mean sigma² of each latent along training; {risen} of {len(verdicts)} end near 1, the prior's",
    )


_DASHES: dict[str, Any] = {
    "active": "-", "mixed": (0, (1.2, 1.2)), "inactive": (0, (4, 1.8)),
}  # fmt: skip


def _bars(axes: Axes, latents: Sequence[Latent], values: Sequence[float | None], label: str) -> None:
    """Horizontal bars with their figures; what was not measured has none."""
    styled(axes, "x").set_xlabel(label)
    numbers = [value or 0.0 for value in values]
    reach = max(_LEAST_REACH, *numbers) - min(0.0, *numbers)
    for place, (latent, value) in enumerate(zip(latents, values, strict=True)):
        if value is None:
            continue
        colour = COLOURS[latent.verdict]
        axes.barh(place, value, height=0.7, facecolor=colour, linewidth=0, zorder=2)
        axes.plot(0, place, color=colour, marker=MARKERS[latent.verdict], markersize=4.5, markeredgewidth=0, zorder=3)
        axes.text(max(value, 0.0) + 0.035 * reach, place, _short(value), va="center", size=8, color=INK)
    axes.set_xlim(min(0.0, *numbers) - 0.04 * reach, max(_LEAST_REACH, *numbers) + 0.24 * reach)


def _short(value: float) -> str:
    if abs(value) < 0.0005:
        return "0"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def _around(value: float, ends: tuple[float, float]) -> list[list[float]]:
    """Lengths of error bars below and above."""
    return [[max(0.0, value - max(ends[0], _LEAST_VARIANCE))], [max(0.0, ends[1] - value)]]


def _number(axes: Axes, latents: Sequence[Latent], variances: Sequence[float]) -> None:
    """Each point's number, where it covers as little as possible of points and other numbers."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    points = axes.transData.transform([(v, la.posterior_variance) for v, la in zip(variances, latents, strict=True)])
    scale = axes.figure.dpi / 72
    taken = [tuple(point) for point in points]
    turns = [(math.cos(a), math.sin(a), r) for r in (11, 19, 27, 36) for a in np.arange(0.3, 6.5, math.pi / 4)]
    for latent, variance, (x, y) in zip(latents, variances, points, strict=True):

        def crowding(turn: tuple[float, float, float], x: float = x, y: float = y) -> float:
            at = (x + turn[0] * turn[2] * scale, y + turn[1] * turn[2] * scale)
            near = sum(max(0.0, 1 - math.dist(at, other) / (12 * scale)) for other in taken)
            return near + 0.004 * turn[2]

        best = min(turns, key=crowding)
        taken.append((x + best[0] * best[2] * scale, y + best[1] * best[2] * scale))
        axes.annotate(
            str(latent.index), (variance, latent.posterior_variance), (best[0] * best[2], best[1] * best[2]),
            textcoords="offset points", size=8.5, color=INK, ha="center", va="center",
            arrowprops=_POINTER if best[2] > 11 else None,
        ).set_in_layout(False)  # fmt: skip


def _zone_names(axes: Axes, x: tuple[float, float], limits: tuple[float, float]) -> None:
    axes.text(x[0] * 1.15, limits[1] - 0.03, "idle by the encoder ↑", color=MUTED, size=8.5, va="top")
    axes.text(
        x[1] / 1.1,
        0.97,
        "mean moves",
        transform=axes.get_xaxis_transform(),
        color=MUTED,
        size=8.5,
        ha="right",
        va="top",
    )


def _verdict_legend(axes: Axes, latents: Sequence[Latent]) -> None:
    found = {latent.verdict for latent in latents}
    marks = [
        Line2D([], [], color=COLOURS[v], marker=MARKERS[v], linestyle="none", label=v, markeredgewidth=0)
        for v in VERDICTS if v in found
    ]  # fmt: skip
    _legend(axes, marks)


def _legend(axes: Axes, marks: Sequence[Line2D]) -> None:
    axes.legend(
        handles=list(marks), loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, labelcolor=INK,
        fontsize=9, borderaxespad=0.2, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def _counts(latents: Sequence[Latent]) -> str:
    counts = [(v, sum(latent.verdict == v for latent in latents)) for v in VERDICTS]
    return f"{len(latents)} latents ({', '.join(f'{n} {v}' for v, n in counts if n)})"
