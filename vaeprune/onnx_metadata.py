"""What an ONNX file says of itself: its metadata properties, which a runtime reads without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vaeprune.errors import ModelError
from vaeprune.likelihood import Likelihood
from vaeprune.posterior import VAE
from vaeprune.version import __version__


def metadata_of(vae: VAE) -> dict[str, str]:
    """The metadata properties of the files of a VAE; what is not known has no key. Each file adds `vaeprune.part`.

    `vaeprune.kept_latents` are a JSON list of the columns' numbers in the original, which had
    `vaeprune.original_latent_size` latents: the model before the first cut. `vaeprune.plan_sha256` is the last cut's,
    empty where there was none.
    """
    shrunk = getattr(vae, "provenance", {}).get("shrunk")
    found = {
        "vaeprune.version": __version__,
        "vaeprune.latent_size": str(vae.latent_size),
        "vaeprune.likelihood": json.dumps(vae.likelihood.to_json()),
    }
    kept = _kept_in_the_original(shrunk, vae.latent_size)
    if kept is not None:
        latents, size = kept
        found["vaeprune.kept_latents"] = json.dumps(latents)
        found["vaeprune.original_latent_size"] = str(size)
    digest = shrunk.get("plan_sha256") if isinstance(shrunk, Mapping) else ""
    if isinstance(digest, str):
        found["vaeprune.plan_sha256"] = digest
    return found


def likelihood_in(metadata: Mapping[str, str]) -> Likelihood | None:
    """How a file says that rows are scored, by the mean that its decoder gives; None where it does not say."""
    try:
        said = Likelihood.from_json(json.loads(metadata["vaeprune.likelihood"]))
    except (KeyError, ValueError, ModelError):
        return None
    return replace(said, output="mean")


def _kept_in_the_original(shrunk: Any, latent_size: int) -> tuple[list[int], int] | None:
    """The latents' numbers before the first of all cuts, and how many there were; None where a config does not tell.

    A model that was grown after a cut has latents that the original never had.
    """
    if shrunk is None:
        return list(range(latent_size)), latent_size
    if not isinstance(shrunk, Mapping):
        return None
    kept, size = shrunk.get("kept_latents"), shrunk.get("latent_size")
    if type(size) is not int or not isinstance(kept, (list, tuple)) or len(kept) != latent_size:
        return None
    if not all(type(i) is int and 0 <= i < size for i in kept):
        return None
    before = _kept_in_the_original(shrunk.get("before"), size)
    return None if before is None else ([before[0][i] for i in kept], before[1])
