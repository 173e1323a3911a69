"""What a comparison of two models found: figures, gates, and how they are written down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vaeprune.analysis.latents import Interval
from vaeprune.errors import UsageError
from vaeprune.onnx_export import OnnxErrors
from vaeprune.surgery.firing import Fired
from vaeprune.surgery.reference import EXACT_TOLERANCE


@dataclass(frozen=True)
class Tolerances:
    """Limits of the gates.

    `output`: largest mean-path difference and RMS of prior samples, as a share of the output's range.
    `elbo`: upper 95% bound of the ELBO loss, in nats per row. `onnx`: as a share of the output's range.
    """

    output: float = 0.02
    elbo: float = 0.1
    onnx: float = 1e-4

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"tolerance {name}: got {value}, expected a finite number of at least 0")


@dataclass(frozen=True)
class Error:
    """Largest and root-mean-square absolute difference of outputs, in data units."""

    max_abs_error: float
    rms_error: float


@dataclass(frozen=True)
class Exact:
    """Largest difference that only rounding may cause; relative to the largest value of the same tensor.

    `float64_max_relative_error`: the same cut made and compared in float64.
    """

    max_abs_error: float
    max_relative_error: float
    float64_max_relative_error: float | None = None


@dataclass(frozen=True)
class Sampling:
    """Paired ELBO difference in nats per row, positive = the smaller model is worse, with its 95% interval."""

    elbo_difference: float
    ci95: Interval


@dataclass(frozen=True)
class Gate:
    """One check: what was measured against its limit."""

    name: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        """A NaN never passes."""
        return self.measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        """With the verdict; an infinite figure is a string, since JSON has none."""
        return {"name": self.name, "measured": _finite(self.measured), "limit": self.limit, "passed": self.passed}


@dataclass(frozen=True)
class Evidence:
    """All figures of a comparison; None where one was not measured. `output_range` is the original's, max − min.

    `fair`: the ELBO difference from the original trained as long as the smaller model was after the cut. `fired`:
    hidden channels that were taken for constant and were not on these rows.
    """

    n_samples: int
    output_range: float
    exact: Exact | None
    mean_path: Error
    sampling: Sampling
    prior_samples: Error | None
    onnx: OnnxErrors | None
    gates: tuple[Gate, ...]
    fair: Sampling | None = None
    fired: tuple[Fired, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate is passed."""
        return not self.failed_gates

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """The gates that are not passed."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def to_json(self) -> dict[str, Any]:
        """The JSON contract of `verify`."""
        lists = ("gates", "fired")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in lists}
        entry = {k: vars(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}
        gates = [gate.to_json() for gate in self.gates]
        fired = [dataclasses.asdict(channel) for channel in self.fired]
        return _finite({"passed": self.passed, **entry, "gates": gates, "fired": fired})  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Evidence:
        """Read back what `to_json` wrote."""

        def part(kind: Callable[..., Any], name: str) -> Any:
            value = entry[name]
            return None if value is None else kind(**{k: _infinite(v) for k, v in value.items()})

        def sampling(value: dict[str, Any] | None) -> Any:
            if value is None:
                return None
            low, high = value["ci95"]
            return Sampling(_infinite(value["elbo_difference"]), (_infinite(low), _infinite(high)))

        return cls(
            entry["n_samples"],
            _infinite(entry["output_range"]),
            part(Exact, "exact"),
            part(Error, "mean_path"),
            sampling(entry["sampling"]),
            part(Error, "prior_samples"),
            part(OnnxErrors, "onnx"),
            tuple(Gate(g["name"], _infinite(g["measured"]), _infinite(g["limit"])) for g in entry["gates"]),
            sampling(entry.get("fair")),
            tuple(Fired(**{k: _infinite(v) for k, v in f.items()}) for f in entry.get("fired", ())),
        )


def gates_of(
    dtype: torch.dtype,
    exact: Exact | None,
    mean_path: Error,
    sampling: Sampling,
    prior: Error | None,
    onnx: OnnxErrors | None,
    span: float,
    limits: Tolerances,
    budget: float | None = None,
    fair: Sampling | None = None,
) -> tuple[Gate, ...]:
    """Every gate that was measured, with its limit; `dtype` is the smaller model's, `span` the output's range.

    With a `budget` in nats the ELBO decides, held against `fair` where that was measured; differences of outputs are
    figures then, not gates.
    """
    gates = []
    if exact:
        gates.append(
            Gate("exact", exact.max_relative_error, EXACT_TOLERANCE.get(dtype, EXACT_TOLERANCE[torch.float32]))
        )
        if exact.float64_max_relative_error is not None:
            limit = EXACT_TOLERANCE[torch.float64]
            gates.append(Gate("exact in float64", exact.float64_max_relative_error, limit))
    if budget is None:
        gates.append(Gate("mean path", mean_path.max_abs_error / span, limits.output))
    judged = fair or sampling
    name = "ELBO loss, upper 95% bound"
    gates.append(
        Gate(f"{name}, same epochs" if fair else name, judged.ci95[1], limits.elbo if budget is None else budget)
    )
    if prior and budget is None:
        gates.append(Gate("prior samples, RMS", prior.rms_error / span, limits.output))
    if onnx:
        gates.append(Gate("ONNX encoder", onnx.encoder_max_abs_error / max(onnx.encoder_range, 1e-12), limits.onnx))
        gates.append(Gate("ONNX decoder", onnx.decoder_max_abs_error / max(onnx.decoder_range, 1e-12), limits.onnx))
    return tuple(gates)


def _finite(value: Any) -> Any:
    """JSON has no infinities: they are written as strings, which `_infinite` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _infinite(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
