"""Which rows make a latent and which columns read it, whatever stands between: found by running the model."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted import (
    MapVAE,
    OwnVAE,
    PlainVAE,
    assert_untouched,
    cut_exactly,
    cut_exactly_or_refused,
    dense,
    planned,
    randomise,
    rows,
    snapshot,
)
from vaeprune.errors import TraceError
from vaeprune.posterior import Posterior
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Recorder
from vaeprune.surgery.trace import rows_at_once, trace

Heads = Callable[["OneHead", Tensor], tuple[Tensor, Tensor]]


def kept(made: Plan) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(part.key, part.axis): part.kept for part in made.slices}


class OneHead(OwnVAE):
    """x (5) → h (6) → one head of `channels`, parted into mean and logvar of 3 latents by `heads`; z → 5."""

    def __init__(self, heads: Heads, channels: int = 6, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.head = nn.Linear(6, channels)
        self.second = nn.Linear(6, 3)
        self.decoder = decoder or nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5))
        self.heads = heads
        randomise(self, 2)
        self.eval()

    @property
    def latent_size(self) -> int:
        return self.decoder[0].weight.shape[1]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(*self.heads(self, torch.tanh(self.body(x))))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z)


class Decoder(nn.Module):
    """Any function of z (4) and this module's layers; ends in rows of 5."""

    def __init__(self, decode: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 5)
        self.wide, self.late = nn.Linear(5, 6), nn.Linear(10, 5)
        self.decode = decode

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(self, z)


def decoding(decode: Callable[[nn.Module, Tensor], Tensor]) -> PlainVAE:
    return PlainVAE(Decoder(decode))


# ---- heads


@pytest.mark.parametrize(
    ("heads", "stay"),
    [
        pytest.param(lambda a: a.chunk(2, 1), (0, 2, 3, 5), id="chunk"),
        pytest.param(lambda a: a.tensor_split(2, 1), (0, 2, 3, 5), id="tensor_split"),
        pytest.param(lambda a: a.view(len(a), -1, 2).unbind(-1), (0, 1, 4, 5), id="interleaved"),
        pytest.param(lambda a: a.view(len(a), 2, -1).unbind(1), (0, 2, 3, 5), id="stacked"),
        pytest.param(lambda a: (a[:, ::2], a[:, 1::2]), (0, 1, 4, 5), id="even and odd"),
        pytest.param(lambda a: a.flip(1).chunk(2, 1), (0, 2, 3, 5), id="backwards"),
        pytest.param(lambda a: (torch.tanh(a.chunk(2, 1)[0]), a.chunk(2, 1)[1].clamp(-5, 5)), (0, 2, 3, 5), id="bent"),
        pytest.param(
            lambda a: (a.chunk(2, 1)[0], 2 * torch.log(F.softplus(a.chunk(2, 1)[1]))), (0, 2, 3, 5), id="deviations"
        ),
    ],
)
def test_rows_of_one_head_are_found_however_it_is_parted(
    heads: Callable[[Tensor], tuple[Tensor, Tensor]], stay: tuple[int, ...]
) -> None:
    made, smaller = cut_exactly(OneHead(lambda m, h: heads(m.head(h))), [1])
    assert kept(made)["head.weight", 0] == stay
    assert kept(made)["head.bias", 0] == stay
    assert smaller.head.out_features == 4


def test_rows_in_any_order_are_found() -> None:
    """Latent 1 is made by rows 4 and 1; the numbers are written into `encode`, so only the plan can be looked at."""

    def heads(m: OneHead, h: Tensor) -> tuple[Tensor, Tensor]:
        a = m.head(h)
        return a[:, [2, 4, 0]], a[:, [3, 1, 5]]

    found = trace(OneHead(heads), (rows(1, (5,)),))
    assert [w.rows[:, 1].nonzero().flatten().tolist() for w in found.writers] == [[1, 4]]


def test_a_head_that_is_called_once_for_each_half_is_cut_exactly_or_refused() -> None:
    cut_exactly_or_refused(OneHead(lambda m, h: (m.head(h).chunk(2, 1)[0], m.head(h).chunk(2, 1)[1])), [1])


def test_mean_and_logvar_from_different_layers_are_cut() -> None:
    made, _ = cut_exactly(OneHead(lambda m, h: (m.head(h), m.second(h)), channels=3), [2])
    assert kept(made)["head.weight", 0] == kept(made)["second.bias", 0] == (0, 1)


def test_a_constant_logvar_has_no_rows() -> None:
    made, _ = cut_exactly(OneHead(lambda m, h: (m.second(h), torch.zeros_like(m.second(h)))), [2])
    assert kept(made)["second.weight", 0] == (0, 1)
    assert ("head.weight", 0) not in kept(made)


def test_the_trace_says_which_row_makes_and_which_column_reads_a_latent() -> None:
    found = trace(OneHead(lambda m, h: m.head(h).chunk(2, 1)), (rows(2, (5,)),))
    each = torch.eye(3, dtype=torch.bool)
    (writer,), (reader,) = found.writers, found.readers
    assert (writer.site.key, writer.site.bias, reader.site.key) == ("head.weight", "head.bias", "decoder.0.weight")
    assert torch.equal(writer.rows, torch.cat([each, each]))
    assert torch.equal(reader.columns, each)
    assert found.latent_size == 3


# ---- readers


def test_two_layers_that_read_z_are_both_cut() -> None:
    made, _ = cut_exactly(decoding(lambda m, z: m.last(torch.tanh(m.first(z)) * m.second(z))), [1, 3])
    assert kept(made)["decoder.first.weight", 1] == kept(made)["decoder.second.weight", 1] == (0, 2)
    assert made.bias_changes.keys() == {"decoder.first.bias", "decoder.second.bias"}


def test_a_layer_that_reads_z_twice_is_cut_once() -> None:
    made, _ = cut_exactly(decoding(lambda m, z: m.last(torch.tanh(m.first(z)) + torch.relu(m.first(z)))), [1, 3])
    assert kept(made)["decoder.first.weight", 1] == (0, 2)


def test_z_carried_past_the_first_layer_is_cut_where_it_is_read() -> None:
    made, _ = cut_exactly(
        decoding(lambda m, z: m.late(torch.cat([torch.tanh(m.first(z)), z], 1))),
        [1, 3],
    )
    assert kept(made)["decoder.first.weight", 1] == (0, 2)
    assert kept(made)["decoder.late.weight", 1] == (*range(6), 6, 8)


def test_a_column_that_does_not_read_z_stays() -> None:
    made, _ = cut_exactly(decoding(lambda m, z: m.last(m.wide(torch.cat([torch.ones_like(z[:, :1]), z], 1)))), [0])
    assert kept(made)["decoder.wide.weight", 1] == (0, 2, 3, 4)


def test_columns_that_read_a_condition_are_no_latents() -> None:
    class Conditional(PlainVAE):
        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return self.decoder(torch.cat([condition[0], z], 1))

    vae = Conditional(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5)))
    found = trace(vae, (rows(3, (5,)), rows(3, (2,))))
    (reader,) = found.readers
    assert reader.site.key == "decoder.0.weight"
    expected = torch.cat([torch.zeros(4, 2), torch.eye(4)], 1).bool()
    assert torch.equal(reader.columns, expected)


def test_a_latent_nothing_reads_has_no_columns_and_its_rows_go() -> None:
    vae = PlainVAE(Decoder(lambda m, z: m.last(m.first(torch.cat([z[:, :3], torch.ones_like(z[:, :1])], 1)))))
    assert not trace(vae, (rows(1, (5,)),)).readers[0].columns[3].any()
    assert kept(planned(vae, [3]))["mean.weight", 0] == (0, 1, 2)


@pytest.mark.parametrize("noisy", ["means", "decoded outputs"])
def test_a_model_that_is_never_the_same_twice_is_refused(noisy: str) -> None:
    """Its eval mode draws random numbers, so no two runs can be compared."""

    class Noisy(PlainVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            p = super().encode(x)
            return Posterior(p.mean + torch.randn_like(p.mean), p.logvar) if noisy == "means" else p

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            out = super().decode_parameters(z)
            return out if noisy == "means" else out + torch.randn_like(out)

    with pytest.raises(TraceError) as error:
        planned(Noisy(), [1])
    assert error.value.message == f"Noisy: its {noisy} change between two identical calls in eval mode"


# ---- what stands before the heads is of no concern


@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(5, 6), nn.Softmax(1), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(5, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)),
    ],
    ids=["LayerNorm", "softmax", "GroupNorm", "LayerNorm last"],
)
def test_channels_may_mix_before_the_heads(body: nn.Module) -> None:
    vae = PlainVAE()
    vae.body = body
    made, _ = cut_exactly(vae.eval(), [1, 3])
    assert kept(made)["mean.weight", 0] == kept(made)["logvar.weight", 0] == (0, 2)


def test_attention_before_the_heads_is_no_obstacle() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1, 6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x[:, :, None])
            return self.attention(h, h, h)[0].mean(1)

    vae = PlainVAE()
    vae.body = Attends()
    cut_exactly(vae.eval(), [1, 3])


def test_a_recurrent_encoder_is_no_obstacle() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(1, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x[:, :, None])[0][:, -1]

    vae = PlainVAE()
    vae.body = Reads()
    cut_exactly(vae.eval(), [1, 3])


def test_a_mixing_layer_behind_the_first_reader_is_no_obstacle() -> None:
    made, _ = cut_exactly(
        PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Softmax(1), nn.Linear(6, 5))), [1]
    )
    assert kept(made)["decoder.0.weight", 1] == (0, 2, 3)


# ---- latents that cannot be taken apart


class Twins(PlainVAE):
    """Rows 0 and 1 of the mean head make latents 0 and 1, and 2 and 3, which are equal in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(6, 2)

    @property
    def latent_size(self) -> int:
        return self.logvar.weight.shape[0]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        h = self.hidden(x)
        return Posterior(self.mean(h).repeat_interleave(2, 1), self.logvar(h))


def test_latents_that_share_a_row_are_refused_with_the_weight_they_share() -> None:
    with pytest.raises(TraceError) as error:
        planned(Twins(), [3])
    assert error.value.message == "mean.weight: row 1 serves latents 2, 3 together, which cannot be taken apart"
    assert error.value.hint == "keep them all, or remove them all"
    made, _ = cut_exactly(Twins(), [2, 3])
    assert kept(made)["mean.weight", 0] == (0,)


def test_latents_that_share_a_column_are_refused_with_the_weight_they_share() -> None:
    """The decoder reads z0·z1 and z2·z3."""

    def products() -> PlainVAE:
        vae = decoding(lambda m, z: m.last(m.pairs(z.view(len(z), -1, 2).prod(2))))
        vae.decoder.pairs = nn.Linear(2, 6)
        return vae

    with pytest.raises(TraceError) as error:
        planned(products(), [2])
    assert error.value.message == (
        "decoder.pairs.weight: column 1 serves latents 2, 3 together, which cannot be taken apart"
    )
    made, _ = cut_exactly(products(), [2, 3])
    assert kept(made)["decoder.pairs.weight", 1] == (0,)


@pytest.mark.parametrize(
    ("layer", "function"),
    [(nn.Softmax(1), "softmax"), (nn.LayerNorm(4, elementwise_affine=False), "layer_norm")],
    ids=["softmax", "a norm without weights"],
)
def test_a_function_that_mixes_latents_is_refused_by_its_name(layer: nn.Module, function: str) -> None:
    with pytest.raises(TraceError) as error:
        planned(PlainVAE(nn.Sequential(layer, nn.Linear(4, 5))), [1])
    assert error.value.message.startswith("decoder.1.weight: column 0 serves latents 0, 1, 2, 3 together")
    assert f"{function} in decoder.0" in error.value.message


def test_a_mean_that_another_weight_reads_is_refused() -> None:
    class Chained(PlainVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            mean = self.mean(self.hidden(x))
            return Posterior(mean, self.onwards(mean))

    vae = Chained()
    vae.onwards = nn.Linear(4, 4)
    with pytest.raises(TraceError) as error:
        planned(vae, [1])
    assert str(error.value) == "mean.weight: row 1 makes a latent and is also read by onwards.weight"


def test_a_mean_the_input_reaches_without_a_weight_is_refused() -> None:
    class Copying(PlainVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            posterior = super().encode(x)
            return Posterior(torch.cat([x[:, :1], posterior.mean[:, 1:]], 1), torch.zeros_like(posterior.logvar))

    with pytest.raises(TraceError) as error:
        planned(Copying(), [0])
    assert str(error.value) == "encoder: no weight was found that makes latent 0"


def test_a_latent_that_reaches_the_output_without_a_weight_is_refused_with_its_number() -> None:
    """Latent 2 is added to the first pixel."""
    vae = decoding(lambda m, z: m.last(m.first(z)) + F.pad(z[:, 2:3], (0, 4)))
    with pytest.raises(TraceError) as error:
        planned(vae, [1])
    assert str(error.value) == "decoder: latents 2 reach the output without passing a weight that could be cut"


# ---- how many probes run together


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([(1, 10), (1, 20)], 512, id="small results"),
        pytest.param([(1, 10), (1, 1 << 20), (1, 5)], (1 << 29) // (6 * 8 << 20), id="the largest result decides"),
        pytest.param([(1, 1 << 30)], 1, id="one that is too large for two"),
        pytest.param([], 512, id="none"),
    ],
)
def test_as_many_probes_run_together_as_fit_into_memory(sizes: list[tuple[int, int]], expected: int) -> None:
    before = Recorder()
    before.results = [torch.empty(size, dtype=torch.float64, device="meta") for size in sizes]
    assert rows_at_once(before) == expected


# ---- NaN that is swallowed, control flow, mixed rows

TURNING = {
    "where": lambda z: torch.where(z.isnan(), torch.zeros_like(z), z),
    "nan_to_num": torch.nan_to_num,
    "masked_fill": lambda z: z.masked_fill(z != z, 0.0),
    "fmax": lambda z: torch.fmax(z, torch.full_like(z, -100.0)),
}


@pytest.mark.parametrize("turn", TURNING.values(), ids=TURNING.keys())
def test_a_nan_that_is_turned_into_a_number_still_shows(turn: Callable[[Tensor], Tensor]) -> None:
    made, _ = cut_exactly(decoding(lambda m, z: m.last(torch.tanh(m.first(turn(z))))), [1, 3])
    assert kept(made)["decoder.first.weight", 1] == (0, 2)
    made, _ = cut_exactly(OneHead(lambda m, h: (m.second(h), turn(m.head(h))), channels=3), [1])
    assert kept(made)["head.weight", 0] == (0, 2)


def positive(z: Tensor, above: float = 0.0) -> Tensor:
    """A ReLU that makes 0 of a NaN: where it was 0 before, a NaN does not show."""
    return torch.where(z > above, z, torch.zeros_like(z))


def test_a_nan_swallowed_on_the_way_to_the_decoder_is_noticed() -> None:
    """Of z and −z one is negative, whatever z is."""
    layers = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))

    class Both(PlainVAE):
        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return self.decoder(torch.cat([positive(z), positive(-z)], 1))

    with pytest.raises(TraceError) as error:
        planned(Both(layers), [1])
    assert re.fullmatch(
        r"decoder\.0\.weight: latent \d changes it, but a NaN did not show that; a function on the way hides NaN",
        str(error.value),
    )


def head_at(value: float, heads: Heads) -> OneHead:
    """A head of 3 channels whose outputs are near `value`."""
    vae = OneHead(heads, channels=3)
    with torch.no_grad():
        vae.head.weight *= 0.01
        vae.head.bias.fill_(value)
    return vae


@pytest.mark.parametrize("which", ["mean", "logvar"])
def test_a_nan_swallowed_between_head_and_latent_is_noticed(which: str) -> None:
    """The head writes −0.5, which becomes 0 as a NaN does."""
    if which == "mean":
        vae = head_at(-0.5, lambda m, h: (positive(m.head(h)), m.second(h)))
    else:
        vae = head_at(-0.5, lambda m, h: (m.second(h), positive(m.head(h))))
    with pytest.raises(TraceError) as error:
        planned(vae, [1])
    assert error.value.message.startswith("head.weight: ")
    assert error.value.message.endswith("but a NaN did not show that; a function on the way hides NaN")


@pytest.mark.parametrize("above", [-1.0, 0.5, 1.0, 5.0])
def test_a_dependence_that_no_probe_shows_is_no_licence_to_cut(above: float) -> None:
    """Above 5 nothing is seen at all: neither a NaN nor a small change reaches the weight."""
    cut_exactly_or_refused(decoding(lambda m, z: m.last(torch.tanh(m.first(positive(z, above))))), [1, 3])


def test_a_head_whose_rows_no_probe_shows_is_no_licence_to_cut() -> None:
    cut_exactly_or_refused(head_at(-9.0, lambda m, h: (m.second(h), positive(m.head(h)))), [1])


def test_a_nan_swallowed_before_the_output_is_noticed() -> None:
    vae = decoding(lambda m, z: m.last(m.first(z)) + torch.nan_to_num(z[:, :1]))
    with pytest.raises(TraceError, match="reach the output without passing a weight"):
        planned(vae, [1])


def test_control_flow_that_depends_on_z_is_refused() -> None:
    vae = decoding(lambda m, z: m.last(m.first(z) if z.sum() < 3 else m.second(z)))
    with pytest.raises(TraceError, match=r"^decoder\.(first|second)\.weight: is reached in another order or shape"):
        planned(vae, [1])


def test_rows_that_are_mixed_in_the_decoder_are_refused() -> None:
    with pytest.raises(TraceError):
        planned(decoding(lambda m, z: m.last(m.first(z - z.mean(0)))), [1])


def test_rows_that_are_folded_into_each_other_are_no_licence_to_cut() -> None:
    vae = decoding(lambda m, z: m.last(m.first(z.reshape(1, -1).reshape(-1, 4).repeat(2, 1)))[: len(z)])
    cut_exactly_or_refused(vae, [1])


def test_a_weight_in_the_decoder_that_reads_no_batch_does_not_keep_latents() -> None:
    """Positions on the way to the output."""

    def decode(m: nn.Module, z: Tensor) -> Tensor:
        places = torch.linspace(0.1, 0.9, 12, dtype=z.dtype).view(3, 4)
        return m.last(torch.tanh(m.first(z)[:, None] + m.second(places)).mean(1))

    made, _ = cut_exactly(decoding(decode), [1, 3])
    assert kept(made)["decoder.first.weight", 1] == (0, 2)
    assert not any(key == "decoder.second.weight" for key, _ in kept(made))


def test_heads_over_places_that_are_rows_are_cut() -> None:
    """The head writes rows of places, of which the first is the latents'."""

    def heads(m: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
        seen = m.head(torch.stack([h, h.flip(1)], 1).flatten(0, 1)).view(len(h), 2, -1)[:, 0]
        return seen.chunk(2, 1)[0], seen.chunk(2, 1)[1]

    made, _ = cut_exactly(OneHead(heads), [1])
    assert kept(made)["head.weight", 0] == (0, 2, 3, 5)


# ---- the model that is traced


@pytest.mark.parametrize("follows", [True, False], ids=["that can be traced", "that cannot"])
def test_a_model_is_untouched_by_its_trace(follows: bool) -> None:
    layers = [nn.BatchNorm1d(4) if follows else nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, 5)]
    vae = PlainVAE(nn.Sequential(*layers)).train()
    vae.decoder[1].eval()
    vae.mean.weight.requires_grad_(False)
    vae.body.weight.grad = torch.ones_like(vae.body.weight)
    vae.body.register_forward_hook(lambda *_: None)
    validating = torch.distributions.Distribution._validate_args
    torch.manual_seed(4)
    before, number = snapshot(vae), torch.random.get_rng_state()
    if follows:
        trace(vae, (rows(2, (5,)),))
    else:
        with pytest.raises(TraceError):
            trace(vae, (rows(2, (5,)),))
    assert_untouched(vae, before)
    assert torch.equal(torch.random.get_rng_state(), number)
    assert torch.distributions.Distribution._validate_args == validating


def test_an_encoder_that_builds_a_distribution_is_traced() -> None:
    class Builds(PlainVAE):
        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            p = super().encode(x)
            q = torch.distributions.Normal(p.mean, torch.exp(0.5 * p.logvar))
            return Posterior(q.mean, 2 * q.stddev.log())

    made, _ = cut_exactly(Builds(), [1])
    assert kept(made)["logvar.weight", 0] == (0, 2, 3)


def test_tied_weights_are_cut_under_all_their_names() -> None:
    vae = PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)))
    vae.logvar.weight = vae.mean.weight
    made, smaller = cut_exactly(vae, [0])
    assert kept(made)["mean.weight", 0] == kept(made)["logvar.weight", 0] == (1, 2, 3)
    assert smaller.mean.weight is smaller.logvar.weight


def test_a_weight_tied_across_encoder_and_decoder_is_cut_exactly_or_refused() -> None:
    """One (4, 4) weight makes the means and reads z."""
    vae = PlainVAE(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 5)))
    vae.body, vae.mean, vae.logvar = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    vae.mean.weight = vae.decoder[0].weight
    vae.eval()
    cut_exactly_or_refused(vae, [0])  # its columns also read h, and its rows also write the decoder's hidden units


def test_maps_made_by_a_chunked_convolution_are_traced() -> None:
    found = trace(MapVAE(), (rows(1, (2, 4, 4)),))
    (writer,), (reader,) = found.writers, found.readers
    each = torch.eye(3, dtype=torch.bool)
    assert torch.equal(writer.rows, torch.cat([each, each]))
    assert torch.equal(reader.columns, each)


def test_the_example_may_be_one_row_or_many() -> None:
    vae = dense()
    one, many = (planned_keys(vae, n) for n in (1, 9))
    assert one == many


def planned_keys(vae: OwnVAE, count: int) -> list[tuple[str, list[list[bool]]]]:
    found = trace(vae, (rows(count),))
    sites = [(w.site.key, w.rows.tolist()) for w in found.writers]
    return sites + [(r.site.key, r.columns.tolist()) for r in found.readers]
