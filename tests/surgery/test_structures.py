"""Exactly the planted channels go, whatever lies between the weights that write them and those that read them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hidden_models import (
    ABOVE,
    BELOW,
    LATENTS,
    HiddenVAE,
    biased,
    constant_but_left,
    cut_hidden,
    dead,
    left_of,
    nothing_cut,
    unread,
)

PICTURE = (2, 4, 4)


class Then(nn.Module):
    """Modules by name, and what is done with them; conditions come after x."""

    def __init__(self, does, **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._does = does

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        return self._does(self, x, *condition)


class Shape(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


# ---- dense


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True)], ids=["ReLU", "ReLU in place"])
def test_dead_units_of_a_dense_network(activation: nn.Module) -> None:
    vae = HiddenVAE(
        nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 6), activation),
        decoder=nn.Sequential(nn.Linear(LATENTS, 7), activation, nn.Linear(7, 5)),
    )
    dead(vae.encoder[0], 1, 6)
    dead(vae.encoder[2], 0)
    dead(vae.decoder[0], 2, 3)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [1, 6], "encoder.2.weight": [0], "decoder.0.weight": [2, 3]})
    assert smaller.encoder[0].weight.shape == (6, 5)
    assert smaller.encoder[2].weight.shape == (5, 6)
    assert (smaller.encoder[0].out_features, smaller.encoder[2].in_features) == (6, 6)
    assert (smaller.mean.in_features, smaller.logvar.in_features) == (5, 5)
    assert (smaller.decoder[0].out_features, smaller.decoder[2].in_features) == (5, 5)


def test_a_saturated_sigmoid_folds_into_the_next_bias() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.Sigmoid()))
    biased(vae.encoder[0], 1, 4, bias=ABOVE)
    _, made, smaller = cut_hidden(vae, {"encoder.0.weight": [1, 4]})
    assert set(made.bias_changes) == {"mean.bias", "logvar.bias"}
    expected = vae.mean.bias + vae.mean.weight[:, [1, 4]].sum(1)
    assert torch.allclose(smaller.mean.bias, expected, rtol=0, atol=1e-14)


def test_batch_norm_between_dense_layers_is_cut_with_them() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU()))
    vae.encoder[1].bias.data[[2, 5]] = -90
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [2, 5]})
    assert smaller.encoder[1].running_mean.shape == (4,)
    assert smaller.encoder[1].num_features == 4


# ---- convolutional


def _convolutions(*between: nn.Module, padding: int = 1, first: int = 6, second: int | None = None) -> HiddenVAE:
    size = 4 if padding else 2
    encoder = nn.Sequential(
        nn.Conv2d(2, first, 3, padding=1), *between, nn.Conv2d(second or first, 3, 3, padding=padding), nn.Flatten()
    )
    return HiddenVAE(encoder, 3 * size * size, nn.Sequential(nn.Linear(LATENTS, 32), Shape(*PICTURE)), PICTURE)


def test_dead_channels_of_convolutions_with_batch_norm() -> None:
    vae = _convolutions(nn.BatchNorm2d(6), nn.ReLU(inplace=True))
    vae.encoder[1].bias.data[[0, 3]] = -90
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [0, 3]})
    assert smaller.encoder[3].weight.shape == (3, 4, 3, 3)
    assert (smaller.encoder[0].out_channels, smaller.encoder[3].in_channels) == (4, 4)


def test_a_constant_other_than_zero_goes_before_an_unpadded_convolution_and_stays_before_a_padded_one() -> None:
    vae = _convolutions(nn.Sigmoid(), padding=0)
    biased(vae.encoder[0], 2, bias=ABOVE)
    cut_hidden(vae, {"encoder.0.weight": [2]})
    vae = _convolutions(nn.Sigmoid())
    biased(vae.encoder[0], 2, bias=ABOVE)
    dead(vae.encoder[0], 4, bias=-800.0)  # sigmoid 0
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [4]})
    assert left_of(made)["encoder.0.weight"].startswith("constant 1, but encoder.2.weight pads with zeros")


def test_a_constant_stays_before_a_convolution_without_bias() -> None:
    vae = _convolutions(nn.Sigmoid(), nn.Conv2d(6, 4, 1, bias=False), nn.Tanh(), second=4)
    biased(vae.encoder[0], 2, bias=ABOVE)
    dead(vae.encoder[0], 4, bias=-800.0)
    _, made, _ = cut_hidden(vae, {"encoder.0.weight": [4]})
    assert "encoder.2.weight has no bias" in left_of(made)["encoder.0.weight"]


def test_pooled_and_upsampled_channels() -> None:
    vae = _convolutions(nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"))
    dead(vae.encoder[0], 5)
    cut_hidden(vae, {"encoder.0.weight": [5]})


def test_interpolated_channels() -> None:
    vae = _convolutions(nn.ReLU(), Then(lambda _, x: F.interpolate(x, scale_factor=1.0, mode="nearest")))
    dead(vae.encoder[0], 0)
    cut_hidden(vae, {"encoder.0.weight": [0]})


def test_flattened_channels_take_all_their_columns_with_them() -> None:
    encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
    vae = HiddenVAE(encoder, 6, nn.Sequential(nn.Linear(LATENTS, 32), Shape(*PICTURE)), PICTURE)
    dead(vae.encoder[0], 1)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [1]})
    assert smaller.encoder[3].weight.shape == (6, 48)


def test_a_constant_other_than_zero_folds_through_a_flattened_map() -> None:
    encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
    vae = HiddenVAE(encoder, 6, nn.Sequential(nn.Linear(LATENTS, 32), Shape(*PICTURE)), PICTURE)
    biased(vae.encoder[0], 1, bias=ABOVE)
    cut_hidden(vae, {"encoder.0.weight": [1]})


def _decoding(*decoder: nn.Module) -> HiddenVAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh())
    return HiddenVAE(encoder, 6, nn.Sequential(*decoder), PICTURE)


class Unflat(nn.Module):
    """Rows to maps; the number of channels is read off the row."""

    def forward(self, h: Tensor) -> Tensor:
        return h.view(len(h), -1, 2, 2)


def test_rows_viewed_as_maps_lose_whole_channels() -> None:
    vae = _decoding(nn.Linear(LATENTS, 20), nn.ReLU(), Unflat(), nn.ConvTranspose2d(5, 2, 2, stride=2))
    dead(vae.decoder[0], *range(4, 8), 12)
    cut_hidden(vae, {"decoder.0.weight": [4, 5, 6, 7]})


def test_transposed_convolutions() -> None:
    vae = _decoding(
        nn.Linear(LATENTS, 20),
        Unflat(),
        nn.ConvTranspose2d(5, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 1),
    )
    dead(vae.decoder[2], 1, 4)
    _, _, smaller = cut_hidden(vae, {"decoder.2.weight": [1, 4]})
    assert smaller.decoder[2].weight.shape == (5, 4, 3, 3)
    assert (smaller.decoder[2].out_channels, smaller.decoder[4].in_channels) == (4, 4)


def test_a_constant_stays_before_a_transposed_convolution_whose_taps_depend_on_place() -> None:
    vae = _decoding(
        nn.Linear(LATENTS, 20),
        nn.Sigmoid(),
        Unflat(),
        nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1),
    )
    biased(vae.decoder[0], *range(4), bias=ABOVE)
    assert "taps that depend on place" in constant_but_left(vae)["decoder.0.weight"]


def test_shuffled_pixels_take_their_channels_together() -> None:
    vae = _decoding(
        nn.Linear(LATENTS, 12), Shape(3, 2, 2), nn.Conv2d(3, 16, 1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1)
    )
    dead(vae.decoder[2], 4, 5, 6, 7, 9)
    _, _, smaller = cut_hidden(vae, {"decoder.2.weight": [4, 5, 6, 7]})
    assert smaller.decoder[5].weight.shape == (2, 3, 1, 1)


def test_depthwise_convolutions_are_cut_channel_by_channel() -> None:
    vae = _convolutions(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU())
    dead(vae.encoder[0], 1)
    dead(vae.encoder[2], 1, 3)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [1, 3]})
    depthwise = smaller.encoder[2]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (4, 4, 4)
    assert depthwise.weight.shape == (4, 1, 3, 3)


def test_a_depthwise_convolution_with_two_outputs_a_channel() -> None:
    vae = _convolutions(nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.ReLU(), second=12)
    dead(vae.encoder[2], 2, 3, 4)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [1]})
    assert (smaller.encoder[2].groups, smaller.encoder[2].out_channels) == (5, 10)


def test_grouped_convolutions_lose_whole_groups_or_nothing() -> None:
    vae = _convolutions(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.ReLU())
    dead(vae.encoder[2], 2, 3, 4)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [2, 3]})
    assert (smaller.encoder[2].groups, smaller.encoder[2].in_channels) == (2, 4)
    assert smaller.encoder[2].weight.shape == (4, 2, 3, 3)


def test_a_grouped_transposed_convolution_stays_and_the_rest_goes() -> None:
    grouped = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=3)
    vae = _convolutions(nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Tanh())
    dead(vae.encoder[0], 0, 1)
    dead(vae.encoder[4], 5, bias=0.0)
    _, made, smaller = cut_hidden(vae, {"encoder.4.weight": [5]})
    assert "conv_transpose2d with encoder.2.weight" in left_of(made)["encoder.0.weight"]
    assert smaller.encoder[2].groups == 3


# ---- several paths


def _residual(m: Then, x: Tensor) -> Tensor:
    h = torch.relu(m.first(x))
    return torch.relu(h + m.block(h))


def test_channels_that_are_added_go_together_or_not_at_all() -> None:
    vae = HiddenVAE(Then(_residual, first=nn.Linear(5, 6), block=nn.Linear(6, 6)))
    dead(vae.encoder.first, 1, 2)
    dead(vae.encoder.block, 2, 4)
    _, made, smaller = cut_hidden(vae, {"encoder.first.weight": [2], "encoder.block.weight": [2]})
    assert smaller.encoder.block.weight.shape == (5, 5)
    assert made.held["encoder.block.weight", 1][2] == 0


def _skip(m: Then, x: Tensor) -> Tensor:
    a = torch.relu(m.first(x))
    b = torch.relu(m.second(a))
    return torch.tanh(m.third(torch.cat([b, a], 1)))


def test_concatenated_channels_go_from_every_reader() -> None:
    vae = HiddenVAE(Then(_skip, first=nn.Linear(5, 4), second=nn.Linear(4, 3), third=nn.Linear(7, 6)))
    dead(vae.encoder.first, 3)
    dead(vae.encoder.second, 0)
    _, _, smaller = cut_hidden(vae, {"encoder.first.weight": [3], "encoder.second.weight": [0]})
    assert torch.equal(smaller.encoder.third.weight, vae.encoder.third.weight[:, [1, 2, 3, 4, 5]])


def test_a_branch_that_is_all_dead_keeps_one_channel() -> None:
    vae = HiddenVAE(Then(_skip, first=nn.Linear(5, 4), second=nn.Linear(4, 3), third=nn.Linear(7, 6)))
    dead(vae.encoder.second, 0, 1, 2)
    _, made, smaller = cut_hidden(vae, {"encoder.second.weight": [0, 1]})
    assert smaller.encoder.second.weight.shape == (1, 4)
    assert left_of(made)["encoder.second.weight"] == "at least one channel must stay"


@pytest.mark.parametrize("bias", [-50.0, 0.7])
def test_a_layer_that_is_all_dead_keeps_one_channel(bias: float) -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh()))
    dead(vae.encoder[0], *range(6), bias=bias)
    _, _, smaller = cut_hidden(vae, {"encoder.0.weight": [0, 1, 2, 3, 4], "encoder.2.weight": [0, 1, 2, 3, 4]})
    assert smaller.encoder[0].weight.shape == (1, 5)


def test_a_layer_that_nothing_reads_keeps_one_channel() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU()), 4)
    vae.encoder[2].weight.data.zero_()
    vae.encoder[2].bias.data.fill_(0.5)
    cut_hidden(vae, {"encoder.0.weight": [0, 1, 2, 3, 4], "encoder.2.weight": [0, 1, 2]})


def test_channels_joined_to_the_input_stay() -> None:
    vae = HiddenVAE(Then(lambda m, x: torch.relu(m.first(x) + x), first=nn.Linear(5, 5)), 5)
    unread(vae.mean, 1)
    unread(vae.logvar, 1)
    assert "also depends on the input" in nothing_cut(vae)["encoder.first.weight"]


# ---- what mixes channels


@pytest.mark.parametrize(
    ("mixing", "name"),
    [
        (nn.LayerNorm(6), "layer_norm"),
        (nn.Softmax(1), "softmax"),
        (Then(lambda _, h: F.normalize(h, dim=1)), "normalize"),
    ],
    ids=["LayerNorm", "softmax", "normalize"],
)
def test_channels_that_are_mixed_stay(mixing: nn.Module, name: str) -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), mixing))
    dead(vae.encoder[0], 2)
    assert f"it goes through {name} " in nothing_cut(vae)["encoder.0.weight"]


def test_group_norm_holds_its_channels_and_the_rest_goes() -> None:
    vae = _convolutions(nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
    dead(vae.encoder[0], 2)
    dead(vae.encoder[3], 5)
    _, made, _ = cut_hidden(vae, {"encoder.3.weight": [5]})
    assert "group_norm" in left_of(made)["encoder.0.weight"]


class Attention(nn.Module):
    """Tokens from x, one head of attention between them, and what comes after."""

    def __init__(self, multihead: bool) -> None:
        super().__init__()
        self.tokens, self.out, self.last = nn.Linear(5, 12), nn.Linear(4, 5), nn.Linear(15, 6)
        self.qkv = None if multihead else nn.Linear(4, 12)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True) if multihead else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.tokens(x)).view(len(x), 3, 4)
        if self.attention is not None:
            h = self.attention(h, h, h)[0]
        else:
            query, key, value = self.qkv(h).chunk(3, -1)
            h = torch.softmax(query @ key.mT, -1) @ value
        return torch.relu(self.last(torch.relu(self.out(h)).flatten(1)))


@pytest.mark.parametrize("multihead", [False, True], ids=["softmax by hand", "nn.MultiheadAttention"])
def test_attention_stays_and_what_comes_after_goes(multihead: bool) -> None:
    vae = HiddenVAE(Attention(multihead))
    dead(vae.encoder.out, 1)
    dead(vae.encoder.last, 3)
    _, made, _ = cut_hidden(vae, {"encoder.out.weight": [1], "encoder.last.weight": [3]})
    assert left_of(made)["encoder.tokens.weight"]


def test_a_recurrent_layer_stays_and_what_comes_after_goes() -> None:
    encoder = Then(
        lambda m, x: torch.relu(m.last(m.gru(torch.relu(m.first(x)).view(len(x), 3, 4))[0][:, -1])),
        first=nn.Linear(5, 12),
        gru=nn.GRU(4, 5, batch_first=True),
        last=nn.Linear(5, 6),
    )
    vae = HiddenVAE(encoder)
    dead(vae.encoder.first, 1, 5, 9)
    dead(vae.encoder.last, 3)
    _, made, _ = cut_hidden(vae, {"encoder.last.weight": [3]})
    assert "gru" in left_of(made)["encoder.first.weight"]


# ---- conditions


def _labels(count: int = 200) -> Tensor:
    return torch.arange(count) % 3


def test_a_condition_concatenated_to_z_and_to_hidden_channels_stays() -> None:
    one_hot = F.one_hot(_labels(), 3).double()
    encoder = Then(lambda m, x, y: torch.relu(m.first(torch.cat([x, y], 1))), first=nn.Linear(8, 6))
    decoder = Then(
        lambda m, z, y: m.last(torch.cat([torch.relu(m.first(torch.cat([z, y], 1))), y], 1)),
        first=nn.Linear(LATENTS + 3, 6),
        last=nn.Linear(9, 5),
    )
    vae = HiddenVAE(encoder, 6, decoder)
    dead(vae.encoder.first, 1)
    dead(vae.decoder.first, 0, 5)
    _, _, smaller = cut_hidden(vae, {"encoder.first.weight": [1], "decoder.first.weight": [0, 5]}, one_hot)
    assert smaller.decoder.last.weight.shape == (5, 7)


def test_labels_made_one_hot_inside() -> None:
    encoder = Then(lambda m, x, _y: torch.relu(m.first(x)), first=nn.Linear(5, 6))
    decoder = Then(
        lambda m, z, y: m.last(torch.cat([torch.relu(m.first(z)), F.one_hot(y, 3).to(z)], 1)),
        first=nn.Linear(LATENTS, 6),
        last=nn.Linear(9, 5),
    )
    vae = HiddenVAE(encoder, 6, decoder)
    dead(vae.decoder.first, 0, 5)
    unread(vae.decoder.last, 7)  # a label that nothing reads is no channel
    cut_hidden(vae, {"decoder.first.weight": [0, 5]}, _labels())


def test_an_embedding_added_to_hidden_channels_holds_them() -> None:
    decoder = Then(
        lambda m, z, y: m.last(torch.relu(m.second(torch.relu(m.first(z) + m.label(y))))),
        first=nn.Linear(LATENTS, 6),
        label=nn.Embedding(3, 6),
        second=nn.Linear(6, 7),
        last=nn.Linear(7, 5),
    )
    encoder = Then(lambda m, x, _y: torch.relu(m.first(x)), first=nn.Linear(5, 6))
    vae = HiddenVAE(encoder, 6, decoder)
    vae.decoder.label.weight.data *= 0.2
    unread(vae.decoder.second, 3)
    dead(vae.decoder.second, 1)
    _, made, _ = cut_hidden(vae, {"decoder.second.weight": [1]}, _labels())
    assert "a condition" in left_of(made)["decoder.first.weight"]


# ---- shared weights


def test_tied_encoder_and_decoder_weights_lose_what_neither_needs() -> None:
    class Tied(HiddenVAE):
        def __init__(self) -> None:
            super().__init__(nn.Linear(5, 6), 6, nn.Linear(LATENTS, 6))

        def encode(self, x: Tensor, *condition: Tensor):
            return super().encode(x) if not condition else None

        def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
            return torch.relu(self.decoder(z)) @ self.encoder.weight

    vae = Tied()
    for layer in (vae.mean, vae.logvar):
        unread(layer, 1, 2)
    dead(vae.decoder, 2, 4)
    _, made, smaller = cut_hidden(vae, {"encoder.weight": [2], "decoder.weight": [2]})
    assert smaller.encoder.weight.shape == (5, 5)
    assert made.channels


def test_one_tensor_under_two_keys_stays_one() -> None:
    encoder = Then(lambda m, x: torch.relu(m.a(x)) + torch.relu(m.b(x + 0.1)), a=nn.Linear(5, 6), b=nn.Linear(5, 6))
    vae = HiddenVAE(encoder)
    vae.encoder.b.weight = vae.encoder.a.weight
    dead(vae.encoder.a, 3)
    dead(vae.encoder.b, 3)
    unread(vae.mean, 5)
    unread(vae.logvar, 5)
    _, _, smaller = cut_hidden(vae, {"encoder.a.weight": [3, 5]})
    assert smaller.encoder.a.weight is smaller.encoder.b.weight
    assert smaller.encoder.a.weight.shape == (4, 5)


def _twice(m: Then, x: Tensor) -> Tensor:
    h = torch.relu(m.first(x))
    h = torch.relu(m.again(h))
    return torch.relu(m.again(h))


def test_a_module_called_twice_loses_what_no_call_needs() -> None:
    vae = HiddenVAE(Then(_twice, first=nn.Linear(5, 6), again=nn.Linear(6, 6)))
    dead(vae.encoder.first, 1, 2)
    dead(vae.encoder.again, 2, 4)
    _, _, smaller = cut_hidden(vae, {"encoder.first.weight": [2], "encoder.again.weight": [2]})
    assert smaller.encoder.again.weight.shape == (5, 5)


def test_a_module_called_twice_that_sees_different_constants_keeps_them() -> None:
    encoder = Then(
        lambda m, x: m.read(torch.sigmoid(m.a(x))) + m.read(2 * torch.sigmoid(m.a(x))),
        a=nn.Linear(5, 6),
        read=nn.Linear(6, 6),
    )
    vae = HiddenVAE(encoder)
    biased(vae.encoder.a, 1, bias=ABOVE)
    assert constant_but_left(vae)["encoder.a.weight"] == (
        "encoder.read.weight is called several times and sees different constants"
    )


def test_a_bias_that_two_weights_share_takes_no_constant_of_one_of_them() -> None:
    encoder = Then(
        lambda m, x: m.one(torch.sigmoid(m.a(x))) + m.two(torch.sigmoid(m.b(x))),
        a=nn.Linear(5, 6),
        b=nn.Linear(5, 6),
        one=nn.Linear(6, 6),
        two=nn.Linear(6, 6),
    )
    vae = HiddenVAE(encoder)
    vae.encoder.two.bias = vae.encoder.one.bias
    biased(vae.encoder.a, 1, bias=ABOVE)
    vae.encoder.one.weight.data[:, 1] *= 1e-4  # too little to be seen where outputs are compared roughly
    biased(vae.encoder.b, 2, bias=-800.0)
    _, made, _ = cut_hidden(vae, {"encoder.b.weight": [2]})
    assert "one.bias" in left_of(made)["encoder.a.weight"]


def test_weight_norm_becomes_plain() -> None:
    vae = HiddenVAE(nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    dead(vae.encoder[0], 1, bias=BELOW)
    with torch.no_grad():
        vae.encoder[0].weight[1] = 1e-3
    vae.encoder[0] = nn.utils.parametrizations.weight_norm(vae.encoder[0])
    _, made, smaller = cut_hidden(vae, {"encoder.0.weight": [1]})
    assert made.made_plain == ("encoder.0",)
    assert smaller.encoder[0].weight.shape == (5, 5)


# ---- sizes in the code


class Written(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.view(-1, 5, 2, 2)


def test_a_size_written_into_forward_holds_its_layer_and_the_rest_goes() -> None:
    vae = _decoding(
        nn.Linear(LATENTS, 20),
        nn.ReLU(),
        Written(),
        nn.ConvTranspose2d(5, 4, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )
    dead(vae.decoder[0], *range(4, 8))
    dead(vae.decoder[3], 1)
    _, made, _ = cut_hidden(vae, {"decoder.3.weight": [1]})
    assert "no longer runs" in left_of(made)["decoder.0.weight"]


class Noted(nn.Module):
    """Notes the size of its layer, as people's models do."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(LATENTS, 4 * hidden)
        self.second = nn.ConvTranspose2d(hidden, 2, 2, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(z)).view(-1, self.hidden, 2, 2))


def test_an_integer_that_notes_a_size_is_set() -> None:
    vae = _decoding(Noted(7))
    dead(vae.decoder[0].first, *range(8))
    _, made, smaller = cut_hidden(vae, {"decoder.0.first.weight": list(range(8))})
    assert smaller.decoder[0].hidden == 5
    assert made.attributes["decoder.0.hidden"] == 5


class Both(nn.Module):
    """One integer for two layers, of which only one is viewed with it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(LATENTS, 4 * hidden)
        self.second = nn.ConvTranspose2d(hidden, hidden, 2, stride=2)
        self.third = nn.Conv2d(hidden, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = torch.relu(self.first(z)).view(-1, self.hidden, 2, 2)
        return self.third(torch.relu(self.second(h)).view(-1, self.hidden, 4, 4))


def test_one_integer_for_two_layers_never_breaks_the_model() -> None:
    vae = _decoding(Both(7))
    dead(vae.decoder[0].second, 1, 2)
    assert nothing_cut(vae) is not None


# ---- values that hide a NaN


@pytest.mark.parametrize(
    "hide", [torch.nan_to_num, lambda h: torch.where(h > -1e9, h, torch.zeros_like(h))], ids=["nan_to_num", "where"]
)
def test_a_function_that_hides_nan_holds_its_channels(hide) -> None:
    vae = HiddenVAE(Then(lambda m, x: torch.relu(hide(m.first(x))), first=nn.Linear(5, 6)))
    dead(vae.encoder.first, 1)
    found = nothing_cut(vae).get("encoder.first.weight", "")
    assert "a function on the way hides NaN" in found
