"""Models seen through the VAE protocol, run in eval mode on the rows they expect."""

from vaeprune.adapters.measuring import batches_for, element_type, measuring
from vaeprune.adapters.protocol import as_vae

__all__ = ["as_vae", "batches_for", "element_type", "measuring"]
