"""Growing beside a fresh training: dense MNIST, 4 latents for 8 epochs, grown to 8, 8 epochs more; three seeds.

Asked for: as many live latents as a fresh network of 8 has, and an ELBO near its. A fresh network is trained for all 16
epochs, and counted after 8, too, which is what growing costs once the small network is there. Every way to grow starts
from the same small network and keeps its mean path; only non-zero decoder columns change what samples decode to.
`python -m benchmarks growing`; finished runs are kept in out/benchmarks/growing.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kept_results import Kept
from benchmarks.trained_networks import TRAINED_HERE, held_out
from vaeprune import analyze, load
from vaeprune.adapters import batches_for, measuring
from vaeprune.architectures import BuiltVAE
from vaeprune.data import DataSets, open_data, training_images
from vaeprune.errors import DataError
from vaeprune.growing import WARM_UP, grow
from vaeprune.posterior import VAE, negative_elbo
from vaeprune.surgery.widening import Widening, widen
from vaeprune.training import Growth, History, Options, train
from vaeprune.training_run import Recipe, resume, run

SEEDS = (0, 1, 2)
SMALL, LARGE, EPOCHS = 4, 8, 8
_KEPT = TRAINED_HERE / "growing.json"
_MARK = "1"


def as_it_is(widening: Widening, model: BuiltVAE) -> Widening:
    """What `grow` does: new directions of variance 1, the spread of the most certain old latent, columns 0."""
    return widening


def idle(widening: Widening, model: BuiltVAE) -> Widening:
    """The idle fixed point: mean 0, sigma² 1, columns 0."""
    return dataclasses.replace(widening, values={})


def glorot(widening: Widening, model: BuiltVAE) -> Widening:
    """Mean rows as a fresh network's, sigma² 1, columns 0."""
    return dataclasses.replace(widening, values={"mean_head.weight": _drawn(widening, "mean_head.weight", 1.0)})


def larger(widening: Widening, model: BuiltVAE) -> Widening:
    """The same, four times as large."""
    return dataclasses.replace(widening, values={"mean_head.weight": _drawn(widening, "mean_head.weight", 4.0)})


def certain(widening: Widening, model: BuiltVAE) -> Widening:
    """Glorot mean rows with the spread of the most certain old latent."""
    return dataclasses.replace(
        widening,
        values=dict(widening.values) | glorot(widening, model).values | {"mean_head.bias": torch.zeros(LARGE).double()},
    )


def pairs(widening: Widening, model: BuiltVAE) -> Widening:
    """Pairs of new latents with equal means and opposite decoder columns: the mean path stays, samples do not."""
    values = {key: value.clone() for key, value in widening.values.items()}
    for key in ("mean_head.weight", "mean_head.bias", "logvar_head.weight", "logvar_head.bias"):
        values[key][SMALL + 1 :: 2] = values[key][SMALL::2]
    columns = _drawn(widening, "decoder.0.weight", 1.0, axis=1)
    columns[:, SMALL + 1 :: 2] = -columns[:, SMALL::2]
    return dataclasses.replace(widening, values=values | {"decoder.0.weight": columns})


def _drawn(widening: Widening, key: str, scale: float, axis: int = 0) -> Tensor:
    """Glorot-uniform new entries in the wider shape of a weight."""
    part = next(s for s in widening.slices if s.key == key)
    others = 24  # both heads read, and the decoder's first layer writes, 24 units
    shape = (part.size, others) if axis == 0 else (others, part.size)
    bound = scale * math.sqrt(6 / sum(shape))
    drawn = (torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2 - 1) * bound
    drawn.movedim(axis, 0)[: widening.latent_size] = 0.0
    return drawn


@dataclass(frozen=True)
class Way:
    """One way to grow."""

    name: str
    start: Callable[[Widening, BuiltVAE], Widening] = as_it_is
    warm_up: float = WARM_UP
    fresh_optimiser: bool = False
    seeds: tuple[int, ...] = SEEDS


WAYS = (
    Way("default"),
    Way("columns 0, mean rows 0, no warm-up", idle, 0.0, seeds=(0,)),
    Way("Glorot mean rows, warm-up", glorot),
    Way("Glorot mean rows four times as large", larger, seeds=(0,)),
    Way("Glorot mean rows, small sigma²", certain, seeds=(0,)),
    Way("default without warm-up", warm_up=0.0, seeds=(0,)),
    Way("default, warm-up over 4 epochs", warm_up=4.0),
    Way("default, optimiser reset", fresh_optimiser=True),
    Way("opposite pairs, columns not 0", pairs),
)


def main() -> None:
    try:
        sets = open_data("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return
    kept = Kept(_KEPT)
    for seed in SEEDS:
        _once(kept, WAYS[0].name, seed, lambda s=seed: _grown(WAYS[0], s, sets))
        for epochs in (EPOCHS, 2 * EPOCHS):
            _once(kept, f"fresh, {epochs} epochs", seed, lambda e=epochs, s=seed: _figures(_fresh(e, s), sets))
    for seed, way in itertools.product(SEEDS, WAYS):
        if seed in way.seeds:
            _once(kept, way.name, seed, lambda w=way, s=seed: _grown(w, s, sets))
    _print(kept)


def _once(kept: Kept, row: str, seed: int, work: Callable[[], dict[str, float]]) -> None:
    if kept.get((row, str(seed)), _MARK) is None:
        print(f"  running: {row}, seed {seed}", file=sys.stderr, flush=True)
        kept.put((row, str(seed)), _MARK, work())


def _trained(latent: int, seed: int) -> Path:
    """The folder of a network trained from scratch for the first 8 epochs."""
    folder = TRAINED_HERE / f"growing-{latent}-{EPOCHS}-{seed}"
    if not (folder / "config.json").is_file():
        unfinished = folder.with_name(folder.name + "-unfinished")
        run(Recipe("mnist", latent=latent, epochs=EPOCHS, seed=seed), unfinished, force=True)
        unfinished.rename(folder)
    return folder


def _fresh(epochs: int, seed: int) -> VAE:
    """A network of 8 latents from scratch."""
    folder = _trained(LARGE, seed)
    if epochs == EPOCHS:
        return load(folder)
    longer = TRAINED_HERE / f"growing-{LARGE}-{epochs}-{seed}"
    if not (longer / "config.json").is_file():
        unfinished = longer.with_name(longer.name + "-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        resume(unfinished, {"epochs": epochs})
        unfinished.rename(longer)
    return load(longer)


def _grown(way: Way, seed: int, sets: DataSets) -> dict[str, float]:
    """Grow the small network in this way, train on, and measure."""
    small = _trained(SMALL, seed)
    grown = grow(small, LARGE, sets, warm_up=way.warm_up)
    model = load(small)
    assert isinstance(model, BuiltVAE)
    wider = widen(model, way.start(grown.widening, model))
    state = {k: torch.zeros_like(v) if way.fresh_optimiser and k != "generator" else v for k, v in grown.state.items()}
    options = Options(epochs=2 * EPOCHS, seed=seed, grown=(Growth(SMALL, EPOCHS, way.warm_up),))
    rows = training_images("mnist")
    trained = train(wider, rows, options, resume=(History(grown.history.epochs), dict(state)))
    return _figures(trained.vae, sets)


def _figures(vae: VAE, sets: DataSets) -> dict[str, float]:
    """Latents that are not inactive, those behind the first four, and the ELBO of the test rows in nats."""
    analysis = analyze(vae, sets)
    live = set(range(vae.latent_size)) - set(analysis.indices("inactive"))
    rows, total = held_out(sets), 0.0
    generator = torch.Generator().manual_seed(0)
    with measuring(vae):
        for (x,) in batches_for(vae, rows, 1000):
            posterior = vae.encode(x)
            z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
            total -= negative_elbo(vae, x, z, posterior).double().sum().item()
    return {"live": len(live), "new": len([i for i in live if i >= SMALL]), "elbo": total / rows.count}


def _print(kept: Kept) -> None:
    print(f"{'':38}{'live of 8, per seed':24}{'ELBO of the test rows, nats':32}")
    for row in (*(way.name for way in WAYS), f"fresh, {EPOCHS} epochs", f"fresh, {2 * EPOCHS} epochs"):
        cells = [c for seed in SEEDS if (c := kept.get((row, str(seed)), _MARK)) is not None]
        if cells:
            live = ", ".join(str(c["live"]) for c in cells)
            elbo = ", ".join(f"{c['elbo']:.1f}" for c in cells)
            print(f"{row:38}{live:24}{elbo:32}")
    ours, fresh = (
        [kept.get((row, str(s)), _MARK) for s in SEEDS] for row in ("default", f"fresh, {2 * EPOCHS} epochs")
    )
    pairs_of = [(o, f) for o, f in zip(ours, fresh, strict=True) if o and f]
    if pairs_of:
        print(
            f"asked for: as many live latents as fresh (16 epochs); default less fresh: "
            f"{', '.join(str(o['live'] - f['live']) for o, f in pairs_of)} latents, "
            f"{', '.join(format(o['elbo'] - f['elbo'], '+.1f') for o, f in pairs_of)} nats"
        )
