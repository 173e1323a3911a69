"""Habits of returning a posterior, each read back as the author means it: values, not names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from foreign_models import Family, OwnVAE, cut_exactly, family, rows
from vaeprune.adapters import adapt
from vaeprune.adapters.reading import Reading, follow, logvar_of, sigma_of, tensors_in
from vaeprune.errors import ModelError


@dataclasses.dataclass
class Output:
    """As pythae, and as transformers-like libraries do."""

    embedding: Tensor
    log_covariance: Tensor


class LatentDist:
    """As diffusers: mean, clamped logvar, std and var on one object."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean, self.logvar = mean, logvar.clamp(-30, 20)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        return self.mean


@dataclasses.dataclass
class Holder:
    latent_dist: LatentDist


def pair(mean: Tensor, logvar: Tensor) -> Any:
    return mean, logvar


def listed(mean: Tensor, logvar: Tensor) -> Any:
    return [mean, logvar]


def longer(mean: Tensor, logvar: Tensor) -> Any:
    return [mean, logvar, mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), torch.zeros(1)]


def z_first(mean: Tensor, logvar: Tensor) -> Any:
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), mean, logvar


def mean_std_logvar(mean: Tensor, logvar: Tensor) -> Any:
    return mean, torch.exp(0.5 * logvar), logvar


def mean_variance_sample(mean: Tensor, logvar: Tensor) -> Any:
    variance = logvar.exp()
    return mean, variance, mean + variance.sqrt() * torch.randn_like(mean)


def mean_std(mean: Tensor, logvar: Tensor) -> Any:
    return mean, torch.exp(0.5 * logvar)


def mean_logstd(mean: Tensor, logvar: Tensor) -> Any:
    return mean, 0.5 * logvar


def mean_softplus(mean: Tensor, logvar: Tensor) -> Any:
    return mean, torch.log(torch.expm1(torch.exp(0.5 * logvar)))


def fused(mean: Tensor, logvar: Tensor) -> Any:
    return torch.cat([mean, logvar], 1)


def named_object(mean: Tensor, logvar: Tensor) -> Any:
    return Output(mean, logvar)


def named_dict(mean: Tensor, logvar: Tensor) -> Any:
    return {"mu": mean, "log_var": logvar}


def latent_dist(mean: Tensor, logvar: Tensor) -> Any:
    return Holder(LatentDist(mean, logvar))


def normal(mean: Tensor, logvar: Tensor) -> Any:
    return Normal(mean, torch.exp(0.5 * logvar))


def independent(mean: Tensor, logvar: Tensor) -> Any:
    return Independent(normal(mean, logvar), 1)


def in_a_tuple(mean: Tensor, logvar: Tensor) -> Any:
    return (normal(mean, logvar),)


HABITS = {
    pair: "logvar", listed: "logvar", longer: "logvar", z_first: "logvar", mean_std_logvar: None,
    mean_variance_sample: "var", mean_std: "std", mean_logstd: "logstd", mean_softplus: "softplus", fused: "logvar",
    named_object: "logvar", named_dict: "logvar", latent_dist: "logvar", normal: "std", independent: "std",
    in_a_tuple: "std",
}  # fmt: skip


class Habit(OwnVAE):
    """An `OwnVAE` that returns its posterior as `habit` has it, and samples in forward."""

    habit: Any = None

    def encode(self, x: Tensor) -> Any:
        return type(self).habit(*super().encode(x))

    def forward(self, x: Tensor) -> Any:
        mean, logvar = OwnVAE.encode(self, x)
        return self.decode(self.reparameterize(mean, logvar)), mean


class Silent(Habit):
    """The same without sampling in forward."""

    def forward(self, x: Tensor) -> Any:
        return self.decode(OwnVAE.encode(self, x)[0])


def with_habit(habit: Any, kind: type[Habit] = Habit) -> Family:
    own = type(kind.__name__, (kind,), {"habit": staticmethod(habit)})
    made = family(own)
    return dataclasses.replace(made, posterior=OwnVAE.encode)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.__name__)
def test_a_posterior_is_read_by_behaviour_and_cut_exactly(habit: Any) -> None:
    made = with_habit(habit)
    result = cut_exactly(made)
    wanted = HABITS[habit]
    assert wanted is None or result.vae.reading.kind == wanted
    with torch.no_grad():
        mean, logvar = made.posterior(made.network, made.x.double())
        found = result.vae.encode(made.x.double())
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logvar, logvar, rtol=0, atol=1e-9)


@pytest.mark.parametrize("habit", [named_object, named_dict, latent_dist, normal, independent, in_a_tuple])
def test_names_decide_where_the_module_does_not_sample(habit: Any) -> None:
    result = cut_exactly(with_habit(habit, Silent))
    assert "by its name" in " ".join(result.vae.assumptions)


def test_a_spread_with_negative_values_is_taken_for_a_logvar_and_that_is_said() -> None:
    result = cut_exactly(with_habit(pair, Silent))
    assert "assumed, as it has negative values" in " ".join(result.vae.assumptions)


@pytest.mark.parametrize(("habit", "spread"), [(mean_std, "std"), (mean_logstd, "logstd"), (mean_softplus, "softplus")])
def test_a_given_spread_overrules(habit: Any, spread: str) -> None:
    made = dataclasses.replace(with_habit(habit, Silent), options={"spread": spread})
    result = cut_exactly(made)
    assert result.vae.reading.kind == spread
    with torch.no_grad():
        torch.testing.assert_close(
            result.vae.encode(made.x.double()).logvar, made.posterior(made.network, made.x.double())[1]
        )


def test_a_positive_spread_without_sampling_asks_what_it_is() -> None:
    made = with_habit(mean_std, Silent)
    with pytest.raises(ModelError, match=r"Silent\.encode: the spread at result\[1\] is positive.*--spread, one of"):
        adapt(made.network, made.data)


# ---- what decode returns


class Decoded(OwnVAE):
    """decode returns more than the reconstruction."""

    def decode(self, z: Tensor) -> Any:
        return type(self).habit(self.reader(z))

    def forward(self, x: Tensor) -> Any:
        mean, logvar = self.encode(x)
        return self.reader(self.reparameterize(mean, logvar)), mean, logvar

    habit: Any = None


class Recon:
    def __init__(self, reconstruction: Tensor) -> None:
        self.reconstruction = reconstruction


@pytest.mark.parametrize(
    "habit",
    [
        lambda x: (x, torch.ones(len(x), 1)),
        lambda x: [x],
        lambda x: {"recon": x, "scale": torch.ones(1)},
        Recon,
        lambda x: Normal(x, 1.0),
        lambda x: (Normal(x, torch.full_like(x, 0.1)),),
    ],
    ids=["tuple", "list", "dict", "object", "normal", "normal in a tuple"],
)
def test_whatever_decode_returns_its_reconstruction_is_found(habit: Any) -> None:
    own = type("Decoded", (Decoded,), {"habit": staticmethod(habit)})
    made = dataclasses.replace(family(own), decoded=lambda network, z: network.reader(z))
    vae = cut_exactly(made).vae
    z = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode_parameters(z), made.network.reader(z), rtol=0, atol=0)


# ---- the functions


def test_spreads_are_one_sigma_in_five_ways() -> None:
    sigma = torch.tensor([0.1, 0.7, 1.0, 2.5], dtype=torch.float64)
    ways = {
        "logvar": 2 * sigma.log(), "logstd": sigma.log(), "std": sigma, "var": sigma**2,
        "softplus": torch.log(torch.expm1(sigma)),
    }  # fmt: skip
    for kind, spread in ways.items():
        torch.testing.assert_close(sigma_of(spread, kind), sigma, rtol=1e-12, atol=0)
        torch.testing.assert_close(logvar_of(spread, kind), 2 * sigma.log(), rtol=1e-12, atol=1e-12)


def test_tensors_are_found_by_the_path_that_follows_back_to_them() -> None:
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    value = (a, {"inner": [b, 7]}, Output(a, b), Independent(Normal(a, a), 1), torch.ones(2, dtype=torch.int64))
    found = tensors_in(value)
    assert {(0,), (1, "inner", 0), (2, "embedding"), (2, "log_covariance"), (3, "base_dist", "loc")} <= set(found)
    assert all(follow(value, path) is tensor for path, tensor in found.items())
    assert not any(path[0] == 4 for path in found)


def test_a_reading_is_written_and_read_back() -> None:
    reading = Reading("encode", "decode", (0, "latent_dist", "mean"), (1,), "var", ("sample",), (1, 2))
    assert Reading.from_json(reading.to_json()) == reading


@pytest.mark.parametrize(
    "change",
    [
        {"encode": "__class__"}, {"encode": "a.b"}, {"kind": "precision"}, {"mean": ["__dict__"]}, {"mean": [1.5]},
        {"conditions": [0]}, {"decode": 7}, {"decode": "__init__"},
        {"encode": "zero_grad"}, {"decode": "load_state_dict"},
    ],
)  # fmt: skip
def test_a_damaged_reading_is_refused(change: dict[str, Any]) -> None:
    entry = Reading("encode", "decode", (0,), (1,), "logvar").to_json() | change
    with pytest.raises(ModelError, match="how to read the model is damaged"):
        Reading.from_json(entry)


def test_a_fused_tensor_of_a_map_is_halved_along_channels() -> None:
    class FusedMap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.read = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(3, 1, 1)

        def encode(self, x: Tensor) -> Tensor:
            return self.head(x)

        def decode(self, z: Tensor) -> Tensor:
            return self.read(z)

        def forward(self, x: Tensor) -> Tensor:
            mean, s = self.encode(x).chunk(2, 1)
            return self.decode(mean + F.softplus(s) * torch.randn_like(mean))

    torch.manual_seed(0)
    vae = adapt(FusedMap(), rows(1, 4, 4, count=200))
    assert (vae.latent_shape, vae.reading.kind) == ((3, 4, 4), "softplus")
