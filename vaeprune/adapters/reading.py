"""Where, in what a foreign `encode` or `decode` returns, the wanted tensors are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vaeprune.errors import ModelError

Spread = Literal["logvar", "logstd", "std", "var", "softplus"]
SPREADS: tuple[Spread, ...] = get_args(Spread)
Step = int | str
Path = tuple[Step, ...]

_ATTRIBUTES = (
    "latent_dist", "base_dist", "mean", "loc", "mu", "logvar", "log_var", "log_covariance", "std", "scale", "stddev",
    "var", "variance", "embedding", "sample", "reconstruction", "recon_x", "recon", "x_hat", "logits",
)  # fmt: skip
MEANS = ("mean", "loc", "mu", "embedding", "z_mean", "mus", "means", "z_mu", "q_mu")
NAMED_SPREADS: dict[str, Spread] = {
    "logvar": "logvar", "log_var": "logvar", "log_covariance": "logvar", "log_variance": "logvar", "z_logvar": "logvar",
    "logsigma": "logstd", "log_sigma": "logstd", "logstd": "logstd", "log_std": "logstd",
    "std": "std", "stddev": "std", "scale": "std", "sigma": "std", "z_sigma": "std",
    "var": "var", "variance": "var",
}  # fmt: skip
_DEEPEST = 3
ENCODERS = ("encode", "_encode", "encoder", "forward")
DECODERS = ("decode", "_decode", "decoder")


@dataclass(frozen=True)
class Reading:
    """How to read a foreign model; plain data, kept in a shrunk model's config.

    `encode`, `decode`: attributes to call. `mean`, `spread`: where in encode's result the two are; the same place if
    one tensor holds both, halved along its channels. `kind`: what the spread is. `output`: where in decode's result
    the reconstruction is. `conditions`: how many further tensors encode and decode take.
    """

    encode: str
    decode: str | None
    mean: Path
    spread: Path
    kind: Spread
    output: Path = ()
    conditions: tuple[int, int] = (0, 0)

    def to_json(self) -> dict[str, Any]:
        """A config entry."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Reading:
        """Read `to_json`'s entry; raises ModelError on anything else."""
        try:
            mean, spread, output = (tuple(entry[name]) for name in ("mean", "spread", "output"))
            steps = (*mean, *spread, *output)
            # a file must not name any other attribute, which would be called on the user's module
            known = entry["encode"] in ENCODERS and entry["decode"] in (None, *DECODERS) and entry["kind"] in SPREADS
            if not known or not all(isinstance(s, (int, str)) for s in steps) or any("__" in str(s) for s in steps):
                raise ValueError("a name is not one")
            conditions = (int(entry["conditions"][0]), int(entry["conditions"][1]))
            return cls(entry["encode"], entry["decode"], mean, spread, entry["kind"], output, conditions)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"config: how to read the model is damaged: {error}") from error


def tensors_in(value: Any, deep: int = 0) -> dict[Path, Tensor]:
    """All floating-point tensors in a result, by the path that leads to them."""
    if isinstance(value, Tensor):
        return {(): value} if value.is_floating_point() else {}
    if deep > _DEEPEST or value is None:
        return {}
    found: dict[Path, Tensor] = {}
    for step, item in _items(value):
        found |= {(step, *path): tensor for path, tensor in tensors_in(item, deep + 1).items()}
    return found


def follow(value: Any, path: Path) -> Any:
    """The item a path leads to."""
    for step in path:
        indexed = isinstance(step, int) or isinstance(value, Mapping)
        value = value[step] if indexed else getattr(value, str(step))
    return value


def last_step(path: Path) -> str:
    """The name a path ends with; empty for the result itself."""
    return str(path[-1]) if path else ""


def in_words(path: Path) -> str:
    """A path as a person would write it: result[0], result.latent_dist.mean."""
    return "result" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


def logvar_of(spread: Tensor, kind: Spread) -> Tensor:
    """ln sigma² from whatever the model calls its spread."""
    if kind == "logvar":
        return spread
    if kind == "logstd":
        return 2 * spread
    if kind == "std":
        return 2 * spread.log()
    if kind == "var":
        return spread.log()
    return 2 * F.softplus(spread).log()


def sigma_of(spread: Tensor, kind: Spread) -> Tensor:
    """Standard deviation, without the detour over a logarithm."""
    direct = {"std": lambda s: s, "var": torch.sqrt, "softplus": F.softplus}
    if kind in direct:
        found: Tensor = direct[kind](spread)
        return found
    return torch.exp(0.5 * logvar_of(spread, kind))


def _items(value: Any) -> list[tuple[Step, Any]]:
    if isinstance(value, Mapping):
        return [(key, item) for key, item in value.items() if isinstance(key, str)]
    if isinstance(value, torch.distributions.Distribution):
        names: tuple[str, ...] = ("base_dist",) if hasattr(value, "base_dist") else ("loc", "scale")
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return list(enumerate(value))
    # class attributes such as `mode` or methods named `sample` are not data
    return [(n, v) for n in _ATTRIBUTES if not callable(v := getattr(value, n, None)) and v is not None]
