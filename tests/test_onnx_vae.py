"""An ONNX pair computes what the model it was exported from computes."""

from __future__ import annotations

import onnx
import pytest
import torch

import planted
from vaeprune.adapters import as_vae, element_type
from vaeprune.data import as_data
from vaeprune.errors import ExportError, StorageError
from vaeprune.likelihood import Likelihood
from vaeprune.onnx_export import export_onnx
from vaeprune.onnx_vae import OnnxVAE
from vaeprune.report.sheets import idle_latents


@pytest.fixture(scope="module")
def model():
    return planted.dense((1, 4), 6, input_shape=(1, 9, 7))


@pytest.fixture(scope="module")
def pair(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    export_onnx(model, folder)
    return folder


def test_it_has_the_protocol_and_the_models_values(model, pair):
    found = OnnxVAE(pair)
    assert as_vae(found) is found
    assert (found.latent_size, found.latent_shape, found.input_shape) == (6, (6,), (1, 9, 7))
    assert element_type(found) == (torch.float32, torch.device("cpu"))
    x = planted.rows(5, (1, 9, 7))
    with torch.no_grad():
        expected, got = model.encode(x), found.encode(x)
        assert torch.allclose(got.mean, expected.mean, atol=1e-5)
        assert torch.allclose(got.logvar, expected.logvar, atol=1e-5)
        assert torch.allclose(found.decode(expected.mean), model.decode(expected.mean), atol=1e-6)


def test_its_idle_latents_are_found_without_the_class(pair):
    vae = OnnxVAE(pair, Likelihood("bernoulli", "mean"))
    assert idle_latents(vae, as_data(planted.rows(300, (1, 9, 7)))) == (1, 4)


def test_rows_are_scored_as_asked_else_as_the_files_say(model, pair, tmp_path):
    said = Likelihood(model.likelihood.kind, "mean", model.likelihood.scale)
    asked = Likelihood("gaussian", "mean", 0.25)
    assert OnnxVAE(pair).likelihood == OnnxVAE(pair, None, asked).likelihood == said
    assert OnnxVAE(pair, asked).likelihood == asked
    for name in ("encoder.onnx", "decoder.onnx"):
        unlabelled = onnx.load(pair / name)
        del unlabelled.metadata_props[:]
        onnx.save(unlabelled, tmp_path / name)
    assert OnnxVAE(tmp_path, None, asked).likelihood == asked


def test_what_is_no_pair_is_refused(model, pair, tmp_path):
    with pytest.raises(StorageError, match="no such file, expected an ONNX model"):
        OnnxVAE(tmp_path)
    for name, other in (("encoder.onnx", "decoder.onnx"), ("decoder.onnx", "encoder.onnx")):  # the wrong way round
        (tmp_path / name).write_bytes((pair / other).read_bytes())
    with pytest.raises(ExportError, match="expected an encoder that gives mu and logvar, and a decoder that gives"):
        OnnxVAE(tmp_path)
    with pytest.raises(ExportError, match="its decoder gives means, so a likelihood of logits does not fit it"):
        OnnxVAE(pair, Likelihood())
