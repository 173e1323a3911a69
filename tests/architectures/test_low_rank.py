"""A layer as two of low rank computes the product of their weights, and is built again from its config."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vaeprune.architectures import DenseVAE, build
from vaeprune.architectures.convolutional import LAYERS, SameConv2d, SameConvTranspose2d
from vaeprune.architectures.low_rank import low_rank, ranks_of, split_layers
from vaeprune.errors import ModelError

RANK = 3
LAYER_CASES = [
    pytest.param(nn.Linear(7, 5), (7,), False, id="linear"),
    pytest.param(nn.Linear(7, 5, bias=False), (7,), False, id="linear without bias"),
    pytest.param(nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9), False, id="conv1d"),
    pytest.param(nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 8, 8), False, id="dilated"),
    pytest.param(SameConv2d(4, 6, 2, 2), (4, 7, 7), False, id="our own padding"),
    pytest.param(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (4, 5, 5), True, id="transposed"),
    pytest.param(SameConvTranspose2d(4, 6, LAYERS[0], (9, 9)), (4, 5, 5), True, id="our own cropping"),
]


@pytest.mark.parametrize(("layer", "shape", "transposed"), LAYER_CASES)
def test_the_pair_computes_what_a_layer_with_the_product_computes(
    layer: nn.Module, shape: tuple[int, ...], transposed: bool
) -> None:
    layer = layer.double()
    generator = torch.Generator().manual_seed(0)
    pair = low_rank(layer, RANK)
    down, up = (part.weight for part in pair)
    with torch.no_grad():
        for weight in (down, up):
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        mixing = up.flatten(1)
        product = torch.tensordot(mixing, down.transpose(0, 1) if transposed else down, 1)
        layer.weight.copy_(product.transpose(0, 1) if transposed else product)
        if layer.bias is not None:
            pair[1].bias.copy_(layer.bias)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pair(x), layer(x), rtol=1e-12, atol=1e-12)
    assert (pair.rank, pair.out_features) == (RANK, len(mixing))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(3)], ids=str)
def test_what_is_no_plain_linear_map_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match="cannot be split into two layers"):
        low_rank(layer, 2)


def dense() -> DenseVAE:
    return DenseVAE((1, 4, 4), (8, 6), (6, 8), 3)


def test_a_network_with_pairs_is_built_again_from_its_config() -> None:
    vae = dense()
    split_layers(vae, {"encoder.0": 2, "output": 4})
    entry = vae.architecture()
    assert entry["ranks"] == {"encoder.0": 2, "output": 4} == ranks_of(vae)
    assert (entry["encoder_widths"], entry["decoder_widths"]) == ([8, 6], [6, 8])
    again = build(entry, vae.likelihood)
    again.load_state_dict(vae.state_dict())
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)


@pytest.mark.parametrize("ranks", [{"encoder.0": 0}, {"encoder.0": 2.0}, [3], {"": 2}, {"encoder.0": True}], ids=str)
def test_ranks_that_make_no_sense_are_refused(ranks: object) -> None:
    with pytest.raises(ModelError, match="ranks"):
        build(dense().architecture() | {"ranks": ranks}, dense().likelihood)


def test_ranks_of_a_layer_that_is_not_there_are_refused() -> None:
    with pytest.raises(ModelError, match=r"has no layer 'encoder\.9'"):
        build(dense().architecture() | {"ranks": {"encoder.9": 2}}, dense().likelihood)
