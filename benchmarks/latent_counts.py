"""How far the count of active latents depends on the latent size and the seed: the dense MNIST network, nine times.

Asked for: within ±1.5 over sizes 16, 32 and 64 and three seeds each. Published for MNIST with another criterion: 12.8,
12.6, 12.4 at those sizes (the README of ARD-VAE, five runs each). Trainings of 40 epochs are kept in out/benchmarks; an
interrupted run goes on where it stopped. `python -m benchmarks.latent_counts 64:1 16:2` makes those networks alone.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.kept_results import Kept
from benchmarks.oversized_networks import SEEDS, dense
from benchmarks.trained_networks import TRAINED_HERE
from vaeprune import analyze
from vaeprune.data import DataSets, open_data
from vaeprune.errors import DataError
from vaeprune.latent_counts import Count, Spread
from vaeprune.model_folder import read_model_folder
from vaeprune.oversized import held_out_loss
from vaeprune.search_path import patience, settled
from vaeprune.storage import weights_sha256

SIZES = (16, 32, 64)
_ASKED = 1.5


def counted(data: DataSets, latent: int, seed: int) -> dict[str, Any]:
    """Verdicts of one network, trained first where it is not there yet."""
    network = dense(data.name, latent, seed)
    vae = network.model()
    kept = Kept(TRAINED_HERE / "latent_counts.json")
    where, mark = (data.name, f"{latent}:{seed}"), weights_sha256(vae.state_dict())
    found = kept.get(where, mark)
    if found is None:
        count = Count.of(network.key, analyze(vae, data))
        history = read_model_folder(network.folder).history
        recipe = network.recipe
        since = settled(history, patience(recipe.epochs, 60_000 // recipe.batch_size, recipe.learning_rate))
        found = vars(count) | {"settled": since, "loss": held_out_loss(vae, data.select)}
        kept.put(where, mark, found)
    return found


def main() -> None:
    try:
        data = open_data("mnist")
    except DataError as error:
        print(f"left out: {error}")
        return
    print(f"{'latents':>7} {'seed':>4} {'active':>6} {'inactive':>8} {'mixed':>5} {'KL':>6} {'-ELBO':>7} settled")
    counts: dict[int, list[int]] = {}
    for latent in SIZES:
        for seed in SEEDS:
            found = counted(data, latent, seed)
            counts.setdefault(latent, []).append(found["active"])
            print(
                f"{latent:7} {seed:4} {found['active']:6} {found['inactive']:8} {found['mixed']:5} "
                f"{found['kl']:6.2f} {found['loss']:7.2f} epoch {found['settled']}",
                flush=True,
            )
    for latent, active in counts.items():
        print(f"active at {latent} latents: {Spread.of(active)}")
    spread = Spread.of([n for active in counts.values() for n in active])
    half = (spread.highest - spread.lowest) / 2
    print(f"active over all: {spread}, within ±{half:g}    asked for: within ±{_ASKED}")


if __name__ == "__main__":
    if sys.argv[1:]:
        for word in sys.argv[1:]:
            size, of_seed = map(int, word.split(":"))
            dense("mnist", size, of_seed).model()
    else:
        main()
