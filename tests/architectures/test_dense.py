from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from vaeprune.architectures import DenseVAE, initialise
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE

MNIST = DenseVAE((1, 28, 28), [256, 32, 24], [24, 32, 256], 16)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_dense_network_has_421920_weights() -> None:
    assert count(MNIST) == 421_920


def test_the_papers_tiles_network_is_784_512_256_64_32_16() -> None:
    vae = DenseVAE((28, 28), [512, 256, 64, 32], [32, 64, 256, 512], 16)
    widths = (784, 512, 256, 64, 32)
    one_way = sum(a * b + b for a, b in itertools.pairwise(widths))
    back = (16, *widths[::-1])
    other_way = sum(a * b + b for a, b in itertools.pairwise(back))
    assert count(vae) == one_way + 2 * (32 * 16 + 16) + other_way


def test_the_layers_of_the_papers_network_have_these_shapes() -> None:
    shapes = {name: tuple(w.shape) for name, w in MNIST.state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "encoder.0.weight": (256, 784),
        "encoder.2.weight": (32, 256),
        "encoder.4.weight": (24, 32),
        "mean_head.weight": (16, 24),
        "logvar_head.weight": (16, 24),
        "decoder.0.weight": (24, 16),
        "decoder.2.weight": (32, 24),
        "decoder.4.weight": (256, 32),
        "output.weight": (784, 256),
    }


def test_encoding_and_decoding_are_affine_maps_with_relu_between() -> None:
    vae = DenseVAE((2, 2), [3, 5], [7], 2, Likelihood("bernoulli", "logits")).double()
    w = {name: value.numpy() for name, value in vae.state_dict().items()}
    x, z = (np.random.default_rng(0).standard_normal(shape) for shape in ((4, 2, 2), (4, 2)))

    def affine(name: str, h: np.ndarray) -> np.ndarray:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    h = np.maximum(affine("encoder.2", np.maximum(affine("encoder.0", x.reshape(4, 4)), 0)), 0)
    logits = affine("output", np.maximum(affine("decoder.0", z), 0)).reshape(4, 2, 2)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(x))
        np.testing.assert_allclose(posterior.mean, affine("mean_head", h), rtol=1e-12)
        np.testing.assert_allclose(posterior.logvar, affine("logvar_head", h), rtol=1e-12)
        np.testing.assert_allclose(vae.decode_parameters(torch.from_numpy(z)), logits, rtol=1e-12)
        np.testing.assert_allclose(vae.decode(torch.from_numpy(z)), 1 / (1 + np.exp(-logits)), rtol=1e-12)


def test_without_hidden_layers_it_is_affine() -> None:
    vae = DenseVAE([3], [], [], 2, Likelihood("gaussian", "mean")).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(vae.encode(x).mean, vae.mean_head(x))
    z = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(vae.decode(z), vae.output(z))


def test_forward_gives_reconstruction_mean_and_logvar() -> None:
    vae = DenseVAE((1, 2, 2), [3], [3], 2)
    x = torch.rand(5, 1, 2, 2)
    torch.manual_seed(0)
    reconstruction, mean, logvar = vae(x)
    torch.manual_seed(0)
    posterior = vae.encode(x)
    z = posterior.mean + torch.exp(0.5 * posterior.logvar) * torch.randn(5, 2)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(logvar, posterior.logvar)
    torch.testing.assert_close(reconstruction, vae.decode(z))


def test_it_is_a_vae_in_the_sense_of_the_protocol() -> None:
    assert isinstance(MNIST, VAE)
    assert (MNIST.latent_size, MNIST.latent_shape, MNIST.input_shape) == (16, (16,), (1, 28, 28))
    assert MNIST.network is MNIST


def test_its_config_is_read_off_the_live_layers() -> None:
    vae = DenseVAE((1, 2, 2), [3, 5], [7], 2)
    vae.encoder[0], vae.encoder[2] = nn.Linear(4, 2), nn.Linear(2, 5)
    vae.mean_head, vae.logvar_head, vae.decoder[0] = nn.Linear(5, 1), nn.Linear(5, 1), nn.Linear(1, 7)
    assert vae.architecture() == {
        "name": "dense",
        "input_shape": [1, 2, 2],
        "encoder_widths": [2, 5],
        "decoder_widths": [7],
        "latent_size": 1,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_shape", [4, 0]),
        ("input_shape", [4.0]),
        ("input_shape", 4),
        ("input_shape", "44"),
        ("encoder_widths", [-1]),
        ("encoder_widths", [True]),
        ("encoder_widths", [2**31]),
        ("decoder_widths", None),
        ("decoder_widths", [[3]]),
    ],
)
def test_sizes_that_are_no_positive_whole_numbers_are_refused(name: str, value: object) -> None:
    arguments = {"input_shape": [4], "encoder_widths": [3], "decoder_widths": [3], "latent_size": 2} | {name: value}
    with pytest.raises(ModelError) as caught:
        DenseVAE(**arguments)  # type: ignore[arg-type]
    assert caught.value.message == f"{name}: got {value!r}, expected a list of positive whole numbers"


@pytest.mark.parametrize("value", [0, -3, 2.0, "2", None, [2], True])
def test_a_latent_size_that_is_no_positive_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match=r"latent_size: got \[.*\], expected a list of positive whole numbers"):
        DenseVAE([4], [3], [3], value)  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [[256] * 6, [1024, 512, 512, 256, 256, 128]])
def test_a_deep_network_of_ordinary_widths_is_built(widths: list[int]) -> None:
    assert DenseVAE([4], widths, [3], 2).architecture()["encoder_widths"] == widths


# How weights start


def test_glorot_starts_uniform_within_its_bound_and_with_zero_biases() -> None:
    vae = DenseVAE([300], [200], [100], 50)
    initialise(vae, "glorot", seed=0)
    for name, value in vae.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert value.abs().max() <= bound
            assert abs(value.double().var().item() / (bound**2 / 3) - 1) < 0.05, name


def test_torchs_start_is_that_of_its_own_layers() -> None:
    vae = DenseVAE([6], [5], [4], 3)
    initialise(vae, "torch", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = [nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(3, 4), nn.Linear(4, 6)]
    layers = [m for m in vae.modules() if isinstance(m, nn.Linear)]
    for got, wanted in zip(layers, expected, strict=True):
        assert torch.equal(got.weight, wanted.weight)
        assert torch.equal(got.bias, wanted.bias)


@pytest.mark.parametrize("how", ["glorot", "torch"])
def test_the_start_depends_on_the_seed_alone(how: str) -> None:
    a, b, c = (DenseVAE([6], [5], [4], 3) for _ in range(3))
    for vae, seed in ((a, 0), (b, 0), (c, 1)):
        torch.rand(1)
        initialise(vae, how, seed)  # type: ignore[arg-type]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.mean_head.weight, c.mean_head.weight)


def test_the_global_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the generators of the GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    vae = DenseVAE([6], [5], [4], 3)
    before = torch.get_rng_state()
    initialise(vae, "glorot", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        initialise(MNIST, "he", seed=0)  # type: ignore[arg-type]
    assert caught.value.message == "initialisation: got 'he', expected 'glorot' or 'torch'"
