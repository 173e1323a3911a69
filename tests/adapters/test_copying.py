"""Copies share nothing with their originals; computed weights become plain; tensors are resized under their keys."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from planted import assert_untouched, snapshot
from vaeprune.adapters.copying import aliases, copied, make_plain, replace_tensors
from vaeprune.errors import ModelError


def weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)  # torch's own words on the old style
        return torch.nn.utils.weight_norm(layer)


NORMS = {
    "old weight norm": weight_norm, "old spectral norm": spectral_norm, "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm, "orthogonal": parametrizations.orthogonal,
}  # fmt: skip


def test_a_copy_shares_no_tensor_and_keeps_flags_and_gradients_settings() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    network[0].weight.requires_grad_(False)
    before = snapshot(network)
    twin = copied(network)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert not twin[0].weight.requires_grad
    assert not twin.training
    assert_untouched(network, before)


def test_tied_weights_stay_tied_in_a_copy() -> None:
    network = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    network[1].weight = network[0].weight
    twin = copied(network)
    assert twin[1].weight is twin[0].weight
    assert twin[0].weight is not network[0].weight


def test_a_cached_activation_is_no_obstacle() -> None:
    network = nn.Linear(2, 2)
    network.cache = {"last": [network(torch.ones(1, 2))]}
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network)
    twin = copied(network)
    assert torch.equal(twin.cache["last"][0], network.cache["last"][0].detach())


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    class Uncopyable(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a lock cannot be copied")

    with pytest.raises(ModelError, match="Uncopyable: cannot be copied: a lock cannot be copied"):
        copied(Uncopyable())


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_computed_weight_becomes_plain_with_the_same_value_in_the_copy_only(norm: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(norm(nn.Linear(3, 2)), nn.Linear(2, 2)).eval()
    x = torch.randn(5, 3)
    expected = network(x).detach()
    keys = list(network.state_dict())
    twin = copied(network)
    assert make_plain(twin) == ("0",)
    assert isinstance(twin[0].weight, nn.Parameter)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=1e-6)
    assert sorted(twin.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
    twin.load_state_dict(twin.state_dict())  # no hook of the old norm is left behind


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_two_copies_can_be_made_plain_one_after_the_other(norm: Any) -> None:
    network = nn.Sequential(norm(nn.Linear(3, 2)))
    for _ in range(2):
        make_plain(copied(network))
    assert network(torch.ones(1, 3)).shape == (1, 2)
    assert isinstance(norm(nn.Linear(2, 2)), nn.Module)


def test_a_parametrisation_of_ones_own_becomes_plain() -> None:
    class Symmetric(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return w.triu() + w.triu(1).T

    network = nn.Linear(3, 3)
    parametrize.register_parametrization(network, "weight", Symmetric())
    expected = network.weight.detach().clone()
    twin = copied(network)
    assert make_plain(twin) == ("",)
    assert torch.equal(twin.weight, expected)
    assert torch.equal(network.weight, expected)


def test_nothing_computed_means_nothing_is_done() -> None:
    assert make_plain(nn.Sequential(nn.Linear(2, 2))) == ()


def test_tied_tensors_have_all_their_keys() -> None:
    network = nn.Module()
    network.a, network.b = nn.Linear(2, 2), nn.Linear(2, 2)
    network.b.weight = network.a.weight
    found = {keys for _, keys in aliases(network)}
    assert found == {("a.weight", "b.weight"), ("a.bias",), ("b.bias",)}


def test_tensors_are_resized_and_integers_set() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    tensors = {"0.weight": torch.ones(1, 3), "0.bias": torch.zeros(1)}
    replace_tensors(network, tensors, {"0.out_features": 1})
    assert network[0].out_features == 1
    assert network(torch.ones(1, 3)).item() == 3


def test_an_integer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.colour: is not an integer of Sequential, but the plan sets it"):
        replace_tensors(nn.Sequential(nn.Linear(3, 2)), {}, {"0.colour": 1})
