"""The training loop: Adam over minibatches of rows in memory, resumable to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vaeprune.architectures import BuiltVAE
from vaeprune.data import MemoryRows
from vaeprune.data.sets import to_shape
from vaeprune.errors import TrainingError
from vaeprune.posterior import Posterior
from vaeprune.training.history import Epoch, History, TracePoint
from vaeprune.training.objective import Objective

_MEASURED_ROWS = 10_000
_MEASURED_BATCH = 1_000


@dataclass(frozen=True)
class Options:
    """How to train. `epochs` counts from the very start, also when resuming.

    `trace_every`: record the latents' variances every so many minibatches; 0 for never.
    """

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    trace_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("trace_every", 0), ("seed", 0)):
            if not least <= getattr(self, name) < 2**63:
                raise TrainingError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate: got {self.learning_rate}, expected a positive finite number")


class Trained(NamedTuple):
    """A trained network, its history, and what is needed to go on exactly from here."""

    vae: BuiltVAE
    history: History
    state: dict[str, Tensor]


class Step(NamedTuple):
    """Where a running training stands: for progress bars."""

    epoch: int
    batch: int
    batches: int
    loss: float
    reconstruction: float
    kl: float


def train(
    vae: BuiltVAE,
    rows: MemoryRows | Tensor,
    options: Options | None = None,
    *,
    resume: tuple[History, dict[str, Tensor]] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Trained], None] | None = None,
) -> Trained:
    """Train a copy of `vae` on rows (N, ...) and return it; `vae` itself stays as it is.

    `resume` takes the history and state of an earlier result: the weights then become the same, bit for bit, as
    those of one uninterrupted run on the same machine. `on_epoch` is called with each epoch's result.
    Raises TrainingError if the loss stops being finite or there is nothing left to do.
    """
    rows = MemoryRows("array", rows) if isinstance(rows, Tensor) else rows
    options = options or Options()
    shape = to_shape(rows.row_shape, vae.input_shape, rows.name)
    if rows.count < 2:
        raise TrainingError(f"{rows.name}: holds {rows.count} row, expected at least 2 to train on")
    first = rows.take(torch.arange(min(rows.count, _MEASURED_ROWS)))[0]
    vae.likelihood.check_range(first, rows.name)
    vae = copy.deepcopy(vae).train()
    if len(shape) == 3:
        vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast as NCHW for small convolutions on CPUs
    optimiser = torch.optim.Adam(vae.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    history = History()
    if resume:
        history = resume[0]
        _restore(vae, optimiser, generator, resume[1])
    done_already = len(history.epochs)
    if done_already >= options.epochs:
        raise TrainingError(
            f"epochs: {done_already} are done already, got {options.epochs}",
            "ask for more with --epochs",
        )
    for epoch in range(done_already + 1, options.epochs + 1):
        run = _Epoch(vae, rows, shape, options, optimiser, generator, epoch)
        finished, trace = run(on_step)
        history = History((*history.epochs, finished), history.trace + trace)
        done = Trained(vae, history, _state(vae, optimiser, generator))
        if on_epoch:
            on_epoch(done)
    vae.eval()
    return done


class _Epoch:
    """One pass over the rows in a fresh random order."""

    def __init__(
        self,
        vae: BuiltVAE,
        rows: MemoryRows,
        shape: torch.Size,
        options: Options,
        optimiser: torch.optim.Adam,
        generator: torch.Generator,
        epoch: int,
    ) -> None:
        self.vae, self.rows, self.shape, self.options = vae, rows, shape, options
        self.optimiser, self.generator, self.epoch = optimiser, generator, epoch
        self.device = next(vae.parameters()).device
        # BatchNorm cannot normalise a single row, so one that would be left over is left out
        whole, rest = divmod(rows.count, options.batch_size)
        self.batches = whole + (rest > 1)
        self.trace: list[TracePoint] = []

    def __call__(self, on_step: Callable[[Step], None] | None) -> tuple[Epoch, tuple[TracePoint, ...]]:
        self.vae.train()
        sums = torch.zeros(3, dtype=torch.float64)
        seen = 0
        for batch, x in enumerate(self._shuffled(), start=1):
            losses = self._step(batch, x)
            sums += losses
            seen += len(x)
            if on_step:
                loss, reconstruction, kl = (sums / seen).tolist()
                on_step(Step(self.epoch, batch, self.batches, loss, reconstruction, kl))
        loss, reconstruction, kl = (sums / seen).tolist()
        variance, posterior_variance = self._measure()
        if not all(map(math.isfinite, (*variance, *posterior_variance))):
            raise TrainingError(
                f"epoch {self.epoch}: the latents became NaN or infinite in its last steps",
                "lower --learning-rate; the last finished epoch is kept",
            )
        finished = Epoch(self.epoch, loss, reconstruction, kl, variance, posterior_variance)
        return finished, tuple(self.trace)

    def _shuffled(self) -> Iterator[Tensor]:
        order = torch.randperm(self.rows.count, generator=self.generator)
        for indices in torch.split(order, self.options.batch_size):
            if len(indices) > 1:
                yield self._take(indices)

    def _take(self, indices: Tensor) -> Tensor:
        return self.rows.take(indices)[0].view(-1, *self.shape).to(self.device)

    def _step(self, batch: int, x: Tensor) -> Tensor:
        """One update; returns the sums over rows of loss, reconstruction and KL."""
        noise = torch.randn(len(x), self.vae.latent_size, generator=self.generator).to(x.device)
        losses = self.options.objective(self.vae, x, noise)
        loss = losses.total.mean()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {self.epoch}, minibatch {batch}: the loss became {loss.item()}",
                "lower --learning-rate; the last finished epoch is kept",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self._trace((self.epoch - 1) * self.batches + batch, losses.posterior)
        parts = torch.stack([losses.total, losses.reconstruction, losses.kl])
        return parts.detach().double().sum(1).cpu()

    def _trace(self, step: int, posterior: Posterior) -> None:
        if self.options.trace_every and (step - 1) % self.options.trace_every == 0:
            self.trace.append(TracePoint(step, *latent_spread([posterior])))

    def _measure(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Variances of the latents over training rows with the weights at rest."""
        self.vae.eval()
        with torch.inference_mode():
            rows = torch.split(torch.arange(min(self.rows.count, _MEASURED_ROWS)), _MEASURED_BATCH)
            return latent_spread([self.vae.encode(self._take(i)) for i in rows])


def latent_spread(posteriors: list[Posterior]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Var_x[mu_i] and E_x[sigma_i²] of each latent over a few batches of posteriors."""
    mean = torch.cat([p.mean.detach() for p in posteriors]).double()
    variance = torch.cat([p.logvar.detach() for p in posteriors]).double().exp()
    return tuple(mean.var(0, correction=0).tolist()), tuple(variance.mean(0).tolist())


def _state(vae: BuiltVAE, optimiser: torch.optim.Adam, generator: torch.Generator) -> dict[str, Tensor]:
    """Everything beside the weights that the next step depends on, as named tensors."""
    state = {"generator": generator.get_state()}
    for name, parameter in vae.named_parameters():
        for key, value in optimiser.state[parameter].items():
            state[f"{key}:{name}"] = value.detach().clone()
    return state


def _restore(vae: BuiltVAE, optimiser: torch.optim.Adam, generator: torch.Generator, state: dict[str, Tensor]) -> None:
    names = {name for name, _ in vae.named_parameters()}
    keys = ("step", "exp_avg", "exp_avg_sq")
    expected = {f"{key}:{name}" for key in keys for name in names} | {"generator"}
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise TrainingError(f"training state: does not belong to this network ({', '.join(odd[:3])} …)")
    for name, parameter in vae.named_parameters():
        if state[f"step:{name}"].numel() != 1:
            raise TrainingError(f"training state: step of {name} is not one number")
        for key in keys[1:]:
            values = state[f"{key}:{name}"]
            if not torch.isfinite(values).all() or (key == "exp_avg_sq" and (values < 0).any()):
                raise TrainingError(f"training state: {key} of {name} holds values that no training leaves")
            if state[f"{key}:{name}"].shape != parameter.shape:
                raise TrainingError(
                    f"training state: {key} of {name} has shape {tuple(state[f'{key}:{name}'].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
        moments = {key: state[f"{key}:{name}"].to(parameter.device, copy=True) for key in keys[1:]}
        optimiser.state[parameter] = {"step": state[f"step:{name}"].clone(), **moments}
    try:
        generator.set_state(state["generator"])
    except (RuntimeError, TypeError) as error:
        raise TrainingError(f"training state: its random state is damaged: {error}") from error
