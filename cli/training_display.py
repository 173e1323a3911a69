"""What is shown on stderr while a network is trained."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from vaeprune.errors import one_line

from .output import note, reporting, stderr

if TYPE_CHECKING:
    from vaeprune.training import Trained
    from vaeprune.training.loop import Step


class Display(NamedTuple):
    """What to call with each step, each epoch, a line of text, and the progress of measuring."""

    on_step: Callable[[Step], None] | None
    on_epoch: Callable[[Trained], None]
    say: Callable[[str], None]
    report: Callable[[str, int, int | None], None]


@contextlib.contextmanager
def training_display(quiet: bool) -> Iterator[Display]:
    """A bar for each epoch on a terminal, a line for each epoch elsewhere, nothing if quiet."""
    if quiet:
        yield Display(None, lambda _trained: None, lambda _text: None, _unreported)
    elif not sys.stderr.isatty():
        yield Display(None, lambda trained: note(_line(trained)), note, _unreported)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr(), transient=True) as bar:
            task = bar.add_task("epoch 1")
            active = ""  # known from the end of the first epoch on

            def on_step(step: Step) -> None:
                words = f"epoch {step.epoch}  loss {step.loss:.2f} = {step.reconstruction:.2f} + KL {step.kl:.2f}"
                bar.update(task, description=words + active, completed=step.batch, total=step.batches)

            def on_epoch(trained: Trained) -> None:
                nonlocal active
                active = f"  {_active(trained)}"
                say(_line(trained))

            def say(text: str) -> None:
                bar.console.print(one_line(text), markup=False)

            yield Display(on_step, on_epoch, say, reporting(bar))


def _unreported(_what: str, _more: int, _total: int | None) -> None:
    """No progress is shown."""


def _line(trained: Trained) -> str:
    last = trained.history.epochs[-1]
    return (
        f"epoch {last.epoch:3}  loss {last.loss:8.2f}  reconstruction {last.reconstruction:8.2f}  KL {last.kl:6.2f}  "
        f"{_active(trained)}"
    )


def _active(trained: Trained) -> str:
    """How many latents are not idle by their variance and σ²."""
    last = trained.history.epochs[-1]
    return f"active {len(last.variance) - last.n_inactive} of {len(last.variance)}"
