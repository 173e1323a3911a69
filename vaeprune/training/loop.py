"""The training loop: Adam over minibatches of rows in memory, resumable to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaeprune import ranks
from vaeprune.adapters.copying import copied
from vaeprune.adapters.measuring import batch_rows, element_type
from vaeprune.architectures import BuiltVAE
from vaeprune.data import Batch, MemoryRows
from vaeprune.data.rows import span_of
from vaeprune.data.sets import to_shape
from vaeprune.errors import ModelError, TrainingError
from vaeprune.posterior import VAE, Posterior
from vaeprune.training.growth import kl_weights
from vaeprune.training.history import Epoch, History, TracePoint
from vaeprune.training.objective import Loss
from vaeprune.training.options import Options as Options
from vaeprune.training.state import restore, state_of, trainable
from vaeprune.training.stepping import adam, losses_of, seeded

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
    _refuse_too_many_ranks(rows, options)
    vae = _twin(vae, shape)
    optimiser = adam(list(trainable(vae).values()), options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    losses = losses_of(vae, options)
    history = History()
    if resume:
        history = resume[0]
        restore(vae, optimiser, generator, resume[1])
    done_already = len(history.epochs)
    if done_already >= options.epochs:
        raise TrainingError(
            f"epochs: {done_already} are done already, got {options.epochs}",
            "ask for more with --epochs",
        )
    for epoch in range(done_already + 1, options.epochs + 1):
        run = _Epoch(vae, rows, shape, options, losses, optimiser, generator, epoch)
        finished, trace = run(on_step)
        history = History((*history.epochs, finished), history.trace + trace)
        done = Trained(vae, history, state_of(vae, optimiser, generator))
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


def _least_rows() -> int:
    """The fewest rows a minibatch may have: BatchNorm cannot normalise a single row, on any of the ranks."""
    return 2 * ranks.world()


def _refuse_too_many_ranks(rows: MemoryRows, options: Options) -> None:
    least, found = _least_rows(), min(rows.count, options.batch_size)
    if found < least:
        raise TrainingError(
            f"{rows.name}: got minibatches of {found} rows for {ranks.world()} ranks, expected at least {least}",
            "start fewer processes, or raise --batch-size",
        )


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


class _Epoch:
    """One pass over the rows in a fresh random order."""

    def __init__(
        self,
        vae: VAE,
        rows: MemoryRows,
        shape: torch.Size,
        options: Options,
        losses: Callable[..., Loss],
        optimiser: torch.optim.Adam,
        generator: torch.Generator,
        epoch: int,
    ) -> None:
        self.vae, self.rows, self.shape, self.options = vae, rows, shape, options
        self.losses, self.optimiser, self.generator, self.epoch = losses, optimiser, generator, epoch
        self.dtype, self.device = element_type(vae)
        whole, rest = divmod(rows.count, options.batch_size)
        self.batches = whole + (rest >= _least_rows())
        self.trace: list[TracePoint] = []

    def __call__(self, on_step: Callable[[Step], None] | None) -> tuple[Epoch, tuple[TracePoint, ...]]:
        self.vae.network.train()
        sums = torch.zeros(4, dtype=torch.float64)  # of rows, losses, reconstructions and KLs
        for batch, indices in enumerate(self._shuffled(), start=1):
            step = (self.epoch - 1) * self.batches + batch
            rate = self.options.rate(step, self.batches)
            sums += self._step(batch, step, rate, indices)
            if on_step:
                loss, reconstruction, kl = (sums[1:] / sums[0]).tolist()
                on_step(Step(self.epoch, batch, self.batches, loss, reconstruction, kl, rate, self.vae))
        sums = torch.stack(ranks.gathered(sums)).sum(0)
        variance, posterior_variance = self._measure()
        if not all(map(math.isfinite, (*variance, *posterior_variance))):
            raise TrainingError(f"epoch {self.epoch}: the latents became NaN or infinite in its last steps", DIVERGED)
        loss, reconstruction, kl = (sums[1:] / sums[0]).tolist()
        finished = Epoch(self.epoch, loss, reconstruction, kl, variance, posterior_variance)
        return finished, tuple(self.trace)

    def _shuffled(self) -> Iterator[Tensor]:
        order = torch.randperm(self.rows.count, generator=self.generator)
        yield from torch.split(order, self.options.batch_size)[: self.batches]

    def _take(self, indices: Tensor) -> Batch:
        x, *condition = self.rows.take(indices, self.dtype)
        return (x.view(-1, *self.shape).to(self.device), *(c.to(self.device) for c in condition))

    def _step(self, batch: int, step: int, rate: float, indices: Tensor) -> Tensor:
        """One update; returns how many rows of the minibatch are this rank's, and their losses, summed."""
        mine = slice(*span_of(len(indices), ranks.rank(), ranks.world()))
        x, *condition = self._take(indices[mine])
        noise = torch.randn(len(indices), *self.vae.latent_shape, generator=self.generator)[mine].to(x)
        weights = kl_weights(self.options.grown, self.vae.latent_size, (step - 1) / self.batches)
        seed = self.options.seed * 0x9E3779B97F4A7C15 + (ranks.rank() << 40) + step
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16)
        with torch.enable_grad(), seeded(seed % 2**63, self.device):
            with autocast:
                losses = self.losses(x, noise, condition, weights)
            loss = losses.total.sum() * (ranks.world() / len(indices)) if ranks.world() > 1 else losses.total.mean()
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
        parts = torch.stack([torch.ones_like(losses.total), losses.total, losses.reconstruction, losses.kl])
        return parts.detach().double().sum(1).cpu()

    def _trace(self, step: int, posterior: Posterior) -> None:
        if self.options.trace_every and (step - 1) % self.options.trace_every == 0:
            own = Posterior(posterior.mean.detach().cpu(), posterior.logvar.detach().cpu())
            self.trace.append(TracePoint(step, *latent_spread(ranks.gathered(own))))

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
