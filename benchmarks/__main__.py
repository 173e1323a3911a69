"""Run all benchmark cases, or those named; what is timed beside others is kept in build/benchmarks.json."""

from __future__ import annotations

import argparse
import importlib

from benchmarks.figures import keep, table

CASES = (
    "start_up",
    "whole_analysis",
    "moments",
    "training",
    "large_cut",
    "two_ranks",
    "many_rows",
    "growth",
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
    "service",
    "precisions",
    "report",
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
        found = importlib.import_module(f"benchmarks.{name}").main()
        for figure in found or ():
            print(figure)
        if found:
            keep(name, found)
    print(f"\n{table()}")


main()
