from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeprune.architectures import BuiltVAE, ConvolutionalVAE, DenseVAE, architecture_from_json, build
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood

WIDTHS = st.lists(st.integers(1, 9), max_size=4)
EIGHT = st.lists(st.integers(1, 5), min_size=8, max_size=8)
SIDE = st.integers(17, 32)

DENSE: dict[str, Any] = {
    "name": "dense",
    "input_shape": [1, 3, 3],
    "encoder_widths": [5],
    "decoder_widths": [4],
    "latent_size": 2,
}


def comes_back(vae: BuiltVAE) -> BuiltVAE:
    """Build it again from its config, through JSON; both halves must agree."""
    entry = json.loads(json.dumps(vae.architecture()))
    again = build(entry, vae.likelihood)
    assert type(again) is type(vae)
    assert again.architecture() == vae.architecture() == entry
    shapes = {name: value.shape for name, value in vae.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    return again


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), WIDTHS, WIDTHS, st.integers(1, 6))
def test_a_dense_vae_comes_back_from_its_config(shape: list[int], up: list[int], down: list[int], latent: int) -> None:
    comes_back(DenseVAE(shape, up, down, latent))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 3), SIDE, SIDE, EIGHT, EIGHT, st.integers(1, 6))
def test_a_convolutional_vae_comes_back_from_its_config(
    channels: int, height: int, width: int, up: list[int], down: list[int], latent: int
) -> None:
    comes_back(ConvolutionalVAE((channels, height, width), up, down, latent))


def test_a_network_from_a_config_computes_the_same_from_the_same_weights() -> None:
    vae = DenseVAE((1, 3, 3), [5], [4], 2, Likelihood("gaussian", "mean", 0.5))
    again = comes_back(vae)
    again.load_state_dict(vae.state_dict())
    assert again.likelihood == vae.likelihood
    x = torch.rand(4, 1, 3, 3)
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)
    assert torch.equal(again.decode(torch.ones(1, 2)), vae.decode(torch.ones(1, 2)))


def test_optional_arguments_may_be_left_out() -> None:
    built, arguments = architecture_from_json({"name": "convolutional", "input_shape": [1, 28, 28]})
    assert (built, arguments) == (ConvolutionalVAE, {"input_shape": [1, 28, 28]})
    assert build({"name": "convolutional", "input_shape": [1, 28, 28]}, Likelihood()).latent_size == 16


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        (None, "None"),
        ("dense", "'dense'"),
        ([], "[]"),
        ({}, "None"),
        ({"name": "transformer"}, "'transformer'"),
        ({"name": "DenseVAE"}, "'DenseVAE'"),
        ({"name": None}, "None"),
        ({"name": 3}, "3"),
        ({"name": ["dense"]}, "['dense']"),
        ({"name": {"dense": 1}}, "{'dense': 1}"),
    ],
)
def test_an_unknown_architecture_is_refused_with_the_known_ones(entry: object, got: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(entry, Likelihood())
    assert caught.value.message == f"architecture: got {got}, expected one of convolutional, dense"


@pytest.mark.parametrize(
    "entry",
    [
        DENSE | {"activation": "tanh"},
        DENSE | {"likelihood": "bernoulli"},
        DENSE | {"self": 1},
        {key: value for key, value in DENSE.items() if key != "latent_size"},
    ],
)
def test_unknown_and_missing_arguments_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        build(entry, Likelihood())
    assert caught.value.message == (
        f"architecture dense: got {sorted(set(entry) - {'name'})}, expected "
        "['decoder_widths', 'encoder_widths', 'input_shape', 'latent_size'] and optionally []"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": [2**15, 2**16], "encoder_widths": [2**31 - 1]},
        {"encoder_widths": [2**31 - 1, 2**31 - 1]},
        {"encoder_widths": [2**62]},
        {"latent_size": 10**40},
    ],
)
def test_sizes_beyond_any_machine_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError), torch.device("meta"):
        build(DENSE | change, Likelihood())
