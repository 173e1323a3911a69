"""What torch functions do to bounds: a table of names for each kind of rule, and one function a kind.

Beside each tensor stand two float64 tensors of its shape that bound it. What each function does to them:
1. selects, pools or otherwise increases in every operand: it is applied to both ends.
2. one operand, and one point where it turns (silu, gelu, abs): it is applied to both ends and to that point.
3. arithmetic, batch norm, and products with a weight: interval arithmetic, with 0·∞ = 0.
4. anything else: the result is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vaeprune.surgery.bound_calls import Call, NoRuleError
from vaeprune.surgery.intervals import INFINITY, Interval, between, corners, rounded, widened

# roundings, in machine epsilons: of sums, times the sum of their terms' sizes (1e-12 in float64); of functions such as
# exp, times 1 + |value|; of piecewise linear ones, times |value|
_SUM, _CURVE, _PIECE = 4500.0, 64.0, 2.0

# what comes out are elements of the operands, or constants, or both rounded, which keeps their order
_EXACT = {
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "t", "T", "mT", "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to",
    "repeat", "tile", "repeat_interleave", "narrow", "select", "__getitem__", "index_select", "gather", "chunk",
    "split", "tensor_split", "unbind", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "pad", "flip",
    "roll", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "contiguous", "clone", "detach",
    "requires_grad", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "positive", "neg",
    "negative", "__neg__", "relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max", "maximum",
    "minimum", "max", "min", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d", "floor", "ceil",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "round", "trunc", "zeros_like", "ones_like", "full_like", "new_zeros",
    "new_ones", "new_full",
}  # fmt: skip
_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}
_SUMS = {
    "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
}  # fmt: skip
_CURVES = {
    "sigmoid", "tanh", "log_sigmoid", "hardsigmoid", "exp", "expm1", "log", "log1p", "sqrt", "erf", "atan", "arctan",
    "softsign", "tanhshrink",
}  # fmt: skip
# functions that rise or fall on either side of one point
_TURNS = {
    "leaky_relu": 0.0, "prelu": 0.0, "abs": 0.0, "square": 0.0, "elu": 0.0, "celu": 0.0, "selu": 0.0,
    "silu": -1.278464542761074, "gelu": -0.7517915246935645, "mish": -1.1924312145154952, "hardswish": -1.5,
}  # fmt: skip
_TANH_GELU_TURN = -0.7524614220710162
_PIECEWISE = {"leaky_relu", "prelu", "abs", "square"}
_POSITIVE_WEIGHTS = {"nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area"}
_OPERATIONS = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "div": "div", "divide": "div",
    "truediv": "div", "true_divide": "div",
}  # fmt: skip
_ARITHMETIC = {
    stem.format(name): (operation, "r{}" in stem)
    for name, operation in _OPERATIONS.items()
    for stem in ("{}", "__{}__", "__i{}__", "r{}", "__r{}__")
}
# the two factors of a product, and what is added to it
_FACTORS = {"linear": ("input", "weight", "bias"), "addmm": ("mat1", "mat2", "input")}
_FACTORS |= {f"conv{t}{n}d": ("input", "weight", "bias") for t in ("", "_transpose") for n in (1, 2, 3)}
_FACTORS |= dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), ("input", "other", ""))
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def result_bounds(call: Call) -> list[Interval]:
    """Bounds of each tensor that comes out of a call; empty if nothing can be said."""
    rule = _RULES.get(call.name)
    if rule is None or "out" in call.kwargs:
        return []
    try:
        return rule(call)
    except (NoRuleError, RuntimeError, TypeError, ValueError, LookupError):  # arguments that the rule did not expect
        return []


def _exact(call: Call) -> list[Interval]:
    typed = any(isinstance(value, torch.dtype) for value in (*call.args, *call.kwargs.values()))
    if (typed and call.name not in _CASTS) or any(not t.is_floating_point() for t in call.varying):
        raise NoRuleError  # another type to compute in, or an index that is not known
    if call.name in _CASTS:
        return [call.known.interval(call.operands[0])]
    lows, highs = call.ends(lambda box: box.lower), call.ends(lambda box: box.upper)
    return [between(torch.minimum(a, b), torch.maximum(a, b)) for a, b in zip(lows, highs, strict=True)]


def _sum(call: Call) -> list[Interval]:
    """Sums of operands, each times a number ≥ 0."""
    noise = _SUM * call.eps
    (low,), (high,) = call.ends(lambda box: box.lower.abs()), call.ends(lambda box: box.upper.abs())
    return [widened(box, noise * low.abs(), noise * high.abs()) for box in _exact(call)]


def _interpolation(call: Call) -> list[Interval]:
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    if call.named(*names).get("mode", "nearest") not in _POSITIVE_WEIGHTS:
        raise NoRuleError
    return _sum(call)


def _curve(call: Call) -> list[Interval]:
    return [rounded(box, _CURVE * call.eps, 1.0) for box in _exact(call)]


def _turning(call: Call) -> list[Interval]:
    data, turn = call.operands[0], _TURNS[call.name]
    if call.kwargs.get("approximate") == "tanh":
        turn = _TANH_GELU_TURN
    call.expect_only(data)
    box = call.known.interval(data)
    points = box.lower, box.upper, torch.full_like(box.lower, turn).clamp(box.lower, box.upper)
    # where ∞ times 0 came out, the limit is 0
    values = [call.at({id(data): p})[0].nan_to_num(0.0, INFINITY, -INFINITY) for p in points]
    found = between(torch.stack(values).amin(0), torch.stack(values).amax(0))
    exact = call.name in _PIECEWISE
    return [rounded(found, (_PIECE if exact else _CURVE) * call.eps, 0.0 if exact else 1.0)]


def _softplus(call: Call) -> list[Interval]:
    """ln(1 + exp(βx))/β, but x itself, which is less, from βx = threshold on."""
    named = call.named("input", "beta", "threshold")
    beta, threshold = float(named.get("beta", 1)), float(named.get("threshold", 20))
    if beta <= 0:
        raise NoRuleError
    box = call.known.interval(named["input"])
    low, high = (torch.logaddexp(torch.zeros_like(end), beta * end) / beta for end in (box.lower, box.upper))
    low = torch.minimum(low, box.lower.clamp_min(threshold / beta))
    return [rounded(between(low, high), _CURVE * call.eps, 1.0)]


def _dropout(call: Call) -> list[Interval]:
    named = call.named("input", "p", "training", "inplace")
    if named.get("training", named.get("train", True)) is not False:
        raise NoRuleError
    return [call.known.interval(named["input"])]


def _softmax(call: Call) -> list[Interval]:
    zero = torch.zeros_like(call.operands[0], dtype=torch.float64)
    return [rounded(Interval(zero, zero + 1), _CURVE * call.eps, 0.0)]


def _hull(call: Call) -> list[Interval]:
    """Where a mask decides, element for element, which of two values comes out."""
    order, sides = ("condition", "input", "other"), ("input", "other")
    if call.name == "masked_fill":
        order, sides = ("input", "mask", "value"), ("input", "value")
    named = call.named(*order)
    (mask,) = (named[name] for name in order if name not in sides)
    a, b = (_side(call, named[name]) for name in sides)
    shape = torch.where(mask, a.lower, b.lower).shape
    return [between(torch.minimum(a.lower, b.lower).expand(shape), torch.maximum(a.upper, b.upper).expand(shape))]


def _side(call: Call, value: Any) -> Interval:
    """Bounds of a tensor or number that takes part in arithmetic."""
    if isinstance(value, Tensor):
        return call.known.interval(value)
    data = call.varying[0]
    if not data.is_floating_point():
        raise NoRuleError
    number = torch.tensor(value, dtype=data.dtype, device=data.device).double()
    return between(number, number)


def _arithmetic(call: Call) -> list[Interval]:
    operation, reverse = _ARITHMETIC[call.name]
    named = call.named("input", "other")
    if set(named) != {"input", "other"}:
        raise NoRuleError  # alpha, rounding_mode
    a, b = _side(call, named["input"]), _side(call, named["other"])
    if reverse:
        a, b = b, a
    if operation == "add":
        return [between(a.lower + b.lower, a.upper + b.upper)]
    if operation == "sub":
        return [between(a.lower - b.upper, a.upper - b.lower)]
    if operation == "mul":
        return [corners(torch.mul, a, b)]
    away = (b.lower > 0) | (b.upper < 0)
    found = corners(torch.div, a, b)
    return [between(found.lower.where(away, -INFINITY), found.upper.where(away, INFINITY))]


def _product(call: Call) -> list[Interval]:
    """Of data with a constant weight; the weight's positive part keeps the ends, its negative part exchanges them."""
    first, second, added = _FACTORS[call.name]
    spatial = ("stride", "padding", "output_padding", "groups", "dilation")  # none of which matters here
    order = (added, first, second) if call.name == "addmm" else (first, second, *([added] if added else []), *spatial)
    named = call.named(*order)
    second = next(name for name in (second, "mat2") if name in named)
    data, weight = named[first], named[second]
    if call.known.constant(data):
        data, weight = weight, data
    bias = named.get(added)
    call.expect_only(data)
    if {"alpha", "beta"} & set(named) or not weight.isfinite().all():
        raise NoRuleError
    matrix, box = weight.detach().double(), call.known.interval(data)
    without = {} if bias is None else {id(bias): torch.zeros_like(bias, dtype=torch.float64)}

    def product(operand: Tensor, part: Tensor) -> Tensor:
        return call.at({id(data): operand, id(weight): part} | without)[0]

    shift = call.at({id(data): torch.zeros_like(box.lower)})[0]  # the bias in its place
    terms = matrix.numel() // max(1, min(matrix.shape[:2])) if matrix.dim() > 1 else matrix.numel()  # at most
    noise = max(_SUM, 2.0 * terms) * call.eps
    lower = _least(product, matrix, box, shift, noise)
    upper = -_least(product, matrix, Interval(-box.upper, -box.lower), -shift, noise)
    return [between(lower, upper)]


def _least(
    product: Callable[[Tensor, Tensor], Tensor], weight: Tensor, box: Interval, shift: Tensor, noise: float
) -> Tensor:
    """The least that shift + product(operand, weight) can be, less its rounding; exact where no weight takes part."""
    rising, falling = weight.clamp_min(0), weight.clamp_max(0)
    low, high = (end.where(end.isfinite(), 0.0) for end in (box.lower, box.upper))
    size = product(low.abs(), rising) - product(high.abs(), falling)
    found = shift + (product(low, rising) + product(high, falling)) - noise * (size + shift.abs()).where(size > 0, 0.0)
    if box.lower.isfinite().all() and box.upper.isfinite().all():
        return found
    open_low, open_high = (end.isinf().double() for end in (box.lower, box.upper))
    reached = product(open_low, (rising > 0).double()) + product(open_high, (falling < 0).double())
    return found.where(reached < 0.5, -INFINITY)


def _batch_norm(call: Call) -> list[Interval]:
    named = call.named(*_BATCH_NORM)
    data = named["input"]
    call.expect_only(data)
    if named.get("training") or named.get("running_mean") is None:
        raise NoRuleError
    shape = (1, -1, *[1] * (data.dim() - 2))
    one = torch.ones_like(named["running_var"], dtype=torch.float64)
    gain = one if named.get("weight") is None else named["weight"].double()
    bias = 0 * one if named.get("bias") is None else named["bias"].double()
    scale = gain / (named["running_var"].double() + named.get("eps", 1e-5)).sqrt()
    mean = named["running_mean"].double() * scale
    if not (scale + bias + mean).isfinite().all():
        raise NoRuleError
    scale, shift, size = (t.view(shape) for t in (scale, bias - mean, bias.abs() + mean.abs()))
    scaled = corners(torch.mul, call.known.interval(data), Interval(scale, scale))
    found = between(scaled.lower + shift, scaled.upper + shift)
    noise = _SUM * call.eps * (scale != 0)
    return [widened(found, *((noise * (end.abs() + size)).nan_to_num(0.0) for end in (scaled.lower, scaled.upper)))]


_RULES: Mapping[str, Callable[[Call], list[Interval]]] = (
    dict.fromkeys(_EXACT, _exact)
    | dict.fromkeys(_SUMS, _sum)
    | dict.fromkeys(_CURVES, _curve)
    | dict.fromkeys(_TURNS, _turning)
    | dict.fromkeys(_ARITHMETIC, _arithmetic)
    | dict.fromkeys(_FACTORS, _product)
    | dict.fromkeys(("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"), _interpolation)
    | dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout)
    | dict.fromkeys(("where", "masked_fill"), _hull)
    | {"softplus": _softplus, "softmax": _softmax, "batch_norm": _batch_norm}
)
