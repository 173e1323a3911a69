"""Which hidden channels go, on what evidence, and why others stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hidden_models import (
    ABOVE,
    BELOW,
    LATENTS,
    HiddenVAE,
    assert_same,
    biased,
    constant_but_left,
    cut_hidden,
    dead,
    left_of,
    removed,
    sets_of,
    unread,
)
from vaeprune.errors import PlanError, TraceError
from vaeprune.likelihood import Likelihood
from vaeprune.surgery.assembling import Chosen
from vaeprune.surgery.cut import cut
from vaeprune.surgery.hidden import constant_channels, examine, plan_network, refuse_no_layers
from vaeprune.surgery.plan import ChannelRemoval, Plan, read_plan, write_plan

BERNOULLI = Likelihood()


def two_layers(activation: nn.Module | None = None, likelihood: Likelihood | None = None, seed: int = 0) -> HiddenVAE:
    """5 → 8 → 6 → heads, and 3 → 7 → 5."""
    act = activation or nn.ReLU()
    encoder = nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 6), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(LATENTS, 7), act, nn.Linear(7, 5))
    return HiddenVAE(encoder, 6, decoder, likelihood=likelihood, seed=seed)


def only(made: Plan) -> ChannelRemoval:
    (channel,) = made.channels
    return channel


# ---- evidence


def test_a_unit_without_fan_in_is_proved_dead_for_any_input() -> None:
    vae = two_layers()
    dead(vae.encoder[0], 2)
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [2]})
    assert only(made) == ChannelRemoval("encoder.0.weight", 0, 2, "constant", "proved", 0.0)
    assert made.data["proved_for_input_range"] is None


def test_a_unit_far_below_zero_is_proved_only_where_a_range_is_declared() -> None:
    vae = two_layers(likelihood=BERNOULLI)
    biased(vae.encoder[0], 2, bias=BELOW)
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [2]})
    assert only(made).evidence == "proved"
    assert made.data["proved_for_input_range"] == [0.0, 1.0]
    vae = two_layers()
    biased(vae.encoder[0], 2, bias=BELOW)
    hidden, made, _ = cut_hidden(vae, {"encoder.0.weight": [2]})
    assert only(made).evidence == f"observed constant on {hidden.ranges.rows} samples"
    assert (
        hidden.ranges.rows == made.data["calibrate_rows"] == sum(len(b[0]) for b in sets_of(vae).calibrate.batches(64))
    )


def test_a_decoder_unit_is_proved_for_a_stated_range_of_z() -> None:
    vae = two_layers()
    biased(vae.decoder[0], 3)
    _, made, _ = cut_hidden(vae, {"decoder.0.weight": [3]})
    assert only(made).evidence == "proved"
    assert made.data["proved_for_latent_range"] >= 6


def test_a_unit_that_only_correlations_keep_silent_is_observed_not_proved() -> None:
    """Its two inputs are x and −x, so that bounds cannot see that they cancel."""
    vae = two_layers(likelihood=BERNOULLI)
    with torch.no_grad():
        vae.encoder[0].weight[:2] = 0
        vae.encoder[0].weight[0, 0], vae.encoder[0].weight[1, 0] = 1, 1
        vae.encoder[0].bias[:2] = 1
        vae.encoder[2].weight[4] = 0
        vae.encoder[2].weight[4, 0], vae.encoder[2].weight[4, 1] = 1, -1
    hidden, made, _ = cut_hidden(vae, {"encoder.2.weight": [4]})
    assert only(made).evidence == f"observed constant on {hidden.ranges.rows} samples"


def test_what_serves_nothing_is_unread_and_proved() -> None:
    vae = two_layers()
    unread(vae.encoder[2], 5)
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [5]})
    assert only(made) == ChannelRemoval("encoder.0.weight", 0, 5, "unread", "proved", None)


def test_what_only_served_removed_units_goes_with_them() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU()))
    dead(vae.encoder[4], 1)
    unread(vae.encoder[4], 2)
    with torch.no_grad():
        vae.encoder[4].weight[1] = 1e-3  # alive in its weights, dead by its bias
        vae.encoder[4].weight[1, 2] = 1.0  # reads 2, which nothing else reads
        vae.encoder[2].weight[:, 3] = 0
        vae.encoder[2].weight[2, 3] = 1.0  # and 3 is read by that alone
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [3], "encoder.2.weight": [2], "encoder.4.weight": [1]})
    kinds = {channel.weight: channel.kind for channel in made.channels}
    assert kinds == {"encoder.4.weight": "constant", "encoder.2.weight": "unread", "encoder.0.weight": "unread"}


def test_a_constant_is_seen_behind_whatever_follows_the_unit() -> None:
    """The unit varies; a clamp after it does not let that through."""

    class Clamped(nn.Module):
        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return h.clamp(-100, 5.0)

    vae = two_layers(Clamped())
    biased(vae.encoder[0], 6, bias=20.0)
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [6]})
    assert torch.allclose(made.held["encoder.2.weight", 1][6], torch.tensor(5.0, dtype=torch.float64))
    assert made.held["encoder.2.weight", 1].isnan().sum() == 7


def test_a_unit_that_fires_once_stays() -> None:
    vae = two_layers()
    x = sets_of(vae).calibrate
    rows = torch.cat([batch[0] for batch in x.batches(64)]).double()
    with torch.no_grad():
        vae.encoder[0].weight[2] = torch.tensor([1.0, 0, 0, 0, 0])
        vae.encoder[0].bias[2] = -(rows[:, 0].topk(2).values.mean())
    assert plan_network(examine(vae, sets_of(vae))) is None


def test_a_decoder_unit_that_only_samples_of_the_prior_wake_stays() -> None:
    vae = two_layers()
    with torch.no_grad():
        for head, bias in ((vae.mean, 0.0), (vae.logvar, -20.0)):
            head.weight.zero_()
            head.bias.fill_(bias)
        vae.decoder[0].weight[2] = torch.tensor([1.0, 0, 0])
        vae.decoder[0].bias[2] = -1.0
    made = plan_network(examine(vae, sets_of(vae)))
    assert "decoder.0.weight" not in removed(made)


def test_the_largest_deviation_is_recorded() -> None:
    """In float32 a unit behind a large constant moves by its rounding."""
    vae = two_layers(nn.Sigmoid())
    vae.float()
    biased(vae.encoder[0], 1, bias=15.0)  # 1 − 3e-7
    hidden = examine(vae, sets_of(vae))
    made = plan_network(hidden)
    assert removed(made) == {"encoder.0.weight": [1]}
    assert 0 <= only(made).deviation < 1e-6
    assert only(made).evidence.startswith("observed")
    assert_same(vae, cut(vae, made), tolerance=1e-5)


def test_float32_models_are_cut() -> None:
    vae = two_layers(seed=3).float()
    dead(vae.encoder[0], 0, 7)
    made = plan_network(examine(vae, sets_of(vae)))
    assert removed(made) == {"encoder.0.weight": [0, 7]}
    smaller = cut(vae, made)
    assert smaller.encoder[0].weight.dtype == torch.float32
    assert_same(vae, smaller, tolerance=1e-5)


# ---- what stays


def test_every_channel_is_cut_or_can_go_or_is_listed() -> None:
    vae = two_layers()
    dead(vae.encoder[0], 1)
    hidden, made, _ = cut_hidden(vae, {"encoder.0.weight": [1]})
    assert [len(layer) for layer in hidden.layers] == [8, 6, 7]
    assert {left.weight: (left.channels, left.reason) for left in made.left} == {
        "mean.weight": (3, "it is a latent"),
        "logvar.weight": (3, "it is a latent"),
        "decoder.2.weight": (5, "it is part of the output"),
    }


def test_a_layer_of_one_channel_stays() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 6), nn.Tanh()))
    dead(vae.encoder[0], 0)
    dead(vae.encoder[2], 2, bias=0.5)
    hidden = examine(vae, sets_of(vae))
    made = plan_network(hidden)
    assert set(removed(made)) == {"encoder.2.weight"}
    assert left_of(made)["encoder.0.weight"] == "encoder.0.weight has only one channel"


def test_the_only_channel_that_can_go_goes() -> None:
    class Half(nn.Module):
        """Five of six channels are joined to the input."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return torch.relu(torch.cat([h[:, :5] + x, h[:, 5:]], 1))

    vae = HiddenVAE(Half())
    dead(vae.encoder.first, 0, 5)
    _, made, _ = cut_hidden(vae, {"encoder.first.weight": [5]})
    assert [left.channels for left in made.left if left.weight == "encoder.first.weight"] == [5]


def test_nothing_to_take_out_is_no_plan() -> None:
    assert plan_network(examine(two_layers(), sets_of(two_layers()))) is None


def test_layers_the_model_does_not_run_without_stay_and_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = two_layers()
    dead(vae.encoder[0], 2)
    dead(vae.decoder[0], 0, 3)
    hidden = examine(vae, sets_of(vae))

    def fits(made: Plan) -> str | None:
        return "it does not run" if "encoder.0.weight" in removed(made) else None

    monkeypatch.setattr(hidden.assembler, "fits", fits)
    made = plan_network(hidden)
    assert removed(made) == {"decoder.0.weight": [0, 3]}
    assert left_of(made)["encoder.0.weight"] == "it does not run"
    monkeypatch.setattr(hidden.assembler, "fits", lambda _made: "it does not run")
    assert plan_network(hidden) is None


def test_a_model_without_hidden_channels_is_told() -> None:
    vae = HiddenVAE(nn.Identity(), 5)
    hidden = examine(vae, sets_of(vae))
    assert not hidden.layers
    assert plan_network(hidden) is None
    with pytest.raises(TraceError, match="no hidden channel can be taken out: it is part of the output"):
        refuse_no_layers(hidden)


def test_a_constant_that_no_bias_can_take_over_says_so() -> None:
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 6, bias=False), nn.Tanh())
    vae = HiddenVAE(encoder)
    biased(vae.encoder[0], 1, bias=ABOVE)
    assert constant_but_left(vae) == {
        "encoder.0.weight": "constant 1, but encoder.2.weight has no bias that could take it over"
    }


def test_a_constant_that_one_of_two_readers_cannot_take_over_stays() -> None:
    """The head of means does not read the unit at all, so that nothing need be taken over there."""
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.Sigmoid()))
    vae.logvar = nn.Linear(6, LATENTS, bias=False).double()
    biased(vae.encoder[0], 1, bias=ABOVE)
    unread(vae.mean, 1)
    assert constant_but_left(vae) == {
        "encoder.0.weight": "constant 1, but logvar.weight has no bias that could take it over"
    }


def test_what_is_constant_in_the_models_own_type_is_so_whatever_a_finer_type_would_show() -> None:
    """A sigmoid of 20 is 1 in float32, and less by 2e-9 in float64."""
    vae = two_layers(nn.Sigmoid()).float()
    biased(vae.encoder[0], 1, bias=20.0)
    made = plan_network(examine(vae, sets_of(vae)))
    assert removed(made) == {"encoder.0.weight": [1]}
    assert only(made).deviation == 0.0


# ---- the plan


def test_a_plan_of_hidden_channels_is_replayed_from_disk(tmp_path: Path) -> None:
    vae = two_layers(nn.Sigmoid())
    biased(vae.encoder[0], 1, bias=ABOVE)
    _, made, smaller = cut_hidden(vae, {"encoder.0.weight": [1]})
    write_plan(made, tmp_path)
    again = cut(vae, read_plan(tmp_path))
    for key, value in smaller.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_two_plans_of_one_model_agree() -> None:
    vae = two_layers(nn.Sigmoid())
    biased(vae.encoder[0], 1, bias=ABOVE)
    first, second = (plan_network(examine(vae, sets_of(vae))) for _ in range(2))
    assert first.to_json() == second.to_json()
    numbers = second.numbers()
    assert first.numbers().keys() == numbers.keys()
    assert all(torch.equal(value.nan_to_num(9), numbers[name].nan_to_num(9)) for name, value in first.numbers().items())


def test_a_plan_that_empties_a_tensor_is_refused() -> None:
    hidden = examine(two_layers(), sets_of(two_layers()))
    everything = [Chosen(group, "cheap", "searched") for group in hidden.layers[0]]
    with pytest.raises(PlanError, match=r"encoder\.0\.weight: would lose all 8 channels of axis 0"):
        hidden.assembler.plan(everything, "network")


def test_a_plan_that_contradicts_the_model_is_told_before_it_is_used() -> None:
    """A group that lacks one of its entries: the cut model does not run."""
    vae = two_layers()
    hidden = examine(vae, sets_of(vae))
    group = hidden.layers[0][0]
    entries = {axis: gone for axis, gone in group.entries.items() if axis != ("encoder.2.weight", 1)}
    made = hidden.assembler.plan([Chosen(replace(group, entries=entries), "cheap", "tried")], "network")
    assert "no longer runs" in hidden.assembler.fits(made)


@pytest.mark.parametrize("seed", range(6))
def test_any_planted_units_go_and_no_others(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vae = two_layers(nn.Sigmoid() if seed % 2 else nn.ReLU(), seed=seed)
    gone = {}
    for name, layer in (("encoder.0.weight", vae.encoder[0]), ("decoder.0.weight", vae.decoder[0])):
        size = len(layer.bias)
        chosen = torch.randperm(size, generator=generator)[: 1 + seed % 3].tolist()
        biased(layer, *chosen, bias=ABOVE if seed % 2 else BELOW)
        gone[name] = chosen
    cut_hidden(vae, gone)


def test_channels_found_constant_are_a_choice_that_can_be_looked_at() -> None:
    vae = two_layers()
    dead(vae.encoder[0], 1)
    chosen, left = constant_channels(examine(vae, sets_of(vae)))
    assert [choice.kind for choice in chosen] == ["constant"]
    assert left == ()
