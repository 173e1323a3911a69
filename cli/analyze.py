"""`vaeprune analyze`: a verdict on every latent, and advice."""

from __future__ import annotations

import dataclasses

from . import options as o
from .output import print_analysis, print_json, progress
from .suggest import command_for


def analyze(
    model: o.Model,
    data: o.Data,
    held_out: o.HeldOut = None,
    data_dir: o.DataDir = None,
    rows: o.Rows = None,
    seed: o.SplitSeed = 0,
    ablate: o.AblateOption = o.Ablate.candidates,
    max_variance: o.MaxVariance = 0.01,
    min_posterior_variance: o.MinPosteriorVariance = 0.8,
    max_ablation_cost: o.MaxAblationCost = 0.05,
    max_noise: o.MaxNoise = 0.01,
    device: o.OnDevice = o.Device.auto,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Find the idle latents and say what to do."""
    from vaeprune.analysis import Thresholds
    from vaeprune.analysis import analyze as analyze_model

    thresholds = Thresholds(max_variance, min_posterior_variance, max_ablation_cost, max_noise)
    vae = o.open_model(model, device)
    sets = o.open_rows(data, held_out, data_dir, seed, rows)
    with progress(quiet or json) as report:
        analysis = analyze_model(vae, sets, thresholds=thresholds, ablate=ablate.value, progress=report)
    advice = dataclasses.replace(analysis.advice, command=command_for(analysis.advice, vae, model, data, data_dir))
    analysis = dataclasses.replace(analysis, advice=advice)
    if json:
        print_json({"model": str(model)} | analysis.to_json())
    else:
        print_analysis(analysis, f"{model} on {sets.name}, {analysis.n_samples:,} rows")
