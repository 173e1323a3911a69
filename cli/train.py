"""`vaeprune train`: make a VAE."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeprune.errors import UsageError

from . import options as o
from .as_rank import several
from .output import note, print_json, show
from .train_auto import train_auto
from .training_display import training_display
from .values import integers

if TYPE_CHECKING:
    from vaeprune.training import Trained


AUTO = "auto"


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
    latent: Annotated[
        str | None,
        typer.Option(
            "--latent",
            metavar="N|auto",
            help="Number of latents; auto trains with too many, then cuts out those that are idle. [default: 16]",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="K", help="With --latent auto: search K times, and say the range.")
    ] = None,
    starts: Annotated[
        int | None,
        typer.Option("--starts", metavar="N", help="With --latent auto: begin N seeds, finish the best. [default: 3]"),
    ] = None,
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
    bf16: Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="In bfloat16, for a GPU. [default: no]")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Through torch.compile, for long trainings. [default: no]"),
    ] = None,
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
) -> int:
    """Train a VAE, by default the paper's.

    Ctrl-C keeps the last finished epoch.
    """
    from vaeprune import training_run

    if out is None:
        raise UsageError("--out: is missing", "name the model folder to write")
    wished: dict[str, Any] = {
        "data": data, "architecture": arch, "hidden": tuple(integers(hidden, "--hidden")) if hidden else None,
        "latent": _size(latent), "likelihood": likelihood, "scale": scale, "kl": kl, "beta": beta, "sampling": sampling,
        "initialisation": init, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "trace_every": trace_every, "seed": seed, "rows": rows, "bf16": bf16, "compiled": compiled,
    }  # fmt: skip
    given = {k: v.value if isinstance(v, Enum) else v for k, v in wished.items() if v is not None}
    how: dict[str, Any] = {"folder": data_dir, "device": o.torch_device(device), "keep_state": keep_state}
    again = ["--device", device.value, *(["--data-dir", str(data_dir)] if data_dir else [])]
    if latent == AUTO and several():
        raise UsageError("--latent auto: goes with one process", "start it without torchrun")
    repeats = {name: count for name, count in (("seeds", seeds), ("starts", starts)) if count is not None}
    if repeats and latent != AUTO:
        option = next(iter(repeats))
        raise UsageError(f"--{option}: goes with --latent auto", "train several seeds one by one with --seed")
    if data is None and not (resume and latent != AUTO):
        raise UsageError("--data: is missing", "name the data to train on, like --data tiles")
    if latent == AUTO:
        again += [word for name, count in repeats.items() for word in (f"--{name}", str(count))]
        how |= repeats | {"force": force, "go_on": resume}
        return train_auto(training_run.Recipe(**given), out, again, json, quiet, **how)
    again += ["--data", data] if data and ":" in data else []
    again += ["--epochs", str(epochs)] if resume and epochs else []
    _report(_trained(given, out, resume, force, again, quiet or json, how), out, json)
    return 0


def _trained(
    given: dict[str, Any], out: Path, resume: bool, force: bool, again: list[str], quiet: bool, how: dict[str, Any]
) -> Trained:
    """Train or go on, with progress. `again`: options that a repeated command needs, said on Ctrl-C."""
    from vaeprune import training_run

    finished: list[int] = []
    try:
        with training_display(quiet) as display:

            def on_epoch(trained: Trained) -> None:
                finished.append(len(trained.history.epochs))
                display.on_epoch(trained)

            how |= {"on_step": display.on_step, "on_epoch": on_epoch}
            if resume:
                return training_run.resume(out, given, **how)
            return training_run.run(training_run.Recipe(**given), out, **how, force=force)
    except KeyboardInterrupt:
        if finished or resume:
            words = ["vaeprune", "train", "--resume", "--out", str(out), *again]
            note(f"{out} holds the last finished epoch; go on with: {shlex.join(words)}")
        raise


def _size(latent: str | None) -> int | None:
    """The number in --latent, None where there is none."""
    if latent is None or latent == AUTO:
        return None
    try:
        return int(latent)
    except ValueError:
        raise UsageError(f"--latent: got {latent!r}, expected a whole number or auto") from None


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
