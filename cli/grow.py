"""`vaeprune grow`: more latents, without changing what the model computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaeprune.errors import UsageError

from . import options as o
from .groups import takes
from .output import print_json, show

if TYPE_CHECKING:
    from vaeprune.growing import Grown


@takes(o.Reading)
def grow(
    model: o.Model,
    reading: o.Reading,
    latent: Annotated[int, typer.Option("--latent", metavar="N", help="How many latents there shall be.")],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Rows to look at; the training data if left out.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where mnist and fashion-mnist are.")] = None,
    condition: Annotated[
        str | None, typer.Option("--condition", help="Name of a conditional VAE's condition in the data.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Use only the first N rows of each split.")] = None,
    warm_up: Annotated[
        float | None,
        typer.Option("--warm-up", metavar="EPOCHS", help="Over which the new latents' KL is weighted from 0 to 1."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the new weights.")] = 0,
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Add latents; the outputs stay exactly as they are.

    `train --resume` then brings the new latents to life, and says how many came.
    """
    from vaeprune.architectures import BuiltVAE
    from vaeprune.growing import WARM_UP, refuse_size
    from vaeprune.growing import grow as grow_model
    from vaeprune.model_folder import training_data
    from vaeprune.storage import refuse_existing
    from vaeprune.training import Growth

    length = Growth(1, 0, WARM_UP if warm_up is None else warm_up).warm_up
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed: got {seed}, expected a whole number from 0 to 2^63")
    refuse_existing(out, force)
    named = data or training_data(Path(model))
    if not named:
        raise UsageError("--data: is missing, and the model does not say what it was trained on")
    sets = o.Rows(named, data_dir=data_dir, condition=condition, rows=rows).open(input_range=reading.input_range)
    vae = o.open_model(model, reading, sets, o.Device.cpu, quiet)
    refuse_size(vae, latent)
    known = Path(model) if isinstance(vae, BuiltVAE) and Path(model).is_dir() else vae
    grown = grow_model(known, latent, sets, out, warm_up=length, seed=seed, force=force)
    if json:
        print_json({"model": model} | grown.to_json())
    else:
        _print(grown, model, out)


def _print(grown: Grown, model: str, out: Path) -> None:
    from vaeprune.grown_card import warm_up_advice

    before, after = grown.latent_size
    kept = grown.preserved
    worst = max(kept.mean, kept.logvar, kept.decoded, kept.anywhere)
    show(f"{out}: {model} with {after} latents instead of {before}, {grown.parameters[1]:,} weights")
    show(
        f"means and logvars of the old latents, and what any z decodes to, on {kept.n_samples:,} rows: differ by at "
        f"most {worst:.2g} relative, where rounding may be {kept.limit:.0e}"
    )
    show(f"cutting the new latents out again gives the old weights: {'bit for bit' if kept.undone else 'no'}")
    show(warm_up_advice(grown.widening, grown.warm_up, grown.resumable))
    if grown.resumable is None:
        done = len(grown.history.epochs)
        show(f"    vaeprune train --resume --out {out} --epochs {2 * done or math.ceil(4 * grown.warm_up)}")
