"""What a removed latent leaves behind: its constant, in the biases of what read it."""

import math

import pytest
import torch
from torch import Tensor, nn

from planted import MapVAE, PlainVAE, cut_exactly, cut_exactly_or_refused, planned
from vaeprune.errors import TraceError
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan


def constants(made: Plan) -> dict[int, float]:
    return {removal.latent: removal.constant for removal in made.removals}


def still(vae: PlainVAE, *values: float) -> PlainVAE:
    """The encoder's means are `values`, whatever the row."""
    with torch.no_grad():
        vae.mean.weight.zero_()
        vae.mean.bias.copy_(torch.tensor(values))
    return vae.double()


def five_numbers(*before: nn.Module, bias: bool = True) -> PlainVAE:
    """A decoder z0, z1 → 3·z0 + 5·z1 + 7 in front of five equal pixels; the means are 0.25 and 0.5."""
    vae = PlainVAE(nn.Sequential(*before, nn.Linear(2, 1, bias=bias), nn.Linear(1, 5)), latents=2)
    reader = vae.decoder[len(before)]
    with torch.no_grad():
        reader.weight.copy_(torch.tensor([[3.0, 5.0]]))
        if bias:
            reader.bias.fill_(7.0)
    return still(vae, 0.25, 0.5)


def numbers(layer: nn.Linear) -> list[float]:
    return [*layer.weight.flatten().tolist(), *layer.bias.tolist()]


# ---- the bias that takes a constant over


def test_constant_latent_folds_into_the_bias_that_reads_it() -> None:
    made, smaller = cut_exactly(five_numbers(), [1])
    assert constants(made) == {1: 0.5}
    assert numbers(smaller.decoder[0]) == [3.0, 9.5]


def test_the_first_of_two_latents_folds_as_well() -> None:
    made, smaller = cut_exactly(five_numbers(), [0])
    assert constants(made) == {0: 0.25}
    assert numbers(smaller.decoder[0]) == [5.0, 7.75]


def test_several_latents_fold_into_one_bias() -> None:
    vae = still(PlainVAE(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))), 0.5, -1.0, 2.0, 0.0)
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
    _, smaller = cut_exactly(vae, [0, 1, 3])
    torch.testing.assert_close(smaller.decoder[0].bias, bias + 0.5 * weight[:, 0] - weight[:, 1], rtol=0, atol=1e-14)


def test_a_latent_bent_on_its_way_folds_as_it_is_read() -> None:
    made, smaller = cut_exactly(five_numbers(nn.Tanh()), [1])
    assert constants(made) == {1: 0.5}
    assert numbers(smaller.decoder[1]) == pytest.approx([3.0, 7 + 5 * math.tanh(0.5)], rel=1e-14)


def test_a_latent_that_a_relu_silences_leaves_the_bias_as_it_was() -> None:
    vae = still(five_numbers(nn.ReLU()), 0.25, -0.5)
    made, smaller = cut_exactly(vae, [1])
    assert constants(made) == {1: -0.5}
    assert made.bias_changes == {}
    assert numbers(smaller.decoder[1]) == [3.0, 7.0]


def test_a_normalised_latent_folds_as_it_is_read() -> None:
    vae = five_numbers(nn.BatchNorm1d(2))
    norm = vae.decoder[0]
    with torch.no_grad():
        norm.weight[1], norm.bias[1], norm.running_mean[1], norm.running_var[1] = 2.0, 0.1, -0.3, 4.0
    _, smaller = cut_exactly(vae, [1])
    seen = 2 * (0.5 + 0.3) / math.sqrt(4 + norm.eps) + 0.1
    assert numbers(smaller.decoder[1]) == pytest.approx([3.0, 7 + 5 * seen], rel=1e-12)


def test_every_layer_that_reads_a_latent_takes_its_constant_over() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 5), nn.Linear(2, 5), nn.Linear(4, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.a(z) * self.b(z.square()) + self.c(torch.cat([z, -z], 1))

    vae = still(PlainVAE(Twice(), latents=2), 0.25, 0.5)
    a, b, c = (layer.weight.detach().clone() for layer in (vae.decoder.a, vae.decoder.b, vae.decoder.c))
    made, _ = cut_exactly(vae, [1])
    for key, change in (("a", 0.5 * a[:, 1]), ("b", 0.25 * b[:, 1]), ("c", 0.5 * (c[:, 1] - c[:, 3]))):
        torch.testing.assert_close(made.bias_changes[f"decoder.{key}.bias"], change, rtol=1e-12, atol=1e-14)


def test_a_layer_without_a_bias_that_reads_zero_does_not_keep_the_next_from_taking_its_constant_over() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.above, self.whole = nn.Linear(2, 5, bias=False), nn.Linear(2, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.above(z.relu()) + self.whole(z)

    vae = still(PlainVAE(Halves(), latents=2), 0.25, -0.5)
    weight = vae.decoder.whole.weight.detach().clone()
    made, _ = cut_exactly(vae, [1])
    assert constants(made) == {1: -0.5}
    torch.testing.assert_close(made.bias_changes["decoder.whole.bias"], -0.5 * weight[:, 1], rtol=1e-12, atol=0)


def test_removed_latents_that_are_multiplied_fold_together() -> None:
    class Products(nn.Module):
        """Reads z0·z1 and z2·z3."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(z.view(len(z), -1, 2).prod(2))

    vae = still(PlainVAE(Products()), 0.5, 3.0, 1.0, -1.0)
    weight = vae.decoder.last.weight.detach().clone()
    made, _ = cut_exactly(vae, [0, 1])
    torch.testing.assert_close(made.bias_changes["decoder.last.bias"], 1.5 * weight[:, 0], rtol=1e-12, atol=0)


def test_the_bias_is_changed_in_float64_before_it_is_rounded_once() -> None:
    vae = five_numbers().float()
    with torch.no_grad():
        vae.mean.bias[1] = 1 / 3
    made = planned(vae, [1])
    smaller = cut(vae, made)
    assert made.bias_changes["decoder.0.bias"].dtype == torch.float64
    assert smaller.decoder[0].bias.item() == torch.tensor(7 + 5 * constants(made)[1], dtype=torch.float32).item()


# ---- where no bias can


def test_a_latent_read_without_a_bias_is_held_at_zero() -> None:
    made, smaller = cut_exactly(five_numbers(bias=False), [1])
    assert constants(made) == {1: 0.0}
    assert made.bias_changes == {}
    assert smaller.decoder[0].weight.tolist() == [[3.0]]


def test_one_reader_without_a_bias_holds_a_latent_at_zero_for_all() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.with_bias, self.without = nn.Linear(2, 5), nn.Linear(2, 5, bias=False)

        def forward(self, z: Tensor) -> Tensor:
            return self.with_bias(z) * self.without(z)

    made, _ = cut_exactly(still(PlainVAE(Two(), latents=2), 0.25, 0.5), [1])
    assert constants(made) == {1: 0.0}
    assert made.bias_changes == {}


def test_a_constant_that_cannot_be_zero_and_has_no_bias_is_refused() -> None:
    """A shifted latent is not 0 where the latent is."""
    with pytest.raises(TraceError) as error:
        planned(five_numbers(nn.BatchNorm1d(2), bias=False), [1])
    assert str(error.value) == "decoder.1.weight: has no bias, so it cannot take over a constant other than 0"


def test_a_constant_map_that_cannot_be_zero_before_a_padded_convolution_is_refused() -> None:
    vae = MapVAE(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1)))
    with pytest.raises(TraceError) as error:
        planned(vae, [1])
    assert str(error.value) == (
        "decoder.1.weight: pads with zeros or has position-dependent taps, so it cannot take over a constant other "
        "than 0"
    )


def test_a_convolution_without_padding_takes_over_all_of_its_taps() -> None:
    reader = nn.Conv2d(3, 2, 3)
    vae = MapVAE(nn.Sequential(reader, nn.Flatten(), nn.Linear(8, 32), nn.Unflatten(1, (2, 4, 4)))).double()
    taps = reader.weight.detach()[:, 1].sum((1, 2))
    made, _ = cut_exactly(vae, [1])
    assert constants(made)[1] != 0
    torch.testing.assert_close(made.bias_changes["decoder.0.bias"], taps * constants(made)[1], rtol=1e-12, atol=0)


class _Padded(nn.Module):
    """Zeros are put around the maps before a convolution that does not pad."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 2, 3)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(nn.functional.pad(z, (1, 1, 1, 1)))


def test_zeros_padded_in_before_a_convolution_hold_a_map_at_zero() -> None:
    made, _ = cut_exactly(MapVAE(_Padded()), [1])
    assert constants(made) == {1: 0.0}


class _Placed(nn.Module):
    """The position is added to every map."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(z + torch.arange(4).to(z))


def test_a_map_that_depends_on_its_position_is_refused() -> None:
    with pytest.raises(TraceError) as error:
        planned(MapVAE(_Placed()), [1])
    assert str(error.value) == (
        "decoder.last.weight: a column that reads a removed latent also depends on its position or on other inputs"
    )


def test_a_depthwise_convolution_with_padding_is_cut_exactly_or_refused() -> None:
    cut_exactly_or_refused(
        MapVAE(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 2, 1))).double(), [1]
    )


class _Again(nn.Module):
    """One layer reads z twice, the second time times `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.read, self.last, self.factor = nn.Linear(2, 6), nn.Linear(6, 5), factor

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.read(z)) * torch.relu(self.read(self.factor * z)))


def test_a_layer_called_twice_with_the_same_constant_takes_it_over_once() -> None:
    made, _ = cut_exactly(still(PlainVAE(_Again(1.0), latents=2), 0.25, 0.5), [1])
    assert constants(made) == {1: 0.5}


def test_a_layer_called_twice_with_different_constants_is_refused() -> None:
    with pytest.raises(TraceError) as error:
        planned(still(PlainVAE(_Again(2.0), latents=2), 0.25, 0.5), [1])
    assert str(error.value) == "decoder.read.weight: is called several times and sees different constants"


def test_a_layer_called_twice_of_which_once_sees_zero_is_cut_exactly_or_refused() -> None:
    """One bias cannot be right for a call that sees 0.5 and another that sees 0."""
    cut_exactly_or_refused(still(PlainVAE(_Again(0.0), latents=2), 0.25, 0.5), [1])


def test_a_layer_that_also_reads_what_is_not_z_is_cut_exactly_or_refused() -> None:
    """The second call reads hidden units in the columns that the first reads latents in."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.last = nn.Linear(2, 2), nn.Linear(2, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.last(torch.tanh(self.step(torch.tanh(self.step(z)))))

    cut_exactly_or_refused(still(PlainVAE(Recurrent(), latents=2), 0.25, 0.5), [1])


def test_a_bias_that_two_layers_share_is_cut_exactly_or_refused() -> None:
    """Each wants another change of it."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 5), nn.Linear(2, 5)
            self.b.bias = self.a.bias

        def forward(self, z: Tensor) -> Tensor:
            return self.a(z) * torch.tanh(self.b(z))

    cut_exactly_or_refused(still(PlainVAE(Shared(), latents=2), 0.25, 0.5), [1])


def test_a_bias_that_something_else_reads_is_cut_exactly_or_refused() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(2, 5)

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.read(z)) * self.read.bias

    cut_exactly_or_refused(still(PlainVAE(Echo(), latents=2), 0.25, 0.5), [1])


def test_a_weight_that_something_else_reads_is_cut_exactly_or_refused() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(2, 5)

        def forward(self, z: Tensor) -> Tensor:
            return self.read(z) / self.read.weight.norm()

    cut_exactly_or_refused(still(PlainVAE(Norm(), latents=2), 0.25, 0.5), [1])
