"""Planning and cutting 8 of 64 latents of a dense VAE of 56 million weights, beside Torch-Pruning 1.6.1.

Its part: build a dependency graph, prune the groups of both heads. Asked for: no slower than 3 times.
Ours folds the latents' constants into biases and checks the trace by finite changes, which the other does not; that one
is given the layers that make the latents by name. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.figures import Figure, slower
from benchmarks.timing import in_turn
from vaeprune import analyze, cut, plan
from vaeprune.architectures import DenseVAE, initialise
from vaeprune.data import as_data
from vaeprune.data.tiles import tiles

WIDTHS, LATENTS, IDLE, RUNS = (4096, 4864, 1024), 64, list(range(0, 64, 8)), 5


class _Traced(nn.Module):
    """The model under a forward without chance."""

    def __init__(self, vae: DenseVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, logvar = self.vae.encode(x)
        return self.vae.decode_parameters(mean), mean, logvar


def network() -> DenseVAE:
    vae = DenseVAE((1, 28, 28), WIDTHS, WIDTHS[::-1], LATENTS)
    initialise(vae, "glorot", 0)
    return vae.eval()


def pruned(tp: Any, vae: DenseVAE) -> DenseVAE:
    """The idle latents' rows of both heads and columns of their reader cut out by a dependency graph, in place."""
    graph = tp.DependencyGraph().build_dependency(_Traced(vae), example_inputs=torch.zeros(1, 1, 28, 28))
    for head in (vae.mean_head, vae.logvar_head):
        graph.get_pruning_group(head, tp.prune_linear_out_channels, idxs=IDLE).prune(record_history=False)
    return vae


def main() -> Sequence[Figure]:
    try:
        import torch_pruning as tp
    except ImportError:
        print("left out: Torch-Pruning is not installed; pip install '.[benchmarks]'")
        return []
    vae, data = network(), as_data(tiles(400, 0).unsqueeze(1))
    print(f"{sum(p.numel() for p in vae.parameters()):,} weights")
    analysis = analyze(vae, data, ablate="none")
    keep = sorted(set(range(LATENTS)) - set(IDLE))
    copies = [copy.deepcopy(vae) for _ in range(2 * RUNS + 2)]  # it works in place; copying is not counted
    ours, theirs = "plan and cut latents, 56-million-weight dense VAE", "Torch-Pruning 1.6.1"
    results: dict[str, DenseVAE] = {}

    def mine() -> None:
        results[ours] = cut(vae, plan(vae, analysis, data, remove=IDLE, keep=keep))

    def other() -> None:
        results[theirs] = pruned(tp, copies.pop())

    work = {ours: mine, theirs: other}
    both = {"": in_turn(work, RUNS), ", processor time": in_turn(work, RUNS, time.process_time)}
    assert results[ours].latent_size == results[theirs].latent_size == LATENTS - len(IDLE)
    asked = "at most 3 times as long"
    return [slower(ours + clock, theirs, times[ours], times[theirs], asked) for clock, times in both.items()]
