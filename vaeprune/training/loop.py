"""The training loop: Adam over minibatches of rows in memory, resumable to the bit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaeprune.adapters.copying import copied
from vaeprune.adapters.measuring import batch_rows, element_type
from vaeprune.architectures import BuiltVAE
from vaeprune.data import Batch, MemoryRows
from vaeprune.data.sets import to_shape
from vaeprune.errors import ModelError, TrainingError
from vaeprune.posterior import VAE, Posterior
from vaeprune.training.growth import Growth, kl_weights
from vaeprune.training.history import Epoch, History, TracePoint
from vaeprune.training.objective import Objective

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # has defaults, as typing's own has from Python 3.13 on

    Model = TypeVar("Model", bound=VAE, default=BuiltVAE)
else:
    from typing import TypeVar

    Model = TypeVar("Model", bound=VAE)

DIVERGED = "lower --learning-rate; the last finished epoch is kept"
_MEASURED_ROWS = 10_000
_MEASURED_VALUES = 1 << 25  # latents that are large maps are measured on fewer rows, within 256 MB
_MEASURED_BATCH = 1_000


@dataclass(frozen=True)
class Options:
    """How to train. `epochs` counts from the very start, also when resuming.

    `trace_every`: record the latents' variances every so many minibatches; 0 for never.
    `decay`: let the learning rate fall linearly, minibatch by minibatch, to reach 0 at the end of all `epochs`.
    `grown`: when latents were added, whose KL is then warmed up.
    """

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    trace_every: int = 0
    decay: bool = False
    grown: tuple[Growth, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("trace_every", 0), ("seed", 0)):
            if not least <= getattr(self, name) < 2**63:
                raise TrainingError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate: got {self.learning_rate}, expected a positive finite number")

    def rate(self, step: int, batches: int) -> float:
        """Learning rate of minibatch `step`, counted from 1 through all epochs of `batches` minibatches each."""
        return self.learning_rate * (1 - (step - 1) / (self.epochs * batches)) if self.decay else self.learning_rate


@dataclass(frozen=True, eq=False)
class Trained(Generic[Model]):
    """A trained network, its history, and what is needed to go on exactly from here."""

    vae: Model
    history: History
    state: dict[str, Tensor]


class Step(NamedTuple):
    """Where a running training stands: for progress bars, and for watching the network inside an epoch.

    `loss`, `reconstruction` and `kl` are means over the epoch so far in nats per row; `learning_rate` is this step's.
    `vae` is the network in training as the step left it: look at it inside `measuring`, copy what shall be kept.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    reconstruction: float
    kl: float
    learning_rate: float
    vae: VAE


def train(
    vae: Model,
    rows: MemoryRows | Tensor,
    options: Options | None = None,
    *,
    resume: tuple[History, dict[str, Tensor]] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Trained[Model]], None] | None = None,
) -> Trained[Model]:
    """Train a copy of `vae` on rows (N, ...) and return it; `vae` itself stays as it is.

    Any nn.Module with the VAE protocol will do; conditions that `rows` hold beside x are passed on to it. Parameters
    that require no gradient stay as they are. torch's global generators, which dropout draws from, are seeded for each
    step and put back. `resume` takes the history and state of an earlier result: the weights then become the same, bit
    for bit, as those of one uninterrupted run on the same machine. `on_epoch` is called with each epoch's result.
    Raises TrainingError if the loss stops being finite or there is nothing left to do, or nothing to train.
    """
    rows = MemoryRows("array", rows) if isinstance(rows, Tensor) else rows
    options = options or Options()
    shape = _checked_shape(vae, rows)
    vae = _twin(vae, shape)
    optimiser = torch.optim.Adam(list(_trainable(vae).values()), lr=options.learning_rate)
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
    vae.network.eval()
    optimiser.zero_grad(set_to_none=True)
    return done


def _checked_shape(vae: VAE, rows: MemoryRows) -> torch.Size:
    """The shape the rows take before the model. Raises DataError, ModelError or TrainingError if they do not fit it."""
    shape = to_shape(rows.row_shape, vae.input_shape, rows.name)
    if rows.count < 2:
        raise TrainingError(f"{rows.name}: holds {rows.count} row, expected at least 2 to train on")
    if rows.scaled_to != (0.0, 1.0):
        for x, *_ in rows.batches(batch_rows(rows.row_shape)):
            vae.likelihood.check_range(x, rows.name)
    return shape


def _twin(vae: Model, shape: torch.Size) -> Model:
    """A copy to train, in eval mode. Raises ModelError if `vae` is no module or cannot be copied."""
    module: object = vae
    if not isinstance(module, nn.Module):
        raise ModelError(f"train: got a {type(vae).__name__}, expected an nn.Module with the VAE protocol")
    twin = copied(module).eval()
    if len(shape) == 3 and isinstance(twin, BuiltVAE):
        # twice as fast as NCHW for small convolutions on CPUs; somebody's own module may call view, which needs NCHW
        twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast("Model", twin)


def _trainable(vae: VAE) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name. Raises TrainingError if there are none."""
    trainable = {name: p for name, p in vae.network.named_parameters() if p.requires_grad}
    if not trainable:
        raise TrainingError(
            f"{type(vae.network).__name__}: has no parameter that requires a gradient, so nothing can be trained",
            "call requires_grad_(True) on what shall be trained",
        )
    return trainable


class _Epoch:
    """One pass over the rows in a fresh random order."""

    def __init__(
        self,
        vae: VAE,
        rows: MemoryRows,
        shape: torch.Size,
        options: Options,
        optimiser: torch.optim.Adam,
        generator: torch.Generator,
        epoch: int,
    ) -> None:
        self.vae, self.rows, self.shape, self.options = vae, rows, shape, options
        self.optimiser, self.generator, self.epoch = optimiser, generator, epoch
        self.dtype, self.device = element_type(vae)
        # BatchNorm cannot normalise a single row, so one that would be left over is left out
        whole, rest = divmod(rows.count, options.batch_size)
        self.batches = whole + (rest > 1)
        self.trace: list[TracePoint] = []

    def __call__(self, on_step: Callable[[Step], None] | None) -> tuple[Epoch, tuple[TracePoint, ...]]:
        self.vae.network.train()
        sums = torch.zeros(3, dtype=torch.float64)
        seen = 0
        for batch, (x, *condition) in enumerate(self._shuffled(), start=1):
            step = (self.epoch - 1) * self.batches + batch
            rate = self.options.rate(step, self.batches)
            losses = self._step(batch, step, rate, x, condition)
            sums += losses
            seen += len(x)
            if on_step:
                loss, reconstruction, kl = (sums / seen).tolist()
                on_step(Step(self.epoch, batch, self.batches, loss, reconstruction, kl, rate, self.vae))
        loss, reconstruction, kl = (sums / seen).tolist()
        variance, posterior_variance = self._measure()
        if not all(map(math.isfinite, (*variance, *posterior_variance))):
            raise TrainingError(f"epoch {self.epoch}: the latents became NaN or infinite in its last steps", DIVERGED)
        finished = Epoch(self.epoch, loss, reconstruction, kl, variance, posterior_variance)
        return finished, tuple(self.trace)

    def _shuffled(self) -> Iterator[Batch]:
        order = torch.randperm(self.rows.count, generator=self.generator)
        for indices in torch.split(order, self.options.batch_size):
            if len(indices) > 1:
                yield self._take(indices)

    def _take(self, indices: Tensor) -> Batch:
        x, *condition = self.rows.take(indices, self.dtype)
        return (x.view(-1, *self.shape).to(self.device), *(c.to(self.device) for c in condition))

    def _step(self, batch: int, step: int, rate: float, x: Tensor, condition: list[Tensor]) -> Tensor:
        """One update; returns the sums over rows of loss, reconstruction and KL."""
        noise = torch.randn(len(x), *self.vae.latent_shape, generator=self.generator).to(x)
        weights = kl_weights(self.options.grown, self.vae.latent_size, (step - 1) / self.batches)
        with torch.enable_grad(), _seeded((self.options.seed * 0x9E3779B97F4A7C15 + step) % 2**63, self.device):
            losses = self.options.objective(self.vae, x, noise, *condition, kl_weights=weights)
            loss = losses.total.mean()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"epoch {self.epoch}, minibatch {batch}: the loss became {loss.item()}",
                    DIVERGED,
                )
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self._trace(step, losses.posterior)
        parts = torch.stack([losses.total, losses.reconstruction, losses.kl])
        return parts.detach().double().sum(1).cpu()

    def _trace(self, step: int, posterior: Posterior) -> None:
        if self.options.trace_every and (step - 1) % self.options.trace_every == 0:
            self.trace.append(TracePoint(step, *latent_spread([posterior])))

    def _measure(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Variances of the latents over training rows with the weights at rest."""
        self.vae.network.eval()
        count = min(self.rows.count, _MEASURED_ROWS, max(2, _MEASURED_VALUES // math.prod(self.vae.latent_shape)))
        size = min(_MEASURED_BATCH, batch_rows(self.rows.row_shape))
        with torch.no_grad():  # in inference mode a module might keep a table that no gradient can flow past later
            return latent_spread([self.vae.encode(*self._take(i)) for i in torch.split(torch.arange(count), size)])


def latent_spread(posteriors: list[Posterior]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Var_x[mu_i] and E_x[sigma_i²] of each latent over a few batches of posteriors, (B, D) or (B, C, H, W).

    Of a latent that is a map every position counts.
    """
    mean = torch.cat([p.mean.detach() for p in posteriors]).movedim(1, -1).flatten(0, -2).double()
    variance = torch.cat([p.logvar.detach() for p in posteriors]).movedim(1, -1).flatten(0, -2).double().exp()
    return tuple(mean.var(0, correction=0).tolist()), tuple(variance.mean(0).tolist())


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators start from `seed` inside and are as they were afterwards."""
    on_gpu = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all the GPUs' generators, too
        for index in on_gpu:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def _state(vae: VAE, optimiser: torch.optim.Adam, generator: torch.Generator) -> dict[str, Tensor]:
    """Everything beside the weights that the next step depends on, as named tensors."""
    state = {"generator": generator.get_state()}
    for name, parameter in _trainable(vae).items():
        blank = torch.zeros_like(parameter)  # what Adam would start from, where no loss has reached a parameter yet
        moments = optimiser.state.get(parameter) or {"step": torch.zeros(()), "exp_avg": blank, "exp_avg_sq": blank}
        for key, value in moments.items():
            state[f"{key}:{name}"] = value.detach().clone()
    return state


def _restore(vae: VAE, optimiser: torch.optim.Adam, generator: torch.Generator, state: dict[str, Tensor]) -> None:
    trainable = _trainable(vae)
    keys = ("step", "exp_avg", "exp_avg_sq")
    expected = {f"{key}:{name}" for key in keys for name in trainable} | {"generator"}
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise TrainingError(f"training state: does not belong to this network ({', '.join(odd[:3])} …)")
    for name, parameter in trainable.items():
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
