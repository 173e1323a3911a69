"""The page: what was found, put into the template. Jinja2 escapes everything but what was drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vaeprune.analysis import Analysis
from vaeprune.analysis.latents import Latent
from vaeprune.evidence import Evidence
from vaeprune.report.drawing import Plot
from vaeprune.report.measured import Entry
from vaeprune.report.sections import FIRST, Gallery

_COLUMNS = (
    "latent", "verdict", "KL", "Var μ", "95%", "E σ²", "95%", "ablation cost", "95%", "noise", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Plots:
    """The plots of a page; None where there is nothing to draw."""

    scatter: Plot
    bars: Plot
    training: Plot | None


@dataclass(frozen=True)
class Size:
    """One figure of both models; `after` is empty without a second."""

    name: str
    before: str
    after: str = ""
    change: str = ""


@dataclass(frozen=True)
class Content:
    """All that a page shows. `title`: the model's name; `against`: the second one's, or empty."""

    title: str
    against: str
    data: str
    analysis: Analysis
    evidence: Evidence | None
    order: tuple[int, ...]
    plots: Plots
    gallery: Gallery | None
    sizes: tuple[Size, ...]
    warnings: tuple[str, ...]
    how: tuple[Entry, ...]
    written: datetime


def render(content: Content) -> str:
    """The whole page as HTML: one file, without scripts, which asks for nothing."""
    environment = Environment(
        loader=PackageLoader("vaeprune.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["drawn"] = Markup  # of SVG that matplotlib wrote, never of text from outside
    latents = [content.analysis.latents[i] for i in content.order]
    counts = {verdict: len(content.analysis.indices(verdict)) for verdict in ("active", "mixed", "inactive")}
    page = environment.get_template("report.html").render(
        c=content,
        counts=counts,
        columns=_COLUMNS,
        first=[_row(latent) for latent in latents[:FIRST]],
        rest=[_row(latent) for latent in latents[FIRST:]],
        tab_separated=_tab_separated(content.analysis.latents),
        checks=content.analysis.self_checks.lines(),
        gates=_gates(content.evidence),
        elbo=_elbo(content.evidence),
        written=content.written.isoformat(timespec="seconds"),
    )
    return page if page.endswith("\n") else page + "\n"


def _row(latent: Latent) -> dict[str, Any]:
    """A latent's figures as the table shows them."""
    cost, noise = latent.ablation_cost, latent.noise_reaction
    return {
        "index": latent.index,
        "verdict": latent.verdict,
        "figures": [
            f"{latent.kl:.3f}",
            f"{latent.variance:.3g}",
            _between(latent.variance_ci95),
            f"{latent.posterior_variance:.4f}",
            _between(latent.posterior_variance_ci95, 4),
            "" if cost is None else f"{cost:.4f}",
            _between(latent.ablation_cost_ci95),
            "" if noise is None else f"{noise:.2%}",
        ],
        "reason": latent.reason,
    }


def _between(ends: tuple[float, float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"{ends[0]:.{digits}g} to {ends[1]:.{digits}g}"


def _tab_separated(latents: Sequence[Latent]) -> str:
    """All figures in full, for a spreadsheet."""
    names = ("index", "verdict", "mean", "variance", "posterior_variance", "kl", "ablation_cost", "noise_reaction")
    lines = ["\t".join(names)]
    for latent in latents:
        values = [getattr(latent, name) for name in names]
        lines.append("\t".join("" if v is None else repr(v) if isinstance(v, float) else str(v) for v in values))
    return "\n".join(lines)


def _gates(evidence: Evidence | None) -> list[tuple[str, str, str, bool]]:
    if evidence is None:
        return []
    return [(gate.name, f"{gate.measured:.3g}", f"{gate.limit:.3g}", gate.passed) for gate in evidence.gates]


def _elbo(evidence: Evidence | None) -> str:
    if evidence is None:
        return ""
    low, high = evidence.sampling.ci95
    return f"{-evidence.sampling.elbo_difference:+.4f} nats per row (95%: {-high:+.4f} to {-low:+.4f})"
