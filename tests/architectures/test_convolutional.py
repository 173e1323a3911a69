from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaeprune.architectures import ConvolutionalVAE, initialise
from vaeprune.architectures.convolutional import (
    DECODER_CHANNELS,
    ENCODER_CHANNELS,
    LAYERS,
    SameConv2d,
    SameConvTranspose2d,
    same_padding,
)
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE

SMALL: dict[str, Any] = {"encoder_channels": [2] * 8, "decoder_channels": [3] * 8, "latent_size": 4}


@pytest.fixture(scope="module")
def paper() -> ConvolutionalVAE:
    return ConvolutionalVAE((1, 28, 28)).eval()


def learnt(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def running(module: nn.Module) -> int:
    """Running means and variances, which a Keras summary counts among the weights."""
    return sum(b.numel() for b in module.buffers() if b.is_floating_point())


# Fig. 5


def test_the_encoder_has_the_weights_of_figure_5_layer_by_layer(paper: ConvolutionalVAE) -> None:
    counts = [(type(m).__name__, learnt(m) + running(m)) for m in paper.encoder]
    assert counts == [
        ("SameConv2d", 160),
        ("BatchNorm2d", 64),
        ("ReLU", 0),
        ("SameConv2d", 4_640),
        ("SameConv2d", 9_248),
        ("BatchNorm2d", 128),
        ("ReLU", 0),
        ("SameConv2d", 9_248),
        ("SameConv2d", 9_248),
        ("BatchNorm2d", 128),
        ("ReLU", 0),
        ("SameConv2d", 4_128),
        ("SameConv2d", 4_128),
        ("BatchNorm2d", 128),
        ("ReLU", 0),
        ("SameConv2d", 4_128),
    ]
    assert learnt(paper.mean_head) == learnt(paper.logvar_head) == 528


def test_the_encoder_has_46432_weights_of_which_224_are_running_statistics(paper: ConvolutionalVAE) -> None:
    parts = (paper.encoder, paper.mean_head, paper.logvar_head)
    assert sum(map(running, parts)) == 224
    assert sum(learnt(m) + running(m) for m in parts) == 46_432


def test_the_images_shrink_as_in_figure_5(paper: ConvolutionalVAE) -> None:
    sizes, h = [], torch.zeros(2, 1, 28, 28)
    with torch.no_grad():
        for layer in paper.encoder:
            h = layer(h)
            if isinstance(layer, nn.Conv2d):
                sizes.append(tuple(h.shape[1:]))
    assert sizes == [
        (16, 14, 14), (32, 14, 14), (32, 7, 7), (32, 4, 4), (32, 4, 4), (32, 2, 2), (32, 2, 2), (32, 1, 1),
    ]  # fmt: skip


def test_the_decoder_mirrors_the_encoder(paper: ConvolutionalVAE) -> None:
    down = [(type(m).__name__, getattr(m, "kernel_size", None), getattr(m, "stride", None)) for m in paper.encoder]
    up = [(type(m).__name__, getattr(m, "kernel_size", None), getattr(m, "stride", None)) for m in paper.decoder]
    assert up[0] == ("ConvTranspose2d", (1, 1), (1, 1))
    convolutions = [(kernel, stride) for name, kernel, stride in down if name == "SameConv2d"]
    assert [(kernel, stride) for name, kernel, stride in up if name == "SameConvTranspose2d"] == convolutions[::-1]
    # between two layers stands a BatchNorm with ReLU in the decoder where it stands in the encoder
    assert [n for n, *_ in up[1:]] == [
        {"SameConv2d": "SameConvTranspose2d", "BatchNorm2d": "BatchNorm2d", "ReLU": "ReLU"}[n]
        for n in [
            "SameConv2d",
            "BatchNorm2d", "ReLU", "SameConv2d",
            "SameConv2d",
            "BatchNorm2d", "ReLU", "SameConv2d",
            "SameConv2d",
            "BatchNorm2d", "ReLU", "SameConv2d",
            "SameConv2d",
            "BatchNorm2d", "ReLU", "SameConv2d",
        ]
    ]  # fmt: skip
    with torch.no_grad():
        sizes, h = [], torch.zeros(2, 16, 1, 1)
        for layer in paper.decoder:
            h = layer(h)
            if isinstance(layer, nn.ConvTranspose2d):
                sizes.append(tuple(h.shape[1:]))
    assert sizes == [
        (32, 1, 1), (32, 2, 2), (32, 2, 2), (32, 4, 4), (32, 4, 4), (32, 7, 7), (32, 14, 14), (16, 14, 14), (1, 28, 28),
    ]  # fmt: skip


# "Same" padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (28, 3, 2, (0, 1)),
        (14, 3, 1, (1, 1)),
        (14, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (4, 3, 1, (1, 1)),
        (4, 2, 2, (0, 0)),
        (2, 2, 1, (0, 1)),
        (2, 2, 2, (0, 0)),
        (1, 2, 2, (0, 1)),
        (5, 1, 2, (0, 0)),
    ],
)
def test_the_odd_pixel_of_padding_goes_after(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == padding


def convolve(x: NDArray[np.float64], w: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """TensorFlow's "same" convolution, pixel by pixel: x (C, H, W), w (C', C, k, k)."""
    k, (height, width) = w.shape[-1], x.shape[1:]
    out = np.zeros((len(w), -(-height // stride), -(-width // stride)))
    before = [max((n - 1) * stride + k - size, 0) // 2 for n, size in zip(out.shape[1:], x.shape[1:], strict=True)]
    for i, j, dy, dx in itertools.product(*map(range, out.shape[1:]), range(k), range(k)):
        y, z = i * stride + dy - before[0], j * stride + dx - before[1]
        if 0 <= y < height and 0 <= z < width:
            out[:, i, j] += w[:, :, dy, dx] @ x[:, y, z]
    return out


CASES = pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [
        ((28, 28), 3, 2),
        ((14, 14), 3, 1),
        ((7, 7), 3, 2),
        ((4, 4), 2, 2),
        ((2, 2), 2, 1),
        ((9, 6), 3, 2),
        ((3, 2), 2, 2),
    ],
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@CASES
def test_a_same_convolution_equals_tensorflows(size: tuple[int, int], kernel: int, stride: int) -> None:
    layer = SameConv2d(2, 3, kernel, stride).double()
    x = normal(1, 2, *size)
    with torch.no_grad():
        got = layer(x)[0] - layer.bias[:, None, None]
    expected = convolve(x[0].numpy(), layer.weight.detach().numpy(), stride)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


@CASES
def test_a_transposed_convolution_is_the_adjoint_of_the_convolution(
    size: tuple[int, int], kernel: int, stride: int
) -> None:
    down = SameConv2d(2, 3, kernel, stride, bias=False).double()
    layer = next(la for la in LAYERS if (la.kernel, la.stride) == (kernel, stride))
    up = SameConvTranspose2d(3, 2, layer, size).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)
        up.bias.zero_()
        x = normal(1, 2, *size)
        y = down(x)
        other = normal(*y.shape, seed=1)
        torch.testing.assert_close((y * other).sum(), (x * up(other)).sum(), rtol=1e-12, atol=1e-12)


# Sizes


@pytest.mark.parametrize("size", range(17, 33))
def test_every_image_from_17_to_32_pixels_comes_back_in_its_size(size: int) -> None:
    for image in ((1, size, size), (3, size, 49 - size)):
        vae = ConvolutionalVAE(image, **SMALL).double()
        with torch.no_grad():
            posterior = vae.encode(normal(2, *image))
            assert posterior.mean.shape == posterior.logvar.shape == (2, 4)
            assert vae.decode_parameters(posterior.mean).shape == (2, *image)
            assert vae.decode(posterior.mean).shape == (2, *image)


@pytest.mark.parametrize("shape", [[1, 16, 28], [1, 28, 33], [28, 28], [784], [1, 1, 28, 28]])
def test_other_images_are_refused_with_what_is_possible(shape: list[int]) -> None:
    with pytest.raises(ModelError) as caught:
        ConvolutionalVAE(shape)
    assert caught.value.message == (
        f"input_shape: got {shape}, the convolutional architecture expects [channels, height, width] with 17 to 32 "
        "pixels a side"
    )
    assert caught.value.hint == "resize the images or use the dense architecture"


@pytest.mark.parametrize("name", ["encoder_channels", "decoder_channels"])
def test_another_number_of_layers_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        ConvolutionalVAE([1, 28, 28], **{name: [8, 8]})
    assert caught.value.message == f"{name}: got 2 numbers, expected 8"


@pytest.mark.parametrize("width", [64, 128])
def test_a_wider_network_is_built(width: int) -> None:
    with torch.device("meta"):
        vae = ConvolutionalVAE([1, 28, 28], encoder_channels=[width] * 8)
    assert vae.architecture()["encoder_channels"] == [width] * 8


# As a model


def test_it_is_a_vae_in_the_sense_of_the_protocol(paper: ConvolutionalVAE) -> None:
    assert isinstance(paper, VAE)
    assert (paper.latent_size, paper.latent_shape, paper.input_shape) == (16, (16,), (1, 28, 28))


def test_decoding_is_the_likelihoods_mean_of_the_parameters() -> None:
    z = normal(3, 4)
    for likelihood in (Likelihood(), Likelihood("gaussian", "mean")):
        vae = ConvolutionalVAE([1, 17, 17], **SMALL, likelihood=likelihood).double().eval()
        with torch.no_grad():
            parameters = vae.decode_parameters(z)
            expected = 1 / (1 + torch.exp(-parameters)) if likelihood.kind == "bernoulli" else parameters
            torch.testing.assert_close(vae.decode(z), expected)


def test_the_result_of_a_row_does_not_depend_on_the_others() -> None:
    vae = ConvolutionalVAE([2, 19, 23], **SMALL).double().eval()
    x = normal(3, 2, 19, 23)
    with torch.no_grad():
        alone = torch.cat([vae.encode(x[i : i + 1]).mean for i in range(3)])
        torch.testing.assert_close(vae.encode(x).mean, alone)


def test_its_config_is_read_off_the_live_layers() -> None:
    vae = ConvolutionalVAE([3, 17, 20], [2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2], 5)
    assert vae.architecture() == {
        "name": "convolutional",
        "input_shape": [3, 17, 20],
        "encoder_channels": [2, 3, 4, 5, 6, 7, 8, 9],
        "decoder_channels": [9, 8, 7, 6, 5, 4, 3, 2],
        "latent_size": 5,
    }
    vae.mean_head = nn.Conv2d(9, 1, 1)
    assert vae.architecture()["latent_size"] == vae.latent_size == 1


def test_the_usual_channels_are_the_papers(paper: ConvolutionalVAE) -> None:
    assert paper.architecture()["encoder_channels"] == list(ENCODER_CHANNELS)
    assert paper.architecture()["decoder_channels"] == list(DECODER_CHANNELS)


def test_glorot_starts_within_its_bound_and_with_zero_biases(paper: ConvolutionalVAE) -> None:
    vae = ConvolutionalVAE((1, 28, 28))
    initialise(vae, "glorot", seed=0)
    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            a, b, height, width = layer.weight.shape
            bound = (6 / ((a + b) * height * width)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.bias is not None
            assert not layer.bias.any()


@pytest.mark.parametrize("how", ["glorot", "torch"])
def test_a_start_forgets_everything_that_was_there(how: Any) -> None:
    vae, other = (ConvolutionalVAE((1, 17, 17), **SMALL) for _ in range(2))
    with torch.no_grad():
        for value in vae.state_dict().values():
            value.add_(3)
    for v in (vae, other):
        initialise(v, how, seed=0)
    differing = [n for n, value in vae.state_dict().items() if not torch.equal(value, other.state_dict()[n])]
    assert not differing
