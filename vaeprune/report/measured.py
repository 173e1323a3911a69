"""What was measured and how: everything a reader needs to measure it again."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from importlib.metadata import version

import torch

from vaeprune.analysis import Analysis
from vaeprune.data import DataSets, MemoryRows
from vaeprune.evidence import Evidence
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE
from vaeprune.report.pictures import Compared
from vaeprune.storage import weights_sha256
from vaeprune.surgery.plan import Plan

_LIBRARIES = ("torch", "numpy", "onnxruntime", "matplotlib", "jinja2")

Entry = tuple[str, str]


def how(
    models: Compared, sets: DataSets, analysis: Analysis, plan: Plan | None, evidence: Evidence | None
) -> list[Entry]:
    """Names and values: rows, seed, hashes, thresholds, versions."""
    rows = f"{analysis.n_samples:,} calibrate, {sets.select.count:,} select, {sets.verify.count:,} verify"
    limits = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(analysis.thresholds).items())
    entries = [
        ("data", sets.name),
        ("rows", f"{rows}; the moments come from the first, the decoder's trials from the second"),
        ("pictures and evidence", "verify rows, which had no part in any verdict or choice"),
        ("seed", f"{analysis.seed}, of the split, of what is drawn and of all noise"),
        ("verify rows, SHA-256", rows_sha256(sets.verify)),
        ("likelihood", _scored(models.before.likelihood)),
        ("thresholds", limits),
        ("intervals", "95%, of a variance from its fourth moment; a verdict needs the whole interval beyond its limit"),
        ("weights, SHA-256", _weights(models.before)),
    ]
    if models.after is not None:
        entries.append(("weights after, SHA-256", _weights(models.after)))
    if plan is not None:
        entries.append(("plan", f"scope {plan.scope}, made for weights {plan.weights_sha256}"))
    if evidence is not None:
        entries.append(("evidence from", f"{evidence.n_samples:,} verify rows"))
    return [*entries, ("vaeprune", version("vaeprune")), ("run with", _versions())]


def rows_sha256(rows: MemoryRows) -> str:
    """SHA-256 of rows in memory as they are stored, with their types and shapes."""
    digest = hashlib.sha256()
    for tensor in rows.tensors:
        digest.update(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _weights(vae: VAE) -> str:
    return weights_sha256(vae.network.state_dict())


def _scored(likelihood: Likelihood) -> str:
    if likelihood.kind == "gaussian":
        return f"Gaussian with s = {likelihood.scale:g}, in nats: ½·SSE/s² and its constant"
    return "Bernoulli, in nats: summed binary cross-entropy"


def _versions() -> str:
    found = [f"{name} {version(name)}" for name in _LIBRARIES]
    return ", ".join([f"Python {platform.python_version()}", *found, f"{torch.get_num_threads()} threads"])
