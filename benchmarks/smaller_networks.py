"""How many times fewer weights `shrink` leaves of five trained networks, and at what loss; others at the same size.

Times fewer counts all float tensors of the state dict. Losses are nats of ELBO per row on all 10,000 held-out rows with
paired noise, with their 95% interval, against the original; after recovery against the original trained as long. Asked
for: the figures in brackets. At our number of weights, on the same rows: Torch-Pruning 1.6.1 (from our model without
its idle latents, by the better of two importances; it may keep 1% more), and, with VAEPRUNE_BENCH_SCRATCH=1, a network
of the widths that one nat leaves, trained from scratch for 40 epochs.

What was measured is kept in out/benchmarks/smaller.json and measured again where the library has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks.kept_results import Kept
from benchmarks.smaller_cells import COLUMNS, LIBRARY, PRUNED, SCRATCH, Bench, Column
from benchmarks.structured_pruning import version
from benchmarks.trained_networks import NETWORKS, TRAINED_HERE, Network
from vaeprune.errors import DataError

WITH_SCRATCH = "VAEPRUNE_BENCH_SCRATCH"
RESULTS = TRAINED_HERE / "smaller.json"
ASKED: dict[str, dict[str, float]] = {
    "mnist-torch": {"exact": 1.3, "0.1 nat": 1.6, "1 nat": 2.1, "1 nat, two epochs": 2.2, "1 nat factorized": 4.4},
    "mnist-glorot": {"exact": 1.15, "0.1 nat": 1.25, "1 nat": 1.45, "1 nat, two epochs": 1.55, "1 nat factorized": 2.8},
    "tiles-dense": {"1 nat": 1.5, "1 nat, two epochs": 1.8, "1 nat factorized": 2.5},
    "mnist-conv": {"exact": 1.0, "0.1 nat": 1.2, "1 nat": 1.5, "1 nat, two epochs": 1.8},
    "tiles-conv": {"exact": 1.0, "0.1 nat": 1.3, "1 nat": 1.75, "1 nat, two epochs": 1.8},
}


def main(*keys: str) -> None:
    """All networks, or those named."""
    kept = Kept(RESULTS)
    chosen = [network for network in NETWORKS if not keys or network.key in keys]
    if version() is None:
        print("Torch-Pruning left out: pip install torch-pruning")
    if not os.environ.get(WITH_SCRATCH):
        print(f"training from scratch left out: it takes an hour; set {WITH_SCRATCH}=1")
    for network in chosen:
        try:
            bench = Bench(network)
        except DataError as error:
            print(f"{network.title} left out: {error}")
            continue
        _measure(bench, kept)
    table()


def table() -> None:
    """Print what is kept, without measuring anything."""
    kept = Kept(RESULTS)
    done = [network for network in NETWORKS if any(kept.get((network.key, column.title)) for column in COLUMNS)]
    if done:
        _print_ours(done, kept)
        _print_others(done, kept)


def _measure(bench: Bench, kept: Kept) -> None:
    key = bench.network.key
    for column in COLUMNS:
        ours = _once(kept, (key, column.title), LIBRARY, lambda column=column: bench.ours(column))
        if PRUNED in column.opponents and version() is not None:
            name, at = f"{column.title}, {PRUNED}", f"{version()}, {ours['weights']}, {ours['kept_latents']}"
            _once(kept, (key, name), at, lambda ours=ours, column=column: bench.torch_pruning(column, ours))
        if SCRATCH in column.opponents and os.environ.get(WITH_SCRATCH):
            name, at = f"{column.title}, {SCRATCH}", f"{ours['architecture']}"
            _once(kept, (key, name), at, lambda ours=ours, column=column: bench.from_scratch(column, ours))


def _once(kept: Kept, where: tuple[str, str], mark: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept of this cell if it was measured under the same mark, else measured now."""
    found = kept.get(where, mark)
    if found is None:
        print(f"measuring {where[0]}: {where[1]} ...", end=" ", flush=True)
        found = work()
        kept.put(where, mark, found)
        print(f"{_cell(found)} in {found['seconds']:.0f} s", flush=True)
    return found


def _cell(entry: dict[str, Any] | None, asked: float | None = None) -> str:
    if entry is None:
        return "–"
    wanted = "" if asked is None else f" [{asked:g}]"
    refused = f", refused: {entry['refused']}" if entry.get("refused") else ""
    low, high = entry["ci95"]
    return f"{entry['times']:.2f}{wanted}, {entry['loss']:+.3f} ({low:+.3f} to {high:+.3f}){refused}"


def _print_ours(networks: list[Network], kept: Kept) -> None:
    print("\nTimes fewer weights [asked for], nats per row lost (95%)\n")
    titles = [column.title for column in COLUMNS]
    _print_row("network", *titles)
    _print_row(*["---"] * (len(titles) + 1))
    short = []
    for network in networks:
        asked = ASKED[network.key]
        entries = {title: kept.get((network.key, title)) for title in titles}
        _print_row(network.title, *(_cell(entry, asked.get(title)) for title, entry in entries.items()))
        for title, wanted in asked.items():
            entry = entries.get(title)
            # asked for with two digits, and measured with as many
            if entry is not None and (round(entry["times"], 2) < wanted or entry["refused"]):
                why = ", refused" if entry["refused"] else ""
                short.append(f"{network.title}, {title}: {entry['times']:.2f} of {wanted:g}{why}")
    print("\nless than asked for: " + ("; ".join(short) or "none"))


def _print_others(networks: list[Network], kept: Kept) -> None:
    columns = [column for column in COLUMNS if column.opponents]
    print("\nAt the same number of weights, nats per row lost (95%)\n")
    _print_row("network", "column", "ours", f"Torch-Pruning {version() or ''}".strip(), "from scratch, 40 epochs")
    _print_row(*["---"] * 5)
    verdicts: list[str] = []
    for network in networks:
        for column in columns:
            ours, *others = (
                kept.get((network.key, title))
                for title in (column.title, *(f"{column.title}, {other}" for other in (PRUNED, SCRATCH)))
            )
            _print_row(network.title, column.title, *(_cell(entry) for entry in (ours, *others)))
            verdicts += _wins(network, column, ours, others)
    print()
    print("\n".join(verdicts) or "No opponent that was measured loses less than ours does.")


def _wins(
    network: Network, column: Column, ours: dict[str, Any] | None, others: list[dict[str, Any] | None]
) -> list[str]:
    """In words, where somebody else loses less."""
    found = []
    for name, other in zip(("Torch-Pruning", "the network trained from scratch"), others, strict=True):
        if ours and other and other["loss"] < ours["loss"]:
            clear = other["ci95"][1] < ours["ci95"][0]
            found.append(
                f"{network.title}, {column.title}: {name} is better than ours by {ours['loss'] - other['loss']:.3f} "
                f"nats{'' if clear else ', within the intervals'}."
            )
    return found


def _print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")
