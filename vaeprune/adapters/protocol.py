"""Check that a model can be used as a VAE at all."""

from __future__ import annotations

from torch import nn

from vaeprune.errors import ModelError
from vaeprune.posterior import VAE


def as_vae(model: object) -> VAE:
    """`model` itself if it is an nn.Module with the VAE protocol; raises ModelError naming what it lacks."""
    if isinstance(model, nn.Module) and isinstance(model, VAE):
        return model
    wanted = [name for name in sorted(VAE.__protocol_attrs__) if not hasattr(model, name)]  # type: ignore[attr-defined]
    raise ModelError(
        f"model: got {type(model).__name__}, expected an nn.Module with the VAE protocol"
        + (f" (it lacks {', '.join(wanted)})" if wanted else "")
    )
