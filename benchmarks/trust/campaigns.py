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
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="this process's share, as 1/2")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.campaign) - set(ASKED))
    if unknown:
        parser.error(f"unknown campaign {', '.join(unknown)}; there are {', '.join(ASKED)}")
    for name in given.campaign or ASKED:
        count = given.count or ASKED[name]
        print(f"\n== {name}: {count:,} (asked {ASKED[name]:,}), seed {given.seed}", flush=True)
        ledger = Ledger(given.kept, name, given.seed, given.shard)
        importlib.import_module(f"benchmarks.trust.{name}").campaign(ledger, count)


def _shard(text: str) -> tuple[int, int]:
    which, _, of = text.partition("/")
    if not (which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
        raise argparse.ArgumentTypeError(f"got {text}, expected I/N with 1 ≤ I ≤ N")
    return int(which) - 1, int(of)


class Ledger:
    """What a campaign has found so far, piece by piece, with a mark of the source it was found with.

    `shard`: (i, n), and this process works on every n-th piece alone, from the i-th; all of them keep in one file.
    """

    def __init__(self, path: Path, name: str, seed: int, shard: tuple[int, int] = (0, 1)) -> None:
        self._path, self._row, self.seed, self._shard = path, f"{name}, seed {seed}", seed, shard

    def pieces(self, count: int, size: int, work: Piece) -> list[dict[str, Any]]:
        """`work` on 0 … count in ranges of `size`, those that are kept left out; everything that was found by anybody.

        What was found with another state of the source counts, too, and it is said how much that is.
        """
        mark, kept = source_mark(), Kept(self._path)
        ranges = [range(start, min(start + size, count)) for start in range(0, count, size)]
        first, step = self._shard
        for which in ranges[first::step]:
            if kept.get(self._where(which)) is None:
                kept.put(self._where(which), mark, work(which))
                print(f"{which.stop:,} of {count:,}", flush=True)
        kept = Kept(self._path)  # with what other processes have found
        done = [which for which in ranges if kept.get(self._where(which)) is not None]
        if done != ranges:
            print(f"{count - sum(map(len, done)):,} of {count:,} are another process's and not there yet")
        older = sum(len(which) for which in done if kept.get(self._where(which), mark) is None)
        if older:
            print(f"{older:,} of {count:,} were measured with another state of the source")
        return [kept.get(self._where(which)) or {} for which in done]

    def again(self, number: int, mark: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` finds of one that was looked at before, in a state of something else that `mark` tells."""
        where = (f"{self._row}, again", str(number))
        found = Kept(self._path).get(where, mark)
        if found is None:
            found = work()
            Kept(self._path).put(where, mark, found)
        return found

    def _where(self, which: range) -> tuple[str, str]:
        return self._row, f"{which.start} to {which.stop}"


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
