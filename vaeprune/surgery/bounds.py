"""What each call on weights can read at least and at most, whatever the input in a box: interval arithmetic.

Nothing is known of the model's code. It runs once, on a point of the box, and beside each tensor that the input reaches
stand two float64 tensors of its shape that bound it. What each torch function does to them:
1. selects, pools or otherwise increases in every operand: it is applied to both ends.
2. one operand, and one point where it turns (silu, gelu, abs): it is applied to both ends and to that point.
3. arithmetic, batch norm, and products with a weight: interval arithmetic, with 0·∞ = 0.
4. anything else: the result is unbounded.

Fails closed. A tensor that nobody vouches for (a condition, say) is unbounded. So is, from then on, one that is changed
in place in a way not understood. So is everything once the code looks at a value that depends on the input, since it
may take another path for another input. Parameters, buffers and Python numbers count as constants of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vaeprune.surgery.probe import Subject, Watcher
from vaeprune.surgery.sites import Site

_INFINITY = float("inf")
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

_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "dropout", "uniform", "exponential", "empty",
           "resize", "cauchy", "geometric", "gumbel", "fractional", "rrelu")  # fmt: skip
# give memory away that can then be changed without a trace
_ESCAPES = {"data", "numpy", "__array__", "storage", "untyped_storage", "data_ptr", "__dlpack__", "from_dlpack", "set"}
# Python values that do not depend on a tensor's elements
_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "is_floating_point",
    "is_complex", "is_signed", "is_inference", "is_same_size", "element_size", "get_device", "type", "result_type",
    "__len__", "__hash__", "_has_compatible_shallow_copy_type",
}  # fmt: skip
_SHAPED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}


@dataclass(frozen=True)
class Interval:
    """`lower` ≤ value ≤ `upper`, elementwise: float64 of one shape, infinite where nothing is known."""

    lower: Tensor
    upper: Tensor


def operand_bounds(subject: Subject, run: Callable[..., Any], *boxes: Interval) -> list[Interval]:
    """Per-channel bounds of what each site reads while `run(vae, *inputs)` runs, for any inputs inside `boxes`.

    boxes: one for each input of `run`, of shape (1, ...) each, ends may be infinite. Tensors that `run` brings itself
    are unbounded. Returns one interval a call, numbered as `Recorder.sites` is, each of two vectors (channels of the
    operand): the least lower end and the greatest upper end over its positions.

    The bounds hold for what the copy computes, rounding included, as long as nothing in it overflows, and for a batch
    if rows are kept apart. Moore 1966; for networks Gowal et al. 2018 (arXiv:1810.12715).
    """
    known = _Known(tensor for tensor, _ in subject.aliases)
    points = [_point(box).to(subject.dtype) for box in boxes]
    for point, box in zip(points, boxes, strict=True):
        known.bound(point, box)
    propagation = _Propagation(known)
    with propagation:  # below the subject's own mode, which tells of a site before its function comes down here
        subject.run(lambda vae: run(vae, *points), propagation.ahead)
    return propagation.operands


def _point(box: Interval) -> Tensor:
    """A point of the box, in the middle where it has one."""
    middle = box.lower / 2 + box.upper / 2
    nearest = torch.zeros_like(middle).clamp(box.lower, box.upper)
    return torch.where(middle.isfinite(), middle, nearest)


@dataclass(frozen=True)
class _Entry:
    tensor: Tensor  # kept alive: an id is only good while its tensor lives
    version: int
    interval: Interval | None  # None: a constant


class _Known:
    """What is known of the tensors of one run.

    torch counts the changes in place of each tensor, through whatever view; what was known before one is void.
    """

    def __init__(self, constants: Iterable[Tensor]) -> None:
        self._entries: dict[int, _Entry] = {}
        self.lost = False  # whether the code may take another path for another input
        for tensor in constants:
            self._enter(tensor, None)

    def constant(self, tensor: Tensor) -> bool:
        """Whether the tensor is the same for every input."""
        entry = self._entry(tensor)
        return entry is not None and entry.interval is None

    def interval(self, tensor: Tensor) -> Interval:
        """Bounds of the tensor; they are let go where the point of this run already lies outside."""
        entry = self._entry(tensor)
        if entry is not None and not tensor.is_complex():
            value = tensor.detach().double().clone()
            found = entry.interval or _interval(value, value)
            if found.lower.shape == value.shape and ((found.lower <= value) & (value <= found.upper)).all():
                return found
        ends = torch.full(tensor.shape, _INFINITY, dtype=torch.float64, device=tensor.device)
        return Interval(-ends, ends)

    def bound(self, tensor: Tensor, interval: Interval) -> None:
        """Note bounds of a tensor; rounded to its type, which keeps order."""
        lower, upper = (end.to(tensor).double() for end in (interval.lower, interval.upper))
        self._enter(tensor, _interval(lower, upper))

    def vouch(self, tensor: Tensor) -> None:
        """Note that a tensor is the same for every input."""
        self._enter(tensor, None)

    def forget(self, tensor: Tensor) -> None:
        """Know nothing of a tensor."""
        self._entries.pop(id(tensor), None)

    def forget_memory(self, tensor: Tensor) -> None:
        """Know nothing of all tensors that share memory with this one."""
        memory = tensor.untyped_storage().data_ptr()
        for entry in list(self._entries.values()):
            if entry.tensor.untyped_storage().data_ptr() == memory:
                self.forget(entry.tensor)

    def _entry(self, tensor: Tensor) -> _Entry | None:
        entry = self._entries.get(id(tensor))
        return None if entry is None or self.lost or _version(tensor) != entry.version else entry

    def _enter(self, tensor: Tensor, interval: Interval | None) -> None:
        self.forget(tensor)
        version = _version(tensor)
        if version is not None:
            self._entries[id(tensor)] = _Entry(tensor, version, interval)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class _Ahead(Watcher):
    """The site whose function comes next, and what it reads."""

    def __init__(self) -> None:
        self.read: tuple[Site, Tensor] | None = None

    def operand(self, call: int, site: Site, value: Tensor) -> Tensor:
        """Note it; the bounds are looked up where no mode watches."""
        self.read = site, value
        return value


class _Propagation(TorchFunctionMode):
    def __init__(self, known: _Known) -> None:
        super().__init__()
        self.ahead, self.operands = _Ahead(), list[Interval]()
        self._known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.ahead.read is not None:
            (site, operand), self.ahead.read = self.ahead.read, None
            self.operands.append(_by_channel(self._known.interval(operand), site.operand_dim))
        call = _Call(func, args, kwargs or {}, self._known)
        fixed = all(self._known.constant(tensor) for tensor in call.operands)
        disclosed = not fixed and _discloses(call)
        found = [] if fixed else _bounds(call)
        value = func(*args, **(kwargs or {}))
        results = list(_tensors(value))
        if not fixed:
            speaks = value is not None and not results and call.name not in _METADATA and not call.reads_property
            self._known.lost |= disclosed or speaks
            self._note(call, results, found)
        elif not any(part in call.name for part in _RANDOM):
            for tensor in itertools.chain(call.operands, results):  # also what it changed
                self._known.vouch(tensor)
        if call.name in _ESCAPES:
            for tensor in call.operands:
                self._known.forget_memory(tensor)
        return value

    def _note(self, call: _Call, results: list[Tensor], found: list[Interval]) -> None:
        for tensor in itertools.chain(results, call.operands if call.in_place else ()):
            self._known.forget(tensor)
        for tensor, interval in zip(results, found, strict=True) if len(results) == len(found) else ():
            if tensor.is_floating_point() and (interval.lower.isfinite() | interval.upper.isfinite()).any():
                self._known.bound(tensor, interval)


class _Call:
    """One call of a torch function, which can be made again with other tensors."""

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], known: _Known) -> None:
        name = getattr(func, "__name__", "")
        self.reads_property = name == "__get__"
        if name in ("__get__", "__set__"):
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        self.in_place = name.endswith("_") and not name.endswith("__")
        self.name: str = name.removesuffix("_") if self.in_place else name
        self.func, self.args, self.kwargs, self.known = func, args, kwargs, known
        self.operands = list(_tensors((args, kwargs)))
        self.varying = [tensor for tensor in self.operands if not known.constant(tensor)]

    @property
    def eps(self) -> float:
        """Machine epsilon of the coarsest type among the operands."""
        return max((torch.finfo(t.dtype).eps for t in self.operands if t.is_floating_point()), default=0.0)

    def named(self, *order: str) -> dict[str, Any]:
        """The arguments by name."""
        if len(self.args) > len(order):
            raise _NoRuleError
        return dict(zip(order, self.args, strict=False)) | dict(self.kwargs)

    def expect_only(self, data: Tensor) -> None:
        """All other operands must be constants."""
        if len(self.varying) != 1 or self.varying[0] is not data:
            raise _NoRuleError

    def at(self, ends: Mapping[int, Tensor]) -> list[Tensor]:
        """What the function gives for other tensors in place of its own, by id; constants in float64."""
        constants = {id(t): t.detach().double() for t in self.operands if t.is_floating_point()}
        swapped = {key: tensor.clone() for key, tensor in (constants | dict(ends)).items()}  # it may work in place
        func = _UNSTRIDED.get(self.name, self.func)
        return list(_tensors(func(*_swap(self.args, swapped), **_swap(self.kwargs, swapped))))

    def ends(self, of: Callable[[Interval], Tensor]) -> list[Tensor]:
        """The function at one end of every operand."""
        return self.at({id(t): of(self.known.interval(t)) for t in self.operands if t.is_floating_point()})


# bounds need not lie in memory as their tensor does
_UNSTRIDED: dict[str, Callable[..., Any]] = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}


class _NoRuleError(Exception):
    """Nothing can be said of a result."""


def _bounds(call: _Call) -> list[Interval]:
    """Bounds of each tensor that comes out of a call; empty if nothing can be said."""
    rule = _RULES.get(call.name)
    if rule is None or "out" in call.kwargs:
        return []
    try:
        return rule(call)
    except (_NoRuleError, RuntimeError, TypeError, ValueError, LookupError):  # arguments that the rule did not expect
        return []


def _exact(call: _Call) -> list[Interval]:
    typed = any(isinstance(value, torch.dtype) for value in (*call.args, *call.kwargs.values()))
    if (typed and call.name not in _CASTS) or any(not t.is_floating_point() for t in call.varying):
        raise _NoRuleError  # another type to compute in, or an index that is not known
    if call.name in _CASTS:
        return [call.known.interval(call.operands[0])]
    lows, highs = call.ends(lambda box: box.lower), call.ends(lambda box: box.upper)
    return [_interval(torch.minimum(a, b), torch.maximum(a, b)) for a, b in zip(lows, highs, strict=True)]


def _sum(call: _Call) -> list[Interval]:
    """Sums of operands, each times a number ≥ 0."""
    noise = _SUM * call.eps
    (low,), (high,) = call.ends(lambda box: box.lower.abs()), call.ends(lambda box: box.upper.abs())
    return [_widened(box, noise * low.abs(), noise * high.abs()) for box in _exact(call)]


def _interpolation(call: _Call) -> list[Interval]:
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    if call.named(*names).get("mode", "nearest") not in _POSITIVE_WEIGHTS:
        raise _NoRuleError
    return _sum(call)


def _curve(call: _Call) -> list[Interval]:
    return [_rounded(box, _CURVE * call.eps, 1.0) for box in _exact(call)]


def _turning(call: _Call) -> list[Interval]:
    data, turn = call.operands[0], _TURNS[call.name]
    if call.kwargs.get("approximate") == "tanh":
        turn = _TANH_GELU_TURN
    call.expect_only(data)
    box = call.known.interval(data)
    points = box.lower, box.upper, torch.full_like(box.lower, turn).clamp(box.lower, box.upper)
    # where ∞ times 0 came out, the limit is 0
    values = [call.at({id(data): p})[0].nan_to_num(0.0, _INFINITY, -_INFINITY) for p in points]
    found = _interval(torch.stack(values).amin(0), torch.stack(values).amax(0))
    exact = call.name in _PIECEWISE
    return [_rounded(found, (_PIECE if exact else _CURVE) * call.eps, 0.0 if exact else 1.0)]


def _softplus(call: _Call) -> list[Interval]:
    """ln(1 + exp(βx))/β, but x itself, which is less, from βx = threshold on."""
    named = call.named("input", "beta", "threshold")
    beta, threshold = float(named.get("beta", 1)), float(named.get("threshold", 20))
    if beta <= 0:
        raise _NoRuleError
    box = call.known.interval(named["input"])
    low, high = (torch.logaddexp(torch.zeros_like(end), beta * end) / beta for end in (box.lower, box.upper))
    low = torch.minimum(low, box.lower.clamp_min(threshold / beta))
    return [_rounded(_interval(low, high), _CURVE * call.eps, 1.0)]


def _dropout(call: _Call) -> list[Interval]:
    named = call.named("input", "p", "training", "inplace")
    if named.get("training", named.get("train", True)) is not False:
        raise _NoRuleError
    return [call.known.interval(named["input"])]


def _softmax(call: _Call) -> list[Interval]:
    zero = torch.zeros_like(call.operands[0], dtype=torch.float64)
    return [_rounded(Interval(zero, zero + 1), _CURVE * call.eps, 0.0)]


def _hull(call: _Call) -> list[Interval]:
    """Where a mask decides, element for element, which of two values comes out."""
    order, sides = ("condition", "input", "other"), ("input", "other")
    if call.name == "masked_fill":
        order, sides = ("input", "mask", "value"), ("input", "value")
    named = call.named(*order)
    (mask,) = (named[name] for name in order if name not in sides)
    a, b = (_side(call, named[name]) for name in sides)
    shape = torch.where(mask, a.lower, b.lower).shape
    return [_interval(torch.minimum(a.lower, b.lower).expand(shape), torch.maximum(a.upper, b.upper).expand(shape))]


def _side(call: _Call, value: Any) -> Interval:
    """Bounds of a tensor or number that takes part in arithmetic."""
    if isinstance(value, Tensor):
        return call.known.interval(value)
    data = call.varying[0]
    if not data.is_floating_point():
        raise _NoRuleError
    number = torch.tensor(value, dtype=data.dtype, device=data.device).double()
    return _interval(number, number)


def _arithmetic(call: _Call) -> list[Interval]:
    operation, reverse = _ARITHMETIC[call.name]
    named = call.named("input", "other")
    if set(named) != {"input", "other"}:
        raise _NoRuleError  # alpha, rounding_mode
    a, b = _side(call, named["input"]), _side(call, named["other"])
    if reverse:
        a, b = b, a
    if operation == "add":
        return [_interval(a.lower + b.lower, a.upper + b.upper)]
    if operation == "sub":
        return [_interval(a.lower - b.upper, a.upper - b.lower)]
    if operation == "mul":
        return [_corners(torch.mul, a, b)]
    away = (b.lower > 0) | (b.upper < 0)
    found = _corners(torch.div, a, b)
    return [_interval(found.lower.where(away, -_INFINITY), found.upper.where(away, _INFINITY))]


def _corners(function: Callable[[Tensor, Tensor], Tensor], a: Interval, b: Interval) -> Interval:
    values = [function(x, y) for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
    every = torch.stack(values).nan_to_num(0.0, _INFINITY, -_INFINITY)  # 0·∞
    return _interval(every.amin(0), every.amax(0))


def _product(call: _Call) -> list[Interval]:
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
        raise _NoRuleError
    matrix, box = weight.detach().double(), call.known.interval(data)
    without = {} if bias is None else {id(bias): torch.zeros_like(bias, dtype=torch.float64)}

    def product(operand: Tensor, part: Tensor) -> Tensor:
        return call.at({id(data): operand, id(weight): part} | without)[0]

    shift = call.at({id(data): torch.zeros_like(box.lower)})[0]  # the bias in its place
    terms = matrix.numel() // max(1, min(matrix.shape[:2])) if matrix.dim() > 1 else matrix.numel()  # at most
    noise = max(_SUM, 2.0 * terms) * call.eps
    lower = _least(product, matrix, box, shift, noise)
    upper = -_least(product, matrix, Interval(-box.upper, -box.lower), -shift, noise)
    return [_interval(lower, upper)]


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
    return found.where(reached < 0.5, -_INFINITY)


def _batch_norm(call: _Call) -> list[Interval]:
    named = call.named(*_BATCH_NORM)
    data = named["input"]
    call.expect_only(data)
    if named.get("training") or named.get("running_mean") is None:
        raise _NoRuleError
    shape = (1, -1, *[1] * (data.dim() - 2))
    one = torch.ones_like(named["running_var"], dtype=torch.float64)
    gain = one if named.get("weight") is None else named["weight"].double()
    bias = 0 * one if named.get("bias") is None else named["bias"].double()
    scale = gain / (named["running_var"].double() + named.get("eps", 1e-5)).sqrt()
    mean = named["running_mean"].double() * scale
    if not (scale + bias + mean).isfinite().all():
        raise _NoRuleError
    scale, shift, size = (t.view(shape) for t in (scale, bias - mean, bias.abs() + mean.abs()))
    scaled = _corners(torch.mul, call.known.interval(data), Interval(scale, scale))
    found = _interval(scaled.lower + shift, scaled.upper + shift)
    noise = _SUM * call.eps * (scale != 0)
    return [_widened(found, *((noise * (end.abs() + size)).nan_to_num(0.0) for end in (scaled.lower, scaled.upper)))]


_RULES: Mapping[str, Callable[[_Call], list[Interval]]] = (
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


def _interval(lower: Tensor, upper: Tensor) -> Interval:
    """Ends that could not be computed, or that overflowed to the wrong side, say nothing."""
    return Interval(
        lower.where(~lower.isnan() & (lower < _INFINITY), -_INFINITY),
        upper.where(~upper.isnan() & (upper > -_INFINITY), _INFINITY),
    )


def _widened(box: Interval, below: Tensor, above: Tensor) -> Interval:
    return _interval(box.lower - below, box.upper + above)


def _rounded(box: Interval, noise: float, least: float) -> Interval:
    return _widened(box, noise * (least + box.lower.abs()), noise * (least + box.upper.abs()))


def _by_channel(box: Interval, dim: int) -> Interval:
    """Over all rows and positions; unbounded where there are none."""
    lower, upper = (end.movedim(dim, -1)[None].flatten(0, -2) for end in (box.lower, box.upper))
    if not len(lower):
        ends = torch.full(lower.shape[1:], _INFINITY, dtype=torch.float64)
        return Interval(-ends, ends)
    return Interval(lower.amin(0), upper.amax(0))


def _discloses(call: _Call) -> bool:
    """Whether Python code can see in the result's shape what an operand held."""
    if call.name in _SHAPED_BY_VALUES or (call.name == "where" and len(call.operands) == 1):
        return True
    masks = (torch.bool, torch.uint8) if call.name == "__getitem__" else (torch.int64, torch.int32)
    shaping = call.name in ("__getitem__", "repeat_interleave")
    return any(
        (shaping and t.dtype in masks) or (t.dim() == 0 and not t.is_floating_point() and t.dtype != torch.bool)
        for t in call.varying
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif isinstance(value, slice):
        yield from _tensors((value.start, value.stop, value.step))


def _swap(value: Any, ends: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return ends.get(id(value), value)
    if isinstance(value, dict):
        return {key: _swap(item, ends) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(_swap(item, ends) for item in value)
    return value
