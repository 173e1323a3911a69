"""Run all benchmark cases, or those named."""

from __future__ import annotations

import argparse
import importlib

CASES = (
    "start_up",
    "moments",
    "mnist_dense",
    "interval_coverage",
    "planted_truth",
    "effective_weight",
    "tracing",
    "large_network",
    "dependency_tracer",
    "smaller_networks",
    "growing",
    "latent_counts",
    "latent_auto",
    "trust",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"any of {', '.join(CASES)}; all if left out")
    named = parser.parse_args().case or CASES
    unknown = sorted(set(named) - set(CASES))
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(CASES)}")
    for name in named:
        print(f"\n== {name}")
        importlib.import_module(f"benchmarks.{name}").main()


main()
