"""The paper's figures from trained networks, each with the numbers that say what it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import torch
from numpy.typing import NDArray
from recipes import Scale, recipe, three_latents, two_latents
from runs import Run, Runs, say
from torch import Tensor

from vaeprune import VAE, train
from vaeprune.adapters import measuring
from vaeprune.architectures import BuiltVAE
from vaeprune.data import training_images
from vaeprune.data.tiles import MOST_TILES, TILE
from vaeprune.data.torchvision_sets import default_folder
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.storage import new_file, read_json, write_json
from vaeprune.training.loop import Step
from vaeprune.training_run import Recipe

Numbers = dict[str, Any]
_CLOUD = 5_000
_SAMPLES = 1_000
_SNAPSHOTS = 16
_POINTS = 200
_TILE_AREA = TILE**2


def draw(z: Tensor, vae: BuiltVAE) -> NDArray[Any]:
    """E[x | z] as images (N, height, width)."""
    with measuring(vae):
        return vae.decode(z).squeeze(1).cpu().numpy()


def prior(vae: BuiltVAE, count: int) -> Tensor:
    """The same draws from the prior for every picture of one latent size."""
    return torch.randn(count, vae.latent_size, generator=torch.Generator().manual_seed(0))


def classes(runs: Runs) -> Tensor:
    """The digits of MNIST's training images."""
    dataset = import_torchvision("datasets").MNIST(str(runs.data_dir or default_folder()), train=True)
    return torch.as_tensor(dataset.targets)


def first_rows(runs: Runs, data: str, count: int) -> Tensor:
    """The first rows of the training split, (count, 1, height, width)."""
    return next(iter(runs.data(data).calibrate.batches(count)))[0].unsqueeze(1).clone()


def held_out_rows(runs: Runs, data: str, count: int) -> Tensor:
    """The first rows of those that judge, (count, 1, height, width)."""
    return next(iter(runs.data(data).verify.batches(count)))[0].unsqueeze(1).clone()


# --- Figure 1


def figure_1(runs: Runs, scale: Scale, path: Path) -> Numbers | None:
    """Ten digits in two latents during the first epoch."""
    watched = _watched(runs, scale)
    if watched is None:
        return None
    means, variances = np.array(watched["means"]), np.array(watched["variances"]).mean(2)
    drawing.trajectories(path, means, variances, watched["steps"], scale.says())
    return {
        "steps": watched["steps"],
        "mean_variance": variances.mean(1).tolist(),
        "spread_of_means": np.sqrt((means**2).sum(2).mean(1)).tolist(),
    }


def _watched(runs: Runs, scale: Scale) -> Numbers | None:
    """Mean and variance of one image of each class, before training and at some of the epoch's minibatches."""
    name, flat = two_latents(scale)
    path = runs.out / "measured" / f"{name}.json"
    if path.is_file():
        known: Numbers = read_json(path, "trajectories")
        if known["recipe"] == _plain(flat):
            return known
    if not runs.may_train:
        runs.missing.append(name)
        return None
    labels = classes(runs)
    ten = first_rows(runs, "mnist", _CLOUD)[[int((labels == digit).nonzero()[0]) for digit in range(10)]]
    found: Numbers = {"recipe": _plain(flat), "steps": [], "means": [], "variances": []}

    def note(step: int, vae: VAE) -> None:
        with measuring(vae):
            posterior = vae.encode(ten)
        found["steps"].append(step)
        found["means"].append(posterior.mean.tolist())
        found["variances"].append(posterior.logvar.exp().tolist())

    def watch(step: Step) -> None:
        if step.batch in {round(step.batches * (i / (_SNAPSHOTS - 1)) ** 2) for i in range(1, _SNAPSHOTS)}:
            note(step.batch, step.vae)

    say(f"{name}: watching ten digits during the first epoch")
    rows = training_images("mnist", runs.data_dir, rows=flat.rows)
    untrained = flat.network(rows.row_shape)
    note(0, untrained)
    train(untrained, rows, flat.options(), on_step=watch)
    with new_file(path, force=True) as fresh:
        write_json(fresh, found)
    return found


def _plain(recipe: Recipe) -> Any:
    """A recipe as it is read back from a file."""
    return json.loads(json.dumps(recipe.to_json()))


# --- Figure 2


def figure_2(runs: Runs, scale: Scale, path: Path) -> Numbers | None:
    """5,000 digits in three latents, and five slices of 25 samples, with (A) and without (B) sampling in training."""
    trained = {key: runs.get(*named) for key, named in three_latents(scale).items()}
    images, labels = first_rows(runs, "mnist", _CLOUD), classes(runs)
    ticks = drawing.quantiles(5)
    z = torch.tensor([(x, y, height) for height in ticks for y in reversed(ticks) for x in ticks])
    numbers = {}
    for key, run in trained.items():
        if run is None:
            continue
        with measuring(run.vae):
            means = run.vae.encode(images).mean
        samples, place = draw(z, run.vae).reshape(5, 5, 5, 28, 28), path.with_stem(f"{path.stem}-{key}")
        drawing.latent_space(place, means.numpy(), labels[: len(means)].numpy(), samples, scale.says())
        numbers[key] = _shape_of(means) | {"command": run.recipe.command(run.name)}
    return numbers or None


def _shape_of(means: Tensor) -> Numbers:
    """How round a cloud of means (N, 3) is, and how far it covers what samples are drawn from.

    `axes`: standard deviations along its principal axes. `gap`: the mean distance of a draw from the prior to the
    nearest mean.
    """
    draws = torch.randn(2_000, 3, generator=torch.Generator().manual_seed(0))
    spread = torch.linalg.eigvalsh(means.double().T.cov()).clamp(min=0).sqrt()
    return {
        "axes": spread.flip(0).tolist(),
        "gap": float(torch.cdist(draws, means.float()).amin(1).mean()),
    }


# --- Figures 3, 6, 8, 10 and 4


def generated(runs: Runs, run: Run, scale: Scale, path: Path) -> Numbers:
    """Figs. 3, 6, 8 and 10: what draws from the prior decode to. Of tiles: how many the samples show."""
    images = draw(prior(run.vae, _SAMPLES), run.vae)
    drawing.grid(path, images[:60].reshape(5, 12, 28, 28), note=scale.says())
    if run.recipe.data != "tiles":
        return {}
    shown = patches(torch.from_numpy(images))
    real = patches(held_out_rows(runs, run.recipe.data, _SAMPLES).squeeze(1))
    return {
        "patches": float(shown.mean()),
        "patches_of_images": float(real.mean()),
        "share_with_too_many": float((shown > MOST_TILES).double().mean()),
        "share_of_images_with_too_many": float((real > MOST_TILES).double().mean()),
    }


def patches(images: Tensor) -> Tensor:
    """How many connected patches brighter than ½ each image (N, height, width) has; corners connect. (N,), double."""
    bright = (images > 0.5).double().unsqueeze(1)
    names = bright * torch.arange(1, 1 + bright[0].numel(), dtype=torch.double).view(bright[0].shape)
    while True:  # the largest name within a patch spreads over all of it
        spread = torch.nn.functional.max_pool2d(names, 3, stride=1, padding=1) * bright
        if torch.equal(spread, names):
            break
        names = spread
    return torch.tensor([float(len(image.unique()) - 1) if image.amin() == 0 else 1.0 for image in names]).double()


def without_idle(run: Run, idle: list[int], scale: Scale, path: Path) -> Numbers:
    """Fig. 4: samples, and the same with the idle latents at 0."""
    z = prior(run.vae, _SAMPLES)
    zeroed = z.clone()
    zeroed[:, idle] = 0
    both = np.stack([draw(z, run.vae), draw(zeroed, run.vae)])
    drawing.grid(path, both[:, :12], ["all latents", f"{len(idle)} at 0"], scale.says())
    difference = np.abs(both[0] - both[1])
    return {
        "idle": idle,
        "max_difference": float(difference.max()),
        "rms_difference": float(np.sqrt((difference**2).mean())),
    }


# --- Figures 7 and 9


def reconstructed(runs: Runs, run: Run, scale: Scale, path: Path) -> Numbers:
    """Figs. 7 and 9: images that no weight was trained on, and what their means decode to."""
    images = held_out_rows(runs, run.recipe.data, _SAMPLES)
    with measuring(run.vae):
        decoded = run.vae.decode(run.vae.encode(images).mean)
    pairs = torch.cat([images, decoded], 1).transpose(0, 1).numpy()
    drawing.grid(path, pairs[:, :12], ["image", "reconstruction"], scale.says())
    wrong = (images - decoded).abs().flatten(1).sum(1)
    return {"wrong_area_in_tiles": float(wrong.mean()) / _TILE_AREA}


# --- Figure 11


def figure_11(runs: Runs, scale: Scale, path: Path) -> Numbers | None:
    """The latents of the dense MNIST network along training; of the first seed whose training was traced."""
    for seed in scale.seeds("mnist-dense"):
        run = runs.get(f"mnist-dense-seed{seed}", recipe(scale, "mnist-dense", seed))
        if run and run.history.trace:
            trace, idle = run.history.trace, run.history.epochs[-1].inactive
            sigma2 = np.array([point.posterior_variance for point in trace])
            variance = np.array([point.variance for point in trace])
            steps = np.array([float(point.step) for point in trace])
            drawing.evolution(path, _smooth(steps), _smooth(sigma2), _smooth(variance), idle, scale.says())
            lowest = sigma2[:, idle].min(0) if idle else np.array([])
            return {"seed": seed, "idle": idle, "lowest_sigma2_of_idle": lowest.tolist()}
    return None


def _smooth(values: NDArray[Any]) -> NDArray[Any]:
    """Means of neighbours along the first axis, so that about as many points are left as a picture can show."""
    window = max(1, len(values) // _POINTS)
    whole = values[: len(values) // window * window].reshape(-1, window, *values.shape[1:])
    means: NDArray[Any] = whole.mean(1)
    return means
