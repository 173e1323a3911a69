"""Latents added to every family of VAE: the old ones, and what is decoded, stay as they were, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from foreign_models import (
    HEADS,
    READERS,
    Family,
    OwnVAE,
    Reader,
    chunked,
    class_conditional,
    conditional,
    family,
    flipped,
    interleaved,
    maps,
    plant,
    rows,
    separate,
    sequences,
)
from planted import assert_untouched, snapshot
from vaeprune.adapters import AdaptedVAE, adapt, batches_for
from vaeprune.architectures import ConvolutionalVAE, initialise
from vaeprune.errors import TraceError
from vaeprune.surgery.inserting import widening_for
from vaeprune.surgery.widening import Widening, widen

ROUNDING = 1e-12


def grown(made: Family, size: int) -> tuple[AdaptedVAE, Widening, AdaptedVAE]:
    """The family in float64, its widening, and the wider model."""
    network = made.network.double()
    before = snapshot(network)
    vae = adapt(network, made.data, **made.options)
    widening = widening_for(vae, size, next(iter(batches_for(vae, made.data.calibrate, 150))))
    wider = widen(vae, widening)
    assert_untouched(network, before)
    return vae, widening, wider


def grown_exactly(made: Family, size: int) -> tuple[AdaptedVAE, Widening, AdaptedVAE]:
    """Held against the original as its author would use both; its class must take the wider weights, too."""
    vae, widening, wider = grown(made, size)
    networks = [wider.network]
    if made.smaller is not None:
        built = made.smaller(size).double().eval()
        built.load_state_dict(wider.network.state_dict())
        networks.append(built)
    x, *conditions = (
        part[:20].double() if part.is_floating_point() else part[:20] for part in (made.x, *made.conditions)
    )
    with torch.no_grad():
        old = made.posterior(vae.network, x, *conditions)
        for network in networks:
            new = made.posterior(network, x, *conditions)
            for before, after in zip(old, new, strict=True):
                assert after.shape[1] == size
                assert (after[:, : vae.latent_size] - before).abs().max() < ROUNDING
            z = 10 * torch.randn(new[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            expected = made.decoded(vae.network, z[:, : vae.latent_size], *conditions)
            assert (made.decoded(network, z, *conditions) - expected).abs().max() < ROUNDING
    return vae, widening, wider


@pytest.mark.parametrize("heads", HEADS)
def test_rows_are_added_however_the_heads_are_parted(heads: object) -> None:
    grown_exactly(family(heads=heads), 8)


@pytest.mark.parametrize("heads", [h for h in HEADS if h is not flipped])
def test_one_latent_is_told_from_an_alternation_of_rows(heads: object) -> None:
    made = Family(plant(OwnVAE(1, heads), ()), rows(), idle=(), smaller=lambda k: OwnVAE(k, heads))
    _vae, _, wider = grown_exactly(made, 3)
    x = made.data.calibrate.batches(150, torch.float64)
    with torch.no_grad():
        posterior = wider.encode(next(iter(x))[0])
    assert torch.allclose(posterior.mean[:, 1:].var(0, correction=0), torch.ones(2).double())
    assert torch.allclose(posterior.logvar[:, 1:], posterior.logvar[:, :1].expand(-1, 2))


@pytest.mark.parametrize("reader", READERS)
def test_columns_are_added_whatever_reads_z(reader: object) -> None:
    grown_exactly(family(reader=reader), 7)


@pytest.mark.parametrize("made", [maps(True), maps(False), sequences()], ids=["quant", "maps", "sequences"])
def test_maps_get_channels(made: Family) -> None:
    grown_exactly(made, 6)


@pytest.mark.parametrize("made", [conditional(), class_conditional()], ids=["vector", "class"])
def test_columns_of_a_condition_stay_behind_those_of_latents(made: Family) -> None:
    grown_exactly(made, 7)


def test_new_columns_of_a_map_that_is_flattened_are_added_for_every_position() -> None:
    vae = ConvolutionalVAE((1, 20, 20), latent_size=2)
    initialise(vae, "glorot", 0)
    vae.eval()
    x = rows(1, 20, 20, count=40)
    widening = widening_for(vae, 3, (x,))
    wider = widen(vae, widening)
    z = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.allclose(wider.decode(z), vae.decode(z[:, :2]), atol=1e-6)
    assert wider.latent_size == 3


def test_new_means_vary_by_one_in_directions_that_no_old_mean_shows() -> None:
    made = family(heads=separate)
    vae, _, wider = grown(made, 7)
    x = next(iter(batches_for(vae, made.data.calibrate, 150)))[0]
    with torch.no_grad():
        mean = wider.encode(x).mean
    assert torch.allclose(mean[:, 5:].mean(0), torch.zeros(2).double(), atol=1e-9)
    assert torch.allclose(mean[:, 5:].var(0, correction=0), torch.ones(2).double())
    correlated = (mean - mean.mean(0)).T @ (mean - mean.mean(0)) / len(x)
    assert correlated[:5, 5:].abs().max() < 1e-9
    assert abs(correlated[5, 6]) < 1e-9


def test_new_means_vary_by_one_where_the_head_has_more_rows_than_directions_to_read() -> None:
    """The head reads 7 units, that hardly vary; 5 old latents leave 2 directions, and 12 are asked for."""
    made = family(heads=separate)
    with torch.no_grad():
        made.network.body.weight *= 1e-2
    _, _, wider = grown(made, 17)
    x = next(iter(batches_for(wider, made.data.calibrate, 150)))[0]
    with torch.no_grad():
        mean = wider.encode(x).mean
    assert torch.allclose(mean[:, 5:].var(0, correction=0), torch.ones(12).double())


def test_new_spreads_are_those_of_the_most_certain_old_latent() -> None:
    made = family(heads=chunked)
    vae, _, wider = grown(made, 7)
    with torch.no_grad():
        posterior = wider.encode(made.x[:50].double())
    certain = int(vae.encode(made.x.double()).logvar.mean(0).argmin())
    for latent in (5, 6):
        found, expected = posterior.logvar[:, latent], posterior.logvar[:, certain]
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_rows_that_alternate_are_added_in_turn() -> None:
    _, widening, _ = grown(family(heads=interleaved), 7)
    part = next(s for s in widening.slices if s.key == "head.weight")
    assert (part.size, part.kept) == (14, tuple(range(10)))
    _, widening, _ = grown(family(heads=chunked), 7)
    part = next(s for s in widening.slices if s.key == "head.weight")
    assert (part.size, part.kept) == (14, (0, 1, 2, 3, 4, 7, 8, 9, 10, 11))


class Flattened(nn.Module):
    """Latents (2, 2, 2) from a linear head, flattened before they are read."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.body, self.head = nn.Linear(8, 9), nn.Linear(9, 2 * channels * 4)
        self.read = nn.Linear(4 * channels, 8)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(torch.tanh(self.body(x))).view(len(x), 2 * self.channels, 2, 2).chunk(2, 1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.read(z.flatten(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)), mean, logvar


@pytest.mark.parametrize("channels", [1, 2])
def test_a_linear_layer_that_makes_or_reads_maps_gets_all_positions_of_a_channel(channels: int) -> None:
    torch.manual_seed(0)
    made = Family(Flattened(channels).eval(), rows(), idle=(), smaller=Flattened)
    _, widening, _ = grown_exactly(made, 3)
    part = next(s for s in widening.slices if s.key == "read.weight")
    assert (part.size, part.kept) == (12, tuple(range(4 * channels)))


# ---- what cannot be widened


def literal_split(network: OwnVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = network.head(h).split(5, 1)
    return mean, logvar


class LiteralView(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.reshape(-1, 5))


class InnerProduct(OwnVAE):
    """A decoder that has no weights."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([z, z[:, :3]], 1)


def test_a_size_written_into_decode_is_refused_with_its_line() -> None:
    made = family(reader=LiteralView)
    with pytest.raises(TraceError) as caught:
        grown(dataclasses.replace(made, network=made.network), 8)
    assert str(caught.value).startswith("after the widening the model no longer runs: ")
    assert "return super().forward(z.reshape(-1, 5))" in str(caught.value)
    assert str(caught.value).endswith("take the size from the weights, not from a number")


def test_a_size_written_into_encode_is_refused() -> None:
    with pytest.raises(TraceError, match="after the widening the model no longer runs: "):
        grown(family(heads=literal_split), 8)


def test_latents_that_reach_the_output_without_a_weight_are_refused() -> None:
    made = Family(plant(InnerProduct()), rows(), idle=())
    with pytest.raises(TraceError) as caught:
        grown(made, 8)
    assert str(caught.value) == "decoder: latent 0 reaches the output without passing a weight that could be widened"


class Averaged(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z / z.shape[1])


def test_a_decoder_that_divides_by_the_number_of_latents_is_refused() -> None:
    with pytest.raises(TraceError, match="decoded row of the wider model differs from the original's"):
        grown(family(reader=Averaged), 8)


class LogvarOfMean(OwnVAE):
    """The spread is a function of the mean."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.fc_mu(self.hidden(x))
        return mean, -mean.square()


def test_a_row_that_makes_mean_and_spread_is_refused() -> None:
    with pytest.raises(TraceError, match=r"fc_mu.weight: row 0 makes both the mean and the spread of a latent"):
        grown(Family(plant(LogvarOfMean()), rows(), idle=()), 8)
