"""What the commands print: data on stdout, progress and notes on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vaeprune.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID

    from vaeprune.analysis import Analysis
    from vaeprune.analysis.criteria import Criteria
    from vaeprune.analysis.diagnosis import Diagnosis
    from vaeprune.evidence import Evidence, Gate
    from vaeprune.surgery.plan import ChannelRemoval, Left

_LAW = (0.75, 1.33)
_SAMPLES = re.compile(r"observed constant on (\d+) samples")
_OF_COURSE = ("it is a latent", "it is part of the output")
_LETTERS = {"active": "A", "mixed": "m", "inactive": "·", "passive": "·"}
_COLOURS = {"active": "green", "inactive": "red", "mixed": "yellow"}


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def stdout() -> Console:
    """The console for data. Off a terminal tables keep their full width, so that nothing is cut off in a file."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 140
    return console


def show(text: str) -> None:
    """Lines on stdout; names and texts from files cannot steer the terminal."""
    print("\n".join(one_line(line) for line in text.split("\n")))


def note(text: str, quiet: bool = False) -> None:
    """A line on stderr for the person who waits."""
    if not quiet:
        print(one_line(text), file=sys.stderr)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on stderr if that is a terminal; yields report(what, rows more, rows in all)."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _more, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(speed(task.finished_speed or task.speed))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        yield reporting(bar)


def speed(rows: float | None) -> str:
    """Rows a second, for people."""
    return "" if rows is None else f"{rows:,.0f} rows/s"


def reporting(bar: Progress) -> Callable[[str, int, int | None], None]:
    """report(what, rows more, rows in all) on a bar that is shown already; what is done may begin anew."""
    tasks: dict[str, TaskID] = {}
    done: dict[str, int] = {}

    def report(what: str, more: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what], done[what] = bar.add_task(what, total=total), 0
        elif total is not None and done[what] >= total:
            bar.reset(tasks[what], total=total)
            done[what] = 0
        bar.advance(tasks[what], more)
        done[what] += more

    return report


def print_analysis(analysis: Analysis, title: str) -> None:
    """Table I of the paper for this model, with intervals, ablation and verdicts, then the advice."""
    show(title)
    _print_latents(analysis)
    joint = ""
    if analysis.joint_ablation_cost is not None:
        joint = f"; fixing all inactive ones at once costs {analysis.joint_ablation_cost:.4f} nats"
    counts = ", ".join(f"{len(analysis.indices(v))} {v}" for v in ("active", "inactive", "mixed"))
    show(f"\n{analysis.latent_size} latents: {counts}{joint}")
    show(
        f"a use by less than {analysis.unseen_share:.2%} of the data may go unseen in {analysis.n_samples:,} rows (95%)"
    )
    if analysis.precision:
        show(str(analysis.precision))
    if analysis.criteria:
        _print_criteria(analysis.criteria)
    show("")
    for check, line in analysis.self_checks.lines().items():
        show(f"{check}: {line}")
    show("sum = variance + mean σ², 1 where the latent's scale is free and training is at rest")
    _print_diagnosis(analysis.diagnosis)
    show(f"\nadvice: {analysis.advice.action}: {analysis.advice.reason}")
    if analysis.advice.command:
        show(f"    {analysis.advice.command}")


def _print_latents(analysis: Analysis) -> None:
    """One row a latent."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("no.", "variance", "± 95%", "mean σ²", "sum", "KL nats", "ablation nats", "noise"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for latent in analysis.latents:
        half = (latent.variance_ci95[1] - latent.variance_ci95[0]) / 2
        table.add_row(
            str(latent.index),
            f"{latent.variance:.3g}",
            f"{half:.1g}",
            f"{latent.posterior_variance:.4f}",
            f"{latent.variance_law:.3f}",
            f"{latent.kl:.3f}",
            "" if latent.ablation_cost is None else f"{latent.ablation_cost:.4f}",
            "" if latent.noise_reaction is None else f"{latent.noise_reaction:.2%}",
            Text(latent.verdict, style=_COLOURS[latent.verdict]) + Text(f"  {latent.reason}" if latent.reason else ""),
        )
    stdout().print(table)


def _print_criteria(criteria: Criteria) -> None:
    """One row a rule: its count, its letter for each latent, and what it rests on."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("rule", "in use", "latents", "by"):
        table.add_column(name, justify="right" if name == "in use" else "left", no_wrap=name == "latents")
    for rule in criteria.rules:
        letters = "".join(_LETTERS[verdict] for verdict in rule.verdicts)
        told = f"{rule.rule}; {rule.note}" if rule.note else rule.rule
        table.add_row(rule.name, "" if rule.count is None else str(rule.count), letters, told)
    show("")
    stdout().print(table)
    show("A active, m mixed, · inactive or passive, latents in order; docs/criteria.md has the sources")


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    """The weight that the KL had in training, and where something is wrong, what is and why."""
    if diagnosis.effective_beta is not None and diagnosis.effective_beta_ci95 is not None:
        beta, (low, high) = diagnosis.effective_beta, diagnosis.effective_beta_ci95
        show(f"effective β: these latents rest at a KL's weight of {beta:.3g} (95%: {low:.3g} to {high:.3g})")
    if not diagnosis.findings and not diagnosis.symptoms:
        return
    show("\ndiagnosis:")
    for symptom in diagnosis.symptoms:
        show(f"    {symptom}")
    for finding in diagnosis.findings:
        show(f"  {'cause' if finding.named else 'may be'}: {finding.title}")
        show(f"    by: {finding.evidence}")
        show(f"    change: {finding.remedy}")


def note_variance_law(vae: object, analysis: Analysis, quiet: bool) -> None:
    """Hold what was assumed of a foreign encoder's spread against the variance law, on stderr."""
    if not getattr(vae, "assumptions", ()):
        return
    import statistics  # drags in fractions and decimals

    law = statistics.median(latent.variance_law for latent in analysis.latents)
    verdict = "near 1, as it is for a trained VAE whose spread was read rightly"
    if not _LAW[0] < law < _LAW[1]:
        verdict = "not near 1: the spread is something else (--spread), or training has not come to rest"
    note(f"variance law: the median of variance + mean σ² is {law:.3f}, {verdict}", quiet)


def print_sizes(latents: tuple[int, int], weights: tuple[int, int], kept: Sequence[int]) -> None:
    """Before and after, and which latents stay."""
    show(f"\n{'':14}{'before':>12}{'after':>12}")
    show(f"{'latents':14}{latents[0]:>12,}{latents[1]:>12,}")
    show(f"{'weights':14}{weights[0]:>12,}{weights[1]:>12,}   {1 - weights[1] / weights[0]:.1%} fewer")
    show(f"\nkept, in this order: latents {', '.join(map(str, kept))}")
    show("whatever else was trained on the original's z must be cut alike: z[:, kept_latents] of plan.json")


def print_channels(channels: Sequence[ChannelRemoval], left: Sequence[Left]) -> None:
    """How many hidden channels go from each weight on what evidence, and which stay for what reason."""
    counts: dict[tuple[str, str, str], list[float | None]] = {}
    for channel in channels:
        counts.setdefault((channel.weight, channel.kind, channel.evidence), []).append(channel.deviation)
    if counts:
        show("\nhidden channels that go:")
    for (weight, kind, evidence), deviations in counts.items():
        furthest = max((d for d in deviations if d is not None), default=None)
        seen = "" if furthest is None else f", largest deviation {furthest:.2g}"
        observed = _SAMPLES.fullmatch(evidence)
        bound = f", others in less than {3 / int(observed[1]):.1g} of rows (95%)" if observed else ""
        show(f"    {weight}: {len(deviations)} {kind}, {evidence}{seen}{bound}")
    left = [entry for entry in left if entry.reason not in _OF_COURSE]
    if left:
        show("\nhidden channels that stay although they might go:" if counts else "\nwhy hidden channels stay:")
    for entry in left:
        show(f"    {entry.weight}: {entry.channels}, {entry.reason}")


def training_progress(report: Callable[[str, int, int | None], None]) -> Callable[[Any], None]:
    """Progress of fine-tuning, in minibatches of each epoch."""

    def step(done: Any) -> None:
        report(f"recovery, epoch {done.epoch}", 1, done.batches)

    return step


def print_gates(gates: Sequence[Gate]) -> None:
    """Each gate with what was measured and its limit."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    for gate in gates:
        word = Text("passed", style="green") if gate.passed else Text("FAILED", style="bold red")
        table.add_row(gate.name, f"{gate.measured:.3g}", f"{gate.limit:.3g}", word)
    stdout().print(table)


def print_evidence(evidence: Evidence) -> None:
    """Every gate, then the ELBO and what is no gate."""
    show(f"\nevidence from {evidence.n_samples:,} rows that had no part in choosing what to cut")
    print_gates(evidence.gates)
    low, high = evidence.sampling.ci95
    show(
        f"ELBO: {-evidence.sampling.elbo_difference:+.4f} nats per row (95%: {-high:+.4f} to {-low:+.4f}), "
        "positive = the second model is better"
    )
    if evidence.fair:
        low, high = evidence.fair.ci95
        show(
            f"ELBO against the original trained for as many epochs: {-evidence.fair.elbo_difference:+.4f} nats per row "
            f"(95%: {-high:+.4f} to {-low:+.4f})"
        )
    if "mean path" not in {gate.name for gate in evidence.gates}:
        share = evidence.mean_path.max_abs_error / evidence.output_range
        prior = evidence.prior_samples.rms_error / evidence.output_range if evidence.prior_samples else math.nan
        show(f"of the output's range: mean path differs by up to {share:.1%}, prior samples by {prior:.1%} RMS")
    for fired in evidence.fired:
        show(
            f"{fired.weight} channel {fired.channel}, taken for constant, is not on {fired.rows} of these rows: up to "
            f"{fired.deviation:.2g} away, which costs {fired.cost:.2g} nats per row"
        )
