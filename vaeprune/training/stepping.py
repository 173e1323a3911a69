"""What a step of training is made of: losses, over several ranks where there are some, and Adam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vaeprune import ranks
from vaeprune.architectures import BuiltVAE
from vaeprune.posterior import VAE
from vaeprune.training.objective import Loss
from vaeprune.training.options import Options


def adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam in one call for all parameters where torch has that for their device."""
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=rate, fused=fused)


class _Losses(nn.Module):
    """The objective as a module, which is what DistributedDataParallel wraps."""

    def __init__(self, vae: VAE, options: Options) -> None:
        super().__init__()
        self.network = vae.network  # its parameters are what is trained
        self._vae = (vae,)  # in a tuple, so that it is not a submodule once more
        self._objective = torch.compile(options.objective) if options.compiled else options.objective

    def forward(self, x: Tensor, noise: Tensor, condition: list[Tensor], kl_weights: Tensor | None) -> Loss:
        return self._objective(self._vae[0], x, noise, *condition, kl_weights=kl_weights)


def losses_of(vae: VAE, options: Options) -> Callable[..., Loss]:
    """(x, noise, conditions, KL weights) → the losses of these rows; of several ranks, with gradients averaged."""
    losses = _Losses(vae, options)
    if ranks.world() == 1:
        return losses
    wanted = options.objective
    all_used = isinstance(vae, BuiltVAE) and (wanted.sampling or wanted.penalty == "full")
    return nn.parallel.DistributedDataParallel(losses, find_unused_parameters=not all_used)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators start from `seed` inside and are as they were afterwards."""
    on_gpu = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all the GPUs' generators, too
        for index in on_gpu:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
