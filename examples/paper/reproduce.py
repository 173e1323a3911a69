"""Every experiment of Asperti's *Sparsity in Variational Autoencoders*, by this package's own commands.

    python examples/paper/reproduce.py --quick --out out/paper-quick     # a few minutes: everything, of little worth
    python examples/paper/reproduce.py --full --out out/paper            # a night on two cores

Trainings are model folders under OUT/runs, as `vaeprune train` writes them: one that is there is used, one that was
interrupted goes on. OUT/results.json has all numbers, OUT/tables.md the tables, OUT/figures the pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import document
import experiments
import pictures
import torch
from recipes import FULL, NETWORKS, QUICK, Scale, recipe
from runs import Run, Runs, say

import vaeprune
from vaeprune.errors import UsageError, VaepruneError
from vaeprune.storage import new_file, write_json

RESULTS, TABLES, FIGURES = "results.json", "tables.md", "figures"
_GENERATED = {"mnist-dense": "figure-3", "mnist-conv": "figure-6", "tiles-dense": "figure-8", "tiles-conv": "figure-10"}
_RECONSTRUCTED = {"tiles-dense": "figure-7", "tiles-conv": "figure-9"}


def reproduce(runs: Runs, scale: Scale, only: Sequence[str] = NETWORKS) -> dict[str, Any]:
    """Train what is missing, measure, draw, and write OUT/results.json and OUT/tables.md; returns the results.

    `only`: which of the four networks, and what belongs to them. Raises VaepruneError.
    """
    results: dict[str, Any] = {
        "scale": vars(scale),
        "note": scale.says(),
        "versions": {"vaeprune": vaeprune.__version__, "torch": str(torch.__version__)},
        "networks": experiments.networks(runs, scale, only),
        "figure_5": experiments.figure_5(),
        "ablations": experiments.ablations(runs, scale, only),
        "growing": experiments.growing(runs, scale, only),
        "starts": experiments.starts(runs, scale, only),
    }
    results["figures"] = _figures(runs, scale, only, results)
    results["missing"] = sorted(set(runs.missing))
    results = document.rounded(results)
    for name, write in ((RESULTS, write_json), (TABLES, _write_tables)):
        with new_file(runs.out / name, force=True) as fresh:
            write(fresh, results)
    return results


def _write_tables(path: Path, results: dict[str, Any]) -> None:
    path.write_text(document.everything(results), encoding="utf-8")


def _figures(runs: Runs, scale: Scale, only: Sequence[str], results: dict[str, Any]) -> dict[str, Any]:
    folder = runs.out / FIGURES
    made: dict[str, Any] = {}
    for network in only:
        run = _first_seed(runs, scale, network)
        if run is None:
            continue
        made[_GENERATED[network]] = pictures.generated(runs, run, scale, folder / f"{_GENERATED[network]}.png")
        if network in _RECONSTRUCTED:
            name = _RECONSTRUCTED[network]
            made[name] = pictures.reconstructed(runs, run, scale, folder / f"{name}.png")
        if network == "mnist-dense":
            idle = [la["index"] for la in results["networks"][network]["seeds"]["0"]["latents"] if _idle(la)]
            made["figure-4"] = pictures.without_idle(run, idle, scale, folder / "figure-4.png")
    if "mnist-dense" in only:
        for name, picture in (
            ("figure-1", pictures.figure_1),
            ("figure-2", pictures.figure_2),
            ("figure-11", pictures.figure_11),
        ):
            say(f"{name}: drawing")
            made[name] = picture(runs, scale, folder / f"{name}.png")
    return {name: numbers for name, numbers in made.items() if numbers is not None}


def _first_seed(runs: Runs, scale: Scale, network: str) -> Run | None:
    return runs.get(f"{network}-seed0", recipe(scale, network))


def _idle(latent: dict[str, Any]) -> bool:
    return bool(latent["verdict"] == "inactive")


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", dest="scale", action="store_const", const=QUICK, help="few rows and epochs")
    size.add_argument("--full", dest="scale", action="store_const", const=FULL, help="as the paper is held against")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings, pictures, tables and numbers")
    parser.add_argument("--data-dir", type=Path, help="where MNIST is, or will be downloaded to")
    parser.add_argument("--only", default=",".join(NETWORKS), metavar="A,B", help="some of: %(default)s")
    parser.add_argument("--finished", action="store_true", help="train nothing; report on the trainings that are there")
    parser.add_argument("--document", type=Path, metavar="PAGE.md", help="fill in this page's tables and pictures")
    given = parser.parse_args(words)
    try:
        only = _chosen(given.only)
        runs = Runs(given.out, given.data_dir, given.scale.rows, may_train=not given.finished)
        results = reproduce(runs, given.scale, only)
        if given.document:
            _fill(given.document, given.out)
    except VaepruneError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last finished epoch")
        return 130
    print(document.everything(results))
    return 0


def _chosen(words: str) -> list[str]:
    chosen = [word.strip() for word in words.split(",")]
    unknown = [word for word in chosen if word not in NETWORKS]
    if unknown:
        raise UsageError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(NETWORKS)}")
    return [network for network in NETWORKS if network in chosen]


def _fill(page: Path, out: Path) -> None:
    """Put the numbers and pictures of `out` beside a page, and its tables into it."""
    beside = page.with_suffix("")
    beside.mkdir(exist_ok=True)
    for path in (out / RESULTS, *sorted((out / FIGURES).glob("*.png"))):
        shutil.copyfile(path, beside / path.name)
    results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    page.write_text(document.filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
