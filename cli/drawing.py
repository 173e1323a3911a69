"""What `sample`, `reconstruct` and `traverse` share: which models and rows they draw from, and where the sheet goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaeprune.errors import UsageError

from . import options as o
from .output import note, print_json, progress, show
from .preview import can_preview, preview

if TYPE_CHECKING:
    from vaeprune.data import DataSets
    from vaeprune.posterior import VAE
    from vaeprune.report.pictures import Sides
    from vaeprune.report.rows_seen import Seen
    from vaeprune.report.sheets import Sheet

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="As for the other commands, or a folder with encoder.onnx and decoder.onnx.",
    ),
]


@dataclass(frozen=True)
class Drawing:
    """What to draw from, and where to."""

    out: Annotated[Path, typer.Option("--out", help="The PNG file to write.")]
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="As for the other commands; what MODEL was trained on if left out."
        ),
    ] = None
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are or will be downloaded to.")
    ] = None
    condition: Annotated[
        str | None, typer.Option("--condition", help="Name of a conditional VAE's condition in the data.")
    ] = None
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="SHRUNK", help="Also what shrink made of MODEL, from the same rows and noise."
        ),
    ] = None
    zero_inactive: Annotated[
        bool, typer.Option("--zero-inactive", help="Also with the inactive latents at 0, as found on DATA.")
    ] = False
    seed: Annotated[int, typer.Option("--seed", help="Of the noise, and of the rows that are drawn.")] = 0
    device: o.OnDevice = o.Device.auto
    force: o.Force = False
    json: o.Json = False
    quiet: o.Quiet = False

    def open(self, model: str, reading: o.Reading, needs_rows: bool) -> Opened:
        """The models, and rows where they are needed or known."""
        from vaeprune.onnx_vae import OnnxVAE
        from vaeprune.report.pictures import Compared, Held, Sides
        from vaeprune.report.rows_seen import seen
        from vaeprune.report.sheets import idle_latents
        from vaeprune.storage import refuse_existing
        from vaeprune.surgery.cut import refuse_other_weights
        from vaeprune.surgery.plan import PLAN, read_plan

        refuse_existing(self.out, self.force)
        plan = read_plan(self.against) if self.against and (self.against / PLAN).exists() else None
        split = int(plan.data.get("seed", 0)) if plan else 0
        sets = self._sets(model, reading, split, needs_rows or self.zero_inactive)
        before = self._model(model, reading, sets)
        after = None
        if self.against is not None:
            imported = reading.factory or (model if ":" in model and not Path(model).exists() else None)
            after = self._model(str(self.against), o.Reading(factory=imported), sets)
        if plan and not isinstance(before, OnnxVAE):  # an ONNX file does not tell which weights it was made of
            refuse_other_weights(before.network.state_dict(), plan)
        idle: tuple[int, ...] = ()
        if self.zero_inactive and sets is not None:
            with progress(self.quiet or self.json) as report:
                idle = idle_latents(before, sets, report)
            note(f"inactive on {sets.name}: {', '.join(map(str, idle)) or 'none'}", self.quiet)
        return Opened(Sides(Compared.of(before, after, plan), Held(idle)), sets, seen(before, sets))

    def _sets(self, model: str, reading: o.Reading, split: int, needed: bool) -> DataSets | None:
        from vaeprune.model_folder import training_data

        named = self.data
        if named is None and (needed or _learns_from_rows(model)):
            named = training_data(Path(model))
            if named is None and self.against is not None:
                named = training_data(self.against)
            if named is None:
                raise UsageError("--data: is missing, and the model does not say what it was trained on")
        if named is None:
            return None
        rows = o.Rows(named, data_dir=self.data_dir, condition=self.condition, seed=split)
        return rows.open(input_range=reading.input_range)

    def _model(self, model: str, reading: o.Reading, sets: DataSets | None) -> VAE:
        from vaeprune.model_folder import load
        from vaeprune.onnx_vae import OnnxVAE

        if _is_onnx_pair(Path(model), reading):
            return OnnxVAE(Path(model), reading.source(model).likelihood, _scored(sets))
        if sets is None:
            from vaeprune.factory import import_path

            found = load(model, import_path(reading.factory) if reading.factory else None)
            return found.to(o.torch_device(self.device))
        return o.open_model(model, reading, sets, self.device, self.quiet)

    def finish(self, sheet: Sheet, what: str, more: dict[str, Any]) -> None:
        """Write the sheet, and say what is on it."""
        sheet.write(self.out, self.force)
        if self.json:
            figures = {"largest_difference": sheet.largest, "difference_factor": sheet.factor}
            print_json({"out": str(self.out), "panels": list(sheet.panels), **figures, **more})
            return
        show(f"{self.out}: {what}; {', '.join(sheet.panels)}")
        if sheet.largest is not None:
            show(f"largest difference {sheet.largest:.3g}, drawn {sheet.factor} times as large")
        if sheet.said:
            note(sheet.said, self.quiet)
        if sheet.pixels.size and not self.quiet and can_preview():
            preview(sheet.pixels)


@dataclass(frozen=True)
class Opened:
    """The sides to compare, rows if there are any, and how a row is shown."""

    sides: Sides
    sets: DataSets | None
    view: Seen


def _is_onnx_pair(folder: Path, reading: o.Reading) -> bool:
    """Whether a folder is to be read as ONNX files: nothing else is there, or only weights of a class not named."""
    from vaeprune.model_folder import CONFIG
    from vaeprune.onnx_figures import PARTS
    from vaeprune.storage import read_json

    if not all((folder / f"{part}.onnx").is_file() for part in PARTS):
        return False
    if not (folder / CONFIG).is_file():
        return True
    entry = read_json(folder / CONFIG, "model's config")
    return isinstance(entry, dict) and entry.get("architecture") is None and reading.factory is None


def _learns_from_rows(model: str) -> bool:
    """Whether MODEL is somebody's own class, which is read by running rows through it."""
    from vaeprune.adapters.known import is_known_folder

    folder = Path(model)
    return (":" in model and not folder.exists()) or is_known_folder(folder)


def _scored(sets: DataSets | None) -> Any:
    """How the rows of an ONNX pair are scored where its files do not say: by the range of the data."""
    from vaeprune.likelihood import Likelihood

    pictures = sets is not None and sets.verify.scaled_to == (0.0, 1.0)
    return Likelihood("bernoulli" if pictures else "gaussian", "mean")
