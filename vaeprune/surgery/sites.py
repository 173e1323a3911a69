"""What one call with weights among its operands does: which axis of the weight belongs to which channel.

Cases, by the torch function that was called (from a module or not):
1. linear, conv*, conv_transpose*, matmul with the weight on the right, addmm: a `Site`. It reads input channels and
   writes output channels; a channel ends there.
2. batch_norm in eval mode, prelu, arithmetic with a broadcast parameter, depthwise and grouped convolution: a
   `Passenger`. A channel goes through it; the parameter has an entry for each channel that comes out. In a grouped
   convolution the channels of a group come out together, so they go together.
3. anything else: unknown, and a channel that reaches it cannot be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Side = Literal["encode", "decode"]
Call = tuple[Side, int]  # the n-th call on weights in a run of encode, or of decode
Axis = tuple[str, int]  # state-dict key and axis of a tensor

_CONV = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_CONV_TRANSPOSE = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
_MATMUL = {"matmul", "__matmul__", "mm"}
_ARITHMETIC = {
    stem.format(name)
    for name in ("add", "sub", "mul", "div", "truediv")
    for stem in ("{}", "{}_", "__{}__", "__r{}__", "__i{}__")
}


@dataclass(frozen=True)
class View:
    """A weight, or a transposed view of one: state-dict key, and which of its axes each axis of the view is.

    `axes` is None where the tensor was computed from the weight in another way, so that no axis can be named.
    """

    key: str
    axes: tuple[int, ...] | None


Views = Mapping[int, View]  # by id(tensor)


@dataclass(frozen=True)
class Site:
    """A weight that reads channels of its operand and writes channels of its result.

    `key`, `bias`: state-dict keys; `input_axis`, `output_axis`: axes of the weight; `operand_dim`, `result_dim`:
    the channel's dimension in the data. `operand`, `weight`, `bias_place`: their places among the arguments; `axes`:
    which axis of the weight each axis of that argument is. `spatial`: how many dimensions a convolution slides over,
    `names` of its arguments in order, `transposed` if it is a transposed one.
    `holds_constant`: whether a constant in an input channel gives a constant in every output channel, so that the
    bias can take it over: not where zeros are padded in, nor where taps depend on the position.
    """

    key: str
    bias: str | None
    input_axis: int
    output_axis: int
    operand_dim: int
    result_dim: int
    operand: int | str
    holds_constant: bool
    bias_unknown: bool
    weight: int | str
    bias_place: int | str | None
    axes: tuple[int, ...]
    spatial: int = 0
    transposed: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passenger:
    """Parameters with one entry a channel that a channel passes on its way: key → axis; `dim` is the data's."""

    axes: Mapping[str, int]
    dim: int


@dataclass(frozen=True)
class Unknown:
    """A call with weights that is not understood."""

    function: str
    keys: tuple[str, ...]


def classify(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], views: Views
) -> Site | Passenger | Unknown | None:
    """What this call is; None if no weight takes part in it."""
    name = getattr(function, "__name__", str(function))
    operands = [a for v in (*args, *kwargs.values()) for a in (v if isinstance(v, (tuple, list)) else (v,))]
    keys = tuple(views[id(a)].key for a in operands if isinstance(a, Tensor) and id(a) in views)
    if not keys:
        return None
    found: Site | Passenger | None = None
    if name == "linear":
        found = _site(_bound(("input", "weight", "bias"), args, kwargs), views, (1, 0), (-1, -1), True)
    elif name in _CONV:
        found = _convolution(_bound(_CONV_ARGUMENTS, args, kwargs), views, _CONV[name])
    elif name in _CONV_TRANSPOSE:
        found = _transposed(_bound(_TRANSPOSED_ARGUMENTS, args, kwargs), views, _CONV_TRANSPOSE[name])
    elif name in _MATMUL:
        names = {"input": "input", "other": "weight", "mat2": "weight"}
        found = _matmul(_bound(("input", "other"), args, kwargs), names, views)
    elif name == "addmm":
        names = {"input": "bias", "mat1": "input", "mat2": "weight"}
        found = _matmul(_bound(("input", "mat1", "mat2"), args, kwargs), names, views)
    elif name == "batch_norm":
        found = _batch_norm(_bound(_NORM_ARGUMENTS, args, kwargs), views)
    elif name == "prelu":
        found = _per_channel(_bound(("input", "weight"), args, kwargs), views, dim=1)
    elif name in _ARITHMETIC:
        found = _arithmetic(args, views)
    return found or Unknown(name, keys)


def derived(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], views: Views) -> View | None:
    """The view this call makes of a weight, if all its tensors are weights: transposed, or computed in another way."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if not tensors or not all(id(t) in views for t in tensors):
        return None
    view, name = views[id(tensors[0])], getattr(function, "__name__", "")
    if len(tensors) > 1 or view.axes is None:
        return View(view.key, None)
    axes = view.axes
    if name in ("t", "numpy_T", "__get__") and len(axes) == 2 and _is_transposition(function, name):
        return View(view.key, axes[::-1])
    if name in ("transpose", "swapaxes") and len(args) == 3:
        order = list(axes)
        i, j = args[1], args[2]
        order[i], order[j] = order[j], order[i]
        return View(view.key, tuple(order))
    if name in ("contiguous", "detach", "clone", "to", "double", "float", "type_as", "requires_grad_"):
        return view
    return View(view.key, None)


def _is_transposition(function: Callable[..., Any], name: str) -> bool:
    """`t()`, or the getter of the property `T`."""
    return name == "t" or getattr(function, "__self__", None) in (Tensor.T, Tensor.mT)


class _Arguments(dict[str, Any]):
    """Arguments by name, and where each came from."""

    places: dict[str, int | str]


_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training")


def _bound(order: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Arguments:
    bound = _Arguments(zip(order, args, strict=False))
    bound.places = {name: place for place, name in enumerate(order[: len(args)])}
    bound.update(kwargs)
    bound.places.update({name: name for name in kwargs})
    return bound


def _site(
    a: _Arguments,
    views: Views,
    axes: tuple[int, int],
    dims: tuple[int, int],
    holds_constant: bool,
    spatial: int = 0,
    names: tuple[str, ...] = (),
) -> Site | None:
    view = views.get(id(a["weight"]))
    if view is None or view.axes is None or id(a["input"]) in views or len(view.axes) <= max(axes):
        return None
    bias = a.get("bias")
    known = views.get(id(bias)) if bias is not None else None
    return Site(
        key=view.key,
        bias=known.key if known and known.axes == (0,) else None,
        input_axis=view.axes[axes[0]],
        output_axis=view.axes[axes[1]],
        operand_dim=dims[0],
        result_dim=dims[1],
        operand=a.places["input"],
        holds_constant=holds_constant,
        bias_unknown=bias is not None and not (known and known.axes == (0,)),
        weight=a.places["weight"],
        bias_place=a.places.get("bias"),
        axes=view.axes,
        spatial=spatial,
        transposed=names == _TRANSPOSED_ARGUMENTS,
        names=names,
    )


def _convolution(a: _Arguments, views: Views, spatial: int) -> Site | Passenger | None:
    groups = a.get("groups", 1)
    channel = -1 - spatial
    if groups == 1:
        padded = a.get("padding", 0) not in (0, "valid", (0,) * spatial, [0] * spatial)
        return _site(a, views, (1, 0), (channel, channel), not padded, spatial, _CONV_ARGUMENTS)
    return _passenger([a["weight"], a.get("bias")], views, channel)


def _transposed(a: _Arguments, views: Views, spatial: int) -> Site | None:
    if a.get("groups", 1) != 1:
        return None
    pointwise = all(size == 1 for size in a["weight"].shape[2:])
    plain = _all(a.get("stride", 1), 1) and _all(a.get("padding", 0), 0) and _all(a.get("output_padding", 0), 0)
    channel = -1 - spatial
    return _site(a, views, (0, 1), (channel, channel), pointwise and plain, spatial, _TRANSPOSED_ARGUMENTS)


def _matmul(a: _Arguments, names: Mapping[str, str], views: Views) -> Site | None:
    """A product with the weight on the right; `names` says what each of torch's arguments is to a linear layer.

    addmm's beta and alpha scale the bias and the product, which a folded constant would have to know: not understood.
    """
    renamed = _Arguments({names[name]: value for name, value in a.items() if name in names})
    renamed.places = {names[name]: place for name, place in a.places.items() if name in names}
    if {"beta", "alpha"} & set(a) or not {"input", "weight"} <= set(renamed) or renamed["weight"].dim() != 2:
        return None
    return _site(renamed, views, (0, 1), (-1, -1), True)


def _batch_norm(a: _Arguments, views: Views) -> Passenger | None:
    if a.get("training") or a.get("running_mean") is None:
        return None
    tensors = [a.get(n) for n in ("running_mean", "running_var", "weight", "bias")]
    return _passenger(tensors, views, 1)


def _per_channel(a: _Arguments, views: Views, dim: int) -> Passenger | None:
    if id(a["weight"]) not in views:
        return None
    return Passenger({}, dim) if a["weight"].numel() == 1 else _passenger([a["weight"]], views, dim)


def _passenger(tensors: Sequence[Tensor | None], views: Views, dim: int) -> Passenger | None:
    """Vectors (or depthwise kernels) with one entry a channel along their first axis."""
    found = [views.get(id(t)) for t in tensors if t is not None]
    if any(view is None or view.axes is None or view.axes[0] != 0 for view in found):
        return None
    return Passenger({view.key: 0 for view in found if view}, dim)


def _arithmetic(args: Sequence[Any], views: Views) -> Passenger | None:
    """data ∘ parameter, where the parameter is broadcast over all dimensions of the data but the channel's."""
    tensors = [a for a in args[:2] if isinstance(a, Tensor)]
    parameters = [t for t in tensors if id(t) in views]
    data = [t for t in tensors if id(t) not in views]
    if len(parameters) != 1 or len(data) != 1 or parameters[0].dim() > data[0].dim():
        return None
    parameter = parameters[0]
    wide = [axis for axis, size in enumerate(parameter.shape) if size > 1]
    if not wide:
        return Passenger({}, 1)
    offset = data[0].dim() - parameter.dim()
    channel = wide[0] if len(wide) == 1 else 1 - offset
    if channel not in wide:
        return None
    view = views[id(parameter)]
    return Passenger({view.key: view.axes[channel]}, channel + offset) if view.axes else None


def _all(value: Any, wanted: int) -> bool:
    return all(v == wanted for v in (value if isinstance(value, (tuple, list)) else (value,)))
