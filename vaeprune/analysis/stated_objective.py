"""What a person says their model was trained to minimise: `--objective reconstruction=pixel-mean,kl=sum,beta=4`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vaeprune.errors import UsageError

Reconstruction = Literal["sum", "pixel-mean"]
Error = Literal["nats", "squared"]
KL = Literal["sum", "latent-mean", "pixel-mean", "quadratic", "none"]

_WORDS: dict[str, tuple[str, ...]] = {
    "reconstruction": get_args(Reconstruction),
    "error": get_args(Error),
    "kl": get_args(KL),
    "sampling": ("yes", "no"),
}
_NUMBERS = ("beta", "annealing", "free-bits")
_EXAMPLE = "reconstruction=pixel-mean,kl=sum,beta=4"


@dataclass(frozen=True)
class StatedObjective:
    """The loss of one row, as its author would describe it; each default is the ELBO's.

    `reconstruction`: summed or averaged over the values of a row. `error`: in "nats" (cross-entropy, or ½(x − x̂)²/s²)
    or "squared", (x − x̂)² without its half. `kl`: summed over latents, averaged over them, divided by the number of
    values of a row, only its ½mu² ("quadratic"), or left out ("none"). `beta`: its final weight. `annealing`: the share
    of that weight that was reached when the weights were saved. `free_bits`: nats of each latent that cost nothing.
    `scale`: the Gaussian's standard deviation s; None where it is the model's own, "learned" where it was trained.
    `sampling`: whether z was drawn, or the mean decoded.
    """

    reconstruction: Reconstruction = "sum"
    error: Error = "nats"
    kl: KL = "sum"
    beta: float = 1.0
    annealing: float = 1.0
    free_bits: float = 0.0
    scale: float | Literal["learned"] | None = None
    sampling: bool = True

    def effective_beta(self, pixels: int, latents: int, positions: int = 1, scale: float = 1.0) -> float | None:
        """The weight of the KL per nat of −log p(x | z) that this comes to; None where it cannot be told.

        `scale`: s of the likelihood that counts the nats; the squared error is 2s² nats and a constant.
        """
        if self.kl == "quadratic" or self.scale == "learned":
            return None
        parts = {"sum": 1, "latent-mean": latents * positions, "pixel-mean": pixels, "none": math.inf}
        weight = self.beta * self.annealing / parts[self.kl]
        unit = 2 * scale**2 if self.error == "squared" else (scale / (self.scale or scale)) ** 2
        return weight / (unit / (pixels if self.reconstruction == "pixel-mean" else 1))

    def describe(self) -> str:
        """The text `parse` reads, less what is as in the ELBO."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                value = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
                words.append(f"{field.name.replace('_', '-')}={value:g}" if isinstance(value, float) else
                             f"{field.name.replace('_', '-')}={value}")  # fmt: skip
        return ",".join(words) or "elbo"

    @classmethod
    def parse(cls, text: str) -> StatedObjective:
        """Read `name=value` words with commas between, or "elbo"; raises UsageError on what is unknown or senseless."""
        if text.strip() == "elbo":
            return cls()
        given: dict[str, Any] = {}
        for word in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in word.partition("="))
            key = name.replace("-", "_")
            if not equals or name not in (*_WORDS, *_NUMBERS, "scale"):
                names = ", ".join((*_WORDS, *_NUMBERS, "scale"))
                raise UsageError(f"--objective: got {word!r:.60}, expected name=value with a name of {names}", _hint())
            if key in given:
                raise UsageError(f"--objective: {name} is given twice", "say it once")
            given[key] = _read(name, value)
        if not given:
            raise UsageError("--objective: is empty", _hint())
        return _checked(cls(**given))

    @classmethod
    def from_record(cls, training: Mapping[str, Any] | None) -> StatedObjective | None:
        """What a model folder records of its training; None where it records none."""
        if not training or not {"kl", "beta"} & set(training):
            return None
        penalty, beta, sampling = training.get("kl", "full"), training.get("beta", 1.0), training.get("sampling", True)
        kl = {"full": "sum", "quadratic": "quadratic", "none": "none"}.get(str(penalty))
        if kl is None or isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < math.inf:
            return None
        return cls(kl=kl, beta=float(beta), sampling=sampling is not False)  # type: ignore[arg-type]


def _read(name: str, value: str) -> Any:
    if name in _WORDS:
        if value not in _WORDS[name]:
            raise UsageError(f"--objective: {name} is {value!r:.40}, expected {' or '.join(_WORDS[name])}", _hint())
        return value == "yes" if name == "sampling" else value
    if name == "scale" and value == "learned":
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        extra = " or 'learned'" if name == "scale" else ""
        raise UsageError(f"--objective: {name} is {value!r:.40}, expected a number of at least 0{extra}", _hint())
    return number


def _checked(stated: StatedObjective) -> StatedObjective:
    if not stated.annealing <= 1:
        raise UsageError(
            f"--objective: annealing is {stated.annealing:g}, expected the share of the final weight, from 0 to 1",
            "annealing=0.5 where the weight had come half way",
        )
    if stated.scale == 0:
        raise UsageError("--objective: scale is 0, expected a positive number or 'learned'", _hint())
    if stated.error == "squared" and stated.scale is not None:
        raise UsageError("--objective: a squared error has no scale", "leave out error=squared, or the scale")
    return stated


def _hint() -> str:
    return f"for example --objective {_EXAMPLE}; docs/diagnosis.md has the list"
