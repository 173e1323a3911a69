import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planted import (
    BERNOULLI,
    GAUSSIAN,
    PlainVAE,
    assert_same_but_for_the_removed,
    assert_untouched,
    convolutional,
    cut_exactly,
    cut_exactly_or_refused,
    dense,
    planned,
    rows,
    snapshot,
)
from vaeprune.analysis import analyze
from vaeprune.architectures import BuiltVAE, DenseVAE, build
from vaeprune.errors import PlanError, VaepruneError
from vaeprune.surgery.cut import cut, cut_state_dict
from vaeprune.surgery.plan import Plan, Slice, read_plan, write_plan
from vaeprune.surgery.planning import plan

LIKELIHOODS = st.sampled_from([BERNOULLI, GAUSSIAN])


@st.composite
def dense_networks(draw: st.DrawFn) -> tuple[DenseVAE, list[int]]:
    """A dense network of any sizes and the latents planted idle in it, some but not all."""
    latents = draw(st.integers(2, 7))
    idle = draw(st.sets(st.integers(0, latents - 1), min_size=1, max_size=latents - 1))
    widths = st.lists(st.integers(2, 12), min_size=0, max_size=3)
    vae = dense(
        idle,
        latents,
        input_shape=draw(st.sampled_from([(5,), (1, 3, 4), (9,)])),
        encoder=draw(widths),
        decoder=draw(widths),
        likelihood=draw(LIKELIHOODS),
        listening=draw(st.sampled_from([0.0, 1e-4])),
        seed=draw(st.integers(0, 10_000)),
    )
    return vae, sorted(idle)


@st.composite
def convolutional_networks(draw: st.DrawFn) -> tuple[BuiltVAE, list[int]]:
    latents = draw(st.integers(2, 5))
    idle = draw(st.sets(st.integers(0, latents - 1), min_size=1, max_size=latents - 1))
    vae = convolutional(
        idle,
        latents,
        input_shape=draw(st.sampled_from([(1, 17, 18), (3, 20, 32)])),
        channels=draw(st.integers(2, 4)),
        likelihood=draw(LIKELIHOODS),
        listening=draw(st.sampled_from([0.0, 1e-4])),
        seed=draw(st.integers(0, 10_000)),
    )
    return vae, sorted(idle)


def assert_planted_latents_are_cut_exactly(vae: BuiltVAE, idle: list[int], count: int) -> None:
    vae.double()
    before = snapshot(vae)
    data = rows(count, vae.input_shape)
    made = plan(vae, analyze(vae, data), data)
    smaller = cut(vae, made)
    assert made.removed_latents == idle
    assert smaller.latent_size == vae.latent_size - len(idle)
    assert_same_but_for_the_removed(vae, smaller, made, tolerance=1e-10)
    assert_untouched(vae, before)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(network=dense_networks())
def test_exactly_the_planted_latents_are_cut_out_of_any_dense_network(network: tuple[DenseVAE, list[int]]) -> None:
    assert_planted_latents_are_cut_exactly(*network, count=250)


@settings(max_examples=4, derandomize=True, deadline=None)
@given(network=convolutional_networks())
def test_exactly_the_planted_latents_are_cut_out_of_any_convolutional_network(
    network: tuple[BuiltVAE, list[int]],
) -> None:
    assert_planted_latents_are_cut_exactly(*network, count=160)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(network=dense_networks(), wanted=st.sets(st.integers(0, 6), min_size=1), seed=st.integers(0, 99))
def test_any_latents_may_be_cut_and_the_rest_stays_exact(
    network: tuple[DenseVAE, list[int]], wanted: set[int], seed: int
) -> None:
    """Also latents that carry something: the oracle holds them at their means."""
    vae, _ = network
    remove = {i % vae.latent_size for i in wanted}
    if len(remove) == vae.latent_size:
        remove.remove(seed % vae.latent_size)
    cut_exactly(vae, remove)


# ---- what comes out


@pytest.fixture
def vae() -> DenseVAE:
    return dense([1, 4], listening=1e-3)


@pytest.fixture
def made(vae: DenseVAE) -> Plan:
    return planned(vae, [1, 4])


def test_every_size_of_the_smaller_model_is_true(vae: DenseVAE, made: Plan) -> None:
    smaller = cut(vae, made)
    assert (smaller.latent_size, smaller.latent_shape) == (4, (4,))
    assert (smaller.mean_head.out_features, smaller.logvar_head.out_features) == (4, 4)
    assert smaller.decoder[0].in_features == 4
    assert smaller.architecture() == vae.architecture() | {"latent_size": 4}
    assert (smaller.input_shape, smaller.likelihood) == (vae.input_shape, vae.likelihood)


@pytest.mark.parametrize("build_planted", [dense, convolutional])
def test_the_smaller_weights_fit_a_model_built_small(build_planted: object) -> None:
    vae = build_planted([1])
    smaller = cut(vae, planned(vae, [1]))
    fresh = build(smaller.architecture(), smaller.likelihood)
    assert fresh.load_state_dict(smaller.state_dict()).missing_keys == []
    x = rows(4, vae.input_shape)
    with torch.no_grad():
        assert torch.equal(fresh.eval().encode(x).mean, smaller.encode(x).mean)


def test_keys_types_and_order_of_the_weights_stay(vae: DenseVAE, made: Plan) -> None:
    before, after = vae.state_dict(), cut(vae, made).state_dict()
    assert list(after) == list(before)
    assert [value.dtype for value in after.values()] == [value.dtype for value in before.values()]


def test_weights_that_serve_no_removed_latent_stay_bit_for_bit(vae: DenseVAE, made: Plan) -> None:
    before, after = vae.state_dict(), cut(vae, made).state_dict()
    stay = [0, 2, 3, 5]
    for key in ("encoder.0.weight", "encoder.0.bias", "output.weight", "output.bias"):
        assert torch.equal(after[key], before[key])
    for key in ("mean_head.weight", "mean_head.bias", "logvar_head.weight", "logvar_head.bias"):
        assert torch.equal(after[key], before[key][stay])
    assert torch.equal(after["decoder.0.weight"], before["decoder.0.weight"][:, stay])


def test_the_model_that_is_cut_is_untouched(vae: DenseVAE, made: Plan) -> None:
    vae.train()
    vae.decoder.eval()
    vae.mean_head.weight.grad = torch.ones_like(vae.mean_head.weight)
    vae.encoder.register_forward_hook(lambda *_: None)
    vae.provenance = {"training": {"kl": "full"}}
    before = snapshot(vae)
    smaller = cut(vae, made)
    assert_untouched(vae, before)
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.fill_(9.0)
    assert_untouched(vae, before)


def test_modes_and_frozen_weights_are_carried_over(vae: DenseVAE) -> None:
    vae.train()
    vae.decoder.eval()
    vae.mean_head.weight.requires_grad_(False)
    vae.output.bias.requires_grad_(False)
    smaller = cut(vae, planned(vae, [1, 4]))
    assert {k: m.training for k, m in smaller.named_modules()} == {k: m.training for k, m in vae.named_modules()}
    found = {k: p.requires_grad for k, p in smaller.named_parameters()}
    assert found == {k: p.requires_grad for k, p in vae.named_parameters()}


def test_the_smaller_model_can_be_trained_on(vae: DenseVAE, made: Plan) -> None:
    smaller = cut(vae, made).train()
    smaller(rows(4))[0].sum().backward()
    assert smaller.mean_head.weight.grad.shape == (4, 9)
    assert smaller.decoder[0].weight.grad.abs().sum() > 0


def test_a_model_may_be_cut_again(vae: DenseVAE, made: Plan) -> None:
    once = cut(vae, made).double()
    cut_exactly(once, [0, 2])


def test_tied_weights_stay_tied() -> None:
    vae = PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)))
    vae.logvar.weight = vae.mean.weight
    smaller = cut(vae, planned(vae, [0]))
    assert smaller.mean.weight is smaller.logvar.weight
    assert smaller.mean.weight.shape == (3, 6)


def test_sizes_written_into_a_foreign_model_are_set() -> None:
    _, smaller = cut_exactly(PlainVAE(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5))), [0, 1])
    assert smaller.mean.out_features == smaller.logvar.out_features == 2
    assert smaller.decoder[0].num_features == smaller.decoder[1].in_features == 2


class _TheirVAE(PlainVAE):
    """Takes its latent size as an argument, as people's models do."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latents=latent_dim)


def test_the_smaller_weights_fit_their_own_class_built_small() -> None:
    vae = _TheirVAE(latent_dim=4).double()
    made, smaller = cut_exactly(vae, [1])
    theirs = _TheirVAE(latent_dim=3).double()
    theirs.load_state_dict(smaller.state_dict())
    assert_same_but_for_the_removed(vae, theirs, made)


# ---- replaying


def test_a_plan_read_back_gives_the_same_weights_bit_for_bit(vae: DenseVAE, made: Plan, tmp_path: Path) -> None:
    write_plan(made, tmp_path)
    first, second = cut(vae, made).state_dict(), cut(vae, read_plan(tmp_path)).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_state_dict_is_cut_like_its_model(vae: DenseVAE, made: Plan) -> None:
    state = vae.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    found, expected = cut_state_dict(state, made), cut(vae, made).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(torch.equal(state[key], before[key]) and state[key] is not found[key] for key in before)


def test_two_plans_of_one_model_agree(vae: DenseVAE) -> None:
    first, second = planned(vae, [1, 4]), planned(vae, [1, 4])
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    assert all(torch.equal(first.bias_changes[key], second.bias_changes[key]) for key in first.bias_changes)


# ---- plans that do not fit


def test_a_plan_for_other_weights_is_refused(vae: DenseVAE, made: Plan) -> None:
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.encoder[0].weight[0, 0] += 1e-6
    for attempt in (lambda: cut(other, made), lambda: cut_state_dict(other.state_dict(), made)):
        with pytest.raises(PlanError) as error:
            attempt()
        assert str(error.value) == (
            "plan: was made for other weights than these; make a new plan, or load the weights it names"
        )


def test_the_same_weights_in_another_type_are_other_weights(vae: DenseVAE, made: Plan) -> None:
    with pytest.raises(PlanError, match="made for other weights"):
        cut(copy.deepcopy(vae).double(), made)


def test_a_model_already_cut_is_refused(vae: DenseVAE, made: Plan) -> None:
    with pytest.raises(PlanError, match="made for other weights"):
        cut(cut(vae, made), made)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Slice("nowhere.weight", 0, 6, (0,)), "plan: cuts nowhere.weight on axis 0 of 6, the weights have None"),
        (Slice("output.weight", 2, 6, (0,)), "plan: cuts output.weight on axis 2 of 6, the weights have (12, 7)"),
        (Slice("output.weight", 0, 6, (0,)), "plan: cuts output.weight on axis 0 of 6, the weights have (12, 7)"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused(vae: DenseVAE, made: Plan, part: Slice, message: str) -> None:
    with pytest.raises(PlanError) as error:
        cut(vae, dataclasses.replace(made, slices=(*made.slices, part)))
    assert str(error.value) == message


@pytest.mark.parametrize("key", ["nowhere.bias", "output.bias"])
def test_a_bias_change_that_does_not_fit_is_refused(vae: DenseVAE, made: Plan, key: str) -> None:
    with pytest.raises(PlanError) as error:
        cut(vae, dataclasses.replace(made, bias_changes={key: torch.zeros(3, dtype=torch.float64)}))
    assert str(error.value) == f"plan: changes {key} by (3,), the weights have no such tensor"


@pytest.mark.parametrize("path", ["training", "likelihood", "output.in_feature", "output.bias", "nowhere.in_features"])
def test_an_attribute_that_is_no_integer_of_the_model_is_refused(vae: DenseVAE, made: Plan, path: str) -> None:
    with pytest.raises(PlanError) as error:
        cut(vae, dataclasses.replace(made, attributes={**made.attributes, path: 4}))
    assert path in str(error.value)
    assert "is not an integer of" in str(error.value)


def test_a_refused_plan_leaves_the_model_untouched(vae: DenseVAE, made: Plan) -> None:
    before = snapshot(vae)
    with pytest.raises(VaepruneError):
        cut(vae, dataclasses.replace(made, attributes={"training": 4}))
    with pytest.raises(PlanError):
        cut(vae, dataclasses.replace(made, slices=(*made.slices, Slice("output.weight", 0, 6, (0,)))))
    assert_untouched(vae, before)


def test_something_that_is_no_module_is_refused(made: Plan) -> None:
    with pytest.raises(PlanError, match="made for other weights"):
        cut(nn.Linear(2, 2), made)
    with pytest.raises(PlanError, match="got str, expected an nn"):
        cut("model.pt", made)


def test_a_plan_that_contradicts_its_own_removals_cannot_pass_for_a_cut(vae: DenseVAE, made: Plan) -> None:
    """Its slices keep other latents than it says: the result differs from the oracle, which is what `verify` sees."""
    wrong = tuple(
        dataclasses.replace(part, kept=(0, 1, 2, 3)) if part.key.startswith("mean_head") else part
        for part in made.slices
    )
    smaller = cut(vae, dataclasses.replace(made, slices=wrong))
    with pytest.raises(AssertionError, match="mean differs"):
        assert_same_but_for_the_removed(vae, smaller, made)


def test_a_buffer_that_is_not_saved_is_cut_or_refused() -> None:
    """A plan speaks of a state dict, and this buffer is in none."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
            self.last = nn.Linear(4, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(z * self.scale)

    cut_exactly_or_refused(PlainVAE(Scaled()), [1])
