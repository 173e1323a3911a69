"""`write_report`: everything about a model, or about one before and after a cut, on one page that can be sent."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE, as_vae
from vaeprune.analysis import Analysis, analyze
from vaeprune.analysis.analysis import Progress
from vaeprune.data import DataSets, as_data
from vaeprune.errors import one_line
from vaeprune.evidence import Evidence, Tolerances
from vaeprune.onnx_figures import OnnxFigures, onnx_figures, onnx_pair
from vaeprune.posterior import VAE, count_weights
from vaeprune.report import figures
from vaeprune.report.measured import how
from vaeprune.report.page import Content, Plots, Size, render
from vaeprune.report.pictures import Compared, rows_to_draw
from vaeprune.report.rows_seen import Seen, seen
from vaeprune.report.sections import COLUMNS, FIRST, Gallery, gallery
from vaeprune.storage import new_file, refuse_existing
from vaeprune.surgery.plan import Plan
from vaeprune.training import History
from vaeprune.verification import verify


@dataclass(frozen=True)
class Against:
    """The model that was cut from the first: its name, the plan between the two, and its ONNX files' folder, if known.

    `fine_tuned`: it was trained after the cut, so nothing can be exact. `tolerances`: limits of the gates.
    """

    model: VAE | nn.Module
    name: str = "after"
    plan: Plan | None = None
    onnx: Path | None = None
    fine_tuned: bool = False
    tolerances: Tolerances | None = None


@dataclass(frozen=True)
class Report:
    """What a report rests on; `out` is the file, `file_bytes` its size."""

    out: Path
    file_bytes: int
    analysis: Analysis
    evidence: Evidence | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `vaeprune report --json` prints, less the models' names."""
        return {
            "out": str(self.out),
            "file_bytes": self.file_bytes,
            "warnings": list(self.warnings),
            "analysis": self.analysis.to_json(),
            "evidence": self.evidence.to_json() if self.evidence else None,
        }


def write_report(
    model: VAE | nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    out: str | Path,
    *,
    against: Against | None = None,
    name: str = "A VAE",
    analysis: Analysis | None = None,
    seed: int = 0,
    force: bool = False,
    written: datetime | None = None,
    progress: Progress | None = None,
) -> Report:
    """Analyse `model` on `data`, with `against` compare the two, and write one HTML file that needs nothing else.

    `analysis`: of this very model on these data, where it is known already. `seed` parts the data and draws rows and
    noise. The same inputs and `written` give the same bytes on the same machine. Nothing is changed in either model.
    Raises StorageError if `out` exists and `force` is false; DataError, ModelError, ExportError. A failed gate is no
    error here: the page and `Report.evidence` say so.
    """
    out = Path(out)
    refuse_existing(out, force)
    sets = as_data(data, seed)
    vae = as_vae(model, sets)
    with _noted() as caught:
        analysis = analysis or analyze(vae, sets, seed=seed, progress=progress)
        evidence = _evidence(vae, sets, against)
    plan = against.plan if against else None
    models = Compared.of(vae, as_vae(against.model, sets) if against else None, plan)
    view, order = seen(vae, sets), _by_kl(analysis)
    told = (*_warnings(models, view, analysis, evidence, against), *caught)
    page = render(
        Content(
            title=name,
            against=against.name if against else "",
            data=sets.name,
            analysis=analysis,
            evidence=evidence,
            order=order,
            plots=_plots(vae, analysis, order),
            gallery=_gallery(models, sets, view, analysis, order, progress),
            sizes=tuple(_sizes(models, against)),
            warnings=told,
            how=tuple(how(models, sets, analysis, plan, evidence)),
            written=written or datetime.now(timezone.utc),
        )
    )
    with new_file(out, force) as file:
        file.write_text(page, encoding="utf-8")
    return Report(out, len(page.encode()), analysis, evidence, told)


@contextlib.contextmanager
def _noted() -> Iterator[list[str]]:
    """Yield a list that holds, afterwards, the words of all warnings given inside; they are given on."""
    words: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        yield words
    words += dict.fromkeys(str(warning.message) for warning in caught)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _evidence(vae: VAE, sets: DataSets, against: Against | None) -> Evidence | None:
    if against is None:
        return None
    return verify(
        vae, against.model, sets, against.plan, onnx=against.onnx, tolerances=against.tolerances, seed=sets.seed,
        fine_tuned=against.fine_tuned,
    )  # fmt: skip


def _by_kl(analysis: Analysis) -> tuple[int, ...]:
    """In their order, or where there are many, those with the largest KL first."""
    numbers = range(analysis.latent_size)
    if analysis.latent_size <= FIRST:
        return tuple(numbers)
    return tuple(sorted(numbers, key=lambda i: -analysis.latents[i].kl))


def _plots(vae: VAE, analysis: Analysis, order: tuple[int, ...]) -> Plots:
    history: History = (getattr(vae, "provenance", None) or {}).get("history") or History()
    shown = [analysis.latents[i] for i in order[:FIRST]]
    return Plots(
        figures.scatter(analysis),
        figures.bars(shown, analysis.latent_size),
        figures.training(history, [latent.verdict for latent in analysis.latents]),
    )


def _gallery(
    models: Compared, sets: DataSets, view: Seen, analysis: Analysis, order: tuple[int, ...], progress: Progress | None
) -> Gallery | None:
    if not _decodes(models.before):
        return None
    if progress:
        progress("drawing", 0, None)
    rows = rows_to_draw(models.before, sets, COLUMNS, analysis.seed)
    return gallery(models, view, analysis, rows, analysis.seed, order)


def _decodes(vae: VAE) -> bool:
    return not (isinstance(vae, AdaptedVAE) and vae.reading.decode is None)


def _sizes(models: Compared, against: Against | None) -> Iterator[Size]:
    """Latents and weights of both, and of ONNX files where there are any."""
    pairs: list[tuple[str, int, int | None]] = []
    after = models.after
    pairs.append(("latents", models.before.latent_size, after.latent_size if after else None))
    pairs.append(("weights", count_weights(models.before), count_weights(after) if after else None))
    pairs.append(("bytes of weights", _bytes(models.before), _bytes(after) if after else None))
    for name, first, second in pairs:
        if second is None:
            yield Size(name, f"{first:,}")
        else:
            yield Size(name, f"{first:,}", f"{second:,}", f"{second / first - 1:+.1%}" if second != first else "none")
    if against is None or against.onnx is None:
        return
    found: OnnxFigures = sum((onnx_figures(path) for path in onnx_pair(against.onnx)), OnnxFigures(0, 0, 0))
    yield Size("bytes of ONNX files", "", f"{found.file_bytes:,}")
    if found.flops_per_row is not None:
        yield Size("FLOPs of a row, ONNX", "", f"{found.flops_per_row:,}")


def _bytes(vae: VAE) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in vae.network.state_dict().values())


def _warnings(
    models: Compared, view: Seen, analysis: Analysis, evidence: Evidence | None, against: Against | None
) -> Iterator[str]:
    """What a reader must know before trusting the page."""
    if evidence is not None and not evidence.passed:
        failed = ", ".join(gate.name for gate in evidence.failed_gates)
        yield f"the two models do not give the same outputs: {failed} failed"
    yield from analysis.diagnosis.symptoms
    for finding in analysis.diagnosis.findings:
        sure = "cause" if finding.named else "may be"
        yield f"{sure}: {finding.title}; by: {finding.evidence}; change: {finding.remedy}"
    if not _decodes(models.before):
        yield "no decoder could be called with z: verdicts rest on the encoder alone, and nothing is drawn"
    elif any(latent.ablation_cost is None for latent in analysis.latents):
        yield "the decoder was not tried for every latent: verdicts without an ablation cost are provisional"
    if against is not None and against.plan is None:
        yield f"{against.name} came without its plan: what was removed is not known, so nothing is compared exactly"
    if against is not None and against.fine_tuned:
        yield f"{against.name} was fine-tuned after the cut, so nothing is compared exactly"
    if models.after is not None and models.kept is None:
        yield "the two models have different latents, and no plan says which are the same: no samples are compared"
    for fired in evidence.fired if evidence else ():
        yield (
            f"{fired.weight} channel {fired.channel} was taken for constant and is not on {fired.rows} of these rows, "
            f"which costs {fired.cost:.2g} nats per row"
        )
    if view.said:
        yield view.said
    for assumption in getattr(models.before, "assumptions", ()):
        yield one_line(assumption)
