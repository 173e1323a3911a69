"""A latent size found by training, on rows whose size is known."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from linear_rows import linear_recipe, linear_rows
from vaeprune import Evidence, load
from vaeprune.data import open_data
from vaeprune.errors import DataError, StorageError, TrainingError, UsageError
from vaeprune.latent_search import oversized_folder, search_latent_size
from vaeprune.model_folder import read_model_folder
from vaeprune.oversized import Watch, held_out_loss
from vaeprune.search_path import LatentSearch, in_use
from vaeprune.storage import read_tensors
from vaeprune.training import Trained

SHRUNK = {
    "README.md", "analysis.json", "config.json", "decoder.onnx", "encoder.onnx", "evidence.json", "model.safetensors",
    "plan.json", "plan.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two useful directions; of four, three of which hide behind a large one; and of none."""
    folder = tmp_path_factory.mktemp("searches")
    np.save(folder / "two.npy", linear_rows(12, 9))
    np.save(folder / "hidden.npy", linear_rows(16, 0.04, 0.04, 0.04))
    np.save(folder / "none.npy", np.random.default_rng(0).normal(size=(600, 3, 4)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def two(shelf: Path) -> LatentSearch:
    """Two seeds on rows of two directions."""
    return search_latent_size(linear_recipe(str(shelf / "two.npy")), shelf / "two", seeds=2, starts=1)


@pytest.fixture(scope="module")
def doubled(shelf: Path) -> LatentSearch:
    """A search whose start size is too small."""
    return search_latent_size(linear_recipe(str(shelf / "hidden.npy"), scale=0.1), shelf / "hidden", starts=1)


def bits(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_tensors(folder / "model.safetensors").items()}


class Interrupt:
    """Ctrl-C in the callback of one epoch, counted over all trainings."""

    def __init__(self, epoch: int) -> None:
        self.left = epoch

    def __call__(self, _trained: Trained) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


# --- what is found


def test_each_seed_finds_the_number_of_useful_directions(two):
    assert two.components == 2
    assert [(t.seed, t.latent_size, t.decision) for t in two.trainings] == [(0, 3, "shrink"), (1, 3, "shrink")]
    assert [t.count.active for t in two.trainings] == [2, 2]
    assert two.latent_size == 2
    assert two.reason.startswith("active latents: 2, over 2 searches; seed ")


def test_result_is_the_shrunk_network_with_its_evidence(two):
    assert {p.name for p in two.out.iterdir()} == SHRUNK
    assert Evidence.from_json(json.loads((two.out / "evidence.json").read_text())).passed
    assert load(two.out).latent_size == 2


def test_network_with_the_lowest_held_out_loss_is_kept(two, shelf):
    losses = {t.seed: t.loss for t in two.finished}
    assert two.chosen == min(losses, key=losses.get)
    source = oversized_folder(two.out) / f"seed{two.chosen}-latents3"
    assert json.loads((two.out / "config.json").read_text())["shrunk"]["source"] == str(source)
    assert held_out_loss(load(source), open_data(shelf / "two.npy").select) == pytest.approx(losses[two.chosen])


def test_oversized_networks_stay_beside_the_result_with_the_path(two):
    folder = oversized_folder(two.out)
    assert folder.name == "two-oversized"
    assert {p.name for p in folder.iterdir()} == {"search.json", "seed0-latents3", "seed1-latents3"}
    assert load(folder / "seed1-latents3").latent_size == 3
    assert LatentSearch.from_json(json.loads((folder / "search.json").read_text())) == two


def test_too_small_a_start_is_doubled_until_something_is_idle(doubled):
    assert doubled.components == 1
    *given_up, last = doubled.trainings
    assert [t.latent_size for t in doubled.trainings] == [2 * 2**i for i in range(len(doubled.trainings))]
    assert given_up
    assert {(t.decision, t.count.inactive) for t in given_up} == {("double", 0)}
    assert (last.decision, last.count.inactive > 0) == ("shrink", True)
    assert doubled.latent_size == last.count.active + last.count.mixed >= 2


def test_training_with_nothing_idle_is_given_up_once_that_has_settled(doubled):
    first = doubled.trainings[0]
    assert first.epochs < 80
    assert f"given up after {first.epochs} of 80 epochs" in first.reason
    known = read_model_folder(oversized_folder(doubled.out) / "seed0-latents2")
    assert len(known.history.epochs) == first.epochs
    assert {in_use(epoch) for epoch in known.history.epochs[first.settled - 1 :]} == {2}


# --- the best of several starts


@pytest.fixture(scope="module")
def best_of_three(shelf: Path) -> LatentSearch:
    """Two repetitions of three seeds."""
    return search_latent_size(linear_recipe(str(shelf / "two.npy")), shelf / "best", seeds=2)


def test_of_three_seeds_only_the_one_with_the_lowest_loss_is_trained_to_the_end(best_of_three):
    assert len(best_of_three.trainings) == 6
    for seeds, three in ((range(3), best_of_three.trainings[:3]), (range(3, 6), best_of_three.trainings[3:])):
        *poorer, kept = three
        assert {t.seed for t in three} == set(seeds)
        assert [(t.decision, t.epochs < 80) for t in poorer] == [("poorer", True)] * 2
        assert (kept.decision, kept.epochs) == ("shrink", 80)
        epochs = poorer[0].epochs
        loss = {t.seed: read_model_folder(Path(t.count.model)).history.epochs[epochs - 1].loss for t in three}
        assert min(loss, key=loss.get) == kept.seed
        expected = f"{loss[poorer[1].seed]:.2f} nats per training row in epoch {epochs}, where seed {kept.seed} has "
        assert poorer[1].reason == expected + f"{loss[kept.seed]:.2f}"


def test_only_what_was_trained_to_the_end_is_counted(best_of_three):
    assert len(best_of_three.finished) == len(best_of_three.counts.models) == 2
    assert best_of_three.chosen in {t.seed for t in best_of_three.finished}


def test_start_that_is_taken_up_again_is_trained_as_if_never_stopped(best_of_three, shelf, tmp_path):
    kept = best_of_three.finished[0]
    alone = search_latent_size(linear_recipe(str(shelf / "two.npy"), seed=kept.seed), tmp_path / "alone", starts=1)
    assert bits(Path(alone.finished[0].count.model)) == bits(Path(kept.count.model))


def test_first_seed_alone_is_trained_where_it_leaves_nothing_idle(shelf, tmp_path):
    found = search_latent_size(linear_recipe(str(shelf / "hidden.npy"), scale=0.1), tmp_path / "hidden")
    assert [(t.seed, t.decision) for t in found.trainings if t.latent_size == 2] == [(0, "double")]
    assert {t.seed for t in found.trainings if t.latent_size > 2} == {0, 1, 2}


def test_search_interrupted_between_two_starts_goes_on_to_the_same_result(best_of_three, shelf, tmp_path):
    recipe, out = linear_recipe(str(shelf / "two.npy")), tmp_path / "again"
    epochs = best_of_three.trainings[0].epochs
    for epoch in (epochs + 3, 2 * epochs):  # in the second start; in the one that goes on
        with pytest.raises(KeyboardInterrupt):
            search_latent_size(
                recipe, out, go_on=oversized_folder(out).exists(), watch=Watch(on_epoch=Interrupt(epoch))
            )
    found = search_latent_size(recipe, out, go_on=True)
    assert [(t.seed, t.decision, t.reason, t.loss) for t in found.trainings] == [
        (t.seed, t.decision, t.reason, t.loss) for t in best_of_three.trainings[:3]
    ]


# --- going on


def test_interrupted_search_goes_on_to_the_same_result(doubled, shelf, tmp_path):
    recipe, out = linear_recipe(str(shelf / "hidden.npy"), scale=0.1), tmp_path / "again"
    first = doubled.trainings[0].epochs
    for epoch in (first - 2, 5):  # in the first training, then in the second
        with pytest.raises(KeyboardInterrupt):
            search_latent_size(
                recipe, out, starts=1, go_on=oversized_folder(out).exists(), watch=Watch(on_epoch=Interrupt(epoch))
            )
        assert not out.exists()
    found = search_latent_size(recipe, out, starts=1, go_on=True)
    for mine, whole in zip(found.trainings, doubled.trainings, strict=True):
        assert dataclasses.replace(mine, count=whole.count) == whole
        assert bits(Path(mine.count.model)) == bits(Path(whole.count.model))
    assert bits(out) == bits(doubled.out)


def test_finished_search_trains_nothing_when_asked_to_go_on(two, shelf, tmp_path):
    out = tmp_path / "two"
    shutil.copytree(oversized_folder(two.out), oversized_folder(out))
    shutil.copytree(two.out, out)
    seen: list[Trained] = []
    recipe = linear_recipe(str(shelf / "two.npy"))
    found = search_latent_size(recipe, out, seeds=2, starts=1, go_on=True, watch=Watch(on_epoch=seen.append))
    assert seen == []
    assert [t.loss for t in found.trainings] == [t.loss for t in two.trainings]


def test_going_on_with_another_setting_is_refused(two, shelf):
    recipe = linear_recipe(str(shelf / "two.npy"), beta=2.0)
    with pytest.raises(UsageError, match=r"--resume: beta is 1\.0 in .*seed0-latents3, got 2\.0"):
        search_latent_size(recipe, two.out, go_on=True)


def test_going_on_where_nothing_was_begun_is_refused(shelf, tmp_path):
    with pytest.raises(StorageError, match="x-oversized: no such folder, so there is no search to go on with"):
        search_latent_size(linear_recipe(str(shelf / "two.npy")), tmp_path / "x", go_on=True)


# --- what is in the way


def test_existing_result_and_oversized_networks_are_refused(two, shelf, tmp_path):
    recipe = linear_recipe(str(shelf / "two.npy"))
    with pytest.raises(StorageError, match=r"two: already exists"):
        search_latent_size(recipe, two.out)
    oversized_folder(tmp_path / "y").mkdir()
    with pytest.raises(StorageError, match=r"y-oversized: already exists"):
        search_latent_size(recipe, tmp_path / "y")


def test_force_replaces_an_earlier_search_and_removes_what_is_left_of_it(two, tmp_path):
    np.save(tmp_path / "x.npy", linear_rows(12))
    out = tmp_path / "x"
    stale = oversized_folder(out) / "seed7-latents9"
    shutil.copytree(oversized_folder(two.out) / "seed0-latents3", stale)
    (oversized_folder(out) / "notes.txt").write_text("mine")
    found = search_latent_size(linear_recipe(str(tmp_path / "x.npy")), out, starts=1, force=True)
    assert found.latent_size == 1
    left = {p.name for p in oversized_folder(out).iterdir()}
    assert left == {"notes.txt", "search.json", "seed0-latents2"}


# --- data that give no size


def test_rows_without_structure_give_no_network_and_say_so(shelf, tmp_path):
    found = search_latent_size(linear_recipe(str(shelf / "none.npy"), scale=1.0), tmp_path / "n", starts=1)
    (only,) = found.trainings
    assert (only.decision, only.count.active) == ("collapsed", 0)
    assert (found.out, found.chosen, found.latent_size) == (None, None, None)
    assert found.reason.startswith("active latents: 0")
    assert "no network is kept: either rows have nothing in common" in found.reason
    assert not (tmp_path / "n").exists()
    assert LatentSearch.from_json(json.loads((tmp_path / "n-oversized" / "search.json").read_text())) == found


def test_equal_rows_are_refused_before_any_training(tmp_path):
    np.save(tmp_path / "c.npy", np.full((600, 3, 4), 0.1, np.float32))
    with pytest.raises(DataError, match="all rows are equal, so there is nothing for latents to tell"):
        search_latent_size(linear_recipe(str(tmp_path / "c.npy")), tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c.npy"]


def test_too_few_rows_are_refused_before_any_training(tmp_path):
    np.save(tmp_path / "f.npy", linear_rows(12)[:45])
    with pytest.raises(DataError, match="expected at least 30, 20 and 20"):
        search_latent_size(linear_recipe(str(tmp_path / "f.npy")), tmp_path / "f")
    assert [p.name for p in tmp_path.iterdir()] == ["f.npy"]


def test_rows_of_a_single_number_end_with_one_latent(tmp_path):
    np.save(tmp_path / "s.npy", np.random.default_rng(0).normal(size=(2000, 1)).astype(np.float32) * 3)
    found = search_latent_size(linear_recipe(str(tmp_path / "s.npy"), epochs=40), tmp_path / "s")
    (only,) = found.trainings
    assert (only.latent_size, only.decision, found.latent_size) == (1, "keep", 1)
    assert "these data have no use for more than 1" in only.reason
    assert load(tmp_path / "s").latent_size == 1


def test_more_latents_than_rows_are_never_tried(tmp_path):
    np.save(tmp_path / "w.npy", np.random.default_rng(0).normal(size=(120, 40, 40)).astype(np.float32))
    found = search_latent_size(linear_recipe(str(tmp_path / "w.npy"), epochs=5), tmp_path / "w")
    assert max(t.latent_size for t in found.trainings) < 120


def test_training_too_short_to_settle_says_so(shelf, tmp_path):
    found = search_latent_size(linear_recipe(str(shelf / "two.npy"), epochs=6), tmp_path / "q")
    (only,) = found.trainings
    assert (only.epochs, only.settled) == (6, None)
    assert (only.decision, only.reason) == ("keep", "all in use, but that has not settled within 6 epochs")
    assert [note for note in found.notes if "give the same command again with --resume and more --epochs" in note]


# --- settings that make no sense


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"kl": "none"}, "kl 'none'"), ({"kl": "quadratic"}, "kl 'quadratic'"), ({"beta": 0.0}, "beta 0"),
     ({"sampling": False}, "no sampling")],
)  # fmt: skip
def test_objectives_without_idle_latents_are_refused(tmp_path, changes, told):
    with pytest.raises(UsageError, match=f"--latent auto: got {told}, but latents become idle only where"):
        search_latent_size(linear_recipe("nowhere.npy", **changes), tmp_path / "x")


@pytest.mark.parametrize("count", ["seeds", "starts"])
def test_fewer_than_one_seed_is_refused(tmp_path, count):
    with pytest.raises(UsageError, match=f"--{count}: got 0, expected at least 1"):
        search_latent_size(linear_recipe("nowhere.npy"), tmp_path / "x", **{count: 0})


def test_loss_that_explodes_is_said_and_writes_no_result(shelf, tmp_path):
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        search_latent_size(linear_recipe(str(shelf / "two.npy"), learning_rate=1e30), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_held_out_loss_is_the_mean_of_the_negative_elbo():
    from vaeprune.posterior import negative_elbo
    from vaeprune.training_run import Recipe

    sets = open_data("tiles", rows=100)
    vae = Recipe("tiles", hidden=(8,), latent=2).network((28, 28)).eval()
    (x,) = next(sets.select.batches(10_000))
    with torch.no_grad():
        posterior = vae.encode(x[:, None])
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
        expected = negative_elbo(vae, x[:, None], posterior.sample(noise), posterior).double().mean()
    assert held_out_loss(vae, sets.select) == pytest.approx(float(expected), rel=1e-6)
