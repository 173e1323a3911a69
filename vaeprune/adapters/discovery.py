"""Find out how a foreign module encodes, spreads and decodes, by running it.

What `encode` returns is a habit, not a rule, so every reading is tried against the module's own sampling: `forward`
runs with its noise known, and of all readings the one is right whose decode(mean + sigma·noise) is what it gave.
Where a module does not sample, names decide, and what was assumed is said.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vaeprune.adapters.adapted import AdaptedVAE, element_type_of, unwrapped
from vaeprune.adapters.noise import KnownNoise, sampling
from vaeprune.adapters.reading import (
    DECODERS,
    ENCODERS,
    MEANS,
    NAMED_SPREADS,
    SPREADS,
    Path,
    Reading,
    Spread,
    in_words,
    last_step,
    sigma_of,
    tensors_in,
)
from vaeprune.errors import ModelError
from vaeprune.factory import quoted
from vaeprune.likelihood import Likelihood

ROWS = 7  # unlikely to be anybody's number of channels, so that a batch is not taken for an image
_FITS = 1e-4
_PRIORS = ("prior", "pseudo_input", "pseudoinput", "vampprior")


def discover(
    network: nn.Module,
    x: Tensor,
    *conditions: Tensor,
    input_shape: Sequence[int] | None = None,
    spread: Spread | None = None,
    likelihood: Likelihood | None = None,
) -> AdaptedVAE:
    """The module with the VAE protocol around it; `assumptions` says in words what was found.

    x, conditions: a few rows as they are stored. They are offered to the encoder as they are, flattened, and with
    a channel axis, in that order, unless `input_shape` says how. `spread` and `likelihood` overrule what is found.
    The module is left as it was. Raises ModelError where no posterior can be read.
    """
    network = unwrapped(network)
    dtype, device = element_type_of(network)
    rows = [part[:ROWS].to(device, dtype if part.is_floating_point() else part.dtype) for part in (x, *conditions)]
    flags = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # calls are tried here that the module was not made for
            return _Discovery(network, rows[0], rows[1:], spread).run(input_shape, likelihood)
    finally:
        for module, training in flags:
            module.training = training


class _Discovery:
    """One module on a few rows: which encoder, which reading of it, which decoder."""

    def __init__(self, network: nn.Module, x: Tensor, conditions: list[Tensor], spread: Spread | None) -> None:
        self.network, self.x, self.conditions, self.wished_spread = network, x, conditions, spread
        self.name = type(network).__name__
        self.stored = tuple(x.shape[1:])
        self.encoder = ""
        self.tensors: dict[Path, Tensor] = {}

    def run(self, input_shape: Sequence[int] | None, likelihood: Likelihood | None) -> AdaptedVAE:
        """Everything found, as an AdaptedVAE."""
        self._refuse_learned_prior()
        readings = self._choose_encoder(input_shape)
        reading, how = self._decide(readings)
        halves = " (halves of one tensor)" if reading.mean == reading.spread else ""
        mean, _ = self._parts(reading)
        where = f"the mean at {in_words(reading.mean)}, the {reading.kind} at {in_words(reading.spread)}{halves}"
        words = [
            f"input: rows of shape {self.stored} are given as {tuple(self.x.shape[1:])}",
            f"posterior: {self.name}.{self.encoder} gives {where}; {how}",
        ]
        why = "given, or from the model's own config"
        if likelihood is None:
            likelihood, why = self._likelihood(reading, mean), "from their ranges"
        words.append(f"likelihood: {likelihood.kind}, the decoder gives its {likelihood.output}; {why}")
        shape = tuple(self.x.shape[1:])
        return AdaptedVAE(self.network, reading, likelihood, shape, tuple(mean.shape[1:]), tuple(words))

    def _refuse_learned_prior(self) -> None:
        """Known by its name only: nothing in what a model computes tells which prior it was trained with."""
        names = [name for name, _ in (*self.network.named_modules(), *self.network.named_parameters())]
        for name in names:
            if any(part.startswith(_PRIORS) for part in name.lower().split(".")):
                raise ModelError(
                    f"{self.name}: has a learned prior, {name}; idle latents are defined against N(0, I)",
                    "if it is not the prior of z, give it another name or wrap the model in the vaeprune.VAE protocol",
                )

    def _choose_encoder(self, input_shape: Sequence[int] | None) -> list[Reading]:
        """Take the first encoder and shape with a readable result; raises ModelError with the model's own words."""
        shapes = [tuple(input_shape)] if input_shape else [self.stored, (self.x[0].numel(),), (1, *self.stored)]
        stored, failures = self.x, []
        for encoder in ENCODERS:
            function = getattr(self.network, encoder, None)
            if function is None:
                continue
            for shape in dict.fromkeys(shapes):
                try:
                    self.encoder, self.x = encoder, stored.reshape(len(stored), *shape)
                    self.tensors = self._steady(function)
                except ModelError:
                    raise
                except Exception as error:  # noqa: BLE001  foreign code may raise anything; its words are kept
                    failures.append(f"{encoder} on {shape}: {quoted(error)}")
                    continue
                readings = list(self._readings())
                if readings:
                    return readings
                failures.append(f"{encoder} on {shape}: no mean and spread in what it returns ({self._shapes()})")
        what = "; ".join(failures) or "it has no encode, encoder or forward"
        raise ModelError(
            f"{self.name}: no posterior can be read: {what}", "pass --input-shape, or wrap it in the protocol"
        )

    def _steady(self, function: Callable[..., Any]) -> dict[Path, Tensor]:
        """The tensors an encoder returns that do not change from call to call: samples of z do, and are left out."""
        calls = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            result = function(self.x, *self.conditions[: _room(function)])
            _refuse_distribution(result, f"{self.name}.{self.encoder}")
            calls.append(tensors_in(result))
        first, again = calls
        return {
            path: tensor
            for path, tensor in first.items()
            if tensor.dim() >= 2 and len(tensor) == len(self.x) and path in again and torch.equal(tensor, again[path])
        }

    def _readings(self) -> Iterator[Reading]:
        """All ways to read a mean and a spread, with the decoder that takes such a z; the likelier first."""
        room = min(_room(getattr(self.network, self.encoder)), len(self.conditions))
        usual = Reading(self.encoder, None, (), (), "logvar", conditions=(room, 0))
        own = self.tensors
        if self.encoder == "forward":  # its reconstruction is not part of the posterior
            own = {p: t for p, t in own.items() if t[0].numel() != self.x[0].numel()}
        pairs = [(m, s) for m, s in itertools.permutations(own, 2) if own[m].shape == own[s].shape]
        named = [(m, s) for m, s in pairs if last_step(m) in MEANS and last_step(s) in NAMED_SPREADS]
        named.sort(key=lambda pair: SPREADS.index(NAMED_SPREADS[last_step(pair[1])]))
        for mean, spread in named:
            kind = self.wished_spread or NAMED_SPREADS[last_step(spread)]
            yield from self._with_decoder(replace(usual, mean=mean, spread=spread, kind=kind))
        if named:
            return
        fused = [(p, p) for p, t in own.items() if len(own) == 1 and t.shape[1] % 2 == 0]
        for mean, spread in pairs or fused:
            for kind in (self.wished_spread,) if self.wished_spread else SPREADS:
                yield from self._with_decoder(replace(usual, mean=mean, spread=spread, kind=kind))

    def _with_decoder(self, reading: Reading) -> Iterator[Reading]:
        """The reading with the first decoder that makes rows of its z; without one if the module has only forward."""
        mean, _ = self._parts(reading)
        for name in DECODERS:
            function = getattr(self.network, name, None)
            if function is None:
                continue
            room = min(_room(function), len(self.conditions))
            try:
                found = tensors_in(function(mean, *self.conditions[:room]))
            except Exception:  # noqa: BLE001, S112  a decoder that does not take this z is not the one for it
                continue
            output = next((path for path, t in found.items() if t.numel() == self.x.numel()), None)
            if output is not None:
                conditions = (reading.conditions[0], room)
                yield replace(reading, decode=name, output=output, conditions=conditions)
                return
        if self.encoder == "forward" and not any(getattr(self.network, name, None) for name in DECODERS):
            yield reading

    def _decide(self, readings: list[Reading]) -> tuple[Reading, str]:
        """The reading that explains the module's own sampling; else the likeliest, with what was assumed."""
        if self.wished_spread:
            return readings[0], "the kind of spread was given"
        sampled = self._own_sample() if readings[0].decode else None
        if sampled is not None:
            errors = [self._misfit(reading, *sampled) for reading in readings]
            best = min(range(len(readings)), key=errors.__getitem__)
            if errors[best] < _FITS:
                return readings[best], "its own forward, with its noise known, agrees"
            raise ModelError(
                f"{self.name}: samples z in a way that no reading of {self.encoder} explains "
                f"(closest: {readings[best].kind}, off by {errors[best]:.2g}): its posterior is not a known Gaussian",
                "pass --spread if you know what it is, or wrap the model in the VAE protocol",
            )
        first = readings[0]
        if last_step(first.spread) in NAMED_SPREADS:
            return first, "by its name, as the module does not sample in forward"
        _, spread = self._parts(first)
        if (spread < 0).any():
            return first, "assumed, as it has negative values and the module does not sample in forward (--spread)"
        raise ModelError(
            f"{self.name}.{self.encoder}: the spread at {in_words(first.spread)} is positive and the module does not "
            "sample in forward, so it may be a standard deviation, a variance or more",
            f"pass --spread, one of {', '.join(SPREADS)}",
        )

    def _own_sample(self) -> tuple[Tensor, list[Tensor]] | None:
        """(reconstruction, noise draws) of the module's forward; None where it cannot be called or does not draw."""
        for mode in (None, sampling(self.network)):
            noise = KnownNoise()
            torch.manual_seed(3)
            try:
                if mode is None:
                    with noise:
                        result = self.network(self.x, *self.conditions[: _room(self.network.forward)])
                else:
                    with mode, noise:
                        result = self.network(self.x, *self.conditions[: _room(self.network.forward)])
            except Exception:  # noqa: BLE001  a forward of another signature tells nothing about sampling
                return None
            rows = [t for t in tensors_in(result).values() if t.numel() == self.x.numel()]
            if rows and noise.draws:
                return rows[0], noise.draws
        return None

    def _misfit(self, reading: Reading, reconstruction: Tensor, draws: list[Tensor]) -> float:
        """How far decode(mean + sigma·noise) is from what forward gave, relative to the range of that."""
        mean, spread = self._parts(reading)
        sigma = sigma_of(spread, reading.kind)
        scale = max((reconstruction - reconstruction.mean()).abs().max().item(), 1e-12)
        found = [float("inf")]
        for draw in draws:
            if draw.numel() == mean.numel() and torch.isfinite(sigma).all():
                x_hat = self._decode(reading, mean + sigma * draw.reshape(mean.shape))
                found.append((x_hat.reshape(-1) - reconstruction.reshape(-1)).abs().max().item() / scale)
        return min(error if error == error else float("inf") for error in found)

    def _likelihood(self, reading: Reading, mean: Tensor) -> Likelihood:
        """Bernoulli where data and outputs lie in [0, 1], or outputs are logits of data that do; else Gaussian."""
        if reading.decode is None or self.x.amin() < 0 or self.x.amax() > 1:
            return Likelihood("gaussian", "mean")
        output = self._decode(reading, mean).reshape(self.x.shape)
        if output.amin() >= 0 and output.amax() <= 1:
            return Likelihood("bernoulli", "mean")
        as_logits, as_mean = ((m - self.x).square().mean() for m in (torch.sigmoid(output), output))
        return Likelihood("bernoulli", "logits") if as_logits < as_mean else Likelihood("gaussian", "mean")

    def _decode(self, reading: Reading, z: Tensor) -> Tensor:
        found = getattr(self.network, str(reading.decode))(z, *self.conditions[: reading.conditions[1]])
        return tensors_in(found)[reading.output]

    def _parts(self, reading: Reading) -> tuple[Tensor, Tensor]:
        mean, spread = self.tensors[reading.mean], self.tensors[reading.spread]
        if reading.mean == reading.spread:
            mean, spread = mean.chunk(2, 1)
        return mean, spread

    def _shapes(self) -> str:
        shapes = ", ".join(f"{in_words(p)} {tuple(t.shape)}" for p, t in self.tensors.items())
        return shapes or "nothing that is the same when called again in eval mode, as F.dropout by its default is not"


def _room(function: Callable[..., Any]) -> int:
    """How many further positional arguments a function takes after the first."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return 99
    return sum(p.kind in positional for p in parameters) - 1


def _refuse_distribution(result: Any, where: str) -> None:
    for item in result if isinstance(result, (tuple, list)) else (result,):
        base = item.base_dist if isinstance(item, Independent) else item
        if isinstance(base, Distribution) and not isinstance(base, Normal):
            raise ModelError(
                f"{where}: returns a {type(base).__name__} posterior, expected a diagonal Gaussian",
                "idle latents are defined against N(0, I)",
            )
