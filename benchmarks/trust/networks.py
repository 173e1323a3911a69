"""Random networks through plan, cut, verify, save, load and export, each held against the original in float64.

The oracle knows nothing of plans but their constants: it runs the original at full size, its weights as they are, with
the removed latents, and what reads a removed hidden channel, set to them by plain hooks. Nine digits must agree then,
on rows and at prior samples. How far those constants are from the truth is the gates' question, not this one's.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trust.campaigns import Ledger, joined, show
from benchmarks.trust.random_networks import RandomVAE, build, draw
from vaeprune.adapters import AdaptedVAE, adapt
from vaeprune.data import as_data
from vaeprune.errors import VaepruneError
from vaeprune.likelihood import Likelihood
from vaeprune.model_folder import ModelFolder, load, write_model_folder
from vaeprune.shrinking import Shrunk, shrink
from vaeprune.surgery.plan import Plan

_PIECE = 25  # one of them goes on to ONNX files
_ROWS = 240
_NUMBER = re.compile(r"\d[\d.e+-]*")
_EXACT, _SINGLE = 1e-9, 1e-4  # of float64, and of float32


def campaign(ledger: Ledger, count: int) -> None:
    """Run them and print the result."""
    torch.set_num_threads(1)
    found = ledger.pieces(count, _PIECE, lambda which: _piece(ledger.seed, which))
    outcomes = joined(found, "outcomes")
    kinds = {kind: sum(o["outcome"] == kind for o in outcomes) for kind in ("agrees", "refused", "DISAGREES")}
    for outcome in outcomes:
        if outcome["outcome"] == "DISAGREES":
            print(f"    {outcome}")
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome["outcome"] == "refused":
            reasons[outcome["reason"]] = reasons.get(outcome["reason"], 0) + 1
    for reason, times in sorted(reasons.items(), key=lambda pair: -pair[1])[:10]:
        print(f"    refused {times:4} times: {reason}")
    show("random networks", "5,000", f"{len(outcomes):,}")
    show("silent disagreements with the oracle", "0", str(kinds["DISAGREES"]))
    cut = [o for o in outcomes if o["outcome"] == "agrees"]
    show("agree", "", f"{len(cut):,}")
    show("of those that are exported, agree as ONNX files", "", f"{_exported(cut)} of {_exported(outcomes)}")
    show("refused with a reason", "", f"{kinds['refused']:,}")
    show("hidden channels cut", "", f"{sum(o['channels'] for o in cut):,} in {sum(o['channels'] > 0 for o in cut):,}")
    show("largest difference in float64", "1e-9", f"{max(o['worst'] for o in cut if not o['onnx']):.1g}")


def _exported(outcomes: list[dict[str, Any]]) -> int:
    return sum(outcome["onnx"] for outcome in outcomes)


def _piece(seed: int, which: range) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as room:
        return {"outcomes": [outcome(seed * 1_000_000 + number, Path(room), number % _PIECE == 0) for number in which]}


def outcome(seed: int, room: Path, onnx: bool) -> dict[str, Any]:
    """What became of one network; `onnx`: in float32, and as files."""
    drawn = draw(seed)
    network, idle = build(drawn)
    entry: dict[str, Any] = {"network": repr(drawn), "onnx": onnx}
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(_ROWS, *network.input_shape, generator=generator, dtype=torch.float64)
    small_type = torch.float32 if onnx else torch.float64
    used = build(drawn)[0].to(small_type)
    sets = as_data(x.to(small_type))
    vae = adapt(used, sets, likelihood=Likelihood("gaussian", "mean"))
    # the verdicts are another campaign's; here what is idle goes, or one latent where nothing is
    remove = idle or [seed % drawn.latents]
    scope = "latents" if seed % 2 else "network"
    target = room / f"{seed}"
    try:
        with torch.random.fork_rng(devices=[]):
            found = shrink(
                vae, sets, target if onnx else None, scope=scope, remove=remove,
                keep=[i for i in range(drawn.latents) if i not in remove], ablate="none",
            )  # fmt: skip
        if not onnx:
            write_model_folder(ModelFolder(_kept(found, vae)), target)
        loaded = load(target, factory=lambda: build(drawn)[0].to(small_type))
    except VaepruneError as error:
        return entry | {
            "outcome": "refused",
            "reason": f"{type(error).__name__}: {_NUMBER.sub('#', error.message)[:90]}",
        }
    worst = _worst(network, found, loaded, x)
    limit = _SINGLE if onnx else _EXACT
    same = _same(found, loaded, x.to(small_type)) and not (onnx and _onnx_worst(target, loaded, x) > _SINGLE)
    good = worst <= limit and same
    channels = len(found.plan.channels) if found.plan else 0
    return entry | {
        "outcome": "agrees" if good else "DISAGREES", "worst": worst, "channels": channels,
        "saved the same": same, "removed": remove, "scope": scope,
    }  # fmt: skip


def _kept(found: Shrunk, vae: AdaptedVAE) -> AdaptedVAE:
    """The smaller model, with what its folder must say of it."""
    assert isinstance(found.model, AdaptedVAE)
    assert found.plan is not None
    found.model.provenance = vae.provenance | {
        "attributes": dict(found.plan.attributes),
        "made_plain": list(found.plan.made_plain),
    }
    return found.model


def _worst(network: RandomVAE, found: Shrunk, small: Any, x: Tensor) -> float:
    """The largest difference from the oracle, as a share of the largest value of the same output."""
    plan = found.plan
    assert plan is not None
    dtype = next(small.network.parameters()).dtype
    kept, z = plan.kept_latents, torch.randn(60, network.latent_size, dtype=torch.float64)
    with torch.no_grad(), _holding(network, plan):
        before, after = network.encode(x), small.encode(x.to(dtype))
        on_path = before.mean.clone()
        for removal in plan.removals:
            on_path[:, removal.latent] = z[:, removal.latent] = removal.constant
        pairs = [
            (before.mean[:, kept], after.mean),
            (before.logvar[:, kept], after.logvar),
            (network.decode(on_path), small.decode(on_path[:, kept].to(dtype))),
            (network.decode(z), small.decode(z[:, kept].to(dtype))),
        ]
    worst = 0.0
    for expected, got in pairs:
        if expected.shape != got.shape or not torch.isfinite(got).all():
            return float("inf")
        worst = max(worst, ((expected - got.double()).abs().max() / expected.abs().max().clamp_min(1e-30)).item())
    return worst


@contextlib.contextmanager
def _holding(network: nn.Module, plan: Plan) -> Iterator[None]:
    """What reads a removed hidden channel reads the plan's constant instead."""
    hooks = []
    for (key, _), values in plan.held.items():
        removed = ~values.isnan()

        def hold(_: nn.Module, inputs: tuple[Tensor, ...], removed: Tensor = removed, values: Tensor = values) -> Any:
            read = inputs[0].clone()
            read[:, removed] = values[removed].view(-1, *[1] * (read.dim() - 2))
            return read

        hooks.append(network.get_submodule(key.rpartition(".")[0]).register_forward_pre_hook(hold))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _same(found: Shrunk, loaded: Any, x: Tensor) -> bool:
    """Whether the loaded model computes, bit for bit, what the one that was saved does."""
    assert found.model is not None
    with torch.no_grad():
        one, other = found.model.encode(x), loaded.encode(x)
        decoded = torch.equal(found.model.decode(one.mean), loaded.decode(one.mean))
    return decoded and torch.equal(one.mean, other.mean) and torch.equal(one.logvar, other.logvar)


def _onnx_worst(folder: Path, loaded: Any, x: Tensor) -> float:
    """Largest difference of the ONNX files from the loaded model, run here by onnxruntime itself."""
    import onnxruntime

    with torch.no_grad():
        posterior = loaded.encode(x.float())
        expected = [*posterior, loaded.decode(posterior.mean)]
    sessions = [onnxruntime.InferenceSession(folder / f"{part}.onnx") for part in ("encoder", "decoder")]
    found = [*sessions[0].run(None, {"x": x.float().numpy()}), *sessions[1].run(None, {"z": posterior.mean.numpy()})]
    return max(
        float(np.abs(e.numpy() - f).max() / np.abs(e.numpy()).max()) for e, f in zip(expected, found, strict=True)
    )
