"""Sizes a model notes about itself: set where that helps, never where it harms, and named where they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreign_models import IDLE, LATENTS, OwnVAE, Reader, analysed, cut_exactly, family, split
from planted import assert_untouched as untouched
from planted import snapshot
from vaeprune.errors import ModelError, TraceError
from vaeprune.surgery.plan import Slice
from vaeprune.surgery.planning import plan
from vaeprune.surgery.sizes import first_that_works, layer_sizes, own_sizes, refuse_shape, source_lines_with


def test_layers_tell_the_sizes_of_their_cut_weights() -> None:
    layers = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(5, 4, 1), nn.ConvTranspose2d(5, 4, 1), nn.BatchNorm1d(5))
    slices = (
        Slice("0.weight", 0, 5, (0, 1)),
        Slice("0.bias", 0, 5, (0, 1)),
        Slice("1.weight", 1, 5, (0, 1)),
        Slice("2.weight", 0, 5, (0, 1)),
        Slice("3.running_mean", 0, 5, (0, 1)),
    )
    assert layer_sizes(layers, slices) == {
        "0.out_features": 2,
        "1.in_channels": 2,
        "2.in_channels": 2,
        "3.num_features": 2,
    }


@pytest.mark.parametrize("bias", [True, False])
def test_a_grouped_convolution_tells_its_groups_and_what_they_read(bias: bool) -> None:
    network = nn.Sequential(nn.Conv2d(6, 12, 3, groups=3, bias=bias))
    slices = [Slice("0.weight", 0, 12, (0, 1, 2, 3, 8, 9, 10, 11))]
    if bias:
        slices.append(Slice("0.bias", 0, 12, (0, 1, 2, 3, 8, 9, 10, 11)))
    assert layer_sizes(network, tuple(slices)) == {"0.in_channels": 4, "0.out_channels": 8, "0.groups": 2}


def test_names_of_a_latent_size_are_tried_before_other_integers_of_the_same_value() -> None:
    network = OwnVAE(LATENTS)
    network.n_epochs = LATENTS
    found = list(own_sizes(network, LATENTS, 3, {}))
    assert found == [{"latent_dim": 3}, {"latent_dim": 3, "n_epochs": 3}, {}]


def test_the_first_sizes_that_work_are_taken_and_none_twice() -> None:
    tried = []

    def check(sizes: dict[str, int]) -> None:
        tried.append(sizes)
        if sizes != {}:
            raise ValueError("too small")

    assert first_that_works(iter([{"a": 1}, {"a": 1}, {}]), check) == {}
    assert tried == [{"a": 1}, {}]


def test_the_first_failure_is_quoted_with_what_to_do() -> None:
    def check(sizes: dict[str, int]) -> None:
        raise ValueError(f"wrong {len(sizes)}")

    with pytest.raises(TraceError, match=r"the model no longer runs: ValueError: wrong 1 .*take the size"):
        first_that_works(iter([{"a": 1}, {}]), check)


def test_lines_with_a_size_are_found_and_longer_numbers_are_not() -> None:
    class Literal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 77) + 770 + 0.77

    found = source_lines_with(Literal(), 77)
    assert found.startswith("test_sizes.py:")
    assert found.endswith("return x.view(-1, 77) + 770 + 0.77")
    assert source_lines_with(Literal(), 7) == ""


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    refuse_shape((4, 3), (4, 3), "mean", nn.Identity(), 5)
    with pytest.raises(ModelError, match=r"mean has shape \(4, 2\), expected \(4, 3\); a size is written"):
        refuse_shape((4, 2), (4, 3), "mean", nn.Identity(), 5)


def literal_split(network: OwnVAE, h: Tensor) -> Any:
    return network.head(h).split(5, 1)


def literal_slice(network: OwnVAE, h: Tensor) -> Any:
    both = network.head(h)
    return both[:, :5], both[:, 5:]


@pytest.mark.parametrize("heads", [literal_split, literal_slice])
def test_a_number_written_into_encode_is_refused_and_the_model_still_analysed(heads: object) -> None:
    """The heads are functions here, so the class's own source does not show the line."""
    made = family(heads=heads)
    vae, data, analysis = analysed(made)
    with pytest.raises(TraceError, match="no longer runs"):
        plan(vae, analysis, data)


class LiteralView(Reader):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.view(-1, 5))


def test_a_number_written_into_decode_is_refused_with_its_line() -> None:
    vae, data, analysis = analysed(family(reader=LiteralView))
    before = snapshot(vae.network)
    with pytest.raises(TraceError, match=r"test_sizes\.py:\d+: return super\(\)\.forward\(z\.view\(-1, 5\)\)"):
        plan(vae, analysis, data)
    untouched(vae.network, before)


class LiteralMeans(OwnVAE):
    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        both = torch.cat([self.fc_mu(h), self.fc_var(h)], 1)
        return both[:, :5], both[:, 5:]


def test_a_number_written_into_the_class_is_refused_with_its_line() -> None:
    vae, data, analysis = analysed(family(LiteralMeans))
    with pytest.raises(TraceError, match=r"test_sizes\.py:\d+: return both\[:, :5\], both\[:, 5:\]"):
        plan(vae, analysis, data)


class WithSample(OwnVAE):
    def sample(self, count: int) -> Tensor:
        return self.decode(torch.randn(count, self.latent_dim))


def test_a_size_only_sample_uses_is_set() -> None:
    result = cut_exactly(family(WithSample), torch.float32, 1e-5)
    assert result.plan.attributes["latent_dim"] == 3
    assert result.smaller.network.sample(2).shape == (2, 8)


class SameWidth(OwnVAE):
    """As many steps as latents, and they are not latents."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim, heads=split)
        self.steps = 5

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z) * self.steps


def test_an_integer_that_happens_to_equal_the_latent_size_stays() -> None:
    result = cut_exactly(family(SameWidth))
    assert (result.smaller.network.steps, result.smaller.network.latent_dim) == (5, 3)


class SameWidthNoName(OwnVAE):
    """The size goes by a name nobody would guess."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.k = latent_dim

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return torch.cat([self.fc_mu(h), self.fc_var(h)], 1).split(self.k, 1)


def test_a_size_of_any_name_is_set_where_it_is_needed() -> None:
    result = cut_exactly(family(SameWidthNoName, idle=IDLE))
    assert result.smaller.network.k == 3


class SizeInTuple(OwnVAE):
    """The size is kept in a tuple, which is not an integer to set."""

    def __init__(self, latent_dim: int = LATENTS) -> None:
        super().__init__(latent_dim)
        self.shape = (latent_dim,)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.reshape(-1, *self.shape))


def test_a_size_inside_a_tuple_is_set_or_refused() -> None:
    """`reshape(-1, 5)` of three latents of several rows may run, with rows mixed up: values decide."""
    vae, data, analysis = analysed(family(SizeInTuple))
    with pytest.raises(TraceError, match="no longer runs"):
        plan(vae, analysis, data)
