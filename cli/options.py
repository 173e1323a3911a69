"""Arguments and options that several commands share, in groups that `takes` puts into a command's signature."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeprune.errors import UsageError

from .values import numbers, sizes

if TYPE_CHECKING:
    from vaeprune.adapters import AdaptedVAE
    from vaeprune.analysis import Thresholds
    from vaeprune.architectures import BuiltVAE
    from vaeprune.data import DataSets
    from vaeprune.evidence import Tolerances
    from vaeprune.opening import Source

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


class Device(str, Enum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Ablate(str, Enum):
    """For which latents the decoder is tried."""

    all = "all"
    candidates = "candidates"
    none = "none"


class Spread(str, Enum):
    """What a foreign encoder gives beside the mean."""

    logvar = "logvar"
    logstd = "logstd"
    std = "std"
    var = "var"
    softplus = "softplus"


class Observation(str, Enum):
    """How a row is scored, and what the decoder gives."""

    bernoulli = "bernoulli"
    logits = "bernoulli-logits"
    gaussian = "gaussian"


OnDevice = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes a GPU if there is one.")]


@dataclass(frozen=True)
class Reading:
    """How to load and read a foreign model; nothing of it is needed for a model folder of this package."""

    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint of a MODEL named by import path.")] = (
        None
    )
    model_arg: Annotated[
        list[str] | None, typer.Option("--model-arg", metavar="NAME=VALUE", help="Argument for MODEL; may be repeated.")
    ] = None
    factory: Annotated[
        str | None, typer.Option("--factory", help="Import path for a folder that holds a shrunk foreign model.")
    ] = None
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W", help="Shape of a row before the model.")
    ] = None
    input_range: Annotated[
        str, typer.Option("--input-range", metavar="LOW,HIGH", help="What uint8 data are scaled to, like -1,1.")
    ] = "0,1"
    spread: Annotated[
        Spread | None, typer.Option("--spread", help="What the encoder gives beside the mean. [default: found out]")
    ] = None
    likelihood: Annotated[
        Observation | None, typer.Option("--likelihood", help="How a row is scored. [default: found out]")
    ] = None
    scale: Annotated[
        float | None, typer.Option("--scale", help="Standard deviation of the gaussian likelihood. [default: 1]")
    ] = None

    def source(self, model: str) -> Source:
        """What was said of MODEL, for the library."""
        from vaeprune.factory import parse_arguments
        from vaeprune.likelihood import Likelihood
        from vaeprune.opening import Source

        known = {
            Observation.bernoulli: ("bernoulli", "mean"),
            Observation.logits: ("bernoulli", "logits"),
            Observation.gaussian: ("gaussian", "mean"),
        }
        likelihood = Likelihood(*known[self.likelihood]) if self.likelihood else None  # type: ignore[arg-type]
        if self.scale is not None:
            if likelihood is not None and likelihood.kind != "gaussian":
                raise UsageError("--scale: goes with the gaussian likelihood only", "leave it out")
            likelihood = Likelihood("gaussian", "mean", self.scale)
        return Source(
            model,
            weights=self.weights,
            arguments=parse_arguments(self.model_arg or []),
            factory=self.factory,
            input_shape=None if self.input_shape is None else sizes(self.input_shape, "--input-shape"),
            spread=self.spread.value if self.spread else None,
            likelihood=likelihood,
        )

    def words(self) -> list[str]:
        """The options again, for a command to run next."""
        words = [w for a in self.model_arg or [] for w in ("--model-arg", a)]
        for option in ("weights", "factory", "input_shape", "spread", "likelihood", "scale"):
            value = getattr(self, option)
            if value is not None:
                words += ["--" + option.replace("_", "-"), str(getattr(value, "value", value))]
        return [*words, *(["--input-range", self.input_range] if self.input_range != "0,1" else [])]


@dataclass(frozen=True)
class Rows:
    """Which rows to use, and how to part them."""

    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="tiles, mnist, fashion-mnist, an .npy or .npz file, a folder of pictures or of .npy files, or "
            "path/or.module:factory.",
        ),
    ]
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="DATA", help="Select and verify on these; calibrate on all of --data."),
    ] = None
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are or will be downloaded to.")
    ] = None
    condition: Annotated[
        str | None,
        typer.Option("--condition", help="Name of a conditional VAE's condition in the data, like labels or 1."),
    ] = None
    rows: Annotated[int | None, typer.Option("--rows", help="Use only the first N rows of each split.")] = None
    seed: Annotated[int, typer.Option("--seed", help="Of the split into calibrate, select and verify rows.")] = 0

    def open(self, seed: int | None = None, input_range: str = "0,1") -> DataSets:
        """The three sets; `seed` overrules the one given."""
        from vaeprune.data import open_data

        return open_data(
            self.data,
            self.held_out,
            folder=self.data_dir,
            seed=self.seed if seed is None else seed,
            rows=self.rows,
            condition=self.condition,
            input_range=numbers(input_range, "--input-range"),
        )


@dataclass(frozen=True)
class Limits:
    """When a latent is inactive."""

    ablate: Annotated[
        Ablate, typer.Option("--ablate", help="Try the decoder for these latents; without it verdicts are provisional.")
    ] = Ablate.candidates
    max_variance: Annotated[
        float, typer.Option("--max-variance", help="An inactive latent's variance of the mean is below.")
    ] = 0.01
    min_posterior_variance: Annotated[
        float, typer.Option("--min-posterior-variance", help="An inactive latent's mean posterior variance is above.")
    ] = 0.8
    max_ablation_cost: Annotated[
        float, typer.Option("--max-ablation-cost", help="Fixing an inactive latent costs less, in nats per row.")
    ] = 0.05
    max_noise: Annotated[
        float,
        typer.Option("--max-noise", help="Noise in an inactive latent moves the output less: RMS share of range."),
    ] = 0.01

    def thresholds(self) -> Thresholds:
        """The library's form."""
        from vaeprune.analysis import Thresholds

        return Thresholds(self.max_variance, self.min_posterior_variance, self.max_ablation_cost, self.max_noise)


@dataclass(frozen=True)
class Pass:
    """How to read and encode the calibrate rows."""

    until_certain: Annotated[
        bool,
        typer.Option(
            "--until-certain", help="Stop reading once all intervals are clear; rows must be in random order."
        ),
    ] = False
    comoments: Annotated[
        bool,
        typer.Option("--comoments/--no-comoments", help="Keep co-moments of latents, whose cost is quadratic."),
    ] = True
    bf16: Annotated[bool, typer.Option("--bf16", help="Encode in bfloat16, and say what that changes.")] = False

    def arguments(self) -> dict[str, Any]:
        """The library's form."""
        from vaeprune.analysis.encoding_pass import How

        return {"certain": self.until_certain, "how": How(self.comoments, self.bf16)}


@dataclass(frozen=True)
class Gates:
    """When a smaller model is the same model."""

    tolerance: Annotated[
        float,
        typer.Option("--tolerance", help="Largest mean-path difference and RMS of prior samples, share of range."),
    ] = 0.02
    max_elbo_loss: Annotated[
        float, typer.Option("--max-elbo-loss", help="Upper 95% bound of the ELBO loss, in nats per row.")
    ] = 0.1
    onnx_tolerance: Annotated[
        float, typer.Option("--onnx-tolerance", help="ONNX against PyTorch, share of the output's range.")
    ] = 1e-4

    def tolerances(self) -> Tolerances:
        """The library's form."""
        from vaeprune.evidence import Tolerances

        return Tolerances(self.tolerance, self.max_elbo_loss, self.onnx_tolerance)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a pythae or diffusers folder, or path/to/file.py:Class with --weights and --model-arg.",
    ),
]


def open_model(model: str, reading: Reading, sets: DataSets, device: Device, quiet: bool) -> BuiltVAE | AdaptedVAE:
    """MODEL on the device asked for; what was assumed about a foreign one is said on stderr."""
    from vaeprune.opening import open_model as open_source

    from .output import note

    vae = open_source(reading.source(model), sets)
    for assumption in getattr(vae, "assumptions", ()):
        note(assumption, quiet)
    return vae.to(torch_device(device))


def torch_device(device: Device) -> str:
    """The torch name of a device; raises UsageError if it is not there."""
    import torch

    if device is Device.auto:
        return _own_gpu() if torch.cuda.is_available() else "cpu"
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UsageError(f"--device {device.value}: torch finds no such device here", "use --device cpu")
    return _own_gpu() if device is Device.cuda else str(device.value)


def _own_gpu() -> str:
    """Each of several ranks on a machine takes the GPU of its own number."""
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{rank}"
