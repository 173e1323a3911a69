"""The paper's dense MNIST network (Glorot start, Bernoulli, 40 epochs): idle latents, and what cutting them changes.

Asked for: 8 ± 2 of 16 inactive, each with variance < 1e-3 and sigma² > 0.95; mean path ≤ 0.01; exact ≤ 1e-5 relative in
float32 and ≤ 1e-10 in float64. `models/mnist-dense` was trained by exactly this recipe; its card has the command.
"""

from __future__ import annotations

from vaeprune import load, shrink
from vaeprune.data import open_data
from vaeprune.errors import DataError


def main() -> None:
    try:
        data = open_data("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return
    shrunk = shrink(load("models/mnist-dense"), data, ablate="all")
    assert shrunk.analysis
    assert shrunk.evidence
    assert shrunk.evidence.exact
    inactive = [latent for latent in shrunk.analysis.latents if latent.verdict == "inactive"]
    evidence, exact = shrunk.evidence, shrunk.evidence.exact
    print(f"inactive                    {len(inactive)} of 16      asked for: 8 ± 2")
    print(f"largest variance            {max(la.variance for la in inactive):.3g}   asked for: < 1e-3")
    print(f"smallest sigma²             {min(la.posterior_variance for la in inactive):.4f}     asked for: > 0.95")
    print(f"mean path, max              {evidence.mean_path.max_abs_error:.3g}    asked for: <= 0.01")
    print(f"exact, relative, float32    {exact.max_relative_error:.3g}   asked for: <= 1e-5")
    print(f"exact, relative, float64    {exact.float64_max_relative_error:.3g}   asked for: <= 1e-10")
    low, high = evidence.sampling.ci95
    print(f"ELBO loss, nats             {evidence.sampling.elbo_difference:.4f} ({low:.4f} to {high:.4f})")
