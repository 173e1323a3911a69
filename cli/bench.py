"""`vaeprune bench`: what two exported models cost to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .output import print_json, progress, show

if TYPE_CHECKING:
    from vaeprune.latency import Comparison, Latency, Timing


def bench(
    before: Annotated[Path, typer.Argument(metavar="A", help="A folder with encoder.onnx and decoder.onnx.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The folder to compare with it.")],
    threads: Annotated[int, typer.Option("--threads", help="Threads within an operator.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", help="Times each model is timed at each batch size.")] = 30,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare what two ONNX pairs cost to run.

    Weights, bytes, FLOPs, latency and peak memory in onnxruntime, timed in turns. Exit code 0 also if B is slower.
    """
    from vaeprune.latency import compare

    with progress(quiet or json) as report:
        comparison = compare(before, after, threads=threads, repeats=repeats, progress=report)
    if json:
        print_json(comparison.to_json())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    show(f"{'':20}{'before':>20}{'after':>20}{'ratio':>8}")
    for name, change in (
        ("weights", comparison.weights),
        ("file size, bytes", comparison.file_bytes),
        ("FLOPs per row", comparison.flops_per_row),
        ("peak memory, bytes", comparison.peak_memory_bytes),
    ):
        ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
        show(f"{name:20}{_figure(change.before):>20}{_figure(change.after):>20}{ratio:>8}".rstrip())
    threads = f"{comparison.threads} thread" + ("s" if comparison.threads > 1 else "")
    show(f"\nlatency in ms per batch, {threads}: median (interquartile range) of {comparison.repeats} repeats")
    for one in comparison.latency:
        name = f"{one.part}, batch {one.batch}"
        show(f"{name:20}{_timing(one.before):>20}{_timing(one.after):>20}{one.ratio:>8.3f}")
    show("")
    for sentence in findings(comparison.latency):
        show(sentence)


def _figure(figure: int | None) -> str:
    return "not known" if figure is None else f"{figure:,}"


def _timing(timing: Timing) -> str:
    return f"{timing.median_ms:.4g} ({timing.iqr_ms:.2g})"


def findings(latency: Sequence[Latency]) -> list[str]:
    """What the figures say, the bad news first."""
    lines = []
    for verdict in ("slower", "faster"):
        for batch in dict.fromkeys(one.batch for one in latency):
            found = [
                f"{one.part} {one.before.median_ms:.4g} → {one.after.median_ms:.4g} ms ({one.ratio:.3f} of the time)"
                for one in latency
                if (one.batch, one.verdict) == (batch, verdict)
            ]
            if found:
                lines.append(f"{verdict} than before at batch {batch}: {', '.join(found)}")
    rest = [f"{one.part} at batch {one.batch}" for one in latency if one.verdict == "no difference"]
    if rest:
        where = "" if len(rest) == len(latency) else f": {', '.join(rest)}"
        lines.append(f"no difference that could be measured{where or ' in latency'}")
    return lines
