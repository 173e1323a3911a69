"""A widening: pure data that says what is put into which weights, a plan's slices read backwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vaeprune.adapters import AdaptedVAE
from vaeprune.adapters.copying import copied, make_plain, replace_tensors
from vaeprune.errors import ModelError, PlanError
from vaeprune.storage import read_json, read_tensors, weights_sha256, write_json, write_tensors
from vaeprune.surgery.cut import network_of
from vaeprune.surgery.plan import Plan, Removal, Slice, read_slice

FORMAT = 1
WIDENING, NUMBERS = "widening.json", "widening.safetensors"

M = TypeVar("M")  # a module, or an adapted one


@dataclass(frozen=True, eq=False)
class Widening:
    """What to add for `added` latents behind the `latent_size` that are there, for one set of weights.

    `weights_sha256`: the weights it was made for; applying it to others is refused.
    `slices`: as a plan for the wider model would have them: of axis `axis` of the tensor `key`, then `size` entries
    long, those in `kept` are the old ones in their order. `values`: per tensor, in its wider shape and float64, what
    its new entries hold (its old ones are 0 here); where a tensor is not named its new entries are 0.
    `attributes`: integers to set on modules. `made_plain`: modules whose computed weights become plain first.
    """

    weights_sha256: str
    latent_size: int
    added: int
    slices: tuple[Slice, ...]
    values: Mapping[str, Tensor]
    attributes: Mapping[str, int] = field(default_factory=dict)
    made_plain: tuple[str, ...] = ()

    @property
    def new_latents(self) -> list[int]:
        """Their indices in the wider model: the last ones."""
        return list(range(self.latent_size, self.latent_size + self.added))

    def to_json(self) -> dict[str, Any]:
        """What widening.json holds; the values go beside it."""
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "latent_size": {"before": self.latent_size, "after": self.latent_size + self.added},
            "slices": [dataclasses.asdict(s) for s in self.slices],
            "numbers": sorted(self.values),
            "attributes": dict(self.attributes),
            "made_plain": list(self.made_plain),
        }

    @classmethod
    def from_json(cls, entry: object, values: Mapping[str, Tensor], where: str) -> Widening:
        """Read and check what `to_json` gave, with the values. Raises PlanError."""
        try:
            if not isinstance(entry, dict) or entry["format"] != FORMAT or type(entry["weights_sha256"]) is not str:
                raise PlanError(f"{where}: is not a widening of format {FORMAT}")
            sizes = [entry["latent_size"][name] for name in ("before", "after")]
            if not all(type(size) is int for size in sizes) or not 0 < sizes[0] < sizes[1]:
                raise PlanError(f"{where}: widens from {sizes[0]!r:.40} to {sizes[1]!r:.40} latents")
            attributes = dict(entry["attributes"])
            if not all(type(v) is int for v in attributes.values()):
                raise TypeError(f"attributes are {attributes!r:.60}")
            found = cls(
                entry["weights_sha256"],
                sizes[0],
                sizes[1] - sizes[0],
                tuple(read_slice(s) for s in entry["slices"]),
                dict(values),
                attributes,
                tuple(str(path) for path in entry["made_plain"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PlanError(f"{where}: is not a complete widening: {error}", "restore it from its source") from error
        if sorted(values) != entry.get("numbers"):
            raise PlanError(f"{where}: its numbers are not those in {NUMBERS}", "restore both from one source")
        return found


def write_widening(widening: Widening, folder: Path) -> None:
    """Write widening.json and, beside it, widening.safetensors with the values."""
    write_json(folder / WIDENING, widening.to_json())
    write_tensors(folder / NUMBERS, widening.values)


def read_widening(path: Path) -> Widening:
    """Read a widening from widening.json or the folder that holds it. Raises PlanError or StorageError."""
    path = path / WIDENING if path.is_dir() else path
    values = read_tensors(path.with_name(NUMBERS))
    bad = [key for key, v in values.items() if v.dtype != torch.float64 or not torch.isfinite(v).all()]
    if bad:
        raise PlanError(f"{path.with_name(NUMBERS)}: {', '.join(bad)} are not finite float64 numbers")
    return Widening.from_json(read_json(path, "widening"), values, str(path))


def widen(model: M, widening: Widening) -> M:
    """A new, wider model of the same class; `model` stays as it is, bit for bit.

    `model` may be any module with the weights the widening was made for, VAE protocol or not. Raises PlanError if they
    are others.
    """
    if weights_sha256(network_of(model).state_dict()) != widening.weights_sha256:
        raise PlanError(
            "widening: was made for other weights than these", "make a new one, or load the weights it names"
        )
    return widen_any_weights(model, widening)


def widen_any_weights(model: M, widening: Widening) -> M:
    """As `widen`, but the weights may be others of the same shapes, as the same ones in float64."""
    network = copied(network_of(model))
    if widening.made_plain:
        make_plain(network)
    try:
        state = widened(network.state_dict(), widening.slices, widening.values)
        replace_tensors(network, state, widening.attributes)
    except ModelError as error:
        raise PlanError(error.message, error.hint) from error
    if isinstance(model, AdaptedVAE):
        return model.with_network(network, widening.latent_size + widening.added)  # type: ignore[return-value]
    return network  # type: ignore[return-value]


def widened(state: Mapping[str, Tensor], slices: tuple[Slice, ...], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with their new entries, under the same keys and in their own types; `state` stays as it is.

    Works for anything shaped like the weights: an optimiser's moments, with no values, get zeros. Raises PlanError.
    """
    kept: dict[str, dict[int, Slice]] = {}
    for part in slices:
        kept.setdefault(part.key, {})[part.axis] = part
    wider = {key: value.detach().clone() for key, value in state.items()}
    for key, parts in kept.items():
        tensor = wider.get(key)
        shape = () if tensor is None else tuple(tensor.shape)
        if tensor is None or not all(a < len(shape) and shape[a] == len(part.kept) for a, part in parts.items()):
            raise PlanError(f"widening: adds to {key} on axes {sorted(parts)}, the weights have {shape}")
        sizes = [parts[axis].size if axis in parts else size for axis, size in enumerate(shape)]
        fresh = values[key].to(tensor) if key in values else tensor.new_zeros(sizes)
        if list(fresh.shape) != sizes:
            raise PlanError(f"widening: has values of shape {tuple(fresh.shape)} for {key}, expected {tuple(sizes)}")
        wider[key] = _placed(fresh.clone(), tensor, parts)
    return wider


def _placed(wide: Tensor, old: Tensor, parts: Mapping[int, Slice]) -> Tensor:
    """The old entries at their places in the wide tensor, which is changed."""
    at = [torch.tensor(parts[a].kept) if a in parts else torch.arange(size) for a, size in enumerate(old.shape)]
    wide[torch.meshgrid(*at, indexing="ij")] = old
    return wide


def undoing(widening: Widening, narrow: nn.Module, wide: nn.Module, data: Mapping[str, Any]) -> Plan:
    """The plan that cuts the new latents out of the wider weights again, which gives the narrow ones bit for bit."""

    def before(path: str) -> int:
        owner, _, name = path.rpartition(".")
        found: int = getattr(narrow.get_submodule(owner), name)
        return found

    return Plan(
        weights_sha256=weights_sha256(wide.state_dict()),
        scope="latents",
        latent_size=widening.latent_size + widening.added,
        removals=tuple(Removal(i, 0.0, "new", "added by a widening") for i in widening.new_latents),
        slices=widening.slices,
        attributes={path: before(path) for path in widening.attributes},
        data=dict(data),
    )
