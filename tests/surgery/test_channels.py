"""Groups of hidden channels against an oracle that disturbs one channel at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hidden_models import LATENTS, HiddenVAE, dead, sets_of
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.channels import Channels, hidden_channels
from vaeprune.surgery.cut import cut
from vaeprune.surgery.hidden import examine
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Subject
from vaeprune.surgery.reference import Reference

Node = tuple[str, int]  # name of a layer in the encoder, output channel


def traced(vae: HiddenVAE, *condition: Tensor) -> Channels:
    x = torch.rand(2, *vae.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return hidden_channels(Subject(vae, (x, *condition)))


# ---- random networks


@dataclass(frozen=True)
class Layer:
    """A weight that reads the sum or concatenation of earlier results and perhaps adds another to its own."""

    name: str
    reads: tuple[int, ...]
    joined: str  # "add" or "concatenate"
    plus: int | None
    shuffled: bool = False


class Network(nn.Module):
    """Layers in order; the first reads x. The result is the concatenation of all that no layer reads."""

    def __init__(self, layers: tuple[Layer, ...], widths: Mapping[str, int], inputs: int, conv: bool) -> None:
        super().__init__()
        self.order, self.conv = layers, conv
        sizes: list[int] = []
        for layer in layers:
            parts = [sizes[i] for i in layer.reads]
            size = inputs if not parts else parts[0] if layer.joined == "add" else sum(parts)
            width = widths[layer.name] if layer.plus is None else sizes[layer.plus]
            made = nn.Conv2d(size, width, 3, padding=1) if conv else nn.Linear(size, width)
            setattr(self, layer.name, made)
            sizes.append(width)
        used = {i for layer in layers for i in (*layer.reads, layer.plus) if i is not None}
        self.last = [i for i in range(len(layers)) if i not in used]
        self.width = sum(sizes[i] for i in self.last) * (4 if conv else 1)
        self.rewrite: Callable[[str, Tensor], Tensor] = lambda _name, value: value
        self.look: Callable[[str, Tensor], None] = lambda _name, value: None

    def forward(self, x: Tensor) -> Tensor:
        results: list[Tensor] = []
        for layer in self.order:
            parts = [results[i] for i in layer.reads] or [x]
            value = sum(parts[1:], parts[0]) if layer.joined == "add" else torch.cat(parts, 1)
            self.look(layer.name, value)
            found = self.rewrite(layer.name, getattr(self, layer.name)(value))
            if layer.shuffled:
                found = found.flip(1)
            if layer.plus is not None:
                found = found + results[layer.plus]
            results.append(torch.tanh(found))
        return torch.cat([results[i].flatten(1) for i in self.last], 1)


@st.composite
def networks(draw: st.DrawFn, plain: bool = False) -> HiddenVAE:
    count = draw(st.integers(1, 5))
    conv = draw(st.booleans())
    widths: dict[str, int] = {}
    layers: list[Layer] = []
    sizes: list[int] = []
    for number in range(count):
        name = f"layer{number}"
        earlier = list(range(number))
        if plain:
            reads, joined, plus = tuple(earlier[-1:]), "concatenate", None
        else:
            reads = tuple(draw(st.lists(st.sampled_from(earlier), min_size=1, max_size=3))) if earlier else ()
            same = all(sizes[i] == sizes[reads[0]] for i in reads)
            joined = draw(st.sampled_from(["add", "concatenate"])) if same and reads else "concatenate"
            plus = draw(st.one_of(st.none(), st.sampled_from(earlier))) if earlier else None
        widths[name] = draw(st.integers(1, 6))
        sizes.append(widths[name] if plus is None else sizes[plus])
        layers.append(Layer(name, reads, joined, plus, draw(st.booleans())))
    inputs = draw(st.integers(1, 4))
    network = Network(tuple(layers), widths, inputs, conv)
    shape = (inputs, 2, 2) if conv else (inputs,)
    return HiddenVAE(network, network.width, None, shape, seed=draw(st.integers(0, 99)))


def true_groups(vae: HiddenVAE) -> set[frozenset[Node]]:
    """Channels that a reader cannot tell apart, or that are read side by side in one column, by one NaN at a time."""
    network: Network = vae.encoder
    x = torch.rand(1, *vae.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at_rest: dict[str, Tensor] = {}
    network.look = lambda name, value: at_rest.__setitem__(name, value.clone())
    with torch.no_grad():
        network(x)
        rest_results = {layer.name: getattr(network, layer.name)(at_rest[layer.name]) for layer in network.order}
    column_of: dict[Any, list[Node]] = {}
    nodes = [(layer.name, c) for layer in network.order for c in range(rest_results[layer.name].shape[1])]
    for name, channel in nodes:

        def rewrite(layer: str, value: Tensor, name: str = name, channel: int = channel) -> Tensor:
            value = rest_results[layer].clone()  # every weight wrote what it does undisturbed
            if layer == name:
                value[:, channel] = float("nan")
            return value

        def look(layer: str, value: Tensor, node: Node = (name, channel)) -> None:
            reached = value.isnan().transpose(0, 1).flatten(1).any(1)
            for column in torch.nonzero(reached).flatten().tolist():
                column_of.setdefault((layer, column), []).append(node)

        network.rewrite, network.look = rewrite, look
        with torch.no_grad():
            out = network(x)
        for column in torch.nonzero(out.isnan()[0]).flatten().tolist():
            column_of.setdefault(("heads", column), []).append((name, channel))
    network.rewrite, network.look = lambda _name, value: value, lambda _name, value: None
    groups = {node: frozenset([node]) for node in nodes}
    for together in column_of.values():
        joined = frozenset().union(*(groups[node] for node in together))
        for node in joined:
            groups[node] = joined
    return set(groups.values())


def found_groups(vae: HiddenVAE, found: Channels) -> dict[Node, frozenset[Node]]:
    groups: dict[Node, frozenset[Node]] = {}
    for group in found.groups:
        nodes = []
        for call, channels in group.writes.items():
            key = found.site(call).key
            if call[0] == "encode" and key.startswith("encoder."):
                nodes += [(key.split(".")[1], channel) for channel in channels]
        for node in nodes:
            groups[node] = frozenset(nodes)
    return groups


@settings(max_examples=60, derandomize=True, deadline=None)
@given(vae=networks())
def test_groups_are_never_finer_than_what_hangs_together(vae: HiddenVAE) -> None:
    truth = true_groups(vae)
    found = found_groups(vae, traced(vae))
    assert set(found) == {node for group in truth for node in group}
    for group in truth:
        for node in group:
            assert group <= found[node], (group, found[node])
    assert set(found.values()) == truth


@settings(max_examples=25, derandomize=True, deadline=None)
@given(vae=networks(plain=True))
def test_groups_of_plain_networks_are_exactly_what_hangs_together(vae: HiddenVAE) -> None:
    channels = traced(vae)
    assert set(found_groups(vae, channels).values()) == true_groups(vae)
    for group in channels.groups:
        if group.obstacle is None:
            assert sum(map(len, group.writes.values())) == 1


def test_groups_of_residual_and_skip_connections_are_exact_too() -> None:
    """Where binary numbers are told apart at every column, several sources are, too."""
    layers = (
        Layer("a", (), "concatenate", None),
        Layer("b", (0,), "concatenate", 0),
        Layer("c", (0, 1), "concatenate", None, True),
    )
    network = Network(layers, {"a": 5, "b": 5, "c": 4}, 3, False)
    vae = HiddenVAE(network, network.width, None, (3,))
    truth = true_groups(vae)
    assert set(found_groups(vae, traced(vae)).values()) == truth
    assert frozenset([("a", 2), ("b", 2)]) in truth


@settings(max_examples=25, derandomize=True, deadline=None)
@given(vae=networks())
def test_every_entry_of_a_group_is_in_no_other(vae: HiddenVAE) -> None:
    seen: set[tuple[str, int, int]] = set()
    for group in traced(vae).groups:
        entries = {(*axis, index) for axis, indices in group.entries.items() for index in indices}
        assert not entries & seen
        seen |= entries


@settings(max_examples=20, derandomize=True, deadline=None)
@given(vae=networks())
def test_one_group_can_be_cut_out_of_any_network(vae: HiddenVAE) -> None:
    """What has no obstacle and reads zeros may go: the model runs and computes the same."""
    hidden = examine(vae, sets_of(vae, count=160))
    assert not any("no longer runs" in left.reason for left in hidden.left)
    for layer in hidden.layers:
        made = hidden.assembler.plan([Chosen(layer[-1], "cheap", "searched")], "budget")
        assert hidden.assembler.fits(made) is None
        assert_same_as_reference(vae, cut(vae, made), made)


def assert_same_as_reference(vae: HiddenVAE, smaller: HiddenVAE, made: Plan) -> None:
    reference = Reference(vae, made)
    x = torch.rand(9, *vae.input_shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        expected, found = reference.encode(x).mean, smaller.encode(x).mean
    assert ((expected - found).abs() <= 1e-12 * expected.abs().max()).all()


# ---- obstacles


class Through(nn.Module):
    """Two layers with a function between."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(width, 6)
        self.between = between

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        return torch.tanh(self.second(self.between(self.first(x))))


def obstacles(found: Channels, key: str) -> dict[int, str | None]:
    """Output channel of a weight → why it stays."""
    return {
        channel: group.obstacle
        for group in found.groups
        for call, channels in group.writes.items()
        if found.site(call).key == key
        for channel in channels
    }


HIDING = {
    "nan_to_num": torch.nan_to_num,
    "where": lambda h: torch.where(h > -1e9, h, torch.zeros_like(h)),
    "masked_fill": lambda h: h.masked_fill(h != h, 0.0),
    "fmax": lambda h: torch.fmax(h, torch.full_like(h, -1e9)),
    "nan_to_num before an addition": lambda h: torch.nan_to_num(h) + torch.nan_to_num(h.flip(1)),
}


@pytest.mark.parametrize("between", HIDING.values(), ids=HIDING.keys())
def test_a_function_that_replaces_nan_by_another_value_is_seen_through(between: Callable[[Tensor], Tensor]) -> None:
    found = traced(HiddenVAE(Through(between)))
    for group in found.groups:
        for call, channels in group.writes.items():
            if found.site(call).key == "encoder.first.weight":
                columns = {column for indices in group.reads.values() for column in indices}
                assert columns >= set(channels)


@pytest.mark.parametrize("between", HIDING.values(), ids=HIDING.keys())
def test_a_function_that_replaces_nan_by_what_was_there_is_an_obstacle(between: Callable[[Tensor], Tensor]) -> None:
    vae = HiddenVAE(Through(lambda h: between(h) if between is not HIDING["fmax"] else torch.fmax(h, torch.zeros(6))))
    dead(vae.encoder.first, *range(6), bias=0.0)
    found = obstacles(traced(vae), "encoder.first.weight")
    assert set(found) == set(range(6))
    assert all(why and "a function on the way hides NaN" in why for why in found.values())


def test_a_function_that_hides_nan_of_some_channels_holds_at_least_those() -> None:
    vae = HiddenVAE(Through(lambda h: torch.cat([h[:, :3], torch.nan_to_num(h[:, 3:])], 1)))
    dead(vae.encoder.first, *range(6), bias=0.0)
    found = obstacles(traced(vae), "encoder.first.weight")
    assert all(found[c] and "hides NaN" in found[c] for c in (3, 4, 5))


def test_a_function_that_hides_nan_from_the_second_of_two_readers_is_an_obstacle() -> None:
    class Twice(Through):
        def __init__(self) -> None:
            super().__init__(torch.nan_to_num)
            self.third = nn.Linear(6, 6)

        def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
            h = self.first(x)
            return torch.tanh(self.third(h)) + torch.tanh(self.second(self.between(h)))

    vae = HiddenVAE(Twice())
    dead(vae.encoder.first, *range(6), bias=0.0)
    found = obstacles(traced(vae), "encoder.first.weight")
    assert all(why and "a function on the way hides NaN" in why for why in found.values())


def test_a_function_that_hides_one_of_two_in_a_sum_ties_them() -> None:
    def between(h: Tensor) -> Tensor:
        return h + torch.nan_to_num(h.flip(1))

    found = traced(HiddenVAE(Through(between)))
    for group in found.groups:
        for call, channels in group.writes.items():
            if found.site(call).key == "encoder.first.weight":
                assert set(channels) == {5 - c for c in channels}


MIXING = {
    "softmax": lambda h: torch.softmax(h, 1),
    "layer_norm": lambda h: F.layer_norm(h, (6,)),
    "normalize": lambda h: F.normalize(h, dim=1),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_function_that_mixes_channels_is_an_obstacle(name: str) -> None:
    found = obstacles(traced(HiddenVAE(Through(MIXING[name]))), "encoder.first.weight")
    assert all(f"it goes through {name} in " in why for why in found.values())


def test_a_mean_over_channels_ties_them_all() -> None:
    found = obstacles(traced(HiddenVAE(Through(lambda h: h - h.mean(1, keepdim=True)))), "encoder.first.weight")
    assert set(found.values()) == {"all channels of encoder.first.weight hang together"}


def test_cumulative_sums_tie_them_all() -> None:
    found = obstacles(traced(HiddenVAE(Through(lambda h: h.cumsum(1)))), "encoder.first.weight")
    assert None not in found.values()


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda h: h[:, ::2] * torch.sigmoid(h[:, 1::2]), [{0, 1}, {2, 3}, {4, 5}]),
        (lambda h: F.glu(h, 1), [{0, 3}, {1, 4}, {2, 5}]),
        (lambda h: h.view(-1, 2, 3).amax(1), [{0, 3}, {1, 4}, {2, 5}]),
        (lambda h: h.view(-1, 3, 2).transpose(1, 2).flatten(1)[:, :3], [{0}, {1}, {2}, {3}, {4}, {5}]),
        (lambda h: torch.stack([h[:, 0] + h[:, 5], h[:, 5] + h[:, 3], h[:, 2]], 1), [{0, 3, 5}, {1}, {2}, {4}]),
    ],
    ids=["gate of neighbours", "glu", "maxout", "transposed and sliced", "a chain"],
)
def test_channels_that_meet_go_together(between: Callable[[Tensor], Tensor], expected: list[set[int]]) -> None:
    found = traced(HiddenVAE(Through(between, width=3)))
    groups = {
        frozenset(channels)
        for group in found.groups
        for call, channels in group.writes.items()
        if found.site(call).key == "encoder.first.weight"
    }
    assert groups == {frozenset(group) for group in expected}


def test_channels_of_z_are_no_hidden_channels() -> None:
    found = traced(HiddenVAE())
    assert not any(("decoder.weight", 1) in group.entries for group in found.groups)
    assert set(obstacles(found, "mean.weight").values()) == {"it is a latent"}
    assert len(obstacles(found, "decoder.weight")) == 5
    assert LATENTS == 3


def test_a_bias_that_is_computed_holds_its_layer() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.scale = nn.Linear(5, 6), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(F.linear(x, self.first.weight, self.first.bias * self.scale))

    found = obstacles(traced(HiddenVAE(Computed())), "encoder.first.weight")
    assert None not in found.values()


def test_layers_are_groups_that_are_read_side_by_side() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.Tanh()))
    assert [len(layer) for layer in traced(vae).layers()] == [4, 6]


def test_biases_that_serve_two_are_shared() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    assert traced(vae).shared_biases == frozenset()
    vae.encoder[2].bias = vae.encoder[0].bias
    assert traced(vae).shared_biases == {"encoder.0.bias"}
