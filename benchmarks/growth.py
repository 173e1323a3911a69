"""How cost grows: with rows, with latents, with weights. Exponents of a straight line through the logarithms.

Asked for: nothing worse than linear in rows and weights, nor than quadratic in latents (co-moments, which can be turned
off). Writes docs/growth.json, and docs/growth.png with the plot.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure
from vaeprune import analyze, cut, plan
from vaeprune.adapters import measuring
from vaeprune.analysis.encoding_pass import How, accumulate
from vaeprune.analysis.moments import Moments
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data import MemoryRows, as_data
from vaeprune.posterior import Posterior

OUT, RUNS = Path("docs"), 3
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
LATENTS = (16, 64, 256, 1024, 4096)
WIDTHS = (100, 330, 1_000, 3_300, 6_900)  # of two layers a side: 4·10⁴ to 10⁸ weights
Points = list[tuple[float, float]]


def dense(widths: Sequence[int], latents: int, size: int) -> DenseVAE:
    vae = DenseVAE((size,), widths, widths[::-1], latents)
    initialise(vae, "glorot", 0)
    return vae.eval()


def least(call: Callable[[], object]) -> float:
    """The shortest of a few runs, in processor time: what other work on the machine takes is left out."""
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def by_rows(most: int) -> dict[str, Points]:
    """The moments pass over 16-wide rows: the narrower a row, the more shows of what is not encoding."""
    vae, points = dense((16,), 8, 16), []
    with measuring(vae):
        for count in [n for n in ROWS if n <= most]:
            rows = MemoryRows("rows", torch.rand(count, 16))
            points.append((float(count), least(lambda rows=rows: accumulate(vae, rows))))
    return {"rows: moments pass": points}


def by_latents() -> dict[str, Points]:
    """Moments of 4,096 given posteriors, with and without co-moments; and planning and cutting a quarter of them."""
    found: dict[str, Points] = {"latents: with co-moments": [], "latents: without": [], "latents: plan and cut": []}
    for latents in LATENTS:
        posterior = Posterior(*torch.randn(2, 4096, latents))
        found["latents: with co-moments"].append((latents, least(lambda p=posterior: Moments.of(p))))
        found["latents: without"].append((latents, least(lambda p=posterior: Moments.of(p, comoments=False))))
        found["latents: plan and cut"].append((latents, _cut(dense((64,), latents, 32), latents // 4)))
    return found


def by_weights() -> dict[str, Points]:
    """Planning and cutting two of eight latents of networks of more and more weights."""
    points = []
    for width in WIDTHS:
        vae = dense((width, width), 8, 64)
        points.append((float(sum(p.numel() for p in vae.parameters())), _cut(vae, 2)))
    return {"weights: plan and cut": points}


def _cut(vae: DenseVAE, gone: int) -> float:
    data = as_data(torch.rand(300, *vae.input_shape))
    analysis = analyze(vae, data, ablate="none", how=How(comoments=False))
    remove, keep = list(range(gone)), list(range(gone, vae.latent_size))
    return least(lambda: cut(vae, plan(vae, analysis, data, remove=remove, keep=keep)))


def exponent(points: Points, last: int = 3) -> float:
    """Slope of the logarithms through the last few points, where what does not grow is smallest."""
    x, y = np.log(np.array(points[-last:])).T
    return float(np.polyfit(x, y, 1)[0])


def draw(found: Mapping[str, Points], path: Path) -> None:
    """One panel for each quantity."""
    from matplotlib.figure import Figure as Drawing

    kinds = list(dict.fromkeys(name.partition(":")[0] for name in found))
    drawing = Drawing(figsize=(4 * len(kinds), 3.6), layout="constrained")
    for kind, axes in zip(kinds, drawing.subplots(1, len(kinds), squeeze=False)[0], strict=True):
        for name, points in found.items():
            if name.startswith(kind + ":"):
                label = f"{name.partition(': ')[2]}, exponent {exponent(points):.2f}"
                axes.loglog(*zip(*points, strict=True), "o-", label=label)
        axes.set(xlabel=kind, ylabel="seconds of one processor")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    drawing.savefig(path, dpi=110)


def main(most_rows: int = ROWS[-1]) -> list[Figure]:
    found = by_rows(most_rows) | by_latents() | by_weights()
    OUT.mkdir(exist_ok=True)
    (OUT / "growth.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw(found, OUT / "growth.png")
    limits = {"rows": 1.05, "latents": 2.05, "weights": 1.05}  # a slope through three points is not exact
    figures = []
    for name, points in found.items():
        asked = limits[name.partition(":")[0]]
        slope, (x, y), (most, longest) = exponent(points), points[-3], points[-1]
        print(f"{name}: " + ", ".join(f"{n:,.0f} {seconds:.3g} s" for n, seconds in points))
        against = f"from {x:,.0f} to {most:,.0f}"
        figures.append(Figure(f"growth with {name}", against, longest, y, slope, slope, slope, f"exponent ≤ {asked:g}"))
        assert math.isfinite(slope)
    return figures
