"""Run a model with its random draws known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_UNIT_DRAWS = {"randn", "randn_like"}


class KnownNoise(TorchFunctionMode):
    """Every standard normal draw inside is noted in `draws`, however it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what a drawing function drew; `normal(mean, std)` is taken apart into its noise."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        value = func(*args, **kwargs)
        if name in _UNIT_DRAWS or name == "normal_":
            self.draws.append(value.detach().clone())
        elif name == "normal":
            mean, std = (
                kwargs.get(n, args[i] if len(args) > i else d) for i, (n, d) in enumerate((("mean", 0.0), ("std", 1.0)))
            )
            self.draws.append(((value - mean) / std).detach())
        return value


@contextlib.contextmanager
def sampling(network: nn.Module) -> Iterator[None]:
    """Training flags on, as some models sample only then, but dropout and normalisation as in eval mode."""
    flags = [(module, module.training) for module in network.modules()]
    still = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.AlphaDropout)
    try:
        network.train()
        for module in network.modules():
            if isinstance(module, still):
                module.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training
