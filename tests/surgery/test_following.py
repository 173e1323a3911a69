"""What cannot be followed holds only what it touches, with the reason; the rest goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hidden_models import LATENTS, HiddenVAE, cut_hidden, dead, removed, sets_of
from vaeprune.surgery.assembling import Assembler
from vaeprune.surgery.channels import Channels, hidden_channels
from vaeprune.surgery.hidden import examine, plan_network
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.sites import Call


class Then(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, does: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._does = does

    def forward(self, x: Tensor) -> Tensor:
        return self._does(self, x)


def layers(**more: nn.Module | nn.Parameter) -> dict[str, nn.Module | nn.Parameter]:
    return {"first": nn.Linear(5, 6), "second": nn.Linear(6, 6), **more}


def traced(vae: HiddenVAE) -> Channels:
    x = torch.rand(2, *vae.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return hidden_channels(Subject(vae, (x,)))


def groups(found: Channels, *keys: str) -> set[frozenset[tuple[str, int]]]:
    """Output channels of the weights named, by group; only of groups that may go."""
    made = set()
    for group in found.groups:
        nodes = {(found.site(c).key.split(".")[-2], i) for c, at in group.writes.items() for i in at}
        if group.obstacle is None and {name for name, _ in nodes} & set(keys):
            made.add(frozenset(nodes))
    return made


def obstacles(found: Channels, key: str) -> set[str | None]:
    return {
        group.obstacle for group in found.groups for call in group.writes if found.site(call).key == f"encoder.{key}"
    }


def by_channel(found: Channels, wanted: Call) -> dict[int, str | None]:
    """What holds each output channel of one call, None where it may go."""
    return {
        channel: group.obstacle
        for group in found.groups
        for call, channels in group.writes.items()
        if call == wanted
        for channel in channels
    }


# ---- what the data also reaches


def test_every_channel_that_the_input_is_added_to_stays() -> None:
    vae = HiddenVAE(Then(lambda m, x: torch.tanh(m.second(torch.relu(m.first(x) + F.pad(x, (1, 0))))), **layers()))
    found = by_channel(traced(vae), ("encode", 0))
    why = "what reads it also depends on the input, a condition or a weight that is not understood"
    assert found == {0: None, **dict.fromkeys(range(1, 6), why)}


def test_channels_that_are_mixed_only_where_not_all_of_them_change_stay() -> None:
    """The layer as a whole does not show in the softmax; each of its channels alone does."""

    def decoded(m: nn.Module, z: Tensor) -> Tensor:
        h = m.first(z)
        weights = torch.softmax(h.masked_fill((h != 0).all(1, keepdim=True), 0.0), 1)
        return m.second(torch.tanh(h) + weights)

    vae = HiddenVAE(decoder=Then(decoded, first=nn.Linear(LATENTS, 6), second=nn.Linear(6, 5)))
    dead(vae.decoder.first, *range(6), bias=0.0)
    held = by_channel(traced(vae), ("decode", 0))
    why = "it goes through softmax in decoder, which mixes channels or is not understood"
    assert held == dict.fromkeys(range(6), why)


# ---- weights that read something without a batch


def _grid(x: Tensor, places: int) -> Tensor:
    return torch.linspace(0.2, 0.8, places, dtype=x.dtype)[:, None]


def _positions(m: nn.Module, x: Tensor) -> Tensor:
    h = m.first(x)[:, None] + m.place(_grid(x, 3))  # (B, 3, 6)
    return torch.tanh(m.second(torch.relu(h).mean(1)))


def _learned_positions(m: nn.Module, x: Tensor) -> Tensor:
    h = m.first(x)[:, None] + m.place(m.table(torch.arange(3)))
    return torch.tanh(m.second(torch.relu(h).mean(1)))


def _shared_row(m: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(m.second(torch.relu(m.first(x) + m.place(_grid(x, 1)))))


@pytest.mark.parametrize(
    ("does", "more"),
    [
        (_positions, {"place": nn.Linear(1, 6)}),
        (_learned_positions, {"place": nn.Linear(4, 6), "table": nn.Embedding(3, 4)}),
        (_shared_row, {"place": nn.Linear(1, 6)}),
    ],
    ids=["positions", "learned positions", "one row for all"],
)
def test_a_weight_that_reads_no_batch_is_tied_to_what_it_is_added_to(does, more) -> None:
    vae = HiddenVAE(Then(does, **layers(**more)))
    found = traced(vae)
    assert found.unbatched == {"encoder.place.weight"}
    assert groups(found, "first", "place") == {frozenset({("first", i), ("place", i)}) for i in range(6)}
    dead(vae.encoder.first, 1)
    dead(vae.encoder.place, 1)
    vae.encoder.second.weight.data[3], vae.encoder.second.bias.data[3] = 0, 0.5
    cut_hidden(vae, {"encoder.first.weight": [1], "encoder.place.weight": [1], "encoder.second.weight": [3]})


@pytest.mark.parametrize(
    "does",
    [
        lambda m, x: torch.tanh(m.second(torch.relu(m.first(x) + m.place(m.query).mean(0)))),
        lambda m, x: torch.tanh(m.second(torch.relu(m.first(x) * m.place(m.query.expand(3, -1))[0]))),
    ],
    ids=["a table", "a query"],
)
def test_what_parameters_alone_make_holds_what_it_touches(does) -> None:
    query = nn.Parameter(torch.rand(1, 4))
    vae = HiddenVAE(Then(does, **layers(place=nn.Linear(4, 6), query=query)))
    dead(vae.encoder.first, 2)
    vae.encoder.place.weight.data[2], vae.encoder.place.bias.data[2] = 0, 0
    vae.encoder.second.weight.data[3], vae.encoder.second.bias.data[3] = 0, 0.5
    hidden, _, _ = cut_hidden(vae, {"encoder.second.weight": [3]})
    (why,) = (left.reason for left in hidden.left if left.weight == "encoder.first.weight")
    assert "it goes through " in why


def _folded(m: nn.Module, x: Tensor) -> Tensor:
    h = torch.relu(m.inner(x.view(-1, 3, 4).flatten(0, 1)))  # (3 B, 6)
    return torch.tanh(m.outer(h).view(len(x), -1))


def _places_first(m: nn.Module, x: Tensor) -> Tensor:
    h = torch.relu(m.inner(x.view(-1, 3, 4).transpose(0, 1)))  # (3, B, 6)
    return torch.tanh(m.outer(h).transpose(0, 1).flatten(1))


@pytest.mark.parametrize("does", [_folded, _places_first], ids=["places as rows", "places first"])
def test_a_batch_that_is_not_in_the_first_dimension_is_followed_row_by_row(does) -> None:
    vae = HiddenVAE(Then(does, inner=nn.Linear(4, 6), outer=nn.Linear(6, 2)), 6, input_shape=(12,))
    dead(vae.encoder.inner, 0, 5)
    found = traced(vae)
    assert found.unbatched == {"encoder.inner.weight", "encoder.outer.weight"}
    assert groups(found, "inner") == {frozenset({("inner", i)}) for i in range(6)}
    cut_hidden(vae, {"encoder.inner.weight": [0, 5]})


# ---- models that do not bear to be disturbed


def _refuses_nan(m: nn.Module, x: Tensor) -> Tensor:
    h = m.first(x)
    if h.isnan().any():
        raise ValueError("not a number")
    return torch.tanh(m.second(torch.relu(h)))


def _two_ways(m: nn.Module, x: Tensor) -> Tensor:
    h = m.first(x)
    return torch.tanh(m.second(torch.relu(h)) if h.sum() < 1e9 else m.other(h))


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (_refuses_nan, "it cannot be disturbed: ValueError: not a number"),
        (_two_ways, "it cannot be disturbed: encoder.other.weight: is reached in another order or shape"),
    ],
    ids=["a NaN is refused", "a NaN takes another way"],
)
def test_a_weight_that_cannot_be_disturbed_stays_and_the_rest_goes(does, why: str) -> None:
    vae = HiddenVAE(Then(does, **layers(other=nn.Linear(6, 6))))
    dead(vae.encoder.first, 2)
    dead(vae.encoder.second, 3, bias=0.5)
    hidden, _, _ = cut_hidden(vae, {"encoder.second.weight": [3]})
    (found,) = (left.reason for left in hidden.left if left.weight == "encoder.first.weight")
    assert found.startswith(why)


def test_what_a_weight_that_cannot_be_disturbed_reaches_stays_with_it() -> None:
    """Else a channel that is added to it could go alone."""

    def does(m: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(m.second(torch.relu(_checked(m.first(x)) + m.other(x))))

    vae = HiddenVAE(Then(does, **layers(other=nn.Linear(5, 6))))
    found = traced(vae)
    for key in ("first.weight", "other.weight"):
        assert all(why and why.startswith("it cannot be disturbed") for why in obstacles(found, key))
    assert obstacles(found, "second.weight") == {None}


def _checked(h: Tensor) -> Tensor:
    if h.isnan().any():
        raise ValueError("not a number")
    return h


def _in_range(m: nn.Module, x: Tensor) -> Tensor:
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError("pixels are on [0, 1]")
    return torch.tanh(m.second(torch.relu(m.first(x))))


def test_a_run_that_cannot_be_followed_stays_and_the_other_goes() -> None:
    decoder = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
    vae = HiddenVAE(Then(_in_range, **layers()), decoder=decoder)
    dead(vae.encoder.first, 1)
    dead(vae.decoder[0], 4)
    hidden, _, _ = cut_hidden(vae, {"decoder.0.weight": [4]})
    (why,) = (left.reason for left in hidden.left if left.weight == "encoder.first.weight")
    assert why.startswith("encode cannot be followed: ValueError: pixels are on [0, 1]")


# ---- how many runs it takes


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each disturbed run."""
    found: list[int] = []
    usual = Subject.run

    def run(self, what, watcher, gradients=False):
        found.append(getattr(watcher, "rows", 0))
        return usual(self, what, watcher, gradients)

    monkeypatch.setattr(Subject, "run", run)
    return found


def test_a_layer_viewed_as_maps_is_not_disturbed_channel_by_channel(counted: list[int]) -> None:
    decoder = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Unflatten(1, (-1, 2, 2)), nn.ConvTranspose2d(64, 2, 2, 2))
    vae = HiddenVAE(nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh()), 6, decoder, (2, 4, 4))
    found = traced(vae)
    wide = [group for group in found.groups if ("decoder.0.weight", 0) in group.entries]
    assert len(wide) == 64
    assert all(len(group.entries["decoder.0.weight", 0]) == 4 for group in wide)
    assert sum(counted) < 200  # one by one the 256 channels alone would take 768 rows


def test_layers_that_do_not_run_are_found_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Written(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return F.relu(h).view(-1, 2, 3).flatten(1)

    parts: list[nn.Module] = []
    for number in range(16):
        parts += [nn.Linear(5 if number == 0 else 6, 6), Written() if number == 9 else nn.ReLU()]
    vae = HiddenVAE(nn.Sequential(*parts))
    tried: list[int] = []
    usual = Assembler.fits

    def fits(self, made):
        tried.append(len({channel.weight for channel in made.channels}))
        return usual(self, made)

    monkeypatch.setattr(Assembler, "fits", fits)
    hidden = examine(vae, sets_of(vae))
    assert len(hidden.layers) == 15
    assert len(tried) < 16


def test_a_plan_of_a_model_that_is_followed_row_by_row_is_found_again() -> None:
    vae = HiddenVAE(Then(_folded, inner=nn.Linear(4, 6), outer=nn.Linear(6, 2)), 6, input_shape=(12,))
    dead(vae.encoder.inner, 3)
    assert removed(plan_network(examine(vae, sets_of(vae)))) == {"encoder.inner.weight": [3]}
