"""The convolutional VAE of the paper's Fig. 5, and a decoder that mirrors it with transposed convolutions.

The figure is a Keras summary. Strides are inferred from its shapes; kernels from its parameter counts: the three
layers of 4,128 = 4·32·32 + 32 weights are 2×2 whatever the label says. "Same" padding is TensorFlow's: the odd
pixel goes after. No activation stands between paired convolutions nor before the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vaeprune.architectures.base import BuiltVAE, positive_sizes
from vaeprune.architectures.low_rank import LowRank
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import Posterior


class _Layer(NamedTuple):
    kernel: int
    stride: int
    normalised: bool  # BatchNorm and ReLU follow


LAYERS = (
    _Layer(3, 2, True),
    _Layer(3, 1, False),
    _Layer(3, 2, True),
    _Layer(3, 2, False),
    _Layer(3, 1, True),
    _Layer(2, 2, False),
    _Layer(2, 1, True),
    _Layer(2, 2, False),
)
ENCODER_CHANNELS = (16, 32, 32, 32, 32, 32, 32, 32)
DECODER_CHANNELS = (32, 32, 32, 32, 32, 32, 32, 16)
_LARGEST_IMAGE = 32  # five layers of stride 2 take it to 1x1


class SameConv2d(nn.Conv2d):
    """A convolution whose output is ⌈input / stride⌉ pixels wide, padded as TensorFlow's "same" does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Conv2d names it so)
        """(B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        (top, bottom), (left, right) = (
            same_padding(size, self.kernel_size[0], self.stride[0]) for size in input.shape[-2:]
        )
        return super().forward(F.pad(input, (left, right, top, bottom)))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """The transpose of a `SameConv2d`: its output is cropped where that one was padded."""

    def __init__(self, channels_in: int, channels_out: int, layer: _Layer, image: tuple[int, int]) -> None:
        super().__init__(channels_in, channels_out, layer.kernel, layer.stride)
        self.image = image

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        """(B, C, h, w) → (B, C', *image)."""
        y = super().forward(input, output_size)
        for axis, size in zip((-2, -1), self.image, strict=True):
            before, _ = same_padding(size, self.kernel_size[0], self.stride[0])
            y = y.narrow(axis, before, size)
        return y


class ConvolutionalVAE(BuiltVAE):
    """Eight convolutions down to 1×1, two 1×1 heads, and the mirror image of it all.

    `encoder_channels`: outputs of the eight convolutions, first to last.
    `decoder_channels`: outputs of the 1×1 transposed convolution that reads z and of the seven after it;
    the last layer gives the image's channels. Images are (C, H, W) with H and W from 17 to 32.
    """

    name = "convolutional"

    def __init__(
        self,
        input_shape: Sequence[int],
        encoder_channels: Sequence[int] = ENCODER_CHANNELS,
        decoder_channels: Sequence[int] = DECODER_CHANNELS,
        latent_size: int = 16,
        likelihood: Likelihood | None = None,
    ) -> None:
        shape = positive_sizes(input_shape, "input_shape")
        if len(shape) != 3 or not all(_LARGEST_IMAGE // 2 < size <= _LARGEST_IMAGE for size in shape[1:]):
            raise ModelError(
                f"input_shape: got {list(shape)}, the convolutional architecture expects [channels, height, width] "
                "with 17 to 32 pixels a side",
                "resize the images or use the dense architecture",
            )
        encoder = positive_sizes(encoder_channels, "encoder_channels")
        decoder = positive_sizes(decoder_channels, "decoder_channels")
        for name, channels in (("encoder_channels", encoder), ("decoder_channels", decoder)):
            if len(channels) != len(LAYERS):
                raise ModelError(f"{name}: got {len(channels)} numbers, expected {len(LAYERS)}")
        (latents,) = positive_sizes([latent_size], "latent_size")
        super().__init__(shape, likelihood or Likelihood())
        self.encoder = _downwards((shape[0], *encoder))
        self.mean_head = nn.Conv2d(encoder[-1], latents, 1)
        self.logvar_head = nn.Conv2d(encoder[-1], latents, 1)
        self.decoder = _upwards((latents, *decoder, shape[0]), _image_sizes((shape[1], shape[2])))

    @property
    def latent_size(self) -> int:
        """Number of latents D."""
        return self.mean_head.out_channels

    def widths(self) -> dict[str, Any]:
        """The config entry that builds this module."""
        transposed = [m.out_channels for m in self.decoder if isinstance(m, (nn.ConvTranspose2d, LowRank))]
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "encoder_channels": [m.out_channels for m in self.encoder if isinstance(m, (nn.Conv2d, LowRank))],
            "decoder_channels": transposed[:-1],
            "latent_size": self.latent_size,
        }

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        """q(z | x) of images x (B, C, H, W); mean and logvar are (B, D)."""
        h = self.encoder(x)
        return Posterior(self.mean_head(h).flatten(1), self.logvar_head(h).flatten(1))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        """Logits or mean of p(x | z), (B, C, H, W), for z (B, D)."""
        image: Tensor = self.decoder(z[:, :, None, None])
        return image


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` pixels so that the output has ⌈size / stride⌉."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _image_sizes(image: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width before each convolution of `LAYERS`."""
    sizes = [image]
    for layer in LAYERS[:-1]:
        height, width = sizes[-1]
        sizes.append((-(-height // layer.stride), -(-width // layer.stride)))
    return sizes


def _downwards(channels: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, layer in enumerate(LAYERS):
        layers.append(SameConv2d(channels[i], channels[i + 1], layer.kernel, layer.stride))
        if layer.normalised:
            layers += [nn.BatchNorm2d(channels[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers)


def _upwards(channels: tuple[int, ...], sizes: list[tuple[int, int]]) -> nn.Sequential:
    """A 1×1 layer that reads z, then `LAYERS` backwards; BatchNorm stands where the encoder has it."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(channels[0], channels[1], 1)]
    for i in reversed(range(len(LAYERS))):
        at = len(LAYERS) - i
        layers.append(SameConvTranspose2d(channels[at], channels[at + 1], LAYERS[i], sizes[i]))
        if i > 0 and LAYERS[i - 1].normalised:
            layers += [nn.BatchNorm2d(channels[at + 1]), nn.ReLU()]
    return nn.Sequential(*layers)
