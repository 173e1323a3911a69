"""Models run for measurement: faster inside, and outside as they were."""

from __future__ import annotations

import pytest
import torch

from tests.planted import convolutional, rows
from vaeprune.adapters import measuring
from vaeprune.adapters.measuring import batch_rows


def test_our_own_convolutions_have_their_channels_last_inside_and_as_they_were_outside() -> None:
    vae = convolutional().train()
    weights = {name: (weight.data_ptr(), weight.stride()) for name, weight in vae.named_parameters()}
    values = {name: weight.clone() for name, weight in vae.state_dict().items()}
    x = rows(5, vae.input_shape)
    vae.eval()
    with torch.inference_mode():
        expected = vae.encode(x).mean, vae.decode(vae.encode(x).mean)
    vae.train()
    with measuring(vae):
        kernels = [weight for weight in vae.parameters() if weight.dim() == 4 and min(weight.shape) > 1]
        assert kernels
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
        found = vae.encode(x).mean, vae.decode(vae.encode(x).mean)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert {name: (weight.data_ptr(), weight.stride()) for name, weight in vae.named_parameters()} == weights
    assert all(torch.equal(value, values[name]) for name, value in vae.state_dict().items())
    assert vae.training


def test_an_error_inside_leaves_the_weights_as_they_were() -> None:
    vae = convolutional()
    strides = [weight.stride() for weight in vae.parameters()]
    with pytest.raises(RuntimeError, match="on purpose"), measuring(vae):
        raise RuntimeError("on purpose")
    assert [weight.stride() for weight in vae.parameters()] == strides


def test_batches_are_powers_of_two_within_two_megabytes() -> None:
    assert [batch_rows(shape) for shape in ((784,), (3, 64, 64), (16,), (3, 512, 512))] == [512, 32, 4096, 32]
    assert batch_rows((784,), "cuda") == 4096
