"""`vaeprune train`: make a VAE."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeprune.errors import UsageError

from . import options as o
from .output import note, print_json, show, stderr

if TYPE_CHECKING:
    from vaeprune.training import Trained
    from vaeprune.training.loop import Step


class Architecture(str, Enum):
    """Networks that can be built."""

    dense = "dense"
    convolutional = "convolutional"


class Kind(str, Enum):
    """Observation models."""

    bernoulli = "bernoulli"
    gaussian = "gaussian"


class Penalty(str, Enum):
    """Terms on the posterior."""

    full = "full"
    quadratic = "quadratic"
    none = "none"


class Start(str, Enum):
    """How weights start."""

    glorot = "glorot"
    torch = "torch"


def train(
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="tiles, mnist, fashion-mnist, .npy, .npz or a folder of pictures."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The model folder to write, anew after each epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    arch: Annotated[Architecture | None, typer.Option("--arch", help="[default: dense]")] = None,
    hidden: Annotated[
        str | None, typer.Option("--hidden", help="Dense widths, the decoder mirrored. [default: 256,32,24]")
    ] = None,
    latent: Annotated[int | None, typer.Option("--latent", help="Number of latents. [default: 16]")] = None,
    likelihood: Annotated[Kind | None, typer.Option("--likelihood", help="[default: bernoulli]")] = None,
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="Standard deviation of the gaussian likelihood. [default: 1]"),
    ] = None,
    kl: Annotated[Penalty | None, typer.Option("--kl", help="Penalty on the posterior. [default: full]")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="Weight of that penalty. [default: 1]")] = None,
    sampling: Annotated[
        bool | None,
        typer.Option("--sampling/--no-sampling", help="Decode a sample, or the mean. [default: sampling]"),
    ] = None,
    init: Annotated[
        Start | None, typer.Option("--init", help="Glorot-uniform or torch's own. [default: glorot]")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Counted from the very start. [default: 40]")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="[default: 128]")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Of Adam. [default: 0.001]")] = None,
    trace_every: Annotated[
        int | None,
        typer.Option("--trace-every", help="Record the latents' variances every K minibatches. [default: 0]"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights, order and noise. [default: 0]")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Train on the first N rows only.")] = None,
    keep_state: Annotated[
        bool,
        typer.Option("--keep-state/--discard-state", help="Keep Adam's state in the finished folder for --resume."),
    ] = True,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are or will be downloaded to.")
    ] = None,
    device: o.OnDevice = o.Device.auto,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a VAE, by default the paper's.

    Ctrl-C keeps the last finished epoch.
    """
    from vaeprune import training_run

    if out is None:
        raise UsageError("--out: is missing", "name the model folder to write")
    wished: dict[str, Any] = {
        "data": data, "architecture": arch, "hidden": tuple(o.integers(hidden, "--hidden")) if hidden else None,
        "latent": latent, "likelihood": likelihood, "scale": scale, "kl": kl, "beta": beta, "sampling": sampling,
        "initialisation": init, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "trace_every": trace_every, "seed": seed, "rows": rows,
    }  # fmt: skip
    given = {k: v.value if isinstance(v, Enum) else v for k, v in wished.items() if v is not None}
    torch_device = o.torch_device(device)
    finished: list[int] = []
    try:
        with _progress(quiet or json) as (on_step, show_epoch):

            def on_epoch(trained: Trained) -> None:
                finished.append(len(trained.history.epochs))
                if show_epoch:
                    show_epoch(trained)

            shared: dict[str, Any] = {"folder": data_dir, "device": torch_device, "keep_state": keep_state}
            shared |= {"on_step": on_step, "on_epoch": on_epoch}
            if resume:
                trained = training_run.resume(out, given, **shared)
            elif data is None:
                raise UsageError("--data: is missing", "name the data to train on, like --data tiles")
            else:
                recipe = training_run.Recipe(**given)
                trained = training_run.run(recipe, out, **shared, force=force)
    except KeyboardInterrupt:
        if finished or resume:
            again = ["vaeprune", "train", "--resume", "--out", str(out), "--device", device.value]
            again += ["--data-dir", str(data_dir)] if data_dir else []
            again += ["--data", data] if data and ":" in data else []
            again += ["--epochs", str(epochs)] if resume and epochs else []
            note(f"{out} holds the last finished epoch; go on with: {shlex.join(again)}")
        raise
    _report(trained, out, json)


def _report(trained: Trained, out: Path, json: bool) -> None:
    from vaeprune.training.growth import came_alive

    last = trained.history.epochs[-1]
    grown = came_alive(trained.vae.provenance.get("training"), last)
    if json:
        shares: dict[str, Any] = {"loss": last.loss, "reconstruction": last.reconstruction, "kl": last.kl}
        if grown:
            shares |= {"grown": {"new_latents": grown.new, "alive": grown.alive, "kl_weight": grown.weight}}
        print_json({"out": str(out), "epochs": last.epoch, **shares, "n_inactive": last.n_inactive})
        return
    show(
        f"{out}: {last.epoch} epochs, loss {last.loss:.2f} nats per row (reconstruction {last.reconstruction:.2f}, "
        f"KL {last.kl:.2f}), {last.n_inactive} of {len(last.variance)} latents inactive"
    )
    if grown:
        show(grown.words())


@contextlib.contextmanager
def _progress(
    quiet: bool,
) -> Iterator[tuple[Callable[[Step], None] | None, Callable[[Trained], None] | None]]:
    """A bar for each epoch on a terminal, a line for each epoch elsewhere, nothing if quiet."""
    if quiet:
        yield None, None
    elif not sys.stderr.isatty():
        yield None, lambda trained: note(_line(trained))
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr(), transient=True) as bar:
            task = bar.add_task("epoch 1")

            def on_step(step: Step) -> None:
                words = f"epoch {step.epoch}  loss {step.loss:.2f} = {step.reconstruction:.2f} + KL {step.kl:.2f}"
                bar.update(task, description=words, completed=step.batch, total=step.batches)

            yield on_step, lambda trained: bar.console.print(_line(trained))


def _line(trained: Trained) -> str:
    last = trained.history.epochs[-1]
    return (
        f"epoch {last.epoch:3}  loss {last.loss:8.2f}  reconstruction {last.reconstruction:8.2f}  KL {last.kl:6.2f}  "
        f"inactive {last.n_inactive} of {len(last.variance)}"
    )
