"""`vaeprune analyze A B C`: how far the counts of several networks agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vaeprune.errors import VaepruneError

from . import options as o
from .output import note_variance_law, print_json, progress, show, stdout

if TYPE_CHECKING:
    from vaeprune.analysis import Analysis
    from vaeprune.data import DataSets
    from vaeprune.latent_counts import LatentCounts


def compare_counts(
    models: list[str], sets: DataSets, reading: o.Reading, limits: o.Limits, device: o.Device, json: bool, quiet: bool
) -> None:
    """Analyze each model on the same rows, then print a line for each and the range over all."""
    from vaeprune.latent_counts import Count, LatentCounts

    analyses = [_analyzed(model, sets, reading, limits, device, quiet, json) for model in models]
    counts = LatentCounts(tuple(Count.of(model, a) for model, a in zip(models, analyses, strict=True)))
    if json:
        print_json(_entry(counts, analyses, sets.name))
    else:
        show(f"{len(models)} models on {sets.name}, {analyses[0].n_samples:,} rows")
        _print(counts, analyses)


def _analyzed(
    model: str, sets: DataSets, reading: o.Reading, limits: o.Limits, device: o.Device, quiet: bool, json: bool
) -> Analysis:
    from vaeprune.analysis import analyze

    try:
        vae = o.open_model(model, reading, sets, device, quiet)
        with progress(quiet or json) as report:
            found = analyze(vae, sets, thresholds=limits.thresholds(), ablate=limits.ablate.value, progress=report)
    except VaepruneError as error:
        if model in error.message:
            raise
        raise type(error)(f"{model}: {error.message}", error.hint) from error
    note_variance_law(vae, found, quiet)
    return found


def _entry(counts: LatentCounts, analyses: list[Analysis], data: str) -> dict[str, Any]:
    """Each model's analysis as for one model alone, and the spread of each count."""
    found = counts.to_json()
    models = [{"model": c.model} | a.to_json() for c, a in zip(counts.models, analyses, strict=True)]
    spread = {f"n_{name}": found[name] for name in ("active", "inactive", "mixed")}
    return {"data": data, "models": models, **spread, "kl": found["kl"]}


def _print(counts: LatentCounts, analyses: list[Analysis]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in ("latents", "active", "inactive", "mixed", "KL nats"):
        table.add_column(name, justify="right")
    table.add_column("advice")
    for count, analysis in zip(counts.models, analyses, strict=True):
        numbers = (count.latent_size, count.active, count.inactive, count.mixed)
        table.add_row(count.model, *map(str, numbers), f"{count.kl:.2f}", analysis.advice.action)
    stdout().print(table)
    if any(latent.ablation_cost is None for analysis in analyses for latent in analysis.latents):
        show("counts are provisional: the decoder was not tried on all latents")
    if any(analysis.advice.action in ("retrain", "refuse") for analysis in analyses):
        show("what is to be trained again has no count to rely on: analyze it alone to see why")
    show(f"\nactive: {counts.spread('active')}; mixed: {counts.spread('mixed')}; KL nats: {counts.spread('kl'):.2f}")
