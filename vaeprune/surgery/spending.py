"""What a model's channels cost on data, and the network that is left once some are given up."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vaeprune.adapters import batches_for, measuring
from vaeprune.data import Batch, DataSets, Rows
from vaeprune.posterior import VAE, Posterior, negative_elbo
from vaeprune.surgery.allocation import Axis, State, Tensors, state_at
from vaeprune.surgery.assembling import left_of
from vaeprune.surgery.channels import Call, Group
from vaeprune.surgery.choices import LayerChoice, RankChoice, layer_choices, rank_choices
from vaeprune.surgery.curvature import FitRows, fit_rows, measure
from vaeprune.surgery.hidden import Hidden
from vaeprune.surgery.observing import passes
from vaeprune.surgery.plan import Left, Plan
from vaeprune.surgery.probe import Recorder, Subject
from vaeprune.surgery.refitting import Refit, Removed, refit
from vaeprune.surgery.regression import MOST_FEATURES, as_weight, balanced, quartimax
from vaeprune.surgery.rounding import pair_that_rounds
from vaeprune.surgery.sites import Site

Aim = Literal["size", "latency"]
_FIT_ROWS, _LEAST_FIT_ROWS = 8_000, 64
_FIT_BYTES = 1_500_000_000
_LOSS_ROWS = 512
_ALIVE = 12  # tensors of the largest size: two halves, six deep


class Spending:
    """The choices of one model, what each costs, and what the network loses once they are taken.

    `choices`: what can be given up; `tensors`: what the size is made of; `left`: channels that no cost was found for.
    `original`: the model that losses are held against, and which of its latents are left.
    """

    def __init__(
        self, hidden: Hidden, sets: DataSets, aim: Aim, factorize: bool, original: tuple[VAE, Sequence[int]] | None
    ) -> None:
        self._hidden, self._channels = hidden, hidden.channels
        self._subject, self._trial = (Subject(hidden.vae, double=False) for _ in range(2))
        keys = [site.key for sites in self._channels.sites.values() for site in sites]
        self._shared = frozenset(key for key in keys if keys.count(key) > 1)
        self._fit = self._rows(sets)
        calls: list[Call] = [(side, n) for side, sites in self._channels.sites.items() for n in range(len(sites))]
        self._moments = measure(self._subject, self._fit, calls)
        layers, self.left = self._priced(hidden.layers)
        self.choices: list[LayerChoice | RankChoice] = [
            *layer_choices(self._subject, hidden.subject, self._channels, layers, self._moments)
        ]
        if factorize:
            self.choices += rank_choices(self._subject, self._channels, self._moments, self._shared)
        self.tensors = self._sizes(aim)
        self._select = sets.select
        self._base = _losses(self._subject, sets.select) if original is None else _losses_before(*original, sets.select)
        self._skipped: dict[str, str] = {}
        self._whole: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Weights that could not be fitted anew or made two, and why."""
        return (
            *(f"{key}: not fitted anew, {why}" for key, why in self._skipped.items()),
            *(f"{path}: stays one layer, as two it rounds more than the exact check allows" for path in self._whole),
        )

    def size(self, chosen: Sequence[int]) -> float:
        """Size at these levels, as a share of the whole."""
        levels = [choice.levels(1.0) for choice in self.choices]
        return self.tensors.size(state_at(levels, chosen)) / self.tensors.size(State({}, {}))

    def loss(self, chosen: Sequence[int]) -> tuple[float, float]:
        """What the fitted network loses on the select rows (nats per row), and its standard error."""
        fitted = self._fitted(chosen)
        changed = {**fitted.weights, **fitted.biases}
        with torch.no_grad():
            for key, value in changed.items():
                self._trial.weight(key).copy_(value)
        try:
            losses = _losses(self._trial, self._select) - self._base
        finally:
            with torch.no_grad():
                for key in changed:
                    self._trial.weight(key).copy_(self._subject.weight(key))
        return losses.mean().item(), losses.std().item() / math.sqrt(len(losses))

    def plan(self, chosen: Sequence[int]) -> Plan:
        """The plan that leads to the fitted network."""
        groups = [
            gone
            for choice, level in zip(self.choices, chosen, strict=True)
            if isinstance(choice, LayerChoice)
            for gone in choice.gone(level)
        ]
        assembler, fitted = self._hidden.assembler, self._fitted(chosen)
        made = assembler.plan(groups, "budget", (*self._hidden.left, *self.left))
        kept: dict[Axis, list[int]] = {(s.key, s.axis): list(s.kept) for s in made.slices}

        def sliced(key: str, value: Tensor) -> Tensor:
            for axis in range(value.dim()):
                if (key, axis) in kept:
                    value = value.index_select(axis, torch.tensor(kept[key, axis], device=value.device))
            return value.double().cpu()

        values = {**fitted.weights, **fitted.biases}
        factors = {}
        for key, (up, down) in fitted.factors.items():
            # rounded before they are multiplied, so that the product is the pair's to the last digit
            pair = quartimax(*balanced(up.double(), down.double().flatten(1)))
            wide, narrow = (f.to(up.dtype).double() for f in pair)
            down = narrow.reshape(-1, *down.shape[1:])
            values[key] = as_weight(torch.einsum("or,rct->oct", wide, down), self._site(key), values[key])
            factors[key.rpartition(".")[0]] = self._pair(key, sliced(key, values[key]), wide, down, kept)
        changes = {
            key: sliced(key, value.double() - self._subject.weight(key).double()) for key, value in values.items()
        }
        return replace(made, refits=assembler.all_names(changes), factors=factors)

    @contextlib.contextmanager
    def channels_alone(self) -> Iterator[bool]:
        """No layer of low rank is among the choices inside; yields whether one was."""
        every = self.choices
        self.choices = [choice for choice in every if isinstance(choice, LayerChoice)]
        try:
            yield len(self.choices) < len(every)
        finally:
            self.choices = every

    def kept_whole(self, made: Plan) -> bool:
        """Whether a layer that `made` makes two of rounds too much so; it is then no longer among the choices."""
        path = pair_that_rounds(self._hidden.vae, made, self._select)
        if path is None:
            return False
        self._whole.append(path)
        self.choices = [c for c in self.choices if not (isinstance(c, RankChoice) and c.path == path)]
        return True

    def _pair(
        self, key: str, weight: Tensor, up: Tensor, down: Tensor, kept: dict[Axis, list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Down and up in the layout of the two layers: `weight` is the sliced weight that they replace."""
        site = self._site(key)
        rows = kept.get((key, site.output_axis), list(range(len(up))))
        columns = kept.get((key, site.input_axis), list(range(down.shape[1])))
        kernel = [size for axis, size in enumerate(weight.shape) if axis not in (site.output_axis, site.input_axis)]
        first = down[:, columns].double().cpu().reshape(-1, len(columns), *kernel)
        second = up[rows].double().cpu()
        return first.movedim((0, 1), (site.output_axis, site.input_axis)), second.reshape(
            *second.shape, *[1] * len(kernel)
        )

    def _site(self, key: str) -> Site:
        return next(site for sites in self._channels.sites.values() for site in sites if site.key == key)

    def _fitted(self, chosen: Sequence[int]) -> Refit:
        fitted = refit(self._subject, self._fit, self._moments, self._removed(chosen))
        self._skipped |= fitted.skipped
        return fitted

    def _removed(self, chosen: Sequence[int]) -> Removed:
        gone: dict[Axis, set[int]] = {}
        mixed, ranks = {}, {}
        for choice, level in zip(self.choices, chosen, strict=True):
            if isinstance(choice, RankChoice):
                if level:
                    ranks[choice.weight] = choice.ranks[level]
                continue
            for part in choice.gone(level):
                for axis, indices in part.group.entries.items():
                    gone.setdefault(axis, set()).update(indices)
            mixture = choice.mixture(level)
            if mixture:
                mixed[mixture[0]] = mixture[1]
        return Removed({axis: frozenset(found) for axis, found in gone.items()}, self._shared, mixed, ranks)

    def _priced(self, layers: Sequence[tuple[Group, ...]]) -> tuple[list[tuple[Group, ...]], tuple[Left, ...]]:
        """The layers that costs can be found for, and why the others stay."""
        priced, left = [], []
        for layer in layers:
            reads = {call for group in layer for call in group.reads}
            if any(self._channels.site(call).key in self._shared for call in reads):
                why = "what reads it is used several times, so no fit can be made for one use alone"
            elif any(self._moments[call].gram is None for call in reads):
                why = f"what reads it has more than {MOST_FEATURES} inputs, too many to fit"
            else:
                priced.append(layer)
                continue
            left += [(group, why) for group in layer]
        return priced, left_of(self._channels, left)

    def _sizes(self, aim: Aim) -> Tensors:
        shapes = {key: tuple(tensor.shape) for tensor, names in self._subject.aliases for key in names[:1]}
        outputs = {site.key: site.output_axis for sites in self._channels.sites.values() for site in sites}
        if aim == "size":
            return Tensors(shapes, dict.fromkeys(shapes, 1.0), outputs)
        worth: dict[str, float] = {}
        for call, moments in self._moments.items():
            key = self._channels.site(call).key
            worth[key] = worth.get(key, 0.0) + 2.0 * moments.places
        return Tensors(shapes, worth, outputs)

    def _rows(self, sets: DataSets) -> FitRows:
        """As many calibration rows as a pass over all layers at once has room for."""
        recorder = Recorder()
        example = next(iter(batches_for(self._subject.vae, sets.select, 1)))
        posterior: Posterior = self._subject.run(lambda vae: vae.encode(*example), recorder)
        self._subject.run(lambda vae: vae.decode(posterior.mean, *example[1:]), recorder)
        row_bytes = max(result.numel() * result.element_size() for result in recorder.results)
        most = max(_LEAST_FIT_ROWS, min(_FIT_ROWS, _FIT_BYTES // (_ALIVE * row_bytes)))
        return fit_rows(self._subject, _spread(self._hidden, sets, most), most, row_bytes, sets.seed)


def _losses(subject: Subject, rows: Rows) -> Tensor:
    """−ELBO of each row (n,), float64, with the same noise each time."""
    found = []
    with torch.no_grad():
        for inputs in passes(subject.vae, rows, seed=1, size=_LOSS_ROWS):
            x, *condition = inputs.x
            posterior = subject.vae.encode(*inputs.x)
            z = posterior.sample(inputs.noise)
            found.append(negative_elbo(subject.vae, x, z, posterior, condition).double().cpu())
    return torch.cat(found)


def _losses_before(original: VAE, kept: Sequence[int], rows: Rows) -> Tensor:
    """As `_losses` of a model that had further latents: the same noise in those that were kept."""
    found = []
    shape = (len(kept), *original.latent_shape[1:])
    generator = torch.Generator().manual_seed(2)
    with measuring(original):
        for inputs in passes(original, rows, seed=1, size=_LOSS_ROWS, shape=shape):
            x, *condition = inputs.x
            posterior = original.encode(*inputs.x)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            noise[:, list(kept)] = inputs.noise
            z = posterior.sample(noise)
            found.append(negative_elbo(original, x, z, posterior, condition).double().cpu())
    return torch.cat(found)


def _spread(hidden: Hidden, sets: DataSets, most: int) -> Iterator[Batch]:
    """About `most` calibration rows, evenly from all of them."""
    total, seen = max(hidden.ranges.rows, 1), 0
    for batch in batches_for(hidden.vae, sets.calibrate):
        at = torch.arange(seen, seen + len(batch[0]))
        taken = (at * most) // total != ((at - 1) * most) // total
        seen += len(at)
        if taken.any():
            chosen = taken.to(batch[0].device)
            yield tuple(part[chosen] for part in batch)
