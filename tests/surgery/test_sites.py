"""Each way of calling a weight: recognised, cut on the right axis, and the result is what the original computes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted import MapVAE, OwnVAE, PlainVAE, cut_exactly, cut_exactly_or_refused, planned, randomise
from vaeprune.errors import TraceError
from vaeprune.posterior import Posterior
from vaeprune.surgery.plan import Plan


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) + 0.5)


def kept(made: Plan) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(part.key, part.axis): part.kept for part in made.slices}


def constants(made: Plan) -> list[float]:
    return [removal.constant for removal in made.removals]


class Reading(nn.Module):
    """Reads z (4) by `read`, with whichever of its weights it calls, into 6; then → 5."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.v, self.b = parameter(6, 4), parameter(4, 6), parameter(6)
        self.s = parameter(4)
        self.read = read
        self.last = nn.Linear(6, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.read(self, z)))


def reading(read: Callable[[nn.Module, Tensor], Tensor]) -> PlainVAE:
    return PlainVAE(Reading(read))


BY_HAND = {
    "F.linear": (lambda m, z: F.linear(z, m.w, m.b), ("w", 1), "mean"),
    "F.linear by keywords": (lambda m, z: F.linear(bias=m.b, weight=m.w, input=z), ("w", 1), "mean"),
    "F.linear without bias": (lambda m, z: F.linear(z, m.w), ("w", 1), "zero"),
    "F.linear with a computed bias": (lambda m, z: F.linear(z, m.w, 2 * m.b), ("w", 1), "zero"),
    "@": (lambda m, z: z @ m.v, ("v", 0), "zero"),
    "@ with a bias added later": (lambda m, z: z @ m.v + m.b, ("v", 0), "zero"),
    "torch.matmul": (lambda m, z: torch.matmul(z, m.v), ("v", 0), "zero"),
    "torch.matmul by keywords": (lambda m, z: torch.matmul(input=z, other=m.v), ("v", 0), "zero"),
    "torch.mm": (lambda m, z: torch.mm(z, m.v), ("v", 0), "zero"),
    "Tensor.matmul": (lambda m, z: z.matmul(m.v), ("v", 0), "zero"),
    "torch.addmm": (lambda m, z: torch.addmm(m.b, z, m.v), ("v", 0), "mean"),
    "@ a transposed weight": (lambda m, z: z @ m.w.t(), ("w", 1), "zero"),
    "@ a weight with its axes exchanged": (lambda m, z: z @ m.w.transpose(0, 1), ("w", 1), "zero"),
    "@ a weight with its axes swapped from the end": (lambda m, z: z @ torch.swapaxes(m.w, -1, 0), ("w", 1), "zero"),
    "F.linear with a copied weight": (lambda m, z: F.linear(z, m.w.clone(), m.b.contiguous()), ("w", 1), "mean"),
}


@pytest.mark.parametrize(("read", "weight", "constant"), BY_HAND.values(), ids=BY_HAND.keys())
def test_a_weight_that_is_called_by_hand_is_cut(read: object, weight: tuple[str, int], constant: str) -> None:
    made, _ = cut_exactly(reading(read), [1, 3])
    key, axis = weight
    assert kept(made)[f"decoder.{key}", axis] == (0, 2)
    assert (constants(made) == [0.0, 0.0]) == (constant == "zero")


def test_addmm_that_weighs_its_bias_is_cut_exactly_or_refused() -> None:
    cut_exactly_or_refused(reading(lambda m, z: torch.addmm(m.b, z, m.v, beta=0.5, alpha=2.0)), [1, 3])


ON_THE_WAY = {
    "a scale": (lambda m, z: F.linear(z * m.s, m.w, m.b), ["s"]),
    "a scale on the left": (lambda m, z: F.linear(m.s * z, m.w, m.b), ["s"]),
    "a divisor": (lambda m, z: F.linear(z / m.s, m.w, m.b), ["s"]),
    "a shift": (lambda m, z: F.linear(z + m.s, m.w, m.b), ["s"]),
    "a subtraction": (lambda m, z: F.linear(torch.sub(z, m.s), m.w, m.b), ["s"]),
    "a shift in place": (lambda m, z: F.linear(z.clone().add_(m.s), m.w, m.b), ["s"]),
    "a scale and a shift": (lambda m, z: F.linear(z * m.s + m.s, m.w, m.b), ["s"]),
}


@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1)], ids=["a number", "a vector of one entry", "a matrix of one entry"]
)
def test_a_parameter_of_one_entry_that_scales_every_latent_stays(shape: tuple[int, ...]) -> None:
    vae = reading(lambda m, z: F.linear(z * m.one, m.w, m.b))
    vae.decoder.one = nn.Parameter(torch.full(shape, 0.7))
    made, smaller = cut_exactly(vae, [1, 3])
    assert not [key for key, _ in kept(made) if key == "decoder.one"]
    assert smaller.decoder.one.shape == shape
    assert all(constants(made))


@pytest.mark.parametrize(("read", "keys"), ON_THE_WAY.values(), ids=ON_THE_WAY.keys())
def test_a_parameter_with_an_entry_for_each_latent_is_cut_with_it(read: object, keys: list[str]) -> None:
    made, smaller = cut_exactly(reading(read), [1, 3])
    for key in keys:
        assert kept(made)[f"decoder.{key}", 0] == (0, 2)
        assert getattr(smaller.decoder, key).shape == (2,)
    assert all(constants(made))


def _after(*layers: nn.Module) -> PlainVAE:
    return PlainVAE(nn.Sequential(*layers, nn.Tanh(), nn.Linear(6, 5)))


def test_batch_norm_on_z_is_cut_with_its_running_statistics() -> None:
    made, smaller = cut_exactly(_after(nn.BatchNorm1d(4), nn.Linear(4, 6)), [0, 2])
    for key in ("weight", "bias", "running_mean", "running_var"):
        assert kept(made)[f"decoder.0.{key}", 0] == (1, 3)
    assert smaller.decoder[0].num_features == 2
    assert all(constants(made))


def test_batch_norm_without_weights_is_cut_with_its_running_statistics() -> None:
    made, _ = cut_exactly(_after(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 6)), [0, 2])
    assert kept(made)["decoder.0.running_var", 0] == (1, 3)


def test_prelu_with_a_slope_for_each_latent_is_cut_with_it() -> None:
    made, _ = cut_exactly(_after(nn.PReLU(4), nn.Linear(4, 6)), [0, 2])
    assert kept(made)["decoder.0.weight", 0] == (1, 3)


def test_prelu_with_one_slope_for_all_stays() -> None:
    made, smaller = cut_exactly(_after(nn.PReLU(), nn.Linear(4, 6)), [0, 2])
    assert ("decoder.0.weight", 0) not in kept(made)
    assert smaller.decoder[0].weight.shape == (1,)


def test_dropout_is_no_obstacle() -> None:
    cut_exactly(_after(nn.Dropout(0.5), nn.Linear(4, 6)), [0, 2])


class _Unsqueeze(nn.Module):
    def __init__(self, dimensions: int = 1) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, z: Tensor) -> Tensor:
        return z.view(*z.shape, *[1] * self.dimensions)


@pytest.mark.parametrize(
    ("layer", "axis", "dimensions"),
    [
        (nn.Conv1d(4, 6, 1), 1, 1),
        (nn.Conv3d(4, 6, 1), 1, 3),
        (nn.ConvTranspose1d(4, 6, 1), 0, 1),
        (nn.ConvTranspose3d(4, 6, 1), 0, 3),
    ],
    ids=str,
)
def test_a_convolution_over_one_position_is_cut(layer: nn.Module, axis: int, dimensions: int) -> None:
    made, _ = cut_exactly(_after(_Unsqueeze(dimensions), layer, nn.Flatten()), [0, 2])
    assert kept(made)["decoder.1.weight", axis] == (1, 3)
    assert all(constants(made))


# ---- maps


def _map(*layers: nn.Module) -> MapVAE:
    with torch.no_grad():
        size = nn.Sequential(*layers)(torch.zeros(1, 3, 4, 4)).numel()
    return MapVAE(nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(size, 32), nn.Unflatten(1, (2, 4, 4))))


@pytest.mark.parametrize(
    ("layer", "axis", "constant"),
    [
        (nn.Conv2d(3, 4, 1), 1, "mean"),
        (nn.Conv2d(3, 4, 3), 1, "mean"),
        (nn.Conv2d(3, 4, 3, stride=2, padding="valid"), 1, "mean"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 1, "mean"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), 1, "mean"),
        (nn.Conv2d(3, 4, 3, padding=1), 1, "zero"),
        (nn.Conv2d(3, 4, 3, padding="same"), 1, "zero"),
        (nn.Conv2d(3, 4, 1, bias=False), 1, "zero"),
        (nn.ConvTranspose2d(3, 4, 1), 0, "mean"),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 0, "zero"),
        (nn.ConvTranspose2d(3, 4, 3), 0, "zero"),
    ],
    ids=str,
)
def test_a_convolution_that_reads_maps_is_cut(layer: nn.Module, axis: int, constant: str) -> None:
    made, _ = cut_exactly(_map(layer), [0, 2])
    assert kept(made)["decoder.0.weight", axis] == (1,)
    assert (constants(made) == [0.0, 0.0]) == (constant == "zero")


def test_a_depthwise_convolution_is_cut_with_its_channels() -> None:
    made, _ = cut_exactly(_map(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 4, 1)), [0])
    assert kept(made)["decoder.0.weight", 0] == (1, 2)
    assert kept(made)["decoder.0.bias", 0] == (1, 2)
    assert kept(made)["decoder.1.weight", 1] == (1, 2)


def test_batch_norm_on_maps_is_cut() -> None:
    made, smaller = cut_exactly(_map(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), [1])
    assert kept(made)["decoder.0.running_mean", 0] == (0, 2)
    assert smaller.decoder[0].num_features == 2


def test_a_flattened_map_is_cut_position_by_position() -> None:
    made, _ = cut_exactly(MapVAE(nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Unflatten(1, (2, 4, 4)))), [1])
    assert kept(made)["decoder.1.weight", 1] == (*range(16), *range(32, 48))


class _Called(nn.Module):
    """Maps (3, 4, 4) read by a function of them and this module's weights, which are for 3 channels and 4."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.b, self.up = parameter(4, 3, 2, 2), parameter(4), parameter(3, 4, 1, 1)
        self.place, self.still = parameter(1, 3, 4, 4), parameter(3, 4, 4)
        self.read = read

    def forward(self, z: Tensor) -> Tensor:
        return self.read(self, z)


CALLED = {
    "padded by a list of zeros": (lambda m, z: F.conv2d(z, m.w, m.b, padding=[0, 0]), ("w", 1), "mean"),
    "padded by a tuple of zeros": (lambda m, z: F.conv2d(z, m.w, m.b, padding=(0, 0)), ("w", 1), "mean"),
    "padded by a list of ones": (lambda m, z: F.conv2d(z, m.w, m.b, padding=[1, 1]), ("w", 1), "zero"),
    "padded on one side": (lambda m, z: F.conv2d(z, m.w, m.b, padding=(0, 1)), ("w", 1), "zero"),
    "transposed, by hand": (lambda m, z: F.conv_transpose2d(z, m.up, m.b), ("up", 0), "mean"),
    "transposed, with stride": (lambda m, z: F.conv_transpose2d(z, m.up, m.b, (2, 1)), ("up", 0), "zero"),
}


@pytest.mark.parametrize(("read", "weight", "constant"), CALLED.values(), ids=CALLED.keys())
def test_a_convolution_that_is_called_by_hand_is_cut(read: object, weight: tuple[str, int], constant: str) -> None:
    made, _ = cut_exactly(_map(_Called(read)), [0, 2])
    key, axis = weight
    assert kept(made)[f"decoder.0.{key}", axis] == (1,)
    assert (constants(made) == [0.0, 0.0]) == (constant == "zero")


@pytest.mark.parametrize(
    ("read", "key", "axis"),
    [
        pytest.param(lambda m, z: F.conv2d(z * m.place, m.w, m.b), "place", 1, id="with an axis for the batch"),
        pytest.param(lambda m, z: F.conv2d(z * m.still, m.w, m.b), "still", 0, id="without"),
        pytest.param(lambda m, z: F.conv2d(m.still * z, m.w, m.b), "still", 0, id="on the left"),
    ],
)
def test_a_parameter_with_an_entry_for_each_place_of_each_latent_is_cut(read: object, key: str, axis: int) -> None:
    made, smaller = cut_exactly(_map(_Called(read)), [0, 2])
    assert kept(made)[f"decoder.0.{key}", axis] == (1,)
    assert getattr(smaller.decoder[0], key).shape[axis] == 1


def test_a_shift_for_each_place_can_be_held_by_no_bias() -> None:
    with pytest.raises(TraceError, match=r"decoder\.0\.w: a column .* also depends on its position or on other inputs"):
        planned(_map(_Called(lambda m, z: F.conv2d(z + m.place, m.w, m.b))), [0, 2])


def test_groups_of_a_transposed_convolution_are_cut_exactly_or_refused() -> None:
    cut_exactly_or_refused(_map(nn.ConvTranspose2d(3, 6, 1, groups=3), nn.Conv2d(6, 4, 1)), [0])


# ---- heads


class Heads(OwnVAE):
    """h (6) → mean and logvar of 3 latents, by whatever `heads` does with this module's weights."""

    def __init__(self, heads: object, *own: tuple[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.w, self.v, self.b = parameter(6, 6), parameter(6, 6), parameter(6)
        for name, module in own:
            setattr(self, name, module)
        self.decoder = nn.Linear(3, 5)
        self.heads = heads
        randomise(self, 1)
        self.eval()

    @property
    def latent_size(self) -> int:
        return self.decoder.weight.shape[1]

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(*self.heads(self, torch.tanh(self.body(x))))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder(z)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        pytest.param(lambda m, h: F.linear(h, m.w, m.b).chunk(2, 1), {("w", 0): (0, 2, 3, 5)}, id="F.linear"),
        pytest.param(lambda m, h: (h @ m.v).chunk(2, 1), {("v", 1): (0, 2, 3, 5)}, id="@"),
        pytest.param(lambda m, h: (h @ m.v + m.b).chunk(2, 1), {("v", 1): (0, 2, 3, 5)}, id="@ with a bias"),
        pytest.param(lambda m, h: torch.addmm(m.b, h, m.v).chunk(2, 1), {("v", 1): (0, 2, 3, 5)}, id="addmm"),
    ],
)
def test_heads_called_by_hand_are_cut(heads: object, expected: dict[tuple[str, int], tuple[int, ...]]) -> None:
    made, _ = cut_exactly(Heads(heads), [1])
    for place, stay in expected.items():
        assert kept(made)[place] == stay
    assert kept(made).get(("b", 0), (0, 2, 3, 5)) == (0, 2, 3, 5)


def test_batch_norm_on_the_mean_head_is_cut_with_it() -> None:
    own = [("mean", nn.Linear(6, 3, bias=False)), ("logvar", nn.Linear(6, 3)), ("norm", nn.BatchNorm1d(3))]
    made, smaller = cut_exactly(Heads(lambda m, h: (m.norm(m.mean(h)), m.logvar(h)), *own), [0])
    assert kept(made)["mean.weight", 0] == (1, 2)
    assert kept(made)["norm.running_var", 0] == (1, 2)
    assert smaller.norm.num_features == 2


def test_a_scale_on_the_logvar_is_cut_with_it() -> None:
    own = [("mean", nn.Linear(6, 3)), ("logvar", nn.Linear(6, 3)), ("scale", parameter(3))]
    made, _ = cut_exactly(Heads(lambda m, h: (m.mean(h), m.scale * torch.tanh(m.logvar(h))), *own), [0, 2])
    assert kept(made)["scale", 0] == (1,)


def test_convolutional_heads_are_cut() -> None:
    made, _ = cut_exactly(MapVAE(), [0, 2])
    assert kept(made)["head.weight", 0] == (1, 4)
    assert kept(made)["head.bias", 0] == (1, 4)


# ---- what is not understood is refused, by name


class _Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Bilinear(4, 4, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.pairs(z, z)


class _Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.last = nn.Linear(4, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.attention(z[:, None], z[:, None], z[:, None])[0][:, 0])


@pytest.mark.parametrize(
    ("vae", "function", "key"),
    [
        pytest.param(_after(nn.LayerNorm(4), nn.Linear(4, 6)), "layer_norm", "decoder.0.weight", id="LayerNorm"),
        pytest.param(_map(nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 1)), "group_norm", "decoder.0.weight", id="GroupNorm"),
        pytest.param(reading(lambda m, z: (m.w @ z.T).T), "matmul", "decoder.w", id="a weight on the left"),
        pytest.param(PlainVAE(_Pairs()), "bilinear", "decoder.pairs.weight", id="a product of two latents"),
        pytest.param(
            PlainVAE(_Attends()), "multi_head_attention_forward", "decoder.attention.in_proj_weight", id="attention"
        ),
    ],
)
def test_a_call_that_mixes_latents_is_refused_by_its_name_and_its_weights(vae: OwnVAE, function: str, key: str) -> None:
    with pytest.raises(TraceError) as error:
        planned(vae, [0])
    message = error.value.message
    assert f"latent 0 goes through {function}" in message
    assert key in message
    assert message.endswith("mixes channels or is not understood")


def _grouped() -> OwnVAE:
    return _after(_Unsqueeze(), nn.Conv1d(4, 6, 1, groups=2), nn.Flatten())


def test_latents_of_one_group_of_a_convolution_are_not_taken_apart() -> None:
    with pytest.raises(TraceError) as error:
        planned(_grouped(), [0])
    assert error.value.message.endswith("column 0 serves latents 0, 1 together, which cannot be taken apart")


def test_all_latents_of_one_group_of_a_convolution_are_cut_with_it_or_refused() -> None:
    cut_exactly_or_refused(_grouped(), [0, 1])
    cut_exactly_or_refused(_grouped(), [2, 3])


def test_a_weight_that_is_a_vector_is_no_layer_that_can_be_cut() -> None:
    with pytest.raises(TraceError):
        cut_exactly(reading(lambda m, z: F.linear(z, m.s)[:, None] * m.b), [1, 3])


def test_a_layer_that_is_called_row_by_row_is_cut() -> None:
    cut_exactly(reading(lambda m, z: torch.stack([F.linear(r, m.w, m.b) for r in z])), [1, 3])
