"""The observation model p(x | z): what the decoder's output means, and how many nats a row costs under it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vaeprune.errors import ModelError

Kind = Literal["bernoulli", "gaussian"]
Output = Literal["logits", "mean"]
_LEAST_PROBABILITY = 1e-4  # 1/p grows without bound where the decoder is certain


@dataclass(frozen=True)
class Likelihood:
    """A factorised Bernoulli or Gaussian observation model.

    `kind`: "bernoulli" (x in [0, 1]) or "gaussian" (any real x).
    `output`: what the decoder hands over: "logits" (Bernoulli only) or the "mean" of p(x | z).
    `scale`: the Gaussian's standard deviation s, in data units; unused for Bernoulli.
    """

    kind: Kind = "bernoulli"
    output: Output = "logits"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("bernoulli", "gaussian"):
            raise ModelError(f"likelihood: got {self.kind!r}, expected 'bernoulli' or 'gaussian'")
        if self.output not in ("logits", "mean"):
            raise ModelError(f"likelihood output: got {self.output!r}, expected 'logits' or 'mean'")
        if self.kind == "gaussian" and self.output == "logits":
            raise ModelError("likelihood: a gaussian decoder's output is its mean, got 'logits'")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ModelError(f"likelihood scale: got {self.scale}, expected a positive finite number")

    def nats(self, x: Tensor, parameters: Tensor) -> Tensor:
        """-log p(x | z) of each row, in nats.

        x, parameters: (B, ...), the data and what the decoder handed over; returns (B,).
        Bernoulli: summed binary cross-entropy. Gaussian: ½·SSE/s² + ½·D·ln(2πs²).
        Asperti eq. (5); Kingma and Welling 2014, appendix C.
        """
        x, parameters = x.flatten(1), parameters.flatten(1)
        if self.kind == "gaussian":
            squares = ((x - parameters) / self.scale).square().sum(1)
            return 0.5 * squares + x.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.scale))
        if self.output == "logits":
            return F.binary_cross_entropy_with_logits(parameters, x, reduction="none").sum(1)
        return F.binary_cross_entropy(parameters.clamp(0, 1), x, reduction="none").sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x | z] from what the decoder handed over; same shape."""
        return torch.sigmoid(parameters) if self.output == "logits" else parameters

    def curvature(self, parameters: Tensor) -> Tensor:
        """Fisher information of each parameter, the expected second derivative of `nats`; same shape.

        Bernoulli: p(1 − p) for logits, 1 / (p(1 − p)) for p itself. Gaussian: 1/s².
        """
        if self.kind == "gaussian":
            return torch.full_like(parameters, 1 / self.scale**2)
        if self.output == "logits":
            p = torch.sigmoid(parameters)
            return p * (1 - p)
        p = parameters.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        return 1 / (p * (1 - p))

    def check_range(self, x: Tensor, where: str) -> None:
        """Raise ModelError if rows x cannot come from this likelihood."""
        if self.kind == "bernoulli" and x.numel() and not (x.amin() >= 0 and x.amax() <= 1):
            raise ModelError(
                f"{where}: got values in [{x.amin():.4g}, {x.amax():.4g}], the Bernoulli likelihood expects [0, 1]",
                "scale the data, or use the gaussian likelihood",
            )

    def to_json(self) -> dict[str, str | float]:
        """The config entry of this likelihood."""
        return {"kind": self.kind, "output": self.output, "scale": self.scale}

    @classmethod
    def from_json(cls, entry: object) -> Likelihood:
        """Read a config entry; raises ModelError on anything unknown."""
        if not isinstance(entry, Mapping) or set(entry) - {"kind", "output", "scale"}:
            raise ModelError(f"likelihood: got {entry!r}, expected an object with kind, output and scale")
        scale = entry.get("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise ModelError(f"likelihood scale: got {scale!r}, expected a number")
        if not abs(scale) < 1e300:
            raise ModelError(f"likelihood scale: got {scale!r:.40}, expected a positive finite number")
        kind = entry.get("kind", "bernoulli")
        return cls(kind, entry.get("output", "logits" if kind == "bernoulli" else "mean"), float(scale))
