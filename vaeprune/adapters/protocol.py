"""Any module as a VAE: as it is if it has the protocol, otherwise after finding out how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from vaeprune.adapters.adapted import AdaptedVAE, unwrapped
from vaeprune.adapters.discovery import ROWS, discover
from vaeprune.adapters.reading import Spread
from vaeprune.data import DataSets, as_data
from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE


def adapt(
    model: nn.Module,
    data: DataSets | Tensor | str | Iterable[Any],
    *,
    input_shape: Sequence[int] | None = None,
    spread: Spread | None = None,
    likelihood: Likelihood | None = None,
) -> AdaptedVAE:
    """Somebody's module with the VAE protocol around it; a few rows of `data` are run through it to find out how.

    `input_shape`, `spread` ("logvar", "logstd", "std", "var" or "softplus") and `likelihood` overrule what is found;
    the result's `assumptions` say it in words. The module stays as it is, and is the result's `network`.
    Raises ModelError where no Gaussian posterior can be read.
    """
    sets = as_data(data)
    rows = next(sets.select.batches(ROWS))
    return discover(model, *rows, input_shape=input_shape, spread=spread, likelihood=likelihood)


def as_vae(model: object, data: DataSets | None = None) -> VAE:
    """`model` if it has the VAE protocol, else adapted on `data`. Raises ModelError naming what it lacks."""
    if isinstance(model, nn.Module):
        inner = unwrapped(model)
        if isinstance(inner, VAE):
            return inner
        if data is not None:
            return adapt(inner, data)
    wanted = [name for name in sorted(vars(VAE)) if not name.startswith("_") and not hasattr(model, name)]
    raise ModelError(
        f"model: got {type(model).__name__}, expected an nn.Module with the VAE protocol"
        + (f" (it lacks {', '.join(wanted)})" if wanted else "")
    )
