"""How a foreign module is found out about: shapes, decoder, likelihood, sampling, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from foreign_models import WIDTH, OwnVAE, conditional, family, maps, plant, rows
from planted import assert_untouched, snapshot
from vaeprune.adapters import adapt, as_vae
from vaeprune.adapters.noise import KnownNoise, sampling
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE


def test_an_adapted_module_has_the_protocol_and_says_what_was_assumed() -> None:
    made = family()
    before = snapshot(made.network)
    vae = adapt(made.network, made.data)
    assert isinstance(vae, VAE)
    assert vae.network is made.network
    assert (vae.latent_size, vae.latent_shape, vae.input_shape) == (5, (5,), (8,))
    words = " | ".join(vae.assumptions)
    assert "input: rows of shape (8,) are given as (8,)" in words
    assert "posterior: OwnVAE.encode gives the mean at result[0], the logvar at result[1]" in words
    assert "its own forward, with its noise known, agrees" in words
    assert "likelihood: " in words
    assert_untouched(made.network, before)


def test_what_is_a_vae_already_is_taken_as_it_is() -> None:
    made = family()
    vae = adapt(made.network, made.data)
    assert as_vae(vae) is vae


def test_a_foreign_module_without_data_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(ModelError, match=r"got OwnVAE, expected an nn\.Module with the VAE protocol \(it lacks "):
        as_vae(family().network)


# ---- shapes


class Flat(OwnVAE):
    def hidden(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError("flat rows only")
        return super().hidden(x)


class WithChannel(nn.Module):
    """Takes (B, 1, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.read = nn.Conv2d(1, 4, 4), nn.ConvTranspose2d(2, 1, 4)

    def encode(self, x: Tensor) -> Any:
        batch, channel, *_ = x.shape
        assert channel == 1
        return self.head(x).view(batch, -1).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.read(z[:, :, None, None])

    def forward(self, x: Tensor) -> Any:
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))


def test_rows_are_offered_flattened_where_their_own_shape_does_not_do() -> None:
    vae = adapt(plant(Flat()), rows(2, 4))
    assert vae.input_shape == (8,)
    assert "rows of shape (2, 4) are given as (8,)" in vae.assumptions[0]


def test_rows_are_offered_with_a_channel_axis_last() -> None:
    torch.manual_seed(0)
    vae = adapt(WithChannel(), rows(4, 4))
    assert vae.input_shape == (1, 4, 4)


def test_rows_that_fit_as_they_are_stay() -> None:
    made = maps(quant=False)
    assert adapt(made.network, made.data).input_shape == (2, 8, 8)


def test_a_given_shape_is_the_only_one_tried() -> None:
    assert adapt(plant(OwnVAE()), rows(2, 4), input_shape=(8,)).input_shape == (8,)
    with pytest.raises(ModelError, match=r"encode on \(4, 2\): ValueError: flat rows only at test_discovery\.py:\d+"):
        adapt(plant(Flat()), rows(2, 4), input_shape=(4, 2))


def test_a_shape_the_model_rejects_is_told_in_the_models_own_words() -> None:
    with pytest.raises(ModelError, match=r"no posterior can be read: encode on \(9,\): RuntimeError: .*--input-shape"):
        adapt(family().network, rows(9))


# ---- likelihood


class Squashed(OwnVAE):
    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(super().decode(z))


def test_outputs_and_data_on_the_unit_interval_are_bernoulli_means() -> None:
    made = family(Squashed)
    assert adapt(made.network, made.data).likelihood == Likelihood("bernoulli", "mean")


def test_data_outside_the_unit_interval_are_gaussian() -> None:
    made = family()
    assert adapt(made.network, 2 * made.x - 1).likelihood == Likelihood("gaussian", "mean")


def test_outputs_that_fit_binary_data_only_through_a_sigmoid_are_logits() -> None:
    made = family()
    with torch.no_grad():
        made.network.reader.out.weight *= 0.05
        made.network.reader.out.bias.fill_(-6.0)
    assert adapt(made.network, 0.02 * made.x).likelihood == Likelihood("bernoulli", "logits")


def test_a_given_likelihood_overrules() -> None:
    made = family(Squashed)
    vae = adapt(made.network, made.data, likelihood=Likelihood("gaussian", "mean", 0.5))
    assert vae.likelihood.scale == 0.5
    (told,) = [words for words in vae.assumptions if words.startswith("likelihood")]
    assert told.endswith("; given, or from the model's own config")


# ---- conditions


def test_conditions_go_to_both_sides() -> None:
    made = conditional()
    vae = adapt(made.network, made.data)
    assert vae.reading.conditions == (1, 1)
    x, c = made.x[:4], made.conditions[0][:4]
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x, c).mean, made.network.encode(x, c)[0])


def test_a_conditional_model_without_conditions_is_refused_in_its_own_words() -> None:
    with pytest.raises(ModelError, match="missing 1 required positional argument: 'c'"):
        adapt(conditional().network, rows())


# ---- sampling


def test_noise_is_known_however_it_is_drawn() -> None:
    drawn = []
    with KnownNoise() as known:
        drawn.append(torch.randn(3))
        drawn.append(torch.randn_like(drawn[0]))
        drawn.append(torch.empty(3).normal_())
        shifted = torch.normal(torch.full((3,), 2.0), torch.full((3,), 4.0))
    assert len(known.draws) == 4
    for expected, found in zip(drawn, known.draws, strict=False):
        assert torch.equal(expected, found)
    torch.testing.assert_close(known.draws[3] * 4 + 2, shifted)


def test_noise_of_a_distribution_is_known() -> None:
    q = Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    with KnownNoise() as known:
        z = q.rsample()
    torch.testing.assert_close(q.loc + q.scale * known.draws[0], z)


def test_sampling_puts_flags_back_and_keeps_dropout_still() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).eval()
    network[0].train()
    with sampling(network):
        assert network.training
        assert [part.training for part in network] == [True, False, False]
    assert [network.training, *(part.training for part in network)] == [False, True, False, False]


class Elsewhere(OwnVAE):
    """Its forward wants more than x."""

    def forward(self, x: Tensor, step: int, beta: float) -> Any:
        raise AssertionError("not called with what it wants")


def test_a_forward_of_another_signature_tells_nothing_and_is_no_obstacle() -> None:
    made = family(Elsewhere)
    vae = adapt(made.network, made.data)
    assert vae.reading.kind == "logvar"
    assert any("assumed" in words for words in vae.assumptions)


class Doubled(OwnVAE):
    """A temperature no reading knows."""

    def reparameterize(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return mean + 0.3 * torch.exp(0.5 * logvar) * torch.randn_like(mean) + 0.2


def test_sampling_that_no_reading_explains_is_refused_with_what_to_do() -> None:
    made = family(Doubled)
    with pytest.raises(ModelError, match=r"samples z in a way that no reading of encode explains.*--spread"):
        adapt(made.network, made.data)


@pytest.mark.parametrize("wished", ["logvar", "std"])
def test_a_wished_spread_is_taken_without_asking_the_sampling(wished: Any) -> None:
    made = family(Doubled)
    vae = adapt(made.network, made.data, spread=wished)
    assert vae.reading.kind == wished
    assert "the kind of spread was given" in vae.assumptions[1]


class OneRow(OwnVAE):
    """Equal sizes everywhere: x, mean and logvar are all 8 wide, as is a hidden state it returns."""

    def __init__(self, latent_dim: int = WIDTH) -> None:
        super().__init__(latent_dim)


def test_a_latent_as_wide_as_the_row_is_no_reconstruction() -> None:
    made = dataclasses.replace(family(OneRow), smaller=None)
    vae = adapt(made.network, made.data)
    with torch.no_grad():
        mean, logvar = made.network.encode(made.x)
        found = vae.encode(made.x)
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.logvar, logvar)


def test_an_encoder_that_never_gives_the_same_is_refused_with_the_likely_cause() -> None:
    class Dropping(OwnVAE):
        def hidden(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().hidden(x), 0.5)

    with pytest.raises(ModelError, match=r"nothing that is the same when called again in eval mode, as F\.dropout"):
        adapt(plant(Dropping()), rows())
