"""Streaming moments → latent statistics → verdicts → diagnosis → advice."""

from vaeprune.analysis.advice import Advice
from vaeprune.analysis.analysis import Analysis, analyze
from vaeprune.analysis.diagnosis import Diagnosis
from vaeprune.analysis.latents import Latent, Thresholds
from vaeprune.analysis.moments import Moments
from vaeprune.analysis.stated_objective import StatedObjective

__all__ = ["Advice", "Analysis", "Diagnosis", "Latent", "Moments", "StatedObjective", "Thresholds", "analyze"]
