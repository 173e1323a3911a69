"""Planning and cutting a residual VAE of 10 million weights, in a process of its own: time and peak memory.

Asked for: scope "network" under 120 s and under 4 GB on two cores. A budget of 1 nat is measured beside it, with no
figure asked for. Weights are random and BatchNorm is settled; every eighth inner channel of each block is planted dead,
which the plan must find. The peak is that of the whole process: the libraries, the model, and its copy in float64.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from benchmarks.residual_vae import IDLE, LATENTS, planted, smooth_images
from benchmarks.timing import peak_resident_mb
from vaeprune import adapt, analyze, cut
from vaeprune.data import as_data
from vaeprune.likelihood import Likelihood
from vaeprune.surgery.scopes import planner

ROWS, CORES = 500, 2  # 60% of them calibrate
SECONDS, GIGABYTES = 120, 4
_CASE = "from benchmarks.large_network import measured; measured({budget})"


def measured(budget: float | None) -> None:
    """Plan and cut; prints what it took and the peak of this process."""
    torch.set_num_threads(CORES)
    network, dead = planted()
    data = as_data(smooth_images(ROWS, 1))
    vae = adapt(network, data, likelihood=Likelihood("bernoulli", "logits"))
    before, start, worked = peak_resident_mb(), time.perf_counter(), time.process_time()
    analysis = analyze(vae, data, ablate="none")
    analysed = time.perf_counter() - start
    made = planner(
        vae,
        data,
        analysis,
        hidden=True,
        budget=budget,
        remove=IDLE,
        keep=sorted(set(range(LATENTS)) - set(IDLE)),
    )
    plan = made.exact if budget is None else made.within(budget)
    assert plan is not None
    smaller = cut(vae, plan)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "analysed": analysed,
                "worked": time.process_time() - worked,
                "before_mb": before,
                "peak_mb": peak_resident_mb(),
                "weights": [sum(p.numel() for p in v.network.parameters()) for v in (vae, smaller)],
                "planted": dead,
                "constant": len({(c.weight, c.channel) for c in made.exact.channels}) if made.exact else 0,
                "channels": len({(c.weight, c.channel) for c in plan.channels}),
                "latents": len(plan.removed_latents),
                "calibrate": plan.data.get("calibrate_rows"),
                "notes": made.notes,
            }
        )
    )


def report(title: str, budget: float | None, asked: str) -> None:
    command = [sys.executable, "-c", _CASE.format(budget=budget)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    before, after = found["weights"]
    print(f"{title}: {before / 1e6:.1f} million weights become {after / 1e6:.1f}, {CORES} threads")
    print(
        f"  cut        {found['latents']} latents of {LATENTS}, {found['channels']} channels; {found['planted']} were "
        f"planted dead, {found['constant']} found constant"
    )
    seconds, worked = f"{found['seconds']:.1f} s", f"processor time {found['worked']:.1f} s"
    peak, memory = (f"{found[name] / 1024:.2f} GB" for name in ("peak_mb", "before_mb"))
    print(f"  measured   {seconds} ({worked}), of it {found['analysed']:.1f} s analysis; peak {peak} ({memory} before)")
    print(f"  asked for  {asked}")
    for note in found["notes"]:
        print(f"  note       {note}")


def main() -> None:
    report('scope "network"', None, f"under {SECONDS} s, under {GIGABYTES} GB")
    report("budget of 1 nat", 1.0, "nothing, a figure only")
