"""The command line of all campaigns: what to run, how many, and what is kept where."""

from __future__ import annotations

import argparse
import hashlib
import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kept_results import Kept

ASKED = {"malformed": 20_000, "kills": 300, "networks": 5_000, "mutants": 400}
_ROOT = Path(__file__).parents[2]
_KEPT = Path("out/benchmarks/trust.json")

Piece = Callable[[range], dict[str, Any]]


def run(arguments: Sequence[str]) -> None:
    """Run the campaigns named, and print what was asked beside what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__)
    parser.add_argument("campaign", nargs="*", help=f"any of {', '.join(ASKED)}; all if left out")
    parser.add_argument("--count", type=int, help="how many inputs, kills, networks or mutants; as asked if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, default=_KEPT, help=f"where results are kept [{_KEPT}]")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.campaign) - set(ASKED))
    if unknown:
        parser.error(f"unknown campaign {', '.join(unknown)}; there are {', '.join(ASKED)}")
    for name in given.campaign or ASKED:
        count = given.count or ASKED[name]
        print(f"\n== {name}: {count:,} (asked {ASKED[name]:,}), seed {given.seed}", flush=True)
        importlib.import_module(f"benchmarks.trust.{name}").campaign(Ledger(given.kept, name, given.seed), count)


class Ledger:
    """What a campaign has found so far, piece by piece, with a mark of the source it was found with."""

    def __init__(self, path: Path, name: str, seed: int) -> None:
        self._kept, self._row, self.seed = Kept(path), f"{name}, seed {seed}", seed
        self._mark = source_mark()
        self.older = 0

    def pieces(self, count: int, size: int, work: Piece) -> list[dict[str, Any]]:
        """`work` on 0 … count in ranges of `size`, those that are kept left out; everything that was found.

        What was found with another state of the source counts, too, and `older` says how much that is.
        """
        found = []
        for start in range(0, count, size):
            which = range(start, min(start + size, count))
            where = (self._row, f"{which.start} to {which.stop}")
            cell = self._kept.get(where)
            if cell is None:
                cell = work(which)
                self._kept.put(where, self._mark, cell)
                print(f"{which.stop:,} of {count:,}", flush=True)
            elif self._kept.get(where, self._mark) is None:
                self.older += len(which)
            found.append(cell)
        if self.older:
            print(f"{self.older:,} of {count:,} were measured with another state of the source")
        return found


def source_mark() -> str:
    """A digest of the source of the package and its command line."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("vaeprune", "cli") for p in (_ROOT / part).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def show(what: str, asked: str, measured: str) -> None:
    """One line of a result."""
    print(f"{what:52} asked {asked:>12}   measured {measured}")


def joined(found: Iterable[dict[str, Any]], name: str) -> list[Any]:
    """The lists of that name in all pieces, one after the other."""
    return [entry for piece in found for entry in piece[name]]
