"""How the pictures look; numbers come in, PNG files go out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

Array = NDArray[Any]
_DIGITS = [mpl.colormaps["tab10"](i) for i in range(10)]  # beside the colours, the digits themselves are written
IDLE, IN_USE = "#d55e00", "#0072b2"  # Okabe and Ito: told apart by everybody
_COARSE = 72  # for pictures of many points or lines, to be small files


@contextmanager
def picture(path: Path, width: float, height: float, note: str = "", dpi: int = 110) -> Iterator[Figure]:
    """A figure in inches that is saved when the block ends; `note` stands in small type below it."""
    figure = Figure(figsize=(width, height + 0.2 * bool(note)), layout="constrained")
    yield figure
    if note:
        figure.supxlabel(note, fontsize=8, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})


def grid(path: Path, images: Array, names: Sequence[str] = (), note: str = "") -> None:
    """Images (rows, columns, height, width) in [0, 1] in their order; `names` stand to the left of the rows."""
    rows, columns = images.shape[:2]
    sheet = _sheet(images)
    scale = 0.42
    with picture(path, columns * scale + bool(names) * 1.1, rows * scale + 0.1, note) as figure:
        axes = figure.subplots()
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if names:
            step = sheet.shape[0] / rows
            axes.set_yticks([(r + 0.5) * step - 0.5 for r in range(rows)], names, fontsize=9)
            axes.tick_params(length=0)


def _sheet(images: Array) -> Array:
    """One picture (rows·(height+1)−1, …) with a grey line between neighbours."""
    rows, columns, height, width = images.shape
    padded = np.full((rows, columns, height + 1, width + 1), 0.35)
    padded[:, :, :height, :width] = images
    sheet: Array = padded.transpose(0, 2, 1, 3).reshape(rows * (height + 1), -1)
    return sheet[:-1, :-1]


def trajectories(path: Path, means: Array, variances: Array, steps: Sequence[int], note: str = "") -> None:
    """Fig. 1: digits 0 to 9 in two latents; means (T, 10, 2), variances (T, 10): older circles are paler."""
    with picture(path, 6.5, 6.1, note) as figure:
        axes = figure.subplots()
        for digit in range(means.shape[1]):
            colour = _DIGITS[digit]
            axes.plot(*means[:, digit].T, color=colour, linewidth=0.7, alpha=0.6)
            for t in range(len(steps)):
                age = (t + 1) / len(steps)
                radius = float(np.sqrt(variances[t, digit]))  # so the area is proportional to the variance
                axes.add_patch(Circle(tuple(means[t, digit]), radius, color=colour, alpha=0.04 + 0.6 * age**3, lw=0))
            axes.annotate(
                str(digit), tuple(means[-1, digit]), (7, 5), textcoords="offset points", weight="bold", color=colour
            )
        radii = np.sqrt(variances)[..., None]
        low, high = (means - radii).min((0, 1)) - 0.3, (means + radii).max((0, 1)) + 0.3
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="latent 0", ylabel="latent 1")
        axes.grid(alpha=0.25)


def latent_space(path: Path, means: Array, classes: Array, samples: Array, note: str = "") -> None:
    """Fig. 2: means (N, 3) of digits of some `classes` (N,), and samples (5, 5, 5, height, width) in five slices."""
    with picture(path, 9.6, 4.1, note, _COARSE) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25), squeeze=False)[0]
        cloud = left.add_subplot(projection="3d")
        for digit in range(10):
            cloud.scatter(*means[classes == digit].T, s=1.5, color=_DIGITS[digit], label=str(digit))
        reach = float(np.abs(means).max())
        ticks = np.arange(-int(reach), int(reach) + 1, 2 if reach > 3 else 1)
        cloud.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), box_aspect=(1, 1, 1))
        cloud.set(xticks=ticks, yticks=ticks, zticks=ticks)
        cloud.tick_params(labelsize=7, pad=-2)
        panels = right.subplots(2, 3).ravel()
        for axes, images, height in zip(panels, samples, quantiles(5), strict=False):
            axes.imshow(_sheet(images), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"$z_2$ = {height:.2f}", fontsize=8)
        panels[5].axis("off")
        panels[5].legend(*cloud.get_legend_handles_labels(), ncols=2, markerscale=5, fontsize=8, loc="center")


def quantiles(count: int) -> list[float]:
    """Values that part the middle 90% of a standard normal distribution evenly."""
    return [NormalDist().inv_cdf(0.05 + 0.9 * i / (count - 1)) for i in range(count)]


def evolution(path: Path, steps: Array, sigma2: Array, variance: Array, idle: Sequence[int], note: str = "") -> None:
    """Fig. 11: sigma² of every latent (T, D) along the minibatches, and the variance of its mean below."""
    with picture(path, 8.5, 6.2, note, _COARSE) as figure:
        panels = figure.subplots(2, 1, sharex=True)
        for axes, values, label in zip(panels, (sigma2, variance), ("mean of σ²", "variance of μ"), strict=True):
            for latent in range(values.shape[1]):
                gave_up = latent in idle
                axes.plot(
                    steps,
                    values[:, latent],
                    color=IDLE if gave_up else IN_USE,
                    linewidth=0.8,
                    alpha=0.9,
                    label={True: "idle in the end", False: "in use"}[gave_up],
                )
            axes.set(ylabel=label, yscale="log")
            axes.grid(alpha=0.25)
        handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        panels[0].legend(handles.values(), handles.keys(), fontsize=8)
        panels[1].set_xlabel("minibatches of 128")
        panels[1].set_xlim(1, float(steps[-1]))
