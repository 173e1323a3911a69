"""`vaeprune encode`: posterior means as an array file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vaeprune import load
from vaeprune.data import tiles


def means(model: Path, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return load(model).encode(images.float().div(255).view(-1, 1, 28, 28)).mean.numpy()


def test_writes_the_means_of_all_rows_in_order(vaeprune, idle_model, rows, desk):
    ran = vaeprune("encode", idle_model, "--data", rows, "--out", "z.npy")
    assert (ran.code, ran.out, ran.err) == (0, "z.npy: 600 rows of 6 means\n", "")
    found = np.load("z.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, means(idle_model, torch.from_numpy(np.load(rows))), rtol=0, atol=1e-6)
    assert [p.name for p in desk.iterdir()] == ["z.npy"]


def test_shrunk_model_writes_the_kept_means(vaeprune, idle_model, shrunk, rows):
    vaeprune("encode", idle_model, "--data", rows, "--out", "six.npy")
    vaeprune("encode", shrunk, "--data", rows, "--out", "four.npy")
    np.testing.assert_allclose(np.load("four.npy"), np.load("six.npy")[:, [0, 2, 3, 5]], rtol=0, atol=1e-6)


def test_json_has_name_and_shape(vaeprune, idle_model, rows):
    ran = vaeprune("encode", idle_model, "--data", rows, "--out", "z.npy", "--json")
    assert (ran.json, ran.err) == ({"out": "z.npy", "shape": [600, 6]}, "")


def test_named_set_is_its_training_split(vaeprune, idle_model):
    from vaeprune.data.sets import open_sources

    vaeprune("encode", idle_model, "--data", "tiles", "--rows", 50, "--out", "z.npy")
    source, _ = open_sources("tiles", None)
    first = torch.from_numpy(next(iter(source.blocks()))[0][:50])
    np.testing.assert_allclose(np.load("z.npy"), means(idle_model, first), rtol=0, atol=1e-6)


def test_more_rows_than_a_block_holds(vaeprune, idle_model):
    images = tiles(6000, seed=2)  # a block is four megabytes: 5,349 pictures
    np.save("many.npy", images.numpy())
    vaeprune("encode", idle_model, "--data", "many.npy", "--out", "z.npy")
    np.testing.assert_allclose(np.load("z.npy"), means(idle_model, images), rtol=0, atol=1e-6)


def test_existing_file_is_refused_unless_forced(vaeprune, idle_model, rows, refused):
    Path("z.npy").write_text("mine")
    words = ("encode", idle_model, "--data", rows, "--out", "z.npy")
    refused(*words, told=["z.npy: already exists; choose another name or pass --force to replace it"])
    assert vaeprune(*words, "--force").code == 0
    assert np.load("z.npy").shape == (600, 6)


def test_folder_in_the_way_is_refused_even_with_force(idle_model, rows, refused):
    Path("z.npy").mkdir()
    told = "z.npy: is a folder, expected a file name"
    refused("encode", idle_model, "--data", rows, "--out", "z.npy", "--force", told=[told])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_value_in_the_last_row_leaves_no_half_written_file(idle_model, refused, bad):
    images = tiles(300, seed=1).float().div(255).numpy()
    images[-1, 3, 3] = bad
    np.save("bad.npy", images)
    told = "bad.npy: NaN or infinite values"
    refused("encode", idle_model, "--data", "bad.npy", "--out", "z.npy", told=[told])


def test_failed_rewrite_keeps_the_old_file(vaeprune, idle_model, rows):
    vaeprune("encode", idle_model, "--data", rows, "--out", "z.npy")
    old = Path("z.npy").read_bytes()
    assert vaeprune("encode", idle_model, "--data", "nowhere.npy", "--out", "z.npy", "--force").code == 2
    assert Path("z.npy").read_bytes() == old


def test_error_names_the_row_of_the_file(idle_model, refused):
    images = tiles(3000, seed=1).float().div(255).numpy()
    images[2500, 0, 0] = np.nan
    np.save("bad.npy", images)
    refused("encode", idle_model, "--data", "bad.npy", "--out", "z.npy", told=["row 2500"])
