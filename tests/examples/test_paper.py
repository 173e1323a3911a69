"""examples/paper: what its entry point makes of a tiny training, that nothing is done twice, and the page it fills."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taught import planted
from vaeprune.errors import StorageError, UsageError
from vaeprune.model_folder import ModelFolder, read_model_folder, write_model_folder
from vaeprune.training import Epoch, History
from vaeprune.training_run import Recipe, resume, run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "paper"
MODULES = tuple(path.stem for path in FOLDER.glob("*.py"))


class Paper:
    """The modules of examples/paper by name, as they see one another when the script runs."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def paper() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield Paper()
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tiny(paper: Any) -> Any:
    return paper.recipes.Scale("tiny", epochs=1, rows=300, dense_seeds=2, conv_seeds=1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper") / "out"


@pytest.fixture(scope="module")
def results(paper: Any, tiny: Any, out: Path) -> dict[str, Any]:
    """The dense network of the tiles, and all that belongs to it, one epoch of 300 rows each."""
    found: dict[str, Any] = paper.reproduce.reproduce(paper.runs.Runs(out, rows=300), tiny, ["tiles-dense"])
    return found


# --- the entry point


@pytest.mark.slow
def test_numbers_and_pictures_of_a_tiny_training_are_there(results: dict[str, Any], out: Path) -> None:
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    seeds = results["networks"]["tiles-dense"]["seeds"]
    assert list(seeds) == ["0", "1"]
    for seed, run_ in seeds.items():
        history = read_model_folder(out / "runs" / f"tiles-dense-seed{seed}").history.epochs
        assert run_["counts"] == [history[0].n_inactive]
        for limit in (0.001, 0.03, 0.1):
            pairs = zip(history[0].variance, history[0].posterior_variance, strict=True)
            assert run_["counts_by_limit"][str(limit)] == [sum(v < limit and s > 0.8 for v, s in pairs)]
        assert run_["loss"] == pytest.approx(history[0].loss, rel=1e-5)
        assert run_["idle"] + run_["active"] + run_["mixed"] == len(run_["latents"]) == 16
        assert run_["command"] == (
            "vaeprune train --data tiles --rows 300 --hidden 512,256,64,32 --latent 16 --epochs 1 --trace-every 20 "
            f"--seed {seed} --out tiles-dense-seed{seed}"
        )
    assert results["missing"] == []
    assert {path.name for path in (out / "figures").iterdir()} == {"figure-7.png", "figure-8.png"}
    assert set(results["figures"]) == {"figure-7", "figure-8"}


@pytest.mark.slow
def test_every_objective_is_trained_from_the_same_recipe_but_for_its_penalty(
    results: dict[str, Any], out: Path
) -> None:
    by_objective = results["ablations"]["tiles-dense"]
    names = {"full KL": "seed0", "quadratic term only": "quadratic", "no KL": "no-kl"}
    assert list(by_objective) == list(names)
    recipes = {}
    for words, name in names.items():
        folder = out / "runs" / f"tiles-dense-{name}"
        recipes[words] = Recipe.from_json(read_model_folder(folder).training, str(folder))
        assert by_objective[words]["idle"] == sum(la["verdict"] == "inactive" for la in by_objective[words]["latents"])
    assert [r.kl for r in recipes.values()] == ["full", "quadratic", "none"]
    assert len({dataclasses.replace(r, kl="full") for r in recipes.values()}) == 1
    assert by_objective["no KL"]["advice"] == "refuse"


@pytest.mark.slow
def test_what_was_made_in_little_says_so_in_tables_and_pictures(
    paper: Any, tiny: Any, results: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    assert results["note"] == tiny.says() == "tiny: 1 epoch of 300 rows"
    assert "**tiny: 1 epoch of 300 rows**" in (out / "tables.md").read_text()
    bare = dataclasses.replace(tiny, name="full")
    runs = paper.runs.Runs(out, rows=300)
    run_ = runs.get("tiles-dense-seed0", paper.recipes.recipe(tiny, "tiles-dense"))
    paper.pictures.generated(runs, run_, bare, tmp_path / "bare.png")
    with Image.open(tmp_path / "bare.png") as without, Image.open(out / "figures" / "figure-8.png") as with_note:
        assert with_note.height > without.height


@pytest.mark.slow
def test_a_second_call_trains_and_measures_nothing(
    paper: Any, tiny: Any, results: dict[str, Any], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    again = paper.reproduce.reproduce(paper.runs.Runs(out, rows=300), tiny, ["tiles-dense"])
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_reconstruction_s_wrong_area_is_that_of_its_pixels(
    paper: Any, tiny: Any, results: dict[str, Any], out: Path
) -> None:
    runs = paper.runs.Runs(out, rows=300)
    vae = read_model_folder(out / "runs" / "tiles-dense-seed0").vae
    x = next(iter(runs.data("tiles").verify.batches(1_000)))[0][:, None]
    with torch.no_grad():
        expected = (x - vae.decode(vae.encode(x).mean)).abs().sum((1, 2, 3)).mean() / 16
    assert results["figures"]["figure-7"]["wrong_area_in_tiles"] == pytest.approx(float(expected), rel=1e-4)


def test_finished_reports_what_is_missing_and_trains_nothing(paper: Any, tiny: Any, tmp_path: Path) -> None:
    runs = paper.runs.Runs(tmp_path, rows=300, may_train=False)
    found = paper.reproduce.reproduce(runs, tiny, ["tiles-dense"])
    assert found["networks"]["tiles-dense"]["seeds"] == {}
    assert found["missing"] == sorted(
        f"tiles-dense-{name}" for name in ("seed0", "seed1", "quadratic", "no-kl", "4-latents", "torch")
    )
    assert not (tmp_path / "runs").exists()
    assert f"Not trained: {', '.join(found['missing'])}.\n" in (tmp_path / "tables.md").read_text()


def test_an_unknown_network_is_refused_in_a_line(
    paper: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper.reproduce.main(["--quick", "--out", str(tmp_path), "--only", "tiles-dense,faces"]) == 2
    assert capsys.readouterr().err == (
        "reproduce: error: --only: got faces, expected some of mnist-dense, mnist-conv, tiles-dense, tiles-conv\n"
    )


# --- trainings


SMALL = Recipe("tiles", rows=200, hidden=(8,), latent=2, epochs=2)


def test_an_interrupted_training_goes_on_and_ends_as_an_uninterrupted_one(paper: Any, tmp_path: Path) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "runs" / "small", on_epoch=interrupt)
    assert len(read_model_folder(tmp_path / "runs" / "small").history.epochs) == 1
    found = paper.runs.Runs(tmp_path).get("small", SMALL)
    whole = run(SMALL, tmp_path / "whole")
    assert found.history == whole.history
    for key, value in whole.vae.state_dict().items():
        assert torch.equal(found.vae.state_dict()[key], value), key


def test_a_folder_of_another_recipe_is_refused_and_one_traced_otherwise_is_taken(paper: Any, tmp_path: Path) -> None:
    run(SMALL, tmp_path / "runs" / "small")
    runs = paper.runs.Runs(tmp_path)
    with pytest.raises(
        StorageError, match=r"small: was trained by another recipe \(latent, seed\); name another --out"
    ):
        runs.get("small", dataclasses.replace(SMALL, latent=3, seed=1))
    assert runs.get("small", dataclasses.replace(SMALL, trace_every=1)).recipe == SMALL


def test_a_ready_made_model_is_taken_where_its_recipe_is_the_same(
    paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper.runs, "READY_MADE", tmp_path / "models")
    made = run(SMALL, tmp_path / "models" / "small")
    runs = paper.runs.Runs(tmp_path, may_train=False)
    assert runs.get("small-seed0", SMALL).mark == paper.runs.Run("", SMALL, made.vae, made.history).mark
    assert runs.get("small-seed1", dataclasses.replace(SMALL, seed=1)) is None
    assert runs.missing == ["small-seed1"]


@pytest.mark.parametrize("network", ["mnist-dense", "mnist-conv", "tiles-dense", "tiles-conv"])
def test_the_ready_made_networks_were_trained_by_the_full_recipe(paper: Any, network: str) -> None:
    folder = ROOT / "models" / network
    recorded = Recipe.from_json(read_model_folder(folder).training, str(folder))
    full = paper.recipes.recipe(paper.recipes.FULL, network)
    unused = {"trace_every": 0} | ({} if network.endswith("dense") else {"hidden": full.hidden})
    assert dataclasses.replace(recorded, **unused) == dataclasses.replace(full, trace_every=0)


def test_a_measurement_is_made_anew_for_other_weights(paper: Any, tmp_path: Path) -> None:
    runs = paper.runs.Runs(tmp_path, rows=200)
    first = runs.measured(runs.get("small", SMALL))
    assert runs.measured(runs.get("small", SMALL)) == first
    resume(tmp_path / "runs" / "small", {"epochs": 3})
    second = runs.measured(runs.get("small", dataclasses.replace(SMALL, epochs=3)))
    assert second["held_out_loss"] != first["held_out_loss"]


@pytest.mark.slow
def test_growing_follows_the_advice_until_latents_are_idle(paper: Any, tmp_path: Path) -> None:
    scale = paper.recipes.Scale("planted", epochs=1, rows=600, dense_seeds=1, conv_seeds=1)
    for size, idle in ((4, ()), (8, (2, 5))):
        name, recipe = paper.recipes.of_size(scale, "tiles-dense", size)
        model = ModelFolder(planted(idle, size), json.loads(json.dumps(recipe.to_json())), None, _one_epoch(size))
        write_model_folder(model, tmp_path / "runs" / name)
    steps = paper.experiments.growing(paper.runs.Runs(tmp_path, rows=600, may_train=False), scale, ["tiles-dense"])
    seen = [(s["size"], s["idle"], s["advice"], s["advised_size"]) for s in steps["tiles-dense"]]
    assert seen == [(4, 0, "grow", 8), (8, 2, "shrink", 6)]


def _one_epoch(latents: int) -> History:
    return History((Epoch(1, 1.0, 0.5, 0.5, (0.5,) * latents, (0.5,) * latents),))


# --- Fig. 5, Tables I and II


def test_figure_5_has_the_paper_s_weights_layer_by_layer(paper: Any) -> None:
    figure = paper.experiments.figure_5()
    assert figure["weights"] == figure["paper_weights"] == 46_432
    assert figure["running_statistics"] == 224
    assert figure["same_shapes"] is True
    assert [row["weights"] for row in figure["rows"]] == [row["paper_weights"] for row in figure["rows"]]
    assert [row["weights"] for row in figure["rows"] if row["weights"]] == [
        160, 64, 4640, 9248, 128, 9248, 9248, 128, 4128, 4128, 128, 4128, 528, 528,
    ]  # fmt: skip


def test_the_rate_of_a_table_is_the_kl_of_gaussians_with_its_moments(paper: Any) -> None:
    assert paper.experiments.rate([(0.0, 1.0)]) == 0
    mean, sigma2 = torch.tensor([[0.6], [-0.6]]), torch.full((2, 1), 0.25)
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, sigma2.sqrt()), prior).mean()
    assert paper.experiments.rate([(0.36, 0.25)]) == pytest.approx(float(kl))
    assert sum(v < 0.01 for v, _ in paper.printed.TABLE_I) == sum(v < 0.01 for v, _ in paper.printed.TABLE_II) == 8


# --- pictures


def test_a_sheet_shows_the_images_in_their_order(paper: Any) -> None:
    images = np.arange(6 * 4).reshape(2, 3, 2, 2) / 100
    sheet = paper.drawing._sheet(images)
    assert sheet.shape == (5, 8)
    np.testing.assert_array_equal(sheet[3:5, 6:8], images[1, 2])
    np.testing.assert_array_equal(sheet[:2, 3:5], images[0, 1])
    assert set(sheet[2].tolist()) == {0.35}


def test_a_cloud_s_axes_are_those_of_its_covariance(paper: Any) -> None:
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.5, 2.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
    shape = paper.pictures._shape_of(x @ rotation)
    np.testing.assert_allclose(shape["axes"], [2.0, 1.0, 0.5], rtol=0.03)
    assert paper.pictures._shape_of(x + 10)["gap"] > 10 * shape["gap"]


@pytest.mark.slow
@pytest.mark.mnist
def test_ten_digits_are_watched_from_before_training_to_the_end_of_the_epoch(
    paper: Any, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = paper.recipes.Scale("tiny", epochs=2, rows=600, dense_seeds=1, conv_seeds=1)
    runs = paper.runs.Runs(tmp_path, mnist_folder, rows=600)
    seen = paper.pictures.figure_1(runs, scale, tmp_path / "figure-1.png")
    assert seen["steps"] == [0, 1, 2, 3, 4, 5]  # 600 rows are five minibatches of 128
    flat = paper.recipes.two_latents(scale)[1]
    rows = paper.runs.Runs(tmp_path, mnist_folder, rows=600).data("mnist").whole
    labels = paper.pictures.classes(runs)[:600]
    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    x = next(iter(rows.batches(600)))[0][first, None]
    trained = run(flat, tmp_path / "flat", folder=mnist_folder).vae
    with torch.no_grad():
        for at, vae in ((0, flat.network((28, 28))), (-1, trained)):
            posterior = vae.encode(x)
            assert seen["mean_variance"][at] == pytest.approx(float(posterior.logvar.exp().mean()), rel=1e-5)
            distance = posterior.mean.square().sum(1).mean().sqrt()
            assert seen["spread_of_means"][at] == pytest.approx(float(distance), rel=1e-5)
    capsys.readouterr()
    assert paper.pictures.figure_1(runs, scale, tmp_path / "again.png") == seen
    assert capsys.readouterr().err == ""
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "figure-1.png").read_bytes()


@pytest.mark.slow
@pytest.mark.mnist
def test_three_latents_are_trained_with_sampling_and_with_the_quadratic_term_alone(
    paper: Any, mnist_folder: Path, tmp_path: Path
) -> None:
    scale = paper.recipes.Scale("tiny", epochs=1, rows=600, dense_seeds=1, conv_seeds=1)
    runs = paper.runs.Runs(tmp_path, mnist_folder, rows=600)
    found = paper.pictures.figure_2(runs, scale, tmp_path / "figure-2.png")
    widths = "vaeprune train --data mnist --rows 600 --hidden 256,64,16 --latent 3"
    assert found["A"]["command"] == f"{widths} --epochs 1 --seed 0 --out mnist-3d-sampled"
    assert found["B"]["command"] == (
        f"{widths} --kl quadratic --no-sampling --epochs 1 --seed 0 --out mnist-3d-not-sampled"
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure-2-A.png", "figure-2-B.png"}
    for key in "AB":
        assert found[key]["axes"] == sorted(found[key]["axes"], reverse=True)


def test_patches_are_counted_where_they_touch_at_corners_or_in_a_spiral(paper: Any) -> None:
    def image(*lines: str) -> list[list[float]]:
        return [[0.9 if mark == "#" else 0.4 for mark in line] for line in lines]

    images = torch.tensor(
        [
            image(".....", ".....", ".....", "....."),
            image("##.##", "##.##", ".....", "#...."),
            image("#....", ".#...", "..##.", "....#"),
            image("#####", "#...#", "#.#.#", "###.#"),
            image("#####", "#####", "#####", "#####"),
        ]
    )
    assert paper.pictures.patches(images).tolist() == [0, 3, 1, 1, 1]


def test_a_long_trace_is_averaged_and_a_short_one_is_not(paper: Any) -> None:
    long = np.arange(401 * 2.0).reshape(401, 2)
    np.testing.assert_array_equal(paper.pictures._smooth(long)[:2], [[1.0, 2.0], [5.0, 6.0]])
    assert len(paper.pictures._smooth(long)) == 200
    np.testing.assert_array_equal(paper.pictures._smooth(long[:7]), long[:7])


def test_quantiles_part_the_middle_of_the_prior(paper: Any) -> None:
    np.testing.assert_allclose(paper.drawing.quantiles(5), [-1.6449, -0.5978, 0.0, 0.5978, 1.6449], atol=1e-4)


# --- the page


def _known() -> dict[str, Any]:
    run_ = {
        "idle": 7, "mixed": 0, "active": 9, "loss": 106.849, "reconstruction": 89.71, "kl": 17.139,
        "held_out_loss": 107.5, "counts": [0, 3, 7], "rates": [10.0, 16.0, 17.0], "advice": "shrink", "advised_size": 9,
        "latents": [{"index": 0, "variance": 0.00012, "posterior_variance": 0.98, "kl": 0.0, "verdict": "inactive"},
                    {"index": 1, "variance": 1.02, "posterior_variance": 0.01, "kl": 2.4, "verdict": "active"}],
    }  # fmt: skip
    run_["counts_by_limit"] = {"0.1": [5, 6, 7], "0.001": [0, 0, 7]}
    other = run_ | {"idle": 6, "counts": [0, 2, 6], "rates": [5.0, 6.0, 7.0]}
    return {
        "note": "", "missing": [], "scale": {"epochs": 3}, "figures": {}, "starts": {"mnist-dense": other},
        "networks": {"mnist-dense": {"paper_idle": 8, "seeds": {"0": run_, "1": other}}},
        "ablations": {"mnist-dense": {"full KL": run_}}, "growing": {"mnist-dense": [run_ | {"size": 16}]},
    }  # fmt: skip


def test_tables_of_known_results(paper: Any) -> None:
    blocks = {name: block(_known()) for name, block in paper.document.BLOCKS.items() if name != "figure-5"}
    assert blocks["state"] == ""
    assert blocks["idle"] == (
        "| idle of 16 | paper | ours, mean | range | seed by seed |\n| --- | ---: | ---: | ---: | ---: |\n"
        "| dense MNIST | 8 | 6.5 | 6 to 7 | 7, 6 |\n"
    )
    assert "| 0 | 8.8e-05 | 0.980 | 1.2e-04 | 0.980 | 0.000 | inactive |\n" in blocks["table-1"]
    assert blocks["table-2"] == "Not trained.\n"
    assert (
        "| dense MNIST, paper | 4.5e-05 to 1.6e-04 | 0.960 to 0.999 | 0.946 to 1.00 | 0.00619 to 0.0572 |"
        in blocks["ranges"]
    )
    assert "| dense MNIST, ours | 1.2e-04 | 0.980 | 1.02 | 0.0100 |\n" in blocks["ranges"]
    assert blocks["counts"].splitlines()[-1] == "| dense MNIST, seed 1 | 0 | 2 | 6 |"
    assert blocks["limits"].splitlines()[-3:] == [
        "| dense MNIST, below 0.001 | 0 | 0 | 7 |",
        "| dense MNIST, below 0.01 | 0 | 3 | 7 |",
        "| dense MNIST, below 0.1 | 5 | 6 | 7 |",
    ]
    assert blocks["nats"].splitlines()[-1] == "| dense MNIST, seed 1 | 5.0 | 6.0 | 7.0 |"
    assert "| dense MNIST, seed 0 | 15.8 | 8 | 2 | 3 | 17.0 | 7 |\n" in blocks["rates"]
    assert "| dense MNIST, seed 1 | 15.8 | 8 | – | – | 7.0 | 6 |\n" in blocks["rates"]
    assert "| dense MNIST | 16 | 9 | 0 | 7 | 107.50 | shrink to 9 |\n" in blocks["growing"]
    assert "| dense MNIST, full KL | 7 | 1.2e-04 to 1.02 | 0.0100 to 0.980 | shrink |\n" in blocks["ablations"]
    assert "| dense MNIST, seed 0 | 7 | 107.50 | 6 | 107.50 |\n" in blocks["starts"]


def test_a_page_s_regions_are_filled_and_the_rest_stays(paper: Any) -> None:
    page = "# A\n<!-- begin idle -->\nold | 99\n<!-- end idle -->\nwords 99\n"
    filled = paper.document.filled(page, _known())
    assert filled.startswith("# A\n<!-- begin idle -->\n\n| idle of 16 |")
    assert filled.endswith("| 6 to 7 | 7, 6 |\n\n<!-- end idle -->\nwords 99\n")
    assert paper.document.filled(filled, _known()) == filled
    with pytest.raises(UsageError, match="page: asks for the table 'idel', expected one of state, idle"):
        paper.document.filled(page.replace("idle", "idel"), _known())


def test_the_page_holds_what_its_results_say(paper: Any) -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "docs" / "paper" / "results.json").read_text(encoding="utf-8"))
    assert paper.document.filled(page, results) == page
    assert results["note"] == ""
    shown = set(paper.document._REGION.findall(page))
    assert {name for _, name, _ in shown} == set(paper.document.BLOCKS)


def test_the_page_s_pictures_are_small_and_all_shown() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    pictures = sorted((ROOT / "docs" / "paper").glob("*.png"))
    assert pictures
    for path in pictures:
        assert f"](paper/{path.name})" in page
        assert path.stat().st_size < 150_000, path.name
    assert sum(path.stat().st_size for path in pictures) < 2_000_000
