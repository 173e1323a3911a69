"""Models seen through the VAE protocol, other people's too, run in eval mode on the rows they expect."""

from vaeprune.adapters.adapted import AdaptedVAE
from vaeprune.adapters.measuring import batches_for, element_type, measuring
from vaeprune.adapters.protocol import adapt, as_vae

__all__ = ["AdaptedVAE", "adapt", "as_vae", "batches_for", "element_type", "measuring"]
