"""Streaming moments → latent statistics → verdicts → advice."""

from vaeprune.analysis.advice import Advice
from vaeprune.analysis.analysis import Analysis, analyze
from vaeprune.analysis.latents import Latent, Thresholds
from vaeprune.analysis.moments import Moments

__all__ = ["Advice", "Analysis", "Latent", "Moments", "Thresholds", "analyze"]
