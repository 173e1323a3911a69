"""What a site can read, bounded over a whole box of inputs: never too narrow, exact where it is simple."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planted import OwnVAE, convolutional, dense, randomise
from vaeprune.posterior import Posterior
from vaeprune.surgery import bound_rules
from vaeprune.surgery.bounds import Interval, operand_bounds
from vaeprune.surgery.probe import Recorder, Subject

INFINITY = math.inf
Body = Callable[..., Tensor]


class Net(OwnVAE):
    """A VAE whose encoder is `body` and then one linear layer over what it gives, flattened."""

    def __init__(self, body: Body, shape: tuple[int, ...] = (2,), **modules: nn.Module) -> None:
        super().__init__()
        self.body, self.input_shape = body, shape
        for name, module in modules.items():
            self.add_module(name, module)
        self.double().eval()
        with torch.no_grad():
            width = self.hidden(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
        self.last = nn.Linear(width, 2).double().eval()

    @property
    def latent_size(self) -> int:
        return 1

    def hidden(self, x: Tensor, *condition: Tensor) -> Tensor:
        own = () if isinstance(self.body, nn.Module) else (self,)
        return self.body(*own, x, *condition).flatten(1)

    def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
        return Posterior(*self.last(self.hidden(x, *condition)).chunk(2, 1))

    def decode_parameters(self, z: Tensor, *condition: Tensor) -> Tensor:
        return self.last(self.hidden(z.expand(-1, 2), *condition))


def box(lower: float, upper: float, *shape: int) -> Interval:
    ends = (torch.full((1, *shape), end, dtype=torch.float64) for end in (lower, upper))
    return Interval(*ends)


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def encoded(vae: OwnVAE, lower: float, upper: float, *condition: Tensor) -> list[Interval]:
    x = torch.zeros(1, *vae.input_shape, dtype=torch.float64).clamp(lower, upper)
    return operand_bounds(
        Subject(vae, (x, *condition)),
        lambda model, x: model.encode(x, *condition),
        box(lower, upper, *vae.input_shape),
    )


def last(body: Body, lower: float = -1.0, upper: float = 3.0, **modules: nn.Module) -> list[tuple[float, float]]:
    """Bounds of each channel that the last layer reads; x has two channels from `lower` to `upper`."""
    found = encoded(Net(body, **modules), lower, upper)[-1]
    return list(zip(found.lower.tolist(), found.upper.tolist(), strict=True))


UNKNOWN = [(-INFINITY, INFINITY)] * 2
RANGE = [(-1.0, 3.0)] * 2


# ---- five numbers


def test_the_first_site_reads_the_input() -> None:
    assert last(lambda m, x: x) == RANGE


def test_linear_layer_takes_each_weight_to_the_end_it_points_to() -> None:
    found = last(lambda m, x: m.a(x), a=linear([[2.0, -1.0], [0.5, 0.0]], [10.0, -1.0]))
    assert [pytest.approx(pair, rel=1e-11) for pair in found] == [(5.0, 17.0), (-1.5, 0.5)]


def test_relu_unit_with_large_negative_bias_is_bounded_at_zero() -> None:
    found = last(lambda m, x: m.a(x).relu(), a=linear([[1.0, 1.0], [1.0, 1.0]], [-6.5, 1.0]))
    assert found[0] == (0.0, 0.0)
    assert found[1] == pytest.approx((0.0, 7.0), rel=1e-11)


def test_sigmoid_with_a_bias_out_of_reach_is_nearly_one() -> None:
    found = last(lambda m, x: m.a(x).sigmoid(), a=linear([[1.0, 1.0]] * 2, [40.0, 0.0]))
    assert 1 - 1e-13 < found[0][0] <= 1 <= found[0][1] < 1 + 1e-13
    assert found[1] == pytest.approx((1 / (1 + math.exp(2)), 1 / (1 + math.exp(-6))), rel=1e-11)


def test_zero_row_is_its_bias_to_the_last_bit() -> None:
    assert last(lambda m, x: m.a(x), a=linear([[0.0, 0.0], [0.0, 0.0]], [0.1, -0.3]).double())[0] == (
        torch.tensor(0.1).item(),
        torch.tensor(0.1).item(),
    )


@pytest.mark.parametrize("function", [F.leaky_relu, torch.abs, torch.square], ids=["leaky_relu", "abs", "square"])
def test_what_is_linear_on_either_side_keeps_a_zero_to_the_last_bit(function: Callable[[Tensor], Tensor]) -> None:
    assert last(lambda m, x: function(x * 0)) == [(0.0, 0.0)] * 2


def test_a_box_far_from_zero_is_taken() -> None:
    assert last(lambda m, x: x, 10.0, 11.0) == [(10.0, 11.0)] * 2
    assert last(lambda m, x: x, -11.0, -10.0) == [(-11.0, -10.0)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sum_of_many_terms_has_room_for_the_rounding_of_each(dtype: torch.dtype) -> None:
    """A sum of n terms, in whatever order, is off by up to n · eps/2 times the sum of their sizes."""
    terms, layer = 40_000, nn.Linear(40_000, 1, bias=False)
    nn.init.ones_(layer.weight)

    def body(m: Net, x: Tensor) -> Tensor:
        many = torch.cat([x[:, :1].expand(-1, terms // 2), -x[:, :1].expand(-1, terms // 2)], 1).to(dtype)
        return F.linear(many, m.a.weight.to(dtype)).to(x.dtype).expand(-1, 2)

    (lower, upper), _ = last(body, 1.0, 1.0, a=layer)
    assert upper >= terms * torch.finfo(dtype).eps / 2 * terms
    assert lower <= -terms * torch.finfo(dtype).eps / 2 * terms


def test_bounds_that_miss_what_was_computed_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    wrong = {**bound_rules._RULES, "sigmoid": lambda _call: [Interval(nothing - 2, nothing - 1)]}
    monkeypatch.setattr(bound_rules, "_RULES", wrong)
    assert last(lambda m, x: x.sigmoid()) == UNKNOWN


def test_zero_row_after_an_unknown_function_is_still_its_bias() -> None:
    found = last(lambda m, x: m.a(x.sort(1)[0]), a=linear([[0.0, 0.0], [1.0, 0.0]], [0.5, 0.0]))
    assert found == [(0.5, 0.5), (-INFINITY, INFINITY)]


def test_half_open_bounds_stay_half_open() -> None:
    weight = linear([[2.0, 0.0], [-1.0, 1.0]], [0.0, 0.0])
    found = last(lambda m, x: m.a(x.sort(1)[0].relu()), a=weight)
    assert found == [(0.0, INFINITY), (-INFINITY, INFINITY)]


def test_an_infinite_box_is_taken() -> None:
    found = last(lambda m, x: m.a(x.sigmoid()), -INFINITY, INFINITY, a=linear([[2.0, -1.0], [0.0, 0.0]], [0.0, 3.0]))
    assert found[0] == pytest.approx((-1.0, 2.0), rel=1e-11)
    assert found[1] == (3.0, 3.0)


def test_zero_padding_is_no_position_of_its_own() -> None:
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    found = last(lambda m, x: m.a(x[:, None]), 1.0, 2.0, a=layer)
    assert [pytest.approx(pair, rel=1e-11) for pair in found] == [(2.0, 4.0)] * 2


def test_channels_of_a_convolution_are_bounded_over_all_positions() -> None:
    layer = nn.Conv1d(1, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0])[:, None, None])
        layer.bias.copy_(torch.tensor([0.0, 5.0]))
    found = encoded(Net(lambda m, x: m.b(m.a(x[:, None])), a=layer, b=nn.Conv1d(2, 1, 2)), -1.0, 3.0)
    assert len(found) == 3
    assert found[1].lower.tolist() == pytest.approx([-1.0, -1.0], rel=1e-10)
    assert found[1].upper.tolist() == pytest.approx([3.0, 7.0], rel=1e-10)


def test_batch_norm_scale_of_zero_leaves_its_bias() -> None:
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -2.0]))
        norm.bias.copy_(torch.tensor([0.25, 1.0]))
    found = last(lambda m, x: m.a(x), a=norm)
    assert found[0] == (0.25, 0.25)
    assert found[1] == pytest.approx((1 - 6 / math.sqrt(1 + 1e-5), 1 + 2 / math.sqrt(1 + 1e-5)), rel=1e-11)
    assert last(lambda m, x: m.a(x.sort(1)[0]), a=norm) == [(0.25, 0.25), (-INFINITY, INFINITY)]


# ---- one function each


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(F.relu, (0, 3), id="relu"),
        pytest.param(lambda x: F.leaky_relu(x, 0.5), (-0.5, 3), id="leaky_relu"),
        pytest.param(lambda x: F.leaky_relu(x, -4.0), (0, 4), id="leaky_relu that folds over"),
        pytest.param(F.hardtanh, (-1, 1), id="hardtanh"),
        pytest.param(F.relu6, (0, 3), id="relu6"),
        pytest.param(lambda x: x.clamp(max=2.0), (-1, 2), id="clamp"),
        pytest.param(torch.tanh, (math.tanh(-1), math.tanh(3)), id="tanh"),
        pytest.param(torch.exp, (math.exp(-1), math.exp(3)), id="exp"),
        pytest.param(F.elu, (math.exp(-1) - 1, 3), id="elu"),
        pytest.param(lambda x: F.elu(x, -1.0), (0, 3), id="elu that folds over"),
        pytest.param(lambda x: F.prelu(x, torch.full((1,), -4.0, dtype=x.dtype)), (0, 4), id="prelu that folds over"),
        pytest.param(F.selu, (-1.1113307378125628, 3.1521029620664414), id="selu"),
        pytest.param(lambda x: F.gelu(x, approximate="tanh").clamp(max=1), (-0.17004075057125, 1), id="gelu by tanh"),
        pytest.param(lambda x: F.interpolate(x[:, None], 2, mode="nearest")[:, 0], (-1, 3), id="interpolated"),
        pytest.param(lambda x: F.interpolate(x[:, None], 2, mode="linear")[:, 0], (-1, 3), id="interpolated linearly"),
        pytest.param(F.hardsigmoid, (1 / 3, 1), id="hardsigmoid"),
        pytest.param(F.softplus, (math.log1p(math.exp(-1)), math.log1p(math.exp(3))), id="softplus"),
        pytest.param(F.logsigmoid, (-math.log1p(math.exp(1)), -math.log1p(math.exp(-3))), id="logsigmoid"),
        pytest.param(lambda x: F.silu(x - 1), (-0.27846454276107, 2 / (1 + math.exp(-2))), id="silu"),
        pytest.param(F.silu, (-1 / (1 + math.exp(1)), 3 / (1 + math.exp(-3))), id="silu right of its minimum"),
        pytest.param(lambda x: F.gelu(x).clamp(max=1), (-0.16997120747990, 1), id="gelu"),
        pytest.param(lambda x: F.hardswish(x * 3), (-0.375, 9), id="hardswish"),
        pytest.param(torch.abs, (0, 3), id="abs"),
        pytest.param(torch.square, (0, 9), id="square"),
        pytest.param(lambda x: -x, (-3, 1), id="neg"),
        pytest.param(lambda x: 2 - x, (-1, 3), id="number minus"),
        pytest.param(lambda x: x * -2 + 1, (-5, 3), id="times and plus a number"),
        pytest.param(lambda x: 12 / (x + 2), (2.4, 12), id="number over"),
        pytest.param(lambda x: 1 / x, (-INFINITY, INFINITY), id="over an interval with 0"),
        pytest.param(lambda x: x * x, (-3, 9), id="times itself"),
        pytest.param(lambda x: x - x, (-4, 4), id="minus itself"),
        pytest.param(lambda x: x + torch.sigmoid(x) * 0, (-1, 3), id="plus tracked"),
        pytest.param(lambda x: F.dropout(x, 0.5, False), (-1, 3), id="dropout in eval mode"),
        pytest.param(lambda x: F.dropout(x, 0.0, True), (-INFINITY, INFINITY), id="dropout in train mode"),
        pytest.param(lambda x: F.softmax(x, 1), (0, 1), id="softmax"),
        pytest.param(lambda x: torch.where(x > 0, x, torch.zeros_like(x)), (-1, 3), id="where"),
        pytest.param(lambda x: torch.maximum(x, x + 1), (0, 4), id="maximum"),
        pytest.param(lambda x: x.float().double(), (-1, 3), id="another type and back"),
        pytest.param(lambda x: F.pad(x, (1, 1))[:, 1:3], (-1, 3), id="pad and slice"),
        pytest.param(lambda x: F.pad(x, (1, 0), value=7.0)[:, :2].flip(1)[:, 1:].repeat(1, 2), (7, 7), id="pad with 7"),
        pytest.param(lambda x: torch.cat([x[:, :1], x[:, 1:]], 1), (-1, 3), id="cat"),
        pytest.param(lambda x: torch.cat(torch.max(x[:, None], 1)[:1] * 2, 1)[:, :2], (-1, 3), id="max of a dimension"),
        pytest.param(lambda x: torch.cat(Posterior(x[:, :1], x[:, 1:]), 1), (-1, 3), id="cat of a named tuple"),
        pytest.param(lambda x: torch.stack(x.unbind(1), 1), (-1, 3), id="unbind and stack"),
        pytest.param(lambda x: torch.cat(x.split(1, 1), 1), (-1, 3), id="split"),
        pytest.param(lambda x: x[:, torch.tensor([1, 0])], (-1, 3), id="known index"),
        pytest.param(lambda x: x.T.contiguous().t().view(-1, 1, 2).squeeze(1), (-1, 3), id="transposed"),
        pytest.param(lambda x: x.mean(1, keepdim=True).expand(-1, 2), (-1, 3), id="mean"),
        pytest.param(lambda x: x.sum(1, keepdim=True).expand(-1, 2), (-2, 6), id="sum"),
        pytest.param(lambda x: x[..., None].unflatten(1, (1, 2))[:, 0].detach().clone()[..., 0], (-1, 3), id="shapes"),
    ],
)  # fmt: skip
def test_bounds_of_one_function(body: Callable[[Tensor], Tensor], expected: tuple[float, float]) -> None:
    for found in last(lambda m, x: body(x)):
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_softplus_is_bounded_across_the_threshold_where_it_drops() -> None:
    (low, high), _ = last(lambda m, x: F.softplus(x, threshold=1), 0.5, 1.001)
    assert low <= 1.001
    assert high >= F.softplus(torch.tensor(0.9999), threshold=1).item()


def test_parameters_scale_and_shift() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        return x * m.a.weight[0] - m.a.bias

    assert last(body, a=linear([[-2.0, 0.0]] * 2, [1.0, 5.0])) == [(-7.0, 1.0), (-5.0, -5.0)]


@pytest.mark.parametrize(
    "product",
    [
        lambda m, x: F.linear(x, m.a.weight, m.a.bias),
        lambda m, x: x @ m.a.weight.T + m.a.bias,
        lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t()),
        lambda m, x: (m.a.weight @ x.T).T + m.a.bias,
        lambda m, x: F.linear(bias=m.a.bias, weight=m.a.weight, input=x),
        lambda m, x: F.linear(x, m.a.weight * 1.0, m.a.bias),
    ],
)
def test_every_way_to_write_a_product_is_the_same(product: Body) -> None:
    found = last(product, a=linear([[2.0, -1.0], [0.0, 0.0]], [10.0, -1.0]))
    assert found[0] == pytest.approx((5.0, 17.0), rel=1e-11)
    assert found[1] == (-1.0, -1.0)


# ---- what is not known is unbounded


def _through_numpy(m: Net, x: Tensor) -> Tensor:
    h = x.clone()
    h.detach().numpy()[:] += 100
    return h


def _through_data(m: Net, x: Tensor) -> Tensor:
    h = x.clone()
    h.data.add_(1)
    return h


def _by_a_view(m: Net, x: Tensor) -> Tensor:
    h = x.clone()
    h[:, 1:].add_(1)
    return h


def _item(m: Net, x: Tensor) -> Tensor:
    h = x.clone()
    h[:, 1] = 0.5
    return h


def _out(m: Net, x: Tensor) -> Tensor:
    h = x.clone()
    torch.add(x, 100, out=h)
    return h


def _branch(m: Net, x: Tensor) -> Tensor:
    return x + 100 if x.sum() > 3 else x


def _masked(m: Net, x: Tensor) -> Tensor:
    return torch.zeros_like(x) + x[x > 0].numel()


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.sort(1)[0],
        lambda m, x: x.cumsum(1),
        lambda m, x: x + torch.rand_like(x),
        lambda m, x: torch.add(x, x, alpha=-1),
        lambda m, x: F.layer_norm(x, (2,)),
        lambda m, x: torch.from_numpy(np.asarray(x)),
        lambda m, x: x + x.sum().item(),
        lambda m, x: x + float(x.sum()),
        lambda m, x: x + torch.tensor(x.tolist(), dtype=x.dtype),
        lambda m, x: x[:, x.argmax(1)].expand(-1, 2),
        lambda m, x: x.clone().sigmoid_().erfinv_(),
        lambda m, x: F.threshold(x, 0.0, 9.0),
        lambda m, x: F.interpolate(x[:, None], 2, mode="nearest")[:, 0].pow(3),
        lambda m, x: F.interpolate(x[:, None, None], (2, 2), mode="bicubic")[:, 0, 0],
        _through_numpy, _through_data, _by_a_view, _item, _out, _branch, _masked,
    ],
)  # fmt: skip
def test_what_is_not_understood_is_unbounded(body: Body) -> None:
    assert last(body) == UNKNOWN


def test_sites_before_a_branch_keep_their_bounds() -> None:
    body: Body = lambda m, x: m.a(x) if m.a(x).sum() > 0 else x  # noqa: E731
    found = encoded(Net(body, a=linear([[0.0, 0.0]] * 2, [1.0, 1.0])), -1.0, 3.0)
    assert [interval.upper.tolist() for interval in found] == [[3.0, 3.0], [INFINITY] * 2, [INFINITY] * 2]


def test_shapes_and_types_may_be_asked_for() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        assert x.shape[1] == len(x[0]) == x.size(1) == x.dim()
        assert x.is_floating_point()
        assert x.dtype == torch.float64
        return x.view(x.size(0), -1)

    assert last(body) == RANGE


def test_in_place_functions_change_the_bounds_with_the_tensor() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        h = x.clone()
        h += 1
        h.mul_(2)
        F.relu(h, inplace=True)
        h -= x
        return h

    assert last(body) == [(-3.0, 9.0)] * 2


def test_a_tensor_changed_through_its_view_is_unbounded_and_the_view_is_not() -> None:
    def changed(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.clone()
        view = h.view(-1, 2)
        view.relu_()
        return h, view

    assert last(lambda m, x: changed(m, x)[0]) == UNKNOWN
    assert last(lambda m, x: changed(m, x)[1]) == [(0.0, 3.0)] * 2


def test_views_of_a_tensor_changed_in_place_are_unbounded() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        h = x.clone()
        view = h[:, :]
        h.add_(100)
        return view

    assert last(body) == UNKNOWN


def test_a_residual_in_place_keeps_both_parts() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        h = m.a(x).relu_()
        h += x
        return h

    found = last(body, a=linear([[0.0, 0.0], [1.0, 0.0]], [-1.0, 0.0]))
    assert found[0] == (-1.0, 3.0)
    assert found[1] == pytest.approx((-1.0, 6.0), rel=1e-11)


def test_constants_may_be_computed_and_filled_in_place() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        mask = torch.zeros(2, dtype=x.dtype)
        mask[1] = 1
        return x * mask + torch.arange(2)

    assert last(body) == [(0.0, 0.0), (0.0, 4.0)]


def test_a_weight_changed_on_the_way_is_no_constant() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        m.a.bias.data.copy_(x[0])
        return x * 0 + m.a.bias

    assert last(body, a=linear([[1.0, 1.0]] * 2, [0.0, 0.0])) == UNKNOWN


def test_a_buffer_that_remembers_is_no_constant() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        m.a.running_mean.copy_(x.mean(0))
        return x * 0 + m.a.running_mean

    assert last(body, a=nn.BatchNorm1d(2)) == UNKNOWN


def test_inference_mode_is_unbounded() -> None:
    @torch.inference_mode()
    def body(m: Net, x: Tensor) -> Tensor:
        return x + 1

    assert last(body) == UNKNOWN


# ---- conditions, decoders


def conditional(m: Net, x: Tensor, *condition: Tensor) -> Tensor:
    return torch.cat([x, *(c.double() for c in condition)], 1) if condition else torch.cat([x, x[:, :1]], 1)


def test_a_condition_is_unbounded() -> None:
    vae = Net(conditional)
    (found,) = encoded(vae, -1.0, 3.0, torch.zeros(1, 1, dtype=torch.float64))
    assert found.lower.tolist() == [-1.0, -1.0, -INFINITY]
    (found,) = encoded(vae, -1.0, 3.0, torch.zeros(1, 1, dtype=torch.long))
    assert found.upper.tolist() == [3.0, 3.0, INFINITY]


def test_a_condition_may_be_given_bounds() -> None:
    x, condition = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    subject = Subject(Net(conditional), (x, condition))
    (found,) = operand_bounds(subject, lambda vae, x, c: vae.encode(x, c), box(-1, 3, 2), box(0, 1, 1))
    assert found.lower.tolist() == [-1.0, -1.0, 0.0]
    assert found.upper.tolist() == [3.0, 3.0, 1.0]


def test_a_decoder_is_bounded_from_its_latents() -> None:
    subject = Subject(Net(lambda m, z: z.tanh()), (torch.zeros(1, 2, dtype=torch.float64),))
    (found,) = operand_bounds(subject, lambda vae, z: vae.decode(z), box(-INFINITY, INFINITY, 1))
    assert found.lower.tolist() == pytest.approx([-1.0] * 2)
    assert found.upper.tolist() == pytest.approx([1.0] * 2)


def test_the_model_is_not_changed_and_sites_are_numbered_as_they_are_recorded() -> None:
    vae = convolutional().double()
    subject = Subject(vae, (torch.rand(1, *vae.input_shape),))
    recorder = Recorder()
    subject.run(lambda model: model.encode(*subject.example), recorder)
    before = {key: value.clone() for key, value in subject.vae.network.state_dict().items()}
    found = operand_bounds(subject, lambda model, x: model.encode(x), box(0, 1, *vae.input_shape))
    assert [len(interval.lower) for interval in found] == [
        operand.shape[site.operand_dim] for site, operand in zip(recorder.sites, recorder.operands, strict=True)
    ]
    assert all(torch.equal(before[key], value) for key, value in subject.vae.network.state_dict().items())


# ---- never too narrow


def assert_inside(vae: OwnVAE, run: Callable[..., object], limits: Interval, seed: int = 0, rows: int = 200) -> None:
    """What every site reads on rows drawn from the box, a third of them at its corners, lies inside the bounds."""
    subject = Subject(vae, (torch.zeros(1, *vae.input_shape, dtype=torch.float64),))
    found = operand_bounds(subject, run, limits)
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(rows, *limits.lower.shape[1:], generator=generator, dtype=torch.float64)
    share[: rows // 3] = share[: rows // 3].round()
    x = (limits.lower + share * (limits.upper - limits.lower)).clamp(limits.lower, limits.upper).to(subject.dtype)
    recorder = Recorder()
    subject.run(lambda model: run(model, x), recorder)
    assert len(recorder.sites) == len(found)
    for site, operand, bounds in zip(recorder.sites, recorder.operands, found, strict=True):
        values = operand.double().movedim(site.operand_dim, -1).flatten(0, -2)
        assert bounds.lower.isfinite().all(), site.key
        assert bounds.upper.isfinite().all(), site.key
        assert (values >= bounds.lower).all(), f"{site.key} by {(bounds.lower - values).max():.3g}"
        assert (values <= bounds.upper).all(), f"{site.key} by {(values - bounds.upper).max():.3g}"


class _Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x)


class _Concatenated(_Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.parts(x)], 1)


class _Scaled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, *[1] * (x.dim() - 2)) / (1 + torch.sigmoid(x))


CURVES = [
    nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Mish, nn.ELU,
    nn.SELU, nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.PReLU, nn.LogSigmoid, lambda: nn.ReLU(inplace=True),
    nn.Identity, nn.Dropout, nn.Softsign, nn.Tanhshrink, lambda: nn.LeakyReLU(-0.5), lambda: nn.Softplus(2, 1),
]  # fmt: skip

curves = st.sampled_from(CURVES)
seeds = st.integers(0, 2**31)


@st.composite
def dense_layers(draw: st.DrawFn, width: int) -> tuple[list[nn.Module], int]:
    out = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["linear", "norm", "residual", "concatenated", "scaled"]))
    if kind == "linear":
        return [nn.Linear(width, out, bias=draw(st.booleans())), draw(curves)()], out
    if kind == "norm":
        return [nn.BatchNorm1d(width, affine=draw(st.booleans())), draw(curves)()], width
    if kind == "residual":
        return [_Residual(nn.Linear(width, out), draw(curves)(), nn.Linear(out, width))], width
    if kind == "concatenated":
        return [_Concatenated(nn.Linear(width, out), draw(curves)())], width + out
    return [_Scaled(width)], width


@st.composite
def map_layers(draw: st.DrawFn, width: int) -> tuple[list[nn.Module], int]:
    out, kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["convolution", "depthwise", "transposed", "norm", "residual", "pool", "up", "pad"]))
    if kind == "convolution":
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate"]))
        layer = nn.Conv2d(width, out, kernel, stride, kernel // 2, padding_mode=mode)
        return [layer, draw(curves)()], out
    if kind == "depthwise":
        return [nn.Conv2d(width, width, 3, stride, 1, groups=width), draw(curves)()], width
    if kind == "transposed":
        return [nn.ConvTranspose2d(width, out, kernel, stride, kernel // 2, stride - 1), draw(curves)()], out
    if kind == "norm":
        return [nn.BatchNorm2d(width), draw(curves)()], width
    if kind == "residual":
        return [_Residual(draw(curves)(), nn.Conv2d(width, width, 3, padding=1))], width
    if kind == "pool":
        pools = nn.MaxPool2d(2, 2, 1), nn.AvgPool2d(2, 2, 1), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(4)
        return [draw(st.sampled_from(pools))], width
    if kind == "up":
        ways = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True)
        return [draw(st.sampled_from(ways))], width
    return [nn.ZeroPad2d(1), nn.ConstantPad2d((0, 1, 0, 1), -0.7)], width


class _Built(Net):
    def __init__(self, layers: list[nn.Module], shape: tuple[int, ...], seed: int) -> None:
        super().__init__(nn.Sequential(*layers), shape)
        randomise(self, seed)


@settings(max_examples=60, deadline=None)
@given(st.data(), seeds, st.sampled_from([0.0, 0.1, 1.0, 20.0]))
def test_dense_networks_stay_inside_their_bounds(data: st.DataObject, seed: int, spread: float) -> None:
    layers, width = [], 3
    for _ in range(data.draw(st.integers(1, 4))):
        added, width = data.draw(dense_layers(width))
        layers += added
    vae = _Built(layers, (3,), seed)
    assert_inside(vae, lambda model, x: model.encode(x), box(0.2 - spread, 0.2 + spread, 3), seed)


@settings(max_examples=30, deadline=None)
@given(st.data(), seeds, st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_convolutional_networks_stay_inside_their_bounds(data: st.DataObject, seed: int, spread: float) -> None:
    layers, width = [], 2
    for _ in range(data.draw(st.integers(1, 4))):
        added, width = data.draw(map_layers(width))
        layers += [nn.AdaptiveAvgPool2d(5), *added]
    vae = _Built(layers, (2, 6, 5), seed)
    assert_inside(vae, lambda model, x: model.encode(x), box(0.2 - spread, 0.2 + spread, 2, 6, 5), seed, 60)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("limits", [(-2.0, 3.0), (-40.0, -7.0), (-9.0, -8.0), (0.0, 1e-9), (19.0, 41.0), (0.4, 0.6)])
def test_every_activation_stays_inside(curve: Callable[[], nn.Module], limits: tuple[float, float]) -> None:
    vae = Net(nn.Sequential(curve()), (2,))
    assert_inside(vae, lambda model, x: model.encode(x), box(*limits, 2), rows=4000)


@pytest.mark.parametrize("seed", range(3))
def test_the_architectures_of_this_package_stay_inside(seed: int) -> None:
    for vae in (dense(seed=seed), convolutional(seed=seed)):
        shape = vae.input_shape
        assert_inside(vae, lambda model, x: model.encode(x), box(0.0, 1.0, *shape), seed, 30)
        assert_inside(vae, lambda model, z: model.decode(z), box(-4.0, 4.0, *vae.latent_shape), seed, 30)


def test_a_model_that_runs_in_single_precision_stays_inside() -> None:
    class Single(OwnVAE):
        latent_size = 2

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(5, 40), nn.BatchNorm1d(40), nn.Linear(40, 4)
            randomise(self, 3)
            self.eval()

        def encode(self, x: Tensor, *condition: Tensor) -> Posterior:
            h = torch.tanh(self.norm(self.a(x.float() * 0.3)))
            return Posterior(*self.b(h / 3 + 0.1).chunk(2, 1))

    vae = Single()
    assert Subject(vae, (torch.zeros(1, 5),)).dtype == torch.float32
    for spread in (0.0, 1e-6, 1.0):
        assert_inside(vae, lambda model, x: model.encode(x), box(0.3 - spread, 0.3 + spread, 5))
