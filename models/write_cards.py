"""Put what each ready-made model's own shrink gives into its card, with the command that repeats it.

    python models/write_cards.py --data-dir FOLDER_WITH_MNIST

Run it after a model was trained anew. `tests/models/test_cards.py` measures the same again and holds it against the
cards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vaeprune import load, shrink
from vaeprune.data import open_data
from vaeprune.shrinking import Shrunk
from vaeprune.storage import weights_sha256

ROWS = 3_000
HEADING = "## Its own shrink"
NAMES = ("tiles-dense", "tiles-conv", "mnist-dense", "mnist-conv")


def measured(folder: Path, data_dir: Path | None) -> Shrunk:
    """The paper's cut of this model, on the first rows of each split of the data it was trained on."""
    vae = load(folder)
    return shrink(vae, open_data(vae.provenance["training"]["data"], folder=data_dir, rows=ROWS), scope="latents")


def figures(folder: Path, shrunk: Shrunk) -> dict[str, str]:
    """What a card says, by name."""
    vae, analysis, evidence = load(folder), shrunk.analysis, shrunk.evidence
    assert analysis is not None  # noqa: S101  of a shrink that made its own plan
    assert evidence is not None  # noqa: S101  of a shrink that cut something
    assert evidence.exact is not None  # noqa: S101
    assert evidence.prior_samples is not None  # noqa: S101
    last = vae.provenance["history"].epochs[-1]
    low, high = evidence.sampling.ci95
    return {
        "weights, SHA-256": weights_sha256(vae.state_dict()),
        "final loss, reconstruction, KL (training rows, nats)": (
            f"{last.loss:.4f}, {last.reconstruction:.4f}, {last.kl:.4f}"
        ),
        "inactive latents": ", ".join(map(str, analysis.indices("inactive"))),
        "active latents": ", ".join(map(str, analysis.indices("active"))),
        "mixed latents": ", ".join(map(str, analysis.indices("mixed"))) or "none",
        "KL of the calibrate rows, nats": f"{sum(latent.kl for latent in analysis.latents):.4f}",
        "latents, before and after": "{} and {}".format(*shrunk.latent_size),
        "weights, before and after": "{:,} and {:,}".format(*shrunk.parameters),
        "rows that judged": f"{evidence.n_samples:,}",
        "exact, relative, float32": f"{evidence.exact.max_relative_error:.2g}",
        "exact, relative, float64": f"{evidence.exact.float64_max_relative_error:.2g}",
        "mean path, largest difference": f"{evidence.mean_path.max_abs_error:.3g}",
        "prior samples, RMS difference": f"{evidence.prior_samples.rms_error:.3g}",
        "ELBO loss and its 95% interval, nats per row": (
            f"{evidence.sampling.elbo_difference:.4f}, {low:.4f} to {high:.4f}"
        ),
        "all checks": "passed" if evidence.passed else "FAILED",
    }


def section(folder: Path, found: dict[str, str]) -> str:
    """The card's part about the shrink."""
    data = load(folder).provenance["training"]["data"]
    table = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    return f"""{HEADING}

Latents alone (`--scope latents`, the paper's cut), on the first {ROWS:,} rows of each split:

    vaeprune shrink models/{folder.name} --data {data} --rows {ROWS} --scope latents --out {folder.name}-small

| | |
|---|---|
{table}

`models/write_cards.py` wrote this section; `tests/models/test_cards.py` measures it again.
"""


def main() -> None:
    """Write the cards of all models, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", nargs="*", default=NAMES, help=f"any of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--data-dir", type=Path, help="the folder that holds torchvision's MNIST")
    arguments = parser.parse_args()
    for name in arguments.name:
        folder = Path(__file__).parent / name
        card = folder / "README.md"
        text = section(folder, figures(folder, measured(folder, arguments.data_dir)))
        trained = card.read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
        card.write_text(f"{trained}\n\n{text}", encoding="utf-8")
        print(f"{card}: written")


if __name__ == "__main__":
    main()
