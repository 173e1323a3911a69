"""Evidence that a smaller model gives the same outputs, from rows that had no part in choosing what to cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters import as_vae, batches_for, element_type, measuring
from vaeprune.analysis.latents import Interval, interval
from vaeprune.data import DataSets, Rows, as_data
from vaeprune.errors import ModelError, UsageError
from vaeprune.onnx_export import OnnxErrors, onnx_errors
from vaeprune.posterior import VAE
from vaeprune.surgery.cut import cut_any_weights
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.probe import Subject

EXACT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_DOUBLE_ROWS = 256


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


@dataclass(frozen=True)
class Evidence:
    """All figures of a comparison; None where one was not measured. `output_range` is the original's, max − min."""

    n_samples: int
    output_range: float
    exact: Exact | None
    mean_path: Error
    sampling: Sampling
    prior_samples: Error | None
    onnx: OnnxErrors | None
    gates: tuple[Gate, ...]

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
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "gates"}
        entry = {k: vars(v) if dataclasses.is_dataclass(v) else v for k, v in fields.items()}
        gates = [dataclasses.asdict(gate) | {"passed": gate.passed} for gate in self.gates]
        return _finite({"passed": self.passed, **entry, "gates": gates})  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Evidence:
        """Read back what `to_json` wrote."""

        def part(kind: Callable[..., Any], name: str) -> Any:
            value = entry[name]
            return None if value is None else kind(**{k: _infinite(v) for k, v in value.items()})

        sampling = entry["sampling"]
        return cls(
            entry["n_samples"],
            _infinite(entry["output_range"]),
            part(Exact, "exact"),
            part(Error, "mean_path"),
            Sampling(
                _infinite(sampling["elbo_difference"]), (_infinite(sampling["ci95"][0]), _infinite(sampling["ci95"][1]))
            ),
            part(Error, "prior_samples"),
            part(OnnxErrors, "onnx"),
            tuple(Gate(g["name"], _infinite(g["measured"]), _infinite(g["limit"])) for g in entry["gates"]),
        )


def verify(
    original: VAE | nn.Module,
    smaller: VAE | nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    plan: Plan | None = None,
    *,
    onnx: str | Path | None = None,
    tolerances: Tolerances | None = None,
    seed: int = 0,
) -> Evidence:
    """Compare two models on the verify rows, output by output.

    With the `plan` that led from one to the other, also exactly: the original, its removed latents held at the plan's
    constants, must agree up to rounding. Without it the latents are taken to be the same ones if there are as many,
    and `exact` is None. `onnx`: a folder whose ONNX files are compared with `smaller`. Neither model is changed.
    Raises ModelError if the two cannot be compared; a failed gate is not an error here, see `Evidence.passed`.
    """
    limits = tolerances or Tolerances()
    sets = as_data(data, int(plan.data.get("seed", seed)) if plan else seed)
    a, b = as_vae(original, sets), as_vae(smaller, sets)
    if math.prod(a.input_shape) != math.prod(b.input_shape):
        raise ModelError(f"models: take rows of shape {a.input_shape} and {b.input_shape}, expected the same")
    kept = _kept_latents(a, b, plan)
    with measuring(a, b):
        comparison = _Comparison(a, b, kept, plan, seed)
        for batch in batches_for(a, sets.verify, 512):
            comparison.see(*batch)
        exact = None
        if plan is not None:
            exact = Exact(*comparison.exact(), _exact_in_double(a, plan, sets.verify, seed))
    found = onnx_errors(b, onnx, sets.verify) if onnx is not None else None
    mean_path, sampling = comparison.mean_path.result(), comparison.sampling()
    prior = comparison.prior.result() if kept is not None else None
    span = comparison.span
    gates = _gates(element_type(b)[0], exact, mean_path, sampling, prior, found, span, limits)
    return Evidence(sets.verify.count, span, exact, mean_path, sampling, prior, found, gates)


class _Running:
    """Largest and mean square of differences."""

    def __init__(self) -> None:
        self._largest, self._squares, self._count = 0.0, 0.0, 0

    def see(self, reference: Tensor, found: Tensor) -> None:
        difference = (reference.double() - found.double()).abs()
        self._largest = _max(self._largest, difference.max().item())
        self._squares += difference.square().sum().item()
        self._count += difference.numel()

    def result(self) -> Error:
        return Error(self._largest, math.sqrt(self._squares / max(self._count, 1)))


class _Comparison:
    """Runs both models side by side, batch by batch."""

    def __init__(self, a: VAE, b: VAE, kept: Tensor | None, plan: Plan | None, seed: int) -> None:
        self.a, self.b, self.kept = a, b, kept
        self._constants = {r.latent: r.constant for r in plan.removals} if plan else None
        self.mean_path, self.prior = _Running(), _Running()
        self._generator = torch.Generator().manual_seed(seed)
        self._low, self._high = math.inf, -math.inf
        self._losses: list[Tensor] = []
        self._scale = dict.fromkeys(("mean", "logvar", "posterior", "prior"), 0.0)
        self._difference = dict(self._scale)

    @property
    def span(self) -> float:
        """The original's output range, max − min."""
        return max(self._high - self._low, 1e-12)

    def see(self, x: Tensor, *condition: Tensor) -> None:
        """One batch of rows through both."""
        p, q = self.a.encode(x, *condition), self.b.encode(x, *condition)
        reference = self.a.decode(p.mean, *condition)
        self._low, self._high = (
            _min(self._low, reference.min().item()),
            _max(self._high, reference.max().item()),
        )
        self.mean_path.see(reference, self.b.decode(q.mean, *condition))
        noise, prior = (torch.randn(p.mean.shape, generator=self._generator).to(p.mean) for _ in range(2))
        z = p.sample(noise)
        own = noise[:, self.kept] if self.kept is not None else self._fresh(q.mean)
        self._losses.append(self._loss(self.b, x, q.sample(own), q, condition) - self._loss(self.a, x, z, p, condition))
        if self.kept is None:
            return
        self.prior.see(self.a.decode(prior, *condition), self.b.decode(prior[:, self.kept], *condition))
        if self._constants is not None:
            self._compare("mean", p.mean[:, self.kept], q.mean)
            self._compare("logvar", p.logvar[:, self.kept], q.logvar)
            self._compare("posterior", self._held(z, condition), self.b.decode(z[:, self.kept], *condition))
            self._compare("prior", self._held(prior, condition), self.b.decode(prior[:, self.kept], *condition))

    def exact(self) -> tuple[float, float]:
        """Largest absolute, and largest relative difference over the four tensors."""
        relative = [self._difference[name] / max(scale, 1e-30) for name, scale in self._scale.items()]
        return max(self._difference.values(), key=_rank), max(relative, key=_rank)

    def sampling(self) -> Sampling:
        """Mean and interval of the paired ELBO differences."""
        losses = torch.cat(self._losses).double()
        error = losses.std().item() / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
        return Sampling(losses.mean().item(), interval(losses.mean().item(), error))

    def _held(self, z: Tensor, condition: Sequence[Tensor]) -> Tensor:
        """What the original decodes with its removed latents at the plan's constants."""
        z = z.clone()
        for latent, constant in (self._constants or {}).items():
            z[:, latent] = constant
        return self.a.decode(z, *condition)

    def _compare(self, name: str, reference: Tensor, found: Tensor) -> None:
        if reference.shape != found.shape:
            raise ModelError(
                f"smaller model: {name} has shape {tuple(found.shape[1:])}, expected {tuple(reference.shape[1:])}"
            )
        difference = (reference.double() - found.double()).abs().max().item()
        self._difference[name] = _max(self._difference[name], difference)
        self._scale[name] = _max(self._scale[name], reference.abs().max().item())

    def _fresh(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like)

    @staticmethod
    def _loss(vae: VAE, x: Tensor, z: Tensor, posterior: Any, condition: Sequence[Tensor]) -> Tensor:
        """−ELBO of each row in nats, one sample."""
        nats = vae.likelihood.nats(x, vae.decode_parameters(z, *condition))
        return nats + posterior.kl().flatten(1).sum(1)  # type: ignore[no-any-return]


def _exact_in_double(original: VAE, plan: Plan, rows: Rows, seed: int) -> float | None:
    """The largest relative difference when the same plan is applied to the same weights in float64.

    None for a model that does not run in float64.
    """
    subject = Subject(original, next(iter(batches_for(original, rows, 2))))
    if subject.dtype != torch.float64:
        return None
    a = subject.vae
    b = cut_any_weights(a, plan)
    comparison = _Comparison(a, b, torch.tensor(plan.kept_latents), plan, seed)
    seen = 0
    with measuring(a, b):
        for batch in batches_for(a, rows, 128):
            comparison.see(*batch)
            seen += len(batch[0])
            if seen >= _DOUBLE_ROWS:
                break
    return comparison.exact()[1]


def _kept_latents(a: VAE, b: VAE, plan: Plan | None) -> Tensor | None:
    if plan is None:
        return torch.arange(a.latent_size) if a.latent_size == b.latent_size else None
    if a.latent_size != plan.latent_size or b.latent_size != len(plan.kept_latents):
        raise ModelError(
            f"models: have {a.latent_size} and {b.latent_size} latents, the plan leads from {plan.latent_size} to "
            f"{len(plan.kept_latents)}",
            "name the model the plan was made for first and the one it led to second",
        )
    return torch.tensor(plan.kept_latents)


def _gates(
    dtype: torch.dtype,
    exact: Exact | None,
    mean_path: Error,
    sampling: Sampling,
    prior: Error | None,
    onnx: OnnxErrors | None,
    span: float,
    limits: Tolerances,
) -> tuple[Gate, ...]:
    gates = []
    if exact:
        gates.append(
            Gate("exact", exact.max_relative_error, EXACT_TOLERANCE.get(dtype, EXACT_TOLERANCE[torch.float32]))
        )
        if exact.float64_max_relative_error is not None:
            limit = EXACT_TOLERANCE[torch.float64]
            gates.append(Gate("exact in float64", exact.float64_max_relative_error, limit))
    gates.append(Gate("mean path", mean_path.max_abs_error / span, limits.output))
    gates.append(Gate("ELBO loss, upper 95% bound", sampling.ci95[1], limits.elbo))
    if prior:
        gates.append(Gate("prior samples, RMS", prior.rms_error / span, limits.output))
    if onnx:
        gates.append(Gate("ONNX encoder", onnx.encoder_max_abs_error / max(onnx.encoder_range, 1e-12), limits.onnx))
        gates.append(Gate("ONNX decoder", onnx.decoder_max_abs_error / max(onnx.decoder_range, 1e-12), limits.onnx))
    return tuple(gates)


def _max(a: float, b: float) -> float:
    """The larger; NaN wins, so that it reaches a gate."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _min(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


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
    return float(value) if isinstance(value, str) else value
