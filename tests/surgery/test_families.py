"""Every family of VAE in the field: adapted, analysed, planned, cut, and held against the original in float64."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from foreign_models import (
    HEADS,
    IDLE,
    READERS,
    WIDTH,
    Biasless,
    Family,
    OwnVAE,
    Reader,
    chunked,
    class_conditional,
    conditional,
    cut_exactly,
    family,
    idle_columns,
    idle_rows,
    interleaved,
    maps,
    plant,
    quietly,
    rows,
    sequences,
    sliced,
    split,
)
from planted import randomise
from vaeprune.opening import Source, open_model
from vaeprune.surgery.plan import Slice


@pytest.mark.parametrize("heads", HEADS)
def test_rows_are_cut_however_the_heads_are_parted(heads: object) -> None:
    cut_exactly(family(heads=heads))


@pytest.mark.parametrize("heads", HEADS)
def test_rounding_alone_differs_in_float32(heads: object) -> None:
    cut_exactly(family(heads=heads), torch.float32, 1e-5)


@pytest.mark.parametrize("heads", [split, sliced, interleaved])
def test_a_latent_size_the_code_keeps_is_set(heads: object) -> None:
    result = cut_exactly(family(heads=heads))
    assert result.smaller.network.latent_dim == 3
    assert result.plan.attributes["latent_dim"] == 3
    assert result.vae.network.latent_dim == 5


@pytest.mark.parametrize("reader", READERS)
def test_columns_are_cut_whatever_reads_z(reader: object) -> None:
    cut_exactly(family(reader=reader))


def test_rows_and_columns_of_a_chunked_head_are_those_of_both_halves() -> None:
    made = cut_exactly(family(heads=chunked)).plan
    assert Slice("head.weight", 0, 10, (0, 2, 4, 5, 7, 9)) in made.slices
    assert Slice("reader.read.weight", 1, 5, (0, 2, 4)) in made.slices


def test_a_reader_without_bias_holds_latents_at_zero() -> None:
    made = cut_exactly(family(reader=Biasless)).plan
    assert [removal.constant for removal in made.removals] == [0, 0]
    assert made.bias_changes == {}


def test_a_reader_with_a_bias_holds_latents_at_their_means() -> None:
    made = cut_exactly(family()).plan
    assert [removal.constant for removal in made.removals] == [pytest.approx(0.03, abs=1e-3)] * 2
    assert list(made.bias_changes) == ["reader.read.bias"]


# ---- maps, sequences, conditions


def test_maps_behind_quant_convolutions_are_cut() -> None:
    made = cut_exactly(maps(quant=True)).plan
    assert Slice("quant_conv.weight", 0, 8, (1, 3, 5, 7)) in made.slices
    assert Slice("post_quant_conv.weight", 1, 4, (1, 3)) in made.slices


def test_maps_read_by_a_padded_convolution_are_held_at_zero() -> None:
    made = cut_exactly(maps(quant=False)).plan
    assert [removal.constant for removal in made.removals] == [0, 0]


def test_sequences_of_latents_are_cut() -> None:
    result = cut_exactly(sequences())
    assert result.smaller.latent_shape == (2, 10)


def test_condition_columns_are_never_cut() -> None:
    made = cut_exactly(conditional()).plan
    assert Slice("reader.read.weight", 1, 8, (0, 2, 4, 5, 6, 7)) in made.slices
    assert not any(s.key == "body.weight" for s in made.slices)


def test_a_class_given_to_the_decoder_alone_is_no_latent() -> None:
    made = cut_exactly(class_conditional()).plan
    assert Slice("reader.read.weight", 1, 8, (0, 2, 4, 5, 6, 7)) in made.slices


def test_the_condition_may_come_before_z() -> None:
    class ConditionFirst(nn.Module):
        reads = ()

        def __init__(self, latents: int) -> None:
            super().__init__()
            self.read, self.out = nn.Linear(3 + latents, 6), nn.Linear(6, WIDTH)

        def forward(self, z: Tensor) -> Tensor:
            c = torch.tensor([0.2, -0.4, 0.6]).to(z).expand(len(z), 3)
            return self.out(torch.tanh(self.read(torch.cat([c, z], 1))))

    network = plant(OwnVAE(reader=ConditionFirst))
    idle_columns(network.reader.read.weight, 1, [3 + i for i in IDLE])
    made = cut_exactly(Family(network, rows(), smaller=lambda k: OwnVAE(k, reader=ConditionFirst))).plan
    assert Slice("reader.read.weight", 1, 8, (0, 1, 2, 3, 5, 7)) in made.slices


def test_flattened_maps_lose_all_positions_of_a_channel() -> None:
    class Flattening(nn.Module):
        def __init__(self, channels: int = 3) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 2 * channels, 2, stride=2)
            self.read = nn.Linear(channels * 4, 16)

        def encode(self, x: Tensor) -> Any:
            return self.head(x).chunk(2, 1)

        def decode(self, z: Tensor) -> Tensor:
            return self.read(z.flatten(1)).view(-1, 1, 4, 4)

        def forward(self, x: Tensor) -> Any:
            mean, logvar = self.encode(x)
            return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))

    network = Flattening()
    randomise(network, 2)
    idle_rows(network.head, [1], [4], live=range(3, 6))
    idle_columns(network.read.weight, 1, range(4, 8))
    made = cut_exactly(Family(network.eval(), rows(1, 4, 4, count=200), idle=(1,), smaller=Flattening)).plan
    assert Slice("read.weight", 1, 12, (0, 1, 2, 3, 8, 9, 10, 11)) in made.slices


# ---- weights that are computed


def old_weight_norm(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)  # torch's own words on the old style
        return torch.nn.utils.weight_norm(layer)


def parametrised_pair() -> list[tuple[str, Any]]:
    return [
        ("old weight norm", old_weight_norm),
        ("old spectral norm", torch.nn.utils.spectral_norm),
        ("weight norm", parametrizations.weight_norm),
        ("spectral norm", parametrizations.spectral_norm),
    ]


@pytest.mark.parametrize("norm", [n for _, n in parametrised_pair()], ids=[name for name, _ in parametrised_pair()])
@pytest.mark.parametrize("place", ["fc_mu", "reader.read", "body"])
def test_computed_weights_are_made_plain_in_the_smaller_model_only(norm: Any, place: str) -> None:
    network = plant(OwnVAE())
    owner, _, name = place.rpartition(".")
    layer = network.get_submodule(place)
    tiny = layer.weight.detach().abs().amax(0 if place == "reader.read" else 1).min()
    setattr(network.get_submodule(owner), name, norm(layer))
    network.double().eval()
    with torch.no_grad():
        network(rows()[:2].double())
    assert tiny < 0.01 or place == "body"
    result = cut_exactly(Family(network, rows()))
    smaller = result.smaller.network.get_submodule(place)
    assert isinstance(smaller.weight, nn.Parameter)
    assert not parametrize.is_parametrized(smaller)
    assert place in result.plan.made_plain


# ---- what encode and decode return, and what they are called


class Named(nn.Module):
    """An `OwnVAE` inside, whose habits a test puts on."""

    def __init__(self, latent_dim: int = 5) -> None:
        super().__init__()
        self.inner = OwnVAE(latent_dim)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def named(kind: type[Named], **truth: Any) -> Family:
    network = kind()
    plant(network.inner)
    usual: dict[str, Any] = {
        "posterior": lambda n, x: n.inner.encode(x),
        "decoded": lambda n, z: n.inner.decode(z),
        "smaller": kind,
    }
    return Family(network.eval(), rows(), **(usual | truth))


def test_private_names_are_found() -> None:
    class Private(Named):
        def _encode(self, x: Tensor) -> Any:
            return list(self.inner.encode(x))

        def _decode(self, z: Tensor) -> Any:
            return {"recon": self.inner.decode(z)}

    cut_exactly(named(Private))


def test_encoder_and_decoder_modules_are_found() -> None:
    class Encoder(nn.Module):
        def __init__(self, inner: OwnVAE) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return self.inner.encode(x)

    class Modules(Named):
        def __init__(self, latent_dim: int = 5) -> None:
            super().__init__(latent_dim)
            self.encoder, self.decoder = Encoder(self.inner), self.inner.reader

    cut_exactly(named(Modules))


def test_shared_modules_are_cut_once() -> None:
    class Shared(Named):
        def __init__(self, latent_dim: int = 5) -> None:
            super().__init__(latent_dim)
            self.heads = nn.ModuleList([self.inner.fc_mu, self.inner.fc_var])
            self.readers = nn.ModuleList([self.inner.reader])

        def encode(self, x: Tensor) -> Any:
            h = self.inner.hidden(x)
            return self.heads[0](h), self.heads[1](h)

        def decode(self, z: Tensor) -> Tensor:
            return self.readers[0](z)

    small = cut_exactly(named(Shared)).smaller.network
    assert small.heads[0].weight is small.inner.fc_mu.weight
    assert small.readers[0].read.weight is small.inner.reader.read.weight


# ---- real libraries


@pytest.fixture(scope="module")
def pythae() -> Any:
    return quietly(lambda: pytest.importorskip("pythae.models"))


@pytest.fixture(scope="module")
def diffusers() -> Any:
    def load() -> Any:
        module = pytest.importorskip("diffusers")
        return module.AutoencoderKL and module

    return quietly(load)


@pytest.fixture(scope="module")
def monai() -> Any:
    return quietly(lambda: pytest.importorskip("monai.networks.nets"))


def test_a_pythae_folder_is_opened_and_cut(pythae: Any, tmp_path: Path) -> None:
    model = quietly(lambda: pythae.VAE(pythae.VAEConfig(input_dim=(1, 6, 6), latent_dim=5)))
    randomise(model, 0)
    idle_rows(model.encoder.embedding, IDLE, ())
    idle_rows(model.encoder.log_var, (), IDLE, live=range(5))
    idle_columns(model.decoder.layers[0][0].weight, 1, IDLE)
    quietly(lambda: model.save(str(tmp_path / "pythae")))
    x = rows(1, 6, 6, count=200)
    opened = open_model(Source(str(tmp_path / "pythae")), Family(model, x).data)

    def posterior(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        out = network.encoder(x)
        return out.embedding, out.log_covariance

    def smaller(k: int) -> nn.Module:
        return pythae.VAE(pythae.VAEConfig(input_dim=(1, 6, 6), latent_dim=k))

    made = Family(
        opened.network,
        x,
        posterior=posterior,
        decoded=lambda network, z: network.decoder(z).reconstruction,
        smaller=smaller,
    )
    assert opened.likelihood.kind == "gaussian"
    result = cut_exactly(made)
    assert result.smaller.latent_size == 3


@pytest.mark.slow
def test_a_diffusers_folder_is_opened_and_cut(diffusers: Any, tmp_path: Path) -> None:
    def build(channels: int = 4) -> nn.Module:
        return diffusers.AutoencoderKL(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=8,
        )

    model, idle = build(), (1, 2)
    randomise(model, 4)
    idle_rows(model.quant_conv, idle, [4 + i for i in idle], live=range(4, 8))
    idle_columns(model.post_quant_conv.weight, 1, idle)
    model.save_pretrained(tmp_path / "kl", safe_serialization=True)
    x = rows(1, 8, 8, count=160)
    opened = open_model(Source(str(tmp_path / "kl")), Family(model, x).data)

    def posterior(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = network.encode(x).latent_dist
        return found.mean, found.logvar

    result = cut_exactly(
        Family(
            opened.network,
            x,
            idle=idle,
            posterior=posterior,
            decoded=lambda network, z: network.decode(z).sample,
        )
    )
    assert result.smaller.latent_shape == (2, 4, 4)


def test_a_monai_autoencoder_is_opened_by_its_import_path_and_cut(monai: Any) -> None:
    arguments = {
        "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 4], "num_res_blocks": [1, 1],
        "attention_levels": [False, False], "latent_channels": 3, "norm_num_groups": 2,
        "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
    }  # fmt: skip
    x = rows(1, 8, 8, count=160)
    torch.manual_seed(0)
    source = Source("monai.networks.nets:AutoencoderKL", arguments=arguments)
    model = open_model(source, Family(nn.Identity(), x).data).network
    randomise(model, 6)
    idle_rows(model.quant_conv_mu.conv, (1,), ())
    idle_rows(model.quant_conv_log_sigma.conv, (), (1,), live=range(3))
    idle_columns(model.post_quant_conv.conv.weight, 1, (1,))

    def posterior(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, sigma = network.encode(x)
        return mean, 2 * sigma.log()

    result = cut_exactly(Family(model, x, idle=(1,), posterior=posterior))
    assert result.vae.reading.kind == "std"
    assert result.smaller.latent_shape == (2, 4, 4)


def test_an_einops_model_is_cut() -> None:
    einops = pytest.importorskip("einops")

    class Rearranging(Reader):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(einops.rearrange(z, "b d -> b d 1").squeeze(-1))

    def parted(network: OwnVAE, h: Tensor) -> Any:
        return tuple(einops.rearrange(network.head(h), "b (two d) -> two b d", two=2))

    cut_exactly(family(heads=parted, reader=Rearranging))
