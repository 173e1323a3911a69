"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vaeprune.errors import TrainingError
from vaeprune.training.growth import Growth
from vaeprune.training.objective import Objective


@dataclass(frozen=True)
class Options:
    """How to train. `epochs` counts from the very start, also when resuming.

    `trace_every`: record the latents' variances every so many minibatches; 0 for never.
    `decay`: let the learning rate fall linearly, minibatch by minibatch, to reach 0 at the end of all `epochs`.
    `grown`: when latents were added, whose KL is then warmed up.
    `bf16`: losses and gradients in bfloat16 where torch's autocast allows it. `compiled`: through torch.compile.
    Of several ranks (vaeprune.ranks) each takes its part of every minibatch of `batch_size` rows.
    """

    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    trace_every: int = 0
    decay: bool = False
    grown: tuple[Growth, ...] = ()
    bf16: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("trace_every", 0), ("seed", 0)):
            if not least <= getattr(self, name) < 2**63:
                raise TrainingError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"learning_rate: got {self.learning_rate}, expected a positive finite number")

    def rate(self, step: int, batches: int) -> float:
        """Learning rate of minibatch `step`, counted from 1 through all epochs of `batches` minibatches each."""
        return self.learning_rate * (1 - (step - 1) / (self.epochs * batches)) if self.decay else self.learning_rate
