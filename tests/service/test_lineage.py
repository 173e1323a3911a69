"""What a folder tells of the latents it serves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from onnx_pairs import write_lineage, write_pair

from vaeprune.errors import ModelError, StorageError, UsageError
from vaeprune.service.lineage import Removed, read_lineage
from vaeprune.service.model import open_model
from vaeprune.service.own_samples import OwnSamples, own_samples, shown_range
from vaeprune.service.served import open_served


def lineage(folder, **pair):
    write_pair(folder, **pair)
    return read_lineage(open_model(folder, 1))


def analysis(kl):
    return json.dumps({"latents": [{"index": i, "kl": value, "verdict": "active"} for i, value in enumerate(kl)]})


def test_bare_files_are_their_own_original(folder):
    found = lineage(folder)
    assert (found.original_size, found.kept, dict(found.removed), dict(found.kl)) == (4, (0, 1, 2, 3), {}, {})


def test_the_plan_tells_what_went_and_what_for(folder):
    folder.mkdir()
    write_lineage(folder, 6, {1: 0.25, 4: -0.5})
    (folder / "analysis.json").write_text(analysis([2, 0, 1, 3, 0.1, 0.5]))
    found = lineage(folder)
    assert found.kept == (0, 2, 3, 5)
    assert found.removed == {
        1: Removed(0.25, "inactive: observed on 60 samples"), 4: Removed(-0.5, "inactive: observed on 60 samples")
    }  # fmt: skip
    assert found.kl == {0: 2, 1: 0, 2: 1, 3: 3, 4: 0.1, 5: 0.5}


def test_without_a_plan_the_config_tells_then_the_metadata(folder):
    metadata = {
        "vaeprune.kept_latents": "[0, 1, 2, 7]", "vaeprune.original_latent_size": "9",
        "vaeprune.likelihood": '{"kind": "gaussian", "output": "mean", "scale": 1.0}',
    }  # fmt: skip
    found = lineage(folder, metadata=metadata)
    assert (found.original_size, found.kept, found.likelihood) == (9, (0, 1, 2, 7), "gaussian")
    assert found.removed == {i: Removed() for i in (3, 4, 5, 6, 8)}
    shrunk = {"kept_latents": [1, 2, 3, 4], "latent_size": 5}
    (folder / "config.json").write_text(json.dumps({"shrunk": shrunk, "likelihood": {"kind": "bernoulli"}}))
    found = read_lineage(open_model(folder, 1))
    assert (found.original_size, found.kept, found.likelihood) == (5, (1, 2, 3, 4), "bernoulli")


def test_metadata_may_be_of_the_encoder_alone_or_leave_out_the_size(folder):
    found = lineage(folder, metadata={"vaeprune.kept_latents": "[0, 1, 2, 7]"})
    assert (found.original_size, found.kept) == (8, (0, 1, 2, 7))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("plan.json", '{"latent_size": {"before": 6}, "kept_latents": [0, 1, 2], "removals": []}',
         "plan.json: keeps the latents [0, 1, 2] of 6, but decoder.onnx takes 4"),
        ("plan.json", '{"latent_size": {"before": 6}, "kept_latents": [0, 1, 1, 2]}', "keeps the latents [0, 1, 1, 2]"),
        ("plan.json", '{"latent_size": {"before": 3}, "kept_latents": [0, 1, 2, 3]}', "of 3, but decoder.onnx takes 4"),
        ("plan.json", '{"latent_size": {"before": 6}, "kept_latents": "all"}', "kept latents are 'all', expected"),
        ("plan.json", "{}", "what it tells of its latents cannot be read"),
        ("plan.json", "[1]", "plan.json: is not the plan, expected a JSON object"),
        ("plan.json", '{"latent_size"', "plan.json: is not valid JSON"),
        ("analysis.json", analysis([1, 2]), "analysis.json is of 2 latents, the original had 4"),
        ("config.json", '{"shrunk": 3}', "cannot be read"),
    ],
)  # fmt: skip
def test_what_contradicts_the_files_is_refused(folder, name, content, told):
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(StorageError, match=re.escape(told)):
        lineage(folder)


# ---- the models behind it


def test_a_latent_that_the_decoder_neglects_has_no_kl_in_the_models_own_samples(folder):
    write_pair(folder, latent_shape=(3,), idle=(1,))
    model = open_model(folder, 1)
    found = own_samples(model, 100)
    assert found.mean[1] == 0
    # mu is 0 and logvar -1 there: ½(1/e − 1 + 1) nats
    assert found.kl[1] == pytest.approx(0.5 / np.e)
    assert min(found.kl[0], found.kl[2]) > 1
    again = own_samples(model, 100)
    np.testing.assert_array_equal(found.kl, again.kl)


def test_a_large_model_draws_as_many_as_time_allows(folder):
    write_pair(folder)
    found = own_samples(open_model(folder, 1), seconds=0)
    assert found.rows == 2
    assert own_samples(open_model(folder, 1), 100).rows == 100


def test_map_latents_are_counted_by_channel(folder):
    pair = write_pair(folder, latent_shape=(3, 2, 2))
    found = own_samples(open_model(folder, 1), 50)
    z = np.random.default_rng(0).standard_normal((32, 3, 2, 2), np.float32)
    assert found.kl.shape == (3,)
    first = own_samples(open_model(folder, 1), 32)
    mu, logvar = pair.encode(pair.decode(z))
    expected = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum((2, 3)).mean(0)
    np.testing.assert_allclose(first.kl, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("likelihood", "low", "high", "found"),
    [
        ("bernoulli", 0.2, 0.7, (0, 1)),
        ("gaussian", -0.1, 1.2, (0, 1)),
        ("gaussian", -1.1, 1.0, (-1, 1)),
        (None, -7.0, 9.0, (-7, 9)),
        (None, 5.0, 5.0, (5, 5 + 1e-6)),
    ],
)
def test_the_range_that_is_drawn(likelihood, low, high, found):
    samples = OwnSamples(1, np.zeros(1), np.zeros(1), low, high)
    assert shown_range(likelihood, samples) == pytest.approx(found)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_files_of_any_float_type_take_and_give_float32(folder, dtype):
    pair = write_pair(folder, dtype=dtype)
    model = open_model(folder, 1)
    z = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    (x_hat,) = model.decoder(z)
    assert x_hat.dtype == np.float32
    np.testing.assert_allclose(x_hat, pair.decode(z), atol=2e-3 if dtype == "float16" else 1e-6)


def test_files_that_do_not_fit_each_other_are_refused(folder):
    write_pair(folder)
    write_pair(folder.with_name("other"), latent_shape=(5,))
    (folder / "decoder.onnx").write_bytes((folder.with_name("other") / "decoder.onnx").read_bytes())
    told = "encoder.onnx: gives mu of shape (4,), but decoder.onnx takes (5,); export both from one model"
    with pytest.raises(ModelError, match=re.escape(told)):
        open_model(folder, 1)


def test_a_pytorch_folder_is_told_to_be_exported_first(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    told = f"{folder}: holds a PyTorch model without ONNX files; export it first: vaeprune export {folder} --out FOLDER"
    with pytest.raises(StorageError, match=re.escape(told)):
        open_model(folder, 1)


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"latent_shape": (7,)}, "has latents of shape (7,), {folder} was cut from (6,); name the model"),
        ({"row_shape": (1, 5, 5), "latent_shape": (6,)}, "takes x of shape (1, 5, 5), {folder} takes (1, 6, 5)"),
    ],
)
def test_an_original_that_does_not_fit_is_refused(folder, shapes, told):
    write_pair(folder)
    write_lineage(folder, 6, {1: 0.25, 4: -0.5})
    other = folder.with_name("other")
    write_pair(other, **shapes)
    with pytest.raises(UsageError, match=re.escape(f"--against {other}: {told.format(folder=folder)}")):
        open_served(folder, other, 1)


def test_constants_that_no_plan_tells_are_the_originals_own_means(folder):
    write_pair(folder, metadata={"vaeprune.kept_latents": "[0, 1, 2, 3]", "vaeprune.original_latent_size": "6"})
    other = folder.with_name("other")
    write_pair(other, latent_shape=(6,))
    served = open_served(folder, other, 1)
    mean = own_samples(open_model(other, 1)).mean
    assert served.constants == pytest.approx({4: mean[4], 5: mean[5]})


def test_described_latents_are_sorted_by_kl_with_those_that_went_last(folder):
    folder.mkdir()
    write_lineage(folder, 6, {1: 0.25, 4: -0.5})
    (folder / "analysis.json").write_text(analysis([2, 0, 1, 3, 0.1, 0.5]))
    write_pair(folder)
    told = open_served(folder, None, 1).describe()
    assert [latent["number"] for latent in told["latents"]] == [3, 0, 2, 5, 4, 1]
    assert [latent["place"] for latent in told["latents"]] == [2, 0, 1, 3, None, None]
    assert [latent["constant"] for latent in told["latents"]] == [None] * 4 + [-0.5, 0.25]
    assert told["kl_from"] == "analysis.json"
