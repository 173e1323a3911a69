import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planted import GAUSSIAN, MapVAE, PlainVAE, dense, rows
from vaeprune import ranks
from vaeprune.adapters import measuring
from vaeprune.analysis.ablation import Reaction, reactions, some_of
from vaeprune.analysis.latents import quantile
from vaeprune.data import MemoryRows
from vaeprune.errors import DataError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE


def react(vae: VAE, x: Tensor, constants: Tensor, sets: list[list[int]], seed: int = 0) -> list[Reaction]:
    with measuring(vae):
        return reactions(vae, MemoryRows("rows", x), constants, sets, seed)


def naive_costs(vae: VAE, x: Tensor, constants: Tensor, latents: list[int]) -> Tensor:
    """Change of −log p(x | z) of each row when `latents` of z = mean are set to their constants."""
    with torch.no_grad():
        z = vae.encode(x).mean
        fixed = z.clone()
        for latent in latents:
            fixed[:, latent] = constants[latent]
        after, before = (vae.likelihood.nats(x, vae.decode_parameters(each)) for each in (fixed, z))
    return after - before


def assert_costs_are_naive(vae: VAE, x: Tensor, sets: list[list[int]]) -> None:
    constants = torch.linspace(-0.5, 0.5, vae.latent_size, dtype=torch.float64)
    for latents, reaction in zip(sets, react(vae, x, constants, sets), strict=True):
        costs = naive_costs(vae, x, constants, latents).numpy()
        reach = quantile(len(x)) * costs.std(ddof=1) / math.sqrt(len(x))
        assert reaction.cost == pytest.approx(costs.mean(), rel=1e-9)
        assert reaction.cost_ci95 == pytest.approx((costs.mean() - reach, costs.mean() + reach), rel=1e-6)


@pytest.mark.parametrize("likelihood", [Likelihood(), Likelihood("bernoulli", "mean"), GAUSSIAN], ids=str)
def test_ablation_costs_are_those_of_a_loop_over_rows_and_latents(likelihood: Likelihood) -> None:
    """20 latents and 600 rows: several batches, the last one smaller, and several chunks of latents."""
    vae = dense(idle=[3], latents=20, likelihood=Likelihood()).double()
    if likelihood.output == "mean":
        vae.output = nn.Sequential(vae.output, nn.Sigmoid())
    vae.likelihood = likelihood
    assert_costs_are_naive(vae, rows(600).double(), [[i] for i in range(20)])


def test_several_latents_are_fixed_together_where_a_set_names_several() -> None:
    vae = dense(idle=[]).double()
    assert_costs_are_naive(vae, rows(300).double(), [[0, 1], [2], [0, 2, 3, 5], list(range(6))])


def test_a_latent_map_is_fixed_at_every_position() -> None:
    vae = MapVAE().double()
    assert_costs_are_naive(vae, rows(300, (2, 4, 4)).double(), [[0], [1], [0, 2]])


def test_fixing_a_latent_the_decoder_does_not_read_costs_exactly_nothing() -> None:
    vae = dense(idle=[1])
    (reaction,) = react(vae, rows(300), torch.full((6,), 0.03), [[1]])
    assert reaction == Reaction(0.0, (0.0, 0.0), 0.0, (0.0, 0.0))


def test_noise_reaction_of_a_linear_decoder_is_its_column() -> None:
    """A z that is N(0, 1) instead of c moves output o by W[o, i](n − c): RMS |W[:, i]|·√((1 + c²)/outputs)."""
    decoder = nn.Linear(4, 5)
    vae = PlainVAE(decoder).double()
    x = rows(4000, (5,)).double()
    constants = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        output = vae.decode(vae.encode(x).mean)
        span = (output.max() - output.min()).item()
        expected = (decoder.weight.square().mean(0) * (1 + constants**2)).sqrt() / span
    found = [reaction.noise for reaction in react(vae, x, constants, [[i] for i in range(4)])]
    np.testing.assert_allclose(found, expected.numpy(), rtol=0.05)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 30.0])
def test_a_noise_reaction_is_a_share_of_the_outputs_range_however_narrow_that_is(gain: float) -> None:
    x, constants = rows(300, (5,)).double(), torch.zeros(4, dtype=torch.float64)
    found = []
    for factor in (1.0, gain):
        vae = PlainVAE(nn.Linear(4, 5)).double()
        with torch.no_grad():
            vae.decoder.weight *= factor
            vae.decoder.bias *= factor
        found.append(react(vae, x, constants, [[1]])[0])
    plain, scaled = found
    assert scaled.noise == pytest.approx(plain.noise, rel=1e-9)
    assert scaled.noise_ci95 == pytest.approx(plain.noise_ci95, rel=1e-9)


def test_a_decoder_of_one_value_reacts_to_nothing() -> None:
    decoder = nn.Linear(4, 5)
    vae = PlainVAE(decoder)
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.fill_(0.5)
    (reaction,) = react(vae, rows(40, (5,)), torch.zeros(4), [[0, 1, 2, 3]])
    assert reaction == Reaction(0.0, (0.0, 0.0), 0.0, (0.0, 0.0))


def test_two_rows_are_enough_for_an_interval() -> None:
    assert_costs_are_naive(dense(idle=[]).double(), rows(2).double(), [[0], [1, 2]])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_decoder_that_overflows_is_refused(broken: float) -> None:
    vae = PlainVAE(nn.Linear(4, 5))
    with torch.no_grad():
        vae.decoder.bias[2] = broken
    with pytest.raises(DataError) as error:
        react(vae, rows(40, (5,)), torch.zeros(4), [[0]])
    assert error.value.message == "decoder: its output, or the nats of a row, are NaN or infinite"


def test_several_ranks_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks in turn: each leaves what it saw, and the last merges it. It has no batch of its own."""
    vae, x = dense((1, 4)).double(), rows(450).double()  # two batches
    sets = [[0], [1, 4], [5]]
    expected = react(vae, x, torch.zeros(6, dtype=torch.float64), sets)
    left: list[object] = []
    monkeypatch.setattr(ranks, "world", lambda: 3)
    monkeypatch.setattr(ranks, "gathered", lambda mine: (left.append(mine), left.copy())[1])
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found = react(vae, x, torch.zeros(6, dtype=torch.float64), sets)
    for a, b in zip(found, expected, strict=True):
        for name in ("cost", "cost_ci95", "noise", "noise_ci95"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9)


def test_the_interval_of_a_noise_reaction_is_about_it_and_narrows_with_rows() -> None:
    decoder = nn.Linear(4, 5)
    vae = PlainVAE(decoder).double()
    constants = torch.zeros(4, dtype=torch.float64)
    widths = []
    for count in (40, 4000):
        x = rows(count, (5,)).double()
        with torch.no_grad():
            output = vae.decode(vae.encode(x).mean)
            expected = decoder.weight[:, 1].square().mean().sqrt().item() / (output.max() - output.min()).item()
        (reaction,) = react(vae, x, constants, [[1]])
        low, high = reaction.noise_ci95
        assert low < reaction.noise < high
        assert abs(reaction.noise - expected) < high - low
        widths.append((high - low) / reaction.noise)
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.6)


def test_some_of_the_rows_are_drawn_from_all_of_them_and_the_same_for_the_same_seed() -> None:
    whole = MemoryRows("rows", torch.arange(1000, dtype=torch.uint8)[:, None].expand(-1, 3), torch.arange(1000))
    (x, index), (again, _), (_, other) = (next(some_of(whole, 50, seed).batches(99)) for seed in (3, 3, 4))
    assert torch.equal(x, again)
    assert not torch.equal(index, other)
    assert index.unique().tolist() == index.tolist()
    assert len(index) == 50
    assert index.max() > 900
    assert index.min() < 100
    torch.testing.assert_close(x[:, 0], (index % 256) / 255)
    assert some_of(whole, 1000, 0) is whole


def test_noise_reaction_is_measured_on_the_mean_of_the_likelihood_not_on_logits() -> None:
    decoder = nn.Linear(4, 5)
    vae = PlainVAE(decoder)
    vae.likelihood = Likelihood()
    with torch.no_grad():
        decoder.bias.fill_(0.0)
        decoder.weight *= 100  # logits swing by hundreds, pixels by at most 1
    (reaction,) = react(vae, rows(500, (5,)), torch.zeros(4), [[0]])
    assert 0.1 < reaction.noise <= 1.0


class _ListensToTheTail(nn.Module):
    """Reads latent 0 only above 2, where the encoder never puts it."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Linear(3, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.rest(z[:, 1:]) + torch.relu(z[:, :1] - 2)


def test_a_decoder_that_listens_only_to_prior_samples_shows_in_the_noise_and_not_in_the_cost() -> None:
    vae = PlainVAE(_ListensToTheTail())
    with torch.no_grad():
        vae.mean.weight[0] = vae.mean.bias[0] = 0
    (reaction,) = react(vae, rows(2000, (5,)), torch.zeros(4), [[0]])
    assert reaction.cost == 0.0
    assert reaction.noise > 0.01


def test_reactions_are_the_same_for_the_same_seed_and_costs_for_any() -> None:
    vae = dense(idle=[1])
    constants = torch.zeros(6)
    first, again, other = (react(vae, rows(300), constants, [[0]], seed)[0] for seed in (5, 5, 6))
    assert first == again
    assert other.cost == first.cost
    assert other.noise != first.noise


def test_no_sets_make_no_reactions() -> None:
    assert react(dense(), rows(30), torch.zeros(6), []) == []


def test_each_batch_is_reported_once() -> None:
    vae, seen = dense(), []
    with measuring(vae):
        reactions(vae, MemoryRows("rows", rows(600)), torch.zeros(6), [[0], [1]], on_batch=seen.append)
    assert sum(seen) == 600
