"""Tracing the latents of large models, each in a process of its own: time and peak memory.

Asked for: a diffusers AutoencoderKL of 50 million weights under 60 s and under 4 GB on two cores; a dense VAE with 512
latents under 5 s. Weights are random: what they are does not matter to the trace. The peak is that of the whole
process: the libraries, the model, and the copy in float64 that is probed. On a busy machine
the processor time of both cores together says more than the clock.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import peak_resident_mb
from vaeprune import adapt
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.posterior import VAE
from vaeprune.surgery.trace import trace

ROWS, LATENTS, CORES = 8, 512, 2
_CASE = "from benchmarks.tracing import measured; measured({name!r}, {side})"


def autoencoder_kl(side: int) -> tuple[VAE, Tensor]:
    """An image autoencoder of diffusers' usual shape, with channels that bring it near 50 million weights."""
    import_torchvision("transforms")  # diffusers imports it, which fails beside a CPU torch without this help
    network: nn.Module = importlib.import_module("diffusers").AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 384, 384),
        layers_per_block=2,
        latent_channels=4,
        sample_size=side,
    )
    rows = 2 * torch.rand(200, 3, side, side) - 1
    return adapt(network.eval(), rows), rows[:ROWS]


def dense(_side: int) -> tuple[VAE, Tensor]:
    vae = DenseVAE((1, 28, 28), (256, 128), (128, 256), LATENTS)
    initialise(vae, "glorot", 0)
    return vae, torch.rand(ROWS, 1, 28, 28)


def measured(name: str, side: int) -> None:
    """Trace one model; prints what it took and the peak of this process."""
    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    builders: dict[str, Callable[[int], tuple[VAE, Tensor]]] = {"autoencoder_kl": autoencoder_kl, "dense": dense}
    vae, example = builders[name](side)
    before, start, worked = peak_resident_mb(), time.perf_counter(), time.process_time()
    traced = trace(vae, (example,))
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "worked": time.process_time() - worked,
                "before_mb": before,
                "peak_mb": peak_resident_mb(),
                "weights": sum(p.numel() for p in vae.network.parameters()),
                "latents": traced.latent_size,
                "readers": [reader.site.key for reader in traced.readers],
                "writers": [writer.site.key for writer in traced.writers],
            }
        )
    )


def report(title: str, name: str, side: int, asked: str) -> None:
    command = [sys.executable, "-c", _CASE.format(name=name, side=side)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{title}: {found['weights'] / 1e6:.1f} million weights, {found['latents']} latents, {CORES} threads")
    seconds, worked = f"{found['seconds']:.1f} s", f"processor time {found['worked']:.1f} s"
    peak, before = (f"{found[name] / 1024:.2f} GB" for name in ("peak_mb", "before_mb"))
    print(f"  measured   {seconds} ({worked}), peak {peak} ({before} before the trace)")
    print(f"  asked for  {asked}")
    print(f"  made by {', '.join(found['writers'])}; read by {', '.join(found['readers'])}")


def main() -> None:
    report("dense VAE", "dense", 28, "under 5 s")
    if importlib.util.find_spec("diffusers") is None:
        print("AutoencoderKL left out: pip install diffusers")
        return
    report("AutoencoderKL, 64x64 rows", "autoencoder_kl", 64, "under 60 s, under 4 GB")
