"""Verdicts on a thousand synthetic networks in which it is known what every latent does.

Asked for, at 10,000 samples: no latent planted with a variance of 0.02 or more called inactive, and none planted idle
(variance up to 0.005, decoder deaf) called active; with few samples a verdict turns to mixed, not to wrong.
Results are kept in out/benchmarks/planted_truth.json, so that an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from pathlib import Path

from benchmarks import planted_networks
from benchmarks.kept_results import Kept
from benchmarks.planted_networks import KINDS, MARGINALS, planted
from vaeprune.analysis import ablation, analyze, latents, moments, trials, verdict
from vaeprune.data.sets import part
from vaeprune.data.sources import MemorySource

KEPT = Path("out/benchmarks/planted_truth.json")
SAMPLES = {10_000: 1000, 200: 200, 500: 200, 2_000: 200, 60_000: 40}  # networks for each number of samples
SIZES = (4,) * 5 + (8,) * 5 + (16,) * 4 + (32,) * 3 + (64, 128, 256)
AT_ONCE = 20
MOST_BESIDE = 1_000  # as many other rows, half of which try the decoder
VERDICTS = ("active", "mixed", "inactive")
WRONG = {("live", "inactive"), ("decoder-dead", "inactive"), ("decoder-dead", "active"), ("idle", "active")}
WRONG |= {("encoder-dead", "inactive"), ("encoder-dead", "active")}


def main() -> None:
    kept = Kept(KEPT)
    for samples, networks in SAMPLES.items():
        found: Counter[str] = Counter()
        for first in range(0, networks, AT_ONCE):
            where = (str(samples), f"networks from {first}")
            cell = kept.get(where, _mark())
            if cell is None:
                cell = _verdicts(samples, first)
                kept.put(where, _mark(), cell)
            found.update(cell)
        _show(samples, networks, found)


def _verdicts(samples: int, first: int) -> dict[str, int]:
    """Counts by kind, marginal and verdict, over some networks."""
    found: Counter[str] = Counter()
    start = time.perf_counter()
    for seed in range(first, first + AT_ONCE):
        beside = min(samples, MOST_BESIDE)
        vae, x, truths = planted(SIZES[seed % len(SIZES)], samples + beside, seed)
        parts = (
            MemorySource(name, rows)
            for name, rows in zip(("samples", "others"), x.split([samples, beside]), strict=True)
        )
        analysis = analyze(vae, part("planted", *parts, seed, None))
        for truth, latent in zip(truths, analysis.latents, strict=True):
            found[f"{truth.kind}/{truth.marginal}/{latent.verdict}"] += 1
            if (truth.kind, latent.verdict) in WRONG:
                print(f"  wrong: network {seed}, latent {latent.index}: {truth} called {latent.verdict}", flush=True)
    print(f"  {samples} samples, networks {first} to {seed}: {time.perf_counter() - start:.1f} s", flush=True)
    return dict(found)


def _show(samples: int, networks: int, found: Counter[str]) -> None:
    print(f"{samples:,} samples, {networks} networks of sizes 4 to 256")
    wrong = 0
    for kind in KINDS:
        counts = {v: sum(found[f"{kind}/{m}/{v}"] for m in MARGINALS) for v in VERDICTS}
        wrong_here = sum(n for v, n in counts.items() if (kind, v) in WRONG)
        wrong += wrong_here
        skewed = {v: sum(found[f"{kind}/{m}/{v}"] for m in MARGINALS[2:]) for v in VERDICTS}
        told = ", ".join(f"{n} {v}" for v, n in counts.items())
        aside = ", ".join(f"{n} {v}" for v, n in skewed.items())
        print(f"  planted {kind:13} {told}; wrong: {wrong_here}, asked for: 0   (lognormal and rare alone: {aside})")
    print(f"  wrong in all: {wrong}")


def _mark() -> str:
    """Of the code that gave the results."""
    rooms = (moments, latents, ablation, verdict, trials, planted_networks)
    files = [Path(__file__), *(Path(str(room.__file__)) for room in rooms)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
