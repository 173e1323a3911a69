"""What is drawn: the same rows and noise on both sides, and latents that alone move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import planted
from vaeprune.adapters import measuring
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource
from vaeprune.errors import ModelError, UsageError
from vaeprune.posterior import Posterior
from vaeprune.report.pictures import (
    Compared,
    Held,
    Sides,
    amplification,
    conditions,
    noise,
    prior_samples,
    reconstructions,
    rows_to_draw,
    start_of,
    traversals,
)


def test_both_models_get_the_same_noise_in_the_latents_that_stay(cut_model):
    models = Compared.of(cut_model.vae, cut_model.small, cut_model.plan)
    drawn = prior_samples(Sides(models), 5, seed=7)
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        assert torch.equal(drawn.before, cut_model.vae.decode(z))
        assert torch.equal(drawn.after, cut_model.small.decode(z[:, [0, 2, 3, 5]]))
    assert drawn.difference.max() < 1e-5
    assert not torch.equal(drawn.before, prior_samples(Sides(models), 5, seed=8).before)


def test_held_latents_stand_at_zero_or_at_what_is_said():
    z = torch.tensor([[1.0, 2.0, 3.0]])
    assert Held((0, 2)).hold(z).tolist() == [[0.0, 2.0, 0.0]]
    assert Held((0, 2), (5.0, -1.0)).hold(z).tolist() == [[5.0, 2.0, -1.0]]
    assert z.tolist() == [[1.0, 2.0, 3.0]]


def test_holding_a_latent_that_is_listened_to_shows_and_holding_an_idle_one_does_not(cut_model):
    models = Compared(cut_model.vae)
    assert prior_samples(Sides(models, Held((1, 4))), 4, 0).difference.max() == 0
    assert prior_samples(Sides(models, Held((0,))), 4, 0).difference.max() > 0.01
    assert prior_samples(Sides(models), 4, 0).after is None


def test_rows_are_reconstructed_from_their_means_by_both(cut_model):
    batch = rows_to_draw(cut_model.vae, cut_model.sets, 3, seed=1)
    drawn = reconstructions(Sides(Compared(cut_model.vae, cut_model.small)), batch)
    with torch.no_grad():
        assert torch.equal(drawn.original, batch[0])
        assert torch.equal(drawn.before, cut_model.vae.decode(cut_model.vae.encode(batch[0]).mean))
        assert torch.equal(drawn.after, cut_model.small.decode(cut_model.small.encode(batch[0]).mean))


def test_rows_come_from_the_verify_rows_by_seed(cut_model):
    verify = {tuple(row.flatten().tolist()) for row in cut_model.sets.verify.tensors[0]}
    rows = rows_to_draw(cut_model.vae, cut_model.sets, 8, seed=1)[0]
    assert all(tuple(row.flatten().tolist()) in verify for row in rows)
    assert torch.equal(rows, rows_to_draw(cut_model.vae, cut_model.sets, 8, seed=1)[0])
    assert not torch.equal(rows, rows_to_draw(cut_model.vae, cut_model.sets, 8, seed=2)[0])


def test_one_latent_alone_moves_and_an_idle_one_moves_nothing(cut_model):
    batch = rows_to_draw(cut_model.vae, cut_model.sets, 1, seed=0)
    start, condition = start_of(cut_model.vae, batch)
    found = traversals(Sides(Compared(cut_model.vae)), start, [0, 1, 4], 5, condition)
    assert [row.latent for row in found] == [0, 1, 4]
    assert found[0].moves > 0.01
    assert max(found[1].moves, found[2].moves) < 1e-6
    assert torch.allclose(found[1].before[0], found[1].before[4], atol=1e-6)
    z = start.repeat(5, 1)
    z[:, 0] = torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0])
    with torch.no_grad():
        assert torch.equal(found[0].before, cut_model.vae.decode(z))
    by_hand = (found[0].before.double() - found[0].before.double().mean(0)).square().mean().sqrt()
    assert found[0].moves == pytest.approx(float(by_hand))


class Maps(nn.Module):
    """Latents that are maps (2, 3, 3), decoded by doubling the first."""

    latent_size, latent_shape, input_shape = 2, (2, 3, 3), (1, 3, 3)
    likelihood, network = planted.GAUSSIAN, nn.Identity()

    def encode(self, x):
        return Posterior(torch.cat([x, 1 - x], 1), torch.zeros(len(x), 2, 3, 3))

    def decode(self, z):
        return 2 * z[:, :1]


def test_a_latent_that_is_a_map_is_moved_at_all_its_places():
    start = torch.arange(18.0).reshape(1, 2, 3, 3)
    first, second = traversals(Sides(Compared(Maps())), start, [0, 1], 3)
    assert torch.equal(first.before[:, 0], 2 * torch.stack([start[0, 0] - 3, start[0, 0], start[0, 0] + 3]))
    assert second.moves == 0


def test_conditions_begin_anew_where_there_are_too_few():
    batch = (torch.zeros(2, 1), torch.tensor([7, 8]))
    assert [part.tolist() for part in conditions(batch, 5)] == [[7, 8, 7, 8, 7]]


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.9, 1), (0.5, 2), (0.3, 2), (0.0999, 10), (0.0018, 500), (0.0, 1), (2.0, 1)]
)
def test_differences_are_enlarged_by_a_round_factor_that_stays_within_the_range(largest, factor):
    assert amplification(torch.tensor([0.0, largest]), span=1.0) == factor


def test_latents_that_do_not_fit_the_second_model_are_refused(cut_model):
    with pytest.raises(ModelError, match="have 6 and 4 latents, but 3 are said to be kept; name the model the plan"):
        Compared(cut_model.vae, cut_model.small, (0, 2, 3))
    with pytest.raises(ModelError, match="which latents it kept is not known, so the two cannot be given the same"):
        prior_samples(Sides(Compared.of(cut_model.vae, cut_model.small, None)), 3, 0)
    same = Compared.of(cut_model.vae, planted.dense((1,), 6, input_shape=(1, 9, 7), seed=1), None)
    assert same.kept == (0, 1, 2, 3, 4, 5)


def test_counts_and_numbers_that_make_no_sense_are_refused(cut_model):
    start = torch.zeros(1, 6)
    with pytest.raises(UsageError, match="count: got 0, expected at least 1"):
        noise(cut_model.vae, 0, 0)
    with pytest.raises(UsageError, match="steps: got 1, expected at least 2"):
        traversals(Sides(Compared(cut_model.vae)), start, [0], 1)
    with pytest.raises(UsageError, match="latents: got 0, 6, expected numbers from 0 to 5"):
        traversals(Sides(Compared(cut_model.vae)), start, [0, 6], 3)


def test_models_are_left_in_training_mode_if_they_were(cut_model):
    vae = planted.dense((1,), 3, input_shape=(1, 9, 7)).train()
    prior_samples(Sides(Compared(vae)), 2, 0)
    assert vae.training
    with measuring(vae):
        assert not vae.training


class Conditional(Maps):
    """Adds its condition, a number for each row, to what it decodes."""

    def encode(self, x, condition):
        return super().encode(x + condition.view(-1, 1, 1, 1))

    def decode(self, z, condition):
        return super().decode(z) + condition.view(-1, 1, 1, 1)


def test_conditions_go_into_both_halves_of_a_conditional_model():
    x, c = planted.rows(200, (1, 3, 3)), torch.arange(200.0)
    sets = part("data", MemorySource("data", x, c), None, 0, None)
    batch = rows_to_draw(Conditional(), sets, 4, 0)
    sides = Sides(Compared(Conditional()))
    by_hand = 2 * batch[0] + 3 * batch[1].view(-1, 1, 1, 1)
    assert torch.allclose(reconstructions(sides, batch).before, by_hand)
    start, condition = start_of(Conditional(), batch)
    (found,) = traversals(sides, start, [1], 3, condition)
    assert torch.allclose(found.before, (2 * batch[0][:1] + 3 * batch[1][0]).expand(3, 1, 3, 3))
    drawn = prior_samples(sides, 6, 0, conditions(batch, 6))
    z = noise(Conditional(), 6, 0)
    assert torch.equal(drawn.before, 2 * z[:, :1] + batch[1][[0, 1, 2, 3, 0, 1]].view(-1, 1, 1, 1))
