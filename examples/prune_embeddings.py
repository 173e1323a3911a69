"""Old embeddings of the original model lose the columns that the plan removed: numpy alone.

    python prune_embeddings.py small/plan.json old.npy new.npy

new.npy holds what the shrunk encoder gives for the same rows, so an index built on it needs no encoding again: up to
rounding with the scope `latents`, up to what hidden channels that were observed constant do on other rows (a few
thousandths) with the scope `network`. With a budget the encoder is another one: encode again. The columns that go are
reported with what they held, which for idle latents is next to nothing.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(plan: str, old: str, new: str) -> None:
    """Keep the columns that the plan kept."""
    known = json.loads(Path(plan).read_text(encoding="utf-8"))
    kept, size = known["kept_latents"], known["latent_size"]["before"]
    embeddings = np.load(old, mmap_mode="r")
    if embeddings.ndim < 2 or embeddings.shape[1] != size:
        sys.exit(f"{old}: has shape {embeddings.shape}, the plan is for (rows, {size})")
    np.save(new, embeddings[:, kept])
    for latent in sorted(set(range(size)) - set(kept)):
        print(f"latent {latent} goes: variance {embeddings[:, latent].var():.2g}")
    print(f"{old}: {size} columns, {new}: {len(kept)}, latents {', '.join(map(str, kept))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
