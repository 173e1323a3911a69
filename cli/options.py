"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import UsageError

if TYPE_CHECKING:
    from vaeprune.architectures import BuiltVAE
    from vaeprune.data import DataSets

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="tiles, mnist, fashion-mnist, an .npy or .npz file, or a folder of pictures.",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option("--held-out", metavar="DATA", help="Select and verify on these rows; calibrate on all of --data."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where mnist and fashion-mnist are or will be downloaded to."),
]
Rows = Annotated[int | None, typer.Option("--rows", help="Use only the first N rows of each split.")]
SplitSeed = Annotated[int, typer.Option("--seed", help="Seed of the split into calibrate, select and verify rows.")]
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


OnDevice = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes a GPU if there is one.")]
AblateOption = Annotated[
    Ablate,
    typer.Option("--ablate", help="Try the decoder for these latents; without it verdicts are provisional."),
]
MaxVariance = Annotated[
    float, typer.Option("--max-variance", help="An inactive latent's variance of the mean is below.")
]
MinPosteriorVariance = Annotated[
    float,
    typer.Option("--min-posterior-variance", help="An inactive latent's mean posterior variance is above."),
]
MaxAblationCost = Annotated[
    float, typer.Option("--max-ablation-cost", help="Fixing an inactive latent costs less, in nats per row.")
]
MaxNoise = Annotated[
    float,
    typer.Option("--max-noise", help="Noise in an inactive latent moves the output less: RMS share of its range."),
]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance", help="Gate: largest mean-path difference and RMS of prior samples, share of the range."
    ),
]
MaxElboLoss = Annotated[float, typer.Option("--max-elbo-loss", help="Gate: upper 95% bound of the ELBO loss, in nats.")]
OnnxTolerance = Annotated[
    float, typer.Option("--onnx-tolerance", help="Gate: ONNX against PyTorch, share of the output's range.")
]


def open_model(folder: Path, device: Device) -> BuiltVAE:
    """The model in a folder, on the device asked for."""
    from vaeprune.model_folder import load

    return load(folder).to(torch_device(device))


def torch_device(device: Device) -> str:
    """The torch name of a device; raises UsageError if it is not there."""
    import torch

    if device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UsageError(f"--device {device.value}: torch finds no such device here", "use --device cpu")
    return str(device.value)


def open_rows(data: str, held_out: str | None, data_dir: Path | None, seed: int, rows: int | None) -> DataSets:
    """The three sets of a DATA argument."""
    from vaeprune.data import open_data

    return open_data(data, held_out, folder=data_dir, seed=seed, rows=rows)


def integers(text: str, option: str) -> list[int]:
    """A comma-separated list of whole numbers; raises UsageError."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option}: got {text!r}, expected whole numbers with commas between, like 1,4") from None
