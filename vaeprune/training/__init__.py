"""The training objective, its loop, and the record it leaves."""

from vaeprune.training.growth import Growth
from vaeprune.training.history import Epoch, History, TracePoint
from vaeprune.training.loop import Options, Trained, train
from vaeprune.training.objective import Objective

__all__ = ["Epoch", "Growth", "History", "Objective", "Options", "TracePoint", "Trained", "train"]
