"""`grow`: widen → check that nothing changed → write a folder that training goes on from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE, as_vae, batches_for, element_type, measuring
from vaeprune.adapters.copying import copied, make_plain
from vaeprune.adapters.measuring import batch_rows
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ModelError, StorageError, TrainingError, UsageError
from vaeprune.grown_card import grown_card
from vaeprune.model_folder import ModelFolder, read_model_folder, write_model_folder
from vaeprune.posterior import VAE, count_weights
from vaeprune.storage import refuse_existing
from vaeprune.surgery.cut import cut
from vaeprune.surgery.inserting import widening_for
from vaeprune.surgery.reference import EXACT_TOLERANCE
from vaeprune.surgery.scopes import Own
from vaeprune.surgery.widening import Widening, undoing, widen, widened, write_widening
from vaeprune.training import Growth, History
from vaeprune.training_run import Recipe

WARM_UP = 2.0
_MOST_ROWS = 1_000
_FAR = 100.0  # how far out new latents are tried


@dataclass(frozen=True)
class Preserved:
    """How far a wider model is from the original, relative to the largest value of each tensor; rounding is all.

    `decoded` is at posterior samples, `anywhere` with the new latents drawn from N(0, 100²); `undone`: whether cutting
    the new latents out again gives the original weights bit for bit.
    """

    n_samples: int
    mean: float
    logvar: float
    decoded: float
    anywhere: float
    undone: bool
    limit: float

    @property
    def passed(self) -> bool:
        """Whether all of it is within `limit`. A NaN never passes."""
        return self.undone and all(e <= self.limit for e in (self.mean, self.logvar, self.decoded, self.anywhere))


@dataclass(frozen=True, eq=False)
class Grown:
    """The result of `grow`. `resumable`: None if training goes on with `train --resume`, else why it cannot."""

    model: Own
    widening: Widening
    preserved: Preserved
    warm_up: float
    parameters: tuple[int, int]
    resumable: str | None = None
    history: History = field(default_factory=History)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    out: Path | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        """Before and after."""
        return self.widening.latent_size, self.widening.latent_size + self.widening.added

    def to_json(self) -> dict[str, Any]:
        """What `vaeprune grow --json` prints."""
        before, after = self.latent_size
        return {
            "out": str(self.out) if self.out else None,
            "latent_size": {"before": before, "after": after},
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "new_latents": self.widening.new_latents,
            "warm_up_epochs": self.warm_up,
            "preserved": dataclasses.asdict(self.preserved) | {"passed": self.preserved.passed},
            "resumable": self.resumable is None,
            "why_not_resumable": self.resumable,
        }


def grow(
    model: VAE | nn.Module | str | Path,
    latent_size: int,
    data: DataSets | Tensor | str | Iterable[Any],
    out: str | Path | None = None,
    *,
    warm_up: float = WARM_UP,
    seed: int = 0,
    force: bool = False,
) -> Grown:
    """Add latents to a model without changing what it computes; with `out`, write a model folder.

    `model`: a VAE, any module that `adapt` can read, or the path of a model folder, whose training then goes on with
    `train --resume`. What reads the new latents is 0, so every z decodes as before, and so do the old latents' means
    and logvars come out. The new latents start with means of variance 1 in directions the old ones do not show; their
    KL is then weighted from 0 to 1 over `warm_up` epochs, without which they may stay idle. Until then the unweighted
    ELBO counts their KL and is that much lower. `data`: a few rows show those directions, and others check the result.
    `model` itself stays as it is. Raises UsageError, ModelError, TraceError, StorageError; nothing is then written.
    """
    Growth(1, 0, warm_up)  # says what makes no sense before anything is read
    target = Path(out) if out is not None else None
    if target:
        refuse_existing(target, force)
    known = _known(model)
    sets = as_data(data)
    vae = known.vae if known else as_vae(model, sets)
    if not isinstance(vae, (BuiltVAE, AdaptedVAE)):
        raise ModelError(
            f"{type(model).__name__}: has the VAE protocol of its own, so no folder can be written that loads again",
            "use surgery.inserting.widening_for and surgery.widening.widen, which take it as it is",
        )
    refuse_size(vae, latent_size)
    _refuse_shrunk(vae)
    rows = next(iter(batches_for(vae, sets.calibrate, min(_MOST_ROWS, batch_rows(sets.row_shape)))))
    widening = widening_for(vae, latent_size, rows, seed=seed)
    wider = widen(vae, widening)
    preserved = _preserved(vae, wider, widening, sets)
    if not math.isfinite(preserved.decoded):
        raise ModelError(f"model: decodes to NaN or infinity on {sets.verify.name}", "check the weights")
    if not preserved.passed:
        raise ModelError(f"wider model: does not compute the same: {preserved}", "nothing was written; this is a bug")
    grown = Grown(wider, widening, preserved, warm_up, (count_weights(vae), count_weights(wider)))
    folder, why = _continued(known, wider, widening, warm_up)
    grown = dataclasses.replace(grown, resumable=why, history=folder.history, state=folder.state)
    if target is None:
        return grown
    return _written(grown, folder, target, force)


def refuse_size(vae: VAE, latent_size: int) -> None:
    """Raise UsageError unless `latent_size` is more than the model has and no more than a row has values."""
    if latent_size <= vae.latent_size:
        raise UsageError(
            f"latent: got {latent_size}, the model has {vae.latent_size} already",
            "ask for more; `vaeprune shrink` makes it smaller",
        )
    values, positions = math.prod(vae.input_shape), math.prod(vae.latent_shape[1:])
    if latent_size * positions > values:
        raise UsageError(
            f"latent: got {latent_size}, which is more than the {values} values of a row can use",
            f"take at most {max(values // positions, 1)}; twice {vae.latent_size} is a usual next step",
        )


def _known(model: object) -> ModelFolder | None:
    return read_model_folder(Path(model)) if isinstance(model, (str, Path)) else None


def _refuse_shrunk(vae: VAE) -> None:
    """Latents that were cut out because they were idle are not put back."""
    shrunk = getattr(vae, "provenance", {}).get("shrunk")
    before = shrunk.get("latent_size") if isinstance(shrunk, dict) else None
    if type(before) is int and before > vae.latent_size:
        raise ModelError(
            f"model: was shrunk from {before} to {vae.latent_size} latents since the others were idle, so new ones "
            "would be idle, too",
            "grow the model it was shrunk from, if all of its latents were active",
        )


def _preserved(vae: VAE, wider: VAE, widening: Widening, sets: DataSets) -> Preserved:
    """Run both on the verify rows."""
    old, generator = vae.latent_size, torch.Generator().manual_seed(sets.seed)
    worst, scale = dict.fromkeys(("mean", "logvar", "decoded", "anywhere"), 0.0), dict[str, float]()

    def see(name: str, reference: Tensor, found: Tensor) -> None:
        difference = (reference.double() - found.double()).abs().max().item()
        worst[name] = math.nan if math.isnan(difference) else max(worst[name], difference)
        scale[name] = max(scale.get(name, 1e-30), reference.abs().max().item())

    with measuring(vae, wider):
        for x, *condition in batches_for(vae, sets.verify):
            before, after = vae.encode(x, *condition), wider.encode(x, *condition)
            see("mean", before.mean, after.mean[:, :old])
            see("logvar", before.logvar, after.logvar[:, :old])
            z = after.sample(torch.randn(after.mean.shape, generator=generator).to(after.mean))
            see("decoded", vae.decode(z[:, :old], *condition), wider.decode(z, *condition))
            z[:, old:] = _FAR * torch.randn(z[:, old:].shape, generator=generator).to(z)
            see("anywhere", vae.decode(z[:, :old], *condition), wider.decode(z, *condition))
    narrow = copied(vae.network)
    make_plain(narrow)
    undone = _same(narrow, cut(wider.network, undoing(widening, narrow, wider.network, sets.describe())))
    limit = EXACT_TOLERANCE.get(element_type(vae)[0], EXACT_TOLERANCE[torch.float32])
    relative = {name: worst[name] / scale.get(name, 1e-30) for name in worst}
    return Preserved(sets.verify.count, **relative, undone=undone, limit=limit)


def _same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def _continued(
    known: ModelFolder | None, wider: Own, widening: Widening, warm_up: float
) -> tuple[ModelFolder, str | None]:
    """The folder from which training goes on, and why it cannot, if so."""
    provenance = wider.provenance
    wider.provenance = provenance | {
        "attributes": {**(provenance.get("attributes") or {}), **widening.attributes},
        "made_plain": [*(provenance.get("made_plain") or ()), *widening.made_plain],
    }
    training, shrunk = provenance.get("training"), provenance.get("shrunk")
    bare = ModelFolder(wider, training, shrunk, known.history if known else History())
    if isinstance(wider, AdaptedVAE):
        return bare, "models of one's own class are trained by one's own code"
    if shrunk:
        return bare, "it was shrunk"
    try:
        recipe = Recipe.from_json(training, "model")
    except StorageError:
        return bare, "the model does not record a training"
    if known is None or not known.history.epochs:
        return bare, "there is no history of its training" if known else "it was not given as a model folder"
    growth = Growth(widening.latent_size, len(known.history.epochs), warm_up)
    latent_size = widening.latent_size + widening.added
    longer = dataclasses.replace(recipe, latent=latent_size, grown=(*recipe.grown, growth)).to_json()
    wider.provenance["training"] = longer
    return dataclasses.replace(bare, training=longer, state=_state(known, wider, widening, recipe)), None


def _state(known: ModelFolder, wider: BuiltVAE, widening: Widening, recipe: Recipe) -> dict[str, Tensor]:
    """Adam's moments with zeros for what is new; all zero where the folder was saved without them."""
    state = {"generator": known.state.get("generator", torch.Generator().manual_seed(recipe.seed).get_state())}
    narrow = {name: torch.zeros_like(p) for name, p in known.vae.named_parameters()}
    for key in ("exp_avg", "exp_avg_sq"):
        moments = {name: known.state.get(f"{key}:{name}", zero) for name, zero in narrow.items()}
        for name, moment in moments.items():
            if moment.shape != narrow[name].shape:
                raise TrainingError(f"training state: {key} of {name} has shape {tuple(moment.shape)}")
        state |= {f"{key}:{name}": value for name, value in widened(moments, widening.slices, {}).items()}
    return state | {f"step:{name}": known.state.get(f"step:{name}", torch.zeros(())) for name in narrow}


def _written(grown: Grown, folder: ModelFolder, target: Path, force: bool) -> Grown:
    """A model folder with the widening beside the weights."""
    grown = dataclasses.replace(grown, out=target)
    write_model_folder(
        folder,
        target,
        grown_card(grown.widening, grown.warm_up, grown.resumable, folder),
        force=force,
        more=lambda path: write_widening(grown.widening, path),
    )
    return grown
