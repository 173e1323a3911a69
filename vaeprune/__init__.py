"""vaeprune: find the idle latents of a Variational Autoencoder, cut them out, prove the result.

The names below are loaded when first used, so `import vaeprune` does not import torch (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vaeprune.version import __version__ as __version__

if TYPE_CHECKING:
    from vaeprune.adapters import adapt as adapt
    from vaeprune.analysis import Analysis as Analysis
    from vaeprune.analysis import analyze as analyze
    from vaeprune.evidence import Evidence as Evidence
    from vaeprune.growing import grow as grow
    from vaeprune.model_folder import load as load
    from vaeprune.onnx_export import export_onnx as export_onnx
    from vaeprune.posterior import VAE as VAE
    from vaeprune.posterior import Posterior as Posterior
    from vaeprune.report import write_report as write_report
    from vaeprune.shrinking import shrink as shrink
    from vaeprune.surgery.cut import cut as cut
    from vaeprune.surgery.plan import Plan as Plan
    from vaeprune.surgery.planning import plan as plan
    from vaeprune.training import train as train
    from vaeprune.verification import verify as verify

_ROOMS = {
    "Analysis": "analysis",
    "Evidence": "evidence",
    "Plan": "surgery.plan",
    "Posterior": "posterior",
    "VAE": "posterior",
    "adapt": "adapters",
    "analyze": "analysis",
    "cut": "surgery.cut",
    "export_onnx": "onnx_export",
    "grow": "growing",
    "load": "model_folder",
    "plan": "surgery.planning",
    "shrink": "shrinking",
    "train": "training",
    "verify": "verification",
    "write_report": "report",
}

__all__ = [
    "VAE",
    "Analysis",
    "Evidence",
    "Plan",
    "Posterior",
    "adapt",
    "analyze",
    "cut",
    "export_onnx",
    "grow",
    "load",
    "plan",
    "shrink",
    "train",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'vaeprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vaeprune.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
