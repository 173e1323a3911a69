"""`plan`: from verdicts and a trace to the slices, bias changes and attributes of a cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaeprune.adapters import as_vae, batches_for, measuring
from vaeprune.analysis import Analysis
from vaeprune.data import Batch, DataSets, as_data
from vaeprune.errors import PlanError, TraceError
from vaeprune.posterior import VAE
from vaeprune.storage import weights_sha256
from vaeprune.surgery.constants import CannotHold, Held, bias_changes, hold
from vaeprune.surgery.cut import cut_any_weights
from vaeprune.surgery.plan import Plan, Removal, Slice
from vaeprune.surgery.probe import Replayed, Subject, on_shared_weights
from vaeprune.surgery.sizes import first_that_works, layer_sizes, own_sizes, refuse_shape
from vaeprune.surgery.trace import Trace, follow, refuse_hidden_z
from vaeprune.surgery.undisturbed import Undisturbed, repeated, undisturbed

_EXAMPLE_ROWS = 8
_ZERO = 1e-6
_SAME = 1e-5  # of the largest value: how far rounding may move what a weight reads


def plan(
    model: VAE | nn.Module,
    analysis: Analysis,
    data: DataSets | Tensor | str | Iterable[Any],
    *,
    keep: Collection[int] = (),
    remove: Collection[int] = (),
) -> Plan:
    """Plan to take out the inactive latents, more with `remove`, fewer with `keep`.

    Each goes at the constant E[mu_i], or at 0 where what reads it cannot hold another constant; the decoder is traced,
    nothing is known of its code. `data` gives a few rows to run the model on. Raises PlanError if there is nothing to
    remove or nothing would stay, TraceError where the model cannot be followed. Asperti, section VII.
    """
    removed = chosen_latents(analysis, keep, remove)
    if not removed:
        raise PlanError("nothing to cut: no latent is inactive", analysis.advice.reason)
    sets = as_data(data, analysis.seed)
    vae = as_vae(model, sets)
    if vae.latent_size != analysis.latent_size:
        raise PlanError(f"analysis: is of {analysis.latent_size} latents, the model has {vae.latent_size} latents")
    example: Batch = next(iter(batches_for(vae, sets.select, _EXAMPLE_ROWS)))
    refuse_hidden_z(vae)
    made = on_shared_weights(vae, example, partial(_planned, vae, analysis, removed))
    return replace(made, data=sets.describe() | {"calibrate_rows": analysis.n_samples})


def _planned(vae: VAE, analysis: Analysis, removed: list[int], subject: Subject) -> Plan:
    rest = undisturbed(subject)
    traced = follow(rest)
    refuse_inseparable(traced, removed)
    _refuse_leaks(traced, analysis, removed)
    held, changes = _constants(subject, traced, analysis, removed)
    made = Plan(
        weights_sha256=weights_sha256(vae.network.state_dict()),
        scope="latents",
        latent_size=analysis.latent_size,
        removals=tuple(_removal(analysis, i, held.constants[i]) for i in removed),
        slices=_slices(subject, traced, removed),
        attributes={},
        data={},
        bias_changes={n: change for key, change in changes.items() for n in subject.names(key)},
        made_plain=subject.plain,
    )
    return replace(made, attributes=_sizes(vae, rest, held, made))


def chosen_latents(analysis: Analysis, keep: Collection[int], remove: Collection[int]) -> list[int]:
    """The latents to remove, none if nothing is idle; raises PlanError if the wishes contradict, miss or leave nothing.

    Where all are inactive the posterior has collapsed, and where the advice is to refuse, variances say nothing: that
    is a diagnosis, not a cut, and only what is asked for with `remove` goes.
    """
    for name, wished in (("keep", keep), ("remove", remove)):
        unknown = sorted(i for i in wished if not 0 <= i < analysis.latent_size)
        if unknown:
            raise PlanError(
                f"{name}: got latents {unknown}, the model has 0 to {analysis.latent_size - 1}",
                "see `vaeprune analyze`",
            )
    both = sorted(set(keep) & set(remove))
    if both:
        raise PlanError(f"latents {both} are both to be kept and to be removed")
    idle = set() if analysis.advice.action == "refuse" else set(analysis.indices("inactive"))
    removed = sorted((idle | set(remove)) - set(keep))
    if len(removed) == analysis.latent_size:
        if not remove:
            return []
        raise PlanError(f"all {analysis.latent_size} latents would go, at least one must stay", analysis.advice.reason)
    return removed


def refuse_inseparable(traced: Trace, removed: list[int]) -> None:
    """Raise TraceError if a removed latent shares a row, column or parameter with one that stays, or has no source."""
    gone = torch.zeros(traced.latent_size, dtype=torch.bool)
    gone[removed] = True
    for latent in removed:
        if not any(writer.rows[:, latent].any() for writer in traced.writers):
            raise TraceError(f"encoder: no weight was found that makes latent {latent}")
    groups = [(r.site.key, r.columns, "column") for r in traced.readers]
    groups += [(w.site.key, w.rows.T, "row") for w in traced.writers]
    groups += [(key, p.channels, "entry") for p in traced.passed for key in p.passenger.axes]
    for key, reached, what in groups:
        shared = reached[gone].any(0) & reached[~gone].any(0)
        if shared.any():
            channel = int(torch.nonzero(shared)[0])
            latents = torch.nonzero(reached[:, channel]).flatten().tolist()
            mixed = f"; they go through {', '.join(traced.mixers)} before it" if traced.mixers else ""
            raise TraceError(
                f"{key}: {what} {channel} serves latents {_some(latents)} together, which cannot be taken apart{mixed}",
                "keep them all, or remove them all",
            )
    for writer in traced.writers:
        for channel, reader in writer.also_read_by.items():
            if (writer.rows[channel] & gone).any():
                raise TraceError(f"{writer.site.key}: row {channel} makes a latent and is also read by {reader}")


def _refuse_leaks(traced: Trace, analysis: Analysis, removed: list[int]) -> None:
    """Latents that reach the output without a weight can go only if they are 0 anyway, as in an inner product."""
    leaking = torch.nonzero(traced.leaks).flatten().tolist()
    free = all(i in leaking and abs(analysis.latents[i].mean) <= _ZERO for i in removed)
    if leaking and not free:
        raise TraceError(
            f"decoder: latents {_some(leaking)} reach the output without passing a weight that could be cut"
        )


def _some(latents: list[int]) -> str:
    return ", ".join(map(str, latents[:8])) + (" …" if len(latents) > 8 else "")


def _constants(
    subject: Subject, traced: Trace, analysis: Analysis, removed: list[int]
) -> tuple[Held, dict[str, Tensor]]:
    """E[mu_i] where what reads the latent can hold it; 0, the prior's mean, where it cannot."""
    held = hold(subject, {i: analysis.latents[i].mean for i in removed})
    try:
        return held, bias_changes(held, traced)
    except CannotHold:
        held = hold(subject, dict.fromkeys(removed, 0.0))
        return held, bias_changes(held, traced)


def _slices(subject: Subject, traced: Trace, removed: list[int]) -> tuple[Slice, ...]:
    """What stays of every tensor that a removed latent is made by, passes or is read by; tied tensors go together."""
    going: dict[tuple[str, int], Tensor] = {}

    def go(key: str, axis: int, channels: Tensor) -> None:
        before = going.get((key, axis))
        if before is not None and not torch.equal(before, channels):
            raise TraceError(f"{key}: is used several times, by different latents each time")
        going[key, axis] = channels

    for reader in traced.readers:
        go(reader.site.key, reader.site.input_axis, reader.columns[removed].any(0))
    for writer in traced.writers:
        channels = writer.rows[:, removed].any(1)
        go(writer.site.key, writer.site.output_axis, channels)
        if writer.site.bias_unknown:
            raise TraceError(f"{writer.site.key}: its bias is computed, not a parameter, and cannot be cut")
        if writer.site.bias is not None:
            go(writer.site.bias, 0, channels)
    for passed in _united(traced):
        for key, axis in passed[0]:
            go(key, axis, passed[1][removed].any(0))
    slices = []
    for (key, axis), channels in going.items():
        if not channels.any():
            continue
        kept = tuple(torch.nonzero(~channels).flatten().tolist())
        if not kept:
            raise TraceError(f"{key}: nothing of axis {axis} would stay")
        slices += [Slice(name, axis, len(channels), kept) for name in subject.names(key)]
    return tuple(slices)


def _united(traced: Trace) -> list[tuple[tuple[tuple[str, int], ...], Tensor]]:
    """Per-channel parameters with all the latents that pass them, from whichever probe saw it."""
    united: dict[tuple[tuple[str, int], ...], Tensor] = {}
    for passed in traced.passed:
        keys = tuple(sorted(passed.passenger.axes.items()))
        united[keys] = united.get(keys, torch.zeros_like(passed.channels)) | passed.channels
    return list(united.items())


def _sizes(vae: VAE, rest: Undisturbed, held: Held, made: Plan) -> dict[str, int]:
    """Every integer to set, tried on the cut model: encode, decode and sample must run, and compute the same.

    Where a weight is the original's own and reads what the original's read, its result is not computed again.
    """
    layers = layer_sizes(vae.network, made.slices)
    kept, sharing = made.kept_latents, bool(rest.subject.shared)

    def check(own: dict[str, int]) -> None:
        smaller = cut_any_weights(vae, replace(made, attributes=layers | own), sharing)
        cut = Subject(smaller, rest.example, sharing=sharing)
        rows = repeated(cut.example, _EXAMPLE_ROWS)
        posterior = cut.run(lambda vae: vae.encode(*rows), Replayed(rest.encoding, _SAME))
        z = held.z[:, kept]
        decoded = cut.run(lambda vae: vae.decode(z, *held.conditions), Replayed(held.decoding, _SAME))
        for name, reference, found in (
            ("mean", repeated((rest.posterior.mean[:, kept],), _EXAMPLE_ROWS)[0], posterior.mean),
            ("logvar", repeated((rest.posterior.logvar[:, kept],), _EXAMPLE_ROWS)[0], posterior.logvar),
            ("decoded row", held.output, decoded),
        ):
            refuse_shape(tuple(found.shape), tuple(reference.shape), name, vae.network, made.latent_size)
            refuse_other_values(reference, found, name)
        with measuring(vae, smaller):
            try_sample(vae.network, smaller.network)

    return layers | first_that_works(own_sizes(vae.network, made.latent_size, len(kept), layers), check)


def refuse_other_values(reference: Tensor, found: Tensor, what: str, which: str = "cut model") -> None:
    """Raise TraceError where they are far apart. A rough check that sizes are right; `verify` has the exact one."""
    scale = max(reference.abs().max().item(), 1e-12)
    if not ((reference - found).abs().max().item() <= 1e-2 * scale):
        raise TraceError(f"{what} of the {which} differs from the original's")


def try_sample(before: nn.Module, after: nn.Module) -> None:
    """Where the original's `sample` runs with a number of samples, the other's must, too."""
    for arguments in ((2,), (2, "cpu")):
        try:
            with torch.random.fork_rng(devices=[]):
                before.sample(*arguments)  # type: ignore[operator]
        except Exception:  # noqa: BLE001, S112  no such method, or one with other arguments
            continue
        with torch.random.fork_rng(devices=[]):
            after.sample(*arguments)  # type: ignore[operator]
        return


def _removal(analysis: Analysis, index: int, constant: float) -> Removal:
    latent = analysis.latents[index]
    tried = "decoder not tried"
    if latent.ablation_cost is not None:
        tried = (
            f"fixing it costs {latent.ablation_cost:.3g} nats, noise moves the output by {latent.noise_reaction:.2%}"
        )
    return Removal(
        index,
        constant,
        latent.verdict,
        f"observed on {analysis.n_samples} samples: variance {latent.variance:.3g}, "
        f"posterior variance {latent.posterior_variance:.3f}, {tried}",
    )
