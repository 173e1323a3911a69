"""What can go wrong, as one tree.

VaepruneError
├── UsageError          an option or argument that makes no sense
├── StorageError        a file or folder that is missing, damaged, in the way or cannot be written
├── ModelError          a model that cannot be built, loaded or used as a VAE
├── DataError           data that cannot be read, or do not fit the model or the question
├── TrainingError       a training run that cannot start, resume or stay finite
├── TraceError          a path through the model that cannot be followed, so nothing is cut
├── PlanError           a plan that is damaged, contradicts itself, or was made for other weights
├── ExportError         an ONNX file that cannot be made
├── RankError           one of several processes on one job that ended before the others
├── OnnxMismatch        an ONNX file that computes something else than the model
└── VerificationFailed  the smaller model is not the same model; carries the evidence

Each message is one line: where, what was found, what was expected. `hint` says what to do.
"""

from __future__ import annotations

import html
import re
from typing import Any


class VaepruneError(Exception):
    """Base of every error this package raises on purpose.

    `message` says where, what was found and what was expected; `hint` says what to do about it.
    `str(error)` is both on one line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(f"{self.message}; {self.hint}" if self.hint else self.message)


class UsageError(VaepruneError):
    """An option or argument that makes no sense."""


class StorageError(VaepruneError):
    """A file or folder that is missing, damaged, in the way or cannot be written."""


class ModelError(VaepruneError):
    """A model that cannot be built, loaded or used as a VAE."""


class DataError(VaepruneError):
    """Data that cannot be read, or do not fit the model or the question."""


class TrainingError(VaepruneError):
    """A training run that cannot start, resume or stay finite."""


class TraceError(VaepruneError):
    """A path through the model that cannot be followed, so nothing is cut."""


class PlanError(VaepruneError):
    """A plan that is damaged, contradicts itself, or was made for other weights."""


class ExportError(VaepruneError):
    """An ONNX file that cannot be made."""


class RankError(VaepruneError):
    """One of several processes on one job that ended before the others."""


class OnnxMismatch(VaepruneError):
    """A deployable file that computes something else than the model; `gates` has every check."""

    def __init__(self, gates: Any) -> None:
        self.gates = gates
        super().__init__(
            f"export failed: {_figures(gate for gate in gates if not gate.passed)}",
            "nothing was written; take another --precision, or give a wider --onnx-tolerance or --max-elbo-loss",
        )


def _figures(gates: Any) -> str:
    return ", ".join(f"{gate.name} {gate.measured:.3g} > {gate.limit:.3g}" for gate in gates)


_KEEP_OR_WIDEN = "keep the latents concerned with --keep, or give the gate a wider tolerance"


class VerificationFailed(VaepruneError):
    """The smaller model does not give the same outputs; `evidence` (verification.Evidence) has every figure.

    `result`, where `shrink` raised it, is what it would have returned, without a model.
    """

    def __init__(self, evidence: Any, what_to_do: str = _KEEP_OR_WIDEN) -> None:
        self.evidence = evidence
        self.result: Any = None
        super().__init__(
            f"verification failed: {_figures(evidence.failed_gates)}", f"nothing was written; {what_to_do}"
        )


def one_line(text: str) -> str:
    """Control characters made visible, so a hostile name cannot steer a terminal or fake a second line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_markdown(text: str) -> str:
    """One line as itself in Markdown, whatever it holds: neither HTML, nor a link, a picture or a code span."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(one_line(text), quote=False))
