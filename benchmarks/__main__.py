"""Run the benchmark cases named, or all that end within a day; figures are kept in out/benchmarks/figures.json."""

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
)
LONG = ("trust",)  # campaigns of days at full size: run when named


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "case", nargs="*", help=f"any of {', '.join(CASES + LONG)}; all but {', '.join(LONG)} if left out"
    )
    named = parser.parse_args().case or CASES
    unknown = sorted(set(named) - {*CASES, *LONG})
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(CASES + LONG)}")
    for name in named:
        print(f"\n== {name}")
        found = importlib.import_module(f"benchmarks.{name}").main()
        for figure in found or ():
            print(figure)
        if found:
            keep(name, found)
    print(f"\n{table()}")


main()
