"""Models that decode another row than before, or that a new latent cannot reach, are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from planted import PlainVAE, rows
from vaeprune.errors import TraceError
from vaeprune.surgery.same_function import refuse_deaf, refuse_other_latents, refuse_other_rows


class Strict(PlainVAE):
    """Takes exactly two conditions, each of which counts; the decoder reads z and both."""

    def __init__(self, latents: int) -> None:
        super().__init__(nn.Linear(latents + 2, 5), latents)

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        one, two = condition
        return self.decoder(torch.cat([z, one, 10 * two], 1))


def wider(vae: PlainVAE, added: int = 1) -> PlainVAE:
    """The same function of the old latents: new rows are copies of the first, new columns 0."""
    network = copy.deepcopy(vae)
    old = vae.latent_size
    with torch.no_grad():
        for head in (network.mean, network.logvar):
            head.weight = nn.Parameter(torch.cat([head.weight, head.weight[:1].expand(added, -1)]))
            head.bias = nn.Parameter(torch.cat([head.bias, head.bias[:1].expand(added)]))
        reader = network.decoder if isinstance(network.decoder, nn.Linear) else network.decoder[0]
        columns = reader.weight
        new = columns.new_zeros(len(columns), added)
        reader.weight = nn.Parameter(torch.cat([columns[:, :old], new, columns[:, old:]], 1))
    return network


def conditions(count: int) -> tuple[Tensor, ...]:
    return rows(count, (5,)), torch.rand(count, 1), torch.rand(count, 1)


def test_a_wider_model_with_every_condition_in_its_place_is_taken() -> None:
    vae = Strict(4)
    refuse_other_rows(vae, wider(vae), conditions(3))


def test_a_wider_model_without_conditions_is_taken() -> None:
    class Alone(PlainVAE):
        def decode(self, z: Tensor) -> Tensor:
            return self.decode_parameters(z)

    vae = Alone()
    refuse_other_rows(vae, wider(vae), (rows(3, (5,)),))


def test_what_is_decoded_otherwise_is_refused() -> None:
    vae = PlainVAE()
    other = wider(vae)
    with torch.no_grad():
        other.decoder[2].bias += 1
    with pytest.raises(TraceError, match="decoded row of the wider model differs from the original's"):
        refuse_other_rows(vae, other, (rows(3, (5,)),))


def test_a_new_latent_in_the_place_of_an_old_one_is_refused() -> None:
    vae = PlainVAE()
    other = wider(vae)
    with torch.no_grad():
        other.mean.weight[[0, 4]] = torch.stack([2 * other.mean.weight[1], other.mean.weight[0]])
    with pytest.raises(TraceError, match="mean of the wider model differs from the original's"):
        refuse_other_latents(vae, other, (rows(3, (5,)),))


def test_a_latent_that_nothing_reads_is_refused_by_its_number() -> None:
    vae = Strict(4)
    hearing = wider(vae, added=2)
    with torch.no_grad():
        hearing.decoder.weight[:, 4] = 1.0
    refuse_deaf(hearing, conditions(3), [4])
    with pytest.raises(TraceError) as error:
        refuse_deaf(hearing, conditions(3), [4, 5])
    assert str(error.value) == "decoder: new latent 5 would not be read by anything"
