"""Mutation testing: small wrongs in the code that decides, each run against the tests that reach its line.

Which tests reach a line is measured once, test by test, and kept (`coverage`, one context a test). A mutant is made in
memory while its module is imported, so no file is ever changed; its tests run in a fork, those of its own module first,
then the fastest, and stop at the first failure. Mutants no test reaches, or that pass all of theirs, survive; they are
tried again when there are other tests.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.util
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.trust.campaigns import Ledger, joined, show
from benchmarks.trust.forking import child
from benchmarks.trust.mutating import Mutant, mutants_of, with_mutant
from benchmarks.trust.reach import ROOT, Reach, measured, run_pytest, sources, tests_mark

_PIECE = 5
_MOST_TEST_SECONDS = 60.0  # of the tests of one mutant, as they took when reach was measured
_FIRST = 12
_KILLED = (1, 2, 3, 4)  # pytest's: a test failed, collecting them did, pytest itself, a conftest could not be imported


def campaign(ledger: Ledger, count: int) -> None:
    """Run them and print the result."""
    _import_what_never_changes()
    reach = measured()
    chosen = _chosen(ledger.seed, count)
    _refuse_too_early()
    with tempfile.TemporaryDirectory() as room:
        _refuse_unsound(chosen[0], reach, Path(room))

        def piece(which: range) -> dict[str, Any]:
            return {"mutants": [_tried(chosen[number], reach, Path(room)) for number in which]}

        tried = joined(ledger.pieces(len(chosen), _PIECE, piece), "mutants")
        if len(tried) == len(chosen):  # survivors, with what tests there are by now
            for number in [number for number, mutant in enumerate(tried) if not mutant["killed"]]:
                once_more = functools.partial(_tried, chosen[number], reach, Path(room))
                tried[number] = ledger.again(number, tests_mark(), once_more)
    survivors = [m for m in tried if not m["killed"]]
    for mutant in survivors:
        print(f"    survives {mutant['tests']} tests: {mutant['where']}: {mutant['was']}  →  {mutant['becomes']}")
    killed = len(tried) - len(survivors)
    show("mutants", "400", f"{len(tried)} of {len(_all_mutants()):,} possible")
    show("killed", "85%", f"{killed / len(tried):.1%} ({killed} of {len(tried)})")
    show("survivors that no test reaches", "", str(sum(m["tests"] == 0 for m in survivors)))


def _all_mutants() -> list[Mutant]:
    return [
        mutant
        for path in sources()
        for mutant in mutants_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]


def _chosen(seed: int, count: int) -> list[Mutant]:
    everything = _all_mutants()
    return random.Random(f"mutants {seed}").sample(everything, min(count, len(everything)))


def _refuse_unsound(mutant: Mutant, reach: Reach, room: Path) -> None:
    """Killing says nothing where the tests fail without a mutant, or do not run."""
    tests = _tests_for(mutant, reach)
    ended = child(lambda: _pytest_with(None, tests, room), ROOT, spare=room, limit=3600)
    if ended.code != 0:
        raise SystemExit(f"{tests} fail without a mutant: exit {ended.code}: {(ended.out + ended.err)[-800:]}")


def _tried(mutant: Mutant, reach: Reach, room: Path) -> dict[str, Any]:
    tests = _tests_for(mutant, reach)
    entry = {"where": f"{mutant.path}:{mutant.line}", "was": mutant.was, "becomes": mutant.becomes, "tests": len(tests)}
    if not tests:
        return entry | {"killed": False, "how": "no test reaches it"}
    seconds = 20 + 4 * sum(reach.seconds.get(test, 1.0) for test in tests)
    ended = child(lambda: _pytest_with(mutant, tests, room), ROOT, spare=room, cpu=seconds, limit=20 * seconds)
    slow = ended.late or ended.code == -signal.SIGXCPU
    how = "too slow" if slow else f"exit {ended.code}"
    if not slow and ended.code not in (0, *_KILLED) and ended.code > 0:
        raise SystemExit(f"{mutant}: pytest did not run its tests: exit {ended.code}: {(ended.out + ended.err)[-800:]}")
    return entry | {"killed": ended.code != 0, "how": how, "seconds": round(ended.cpu, 1)}


def _tests_for(mutant: Mutant, reach: Reach) -> list[str]:
    chosen: list[str] = []
    total = 0.0
    for test in reach.tests(mutant.path, mutant.line, mutant.last, mutant.at_import):
        total += reach.seconds.get(test, 1.0)
        if chosen and total > _MOST_TEST_SECONDS:
            break
        chosen.append(test)
    return chosen


def _pytest_with(mutant: Mutant | None, tests: Sequence[str], room: Path) -> int:
    if mutant is not None:
        sys.meta_path.insert(0, _Mutating(mutant))
    code = 0
    for few in (tests[:_FIRST], tests[_FIRST:]):  # most mutants fall at once, and collecting all tests takes a while
        if few and code == 0:
            code = run_pytest([f"--basetemp={room}/tests", *few])
    return code


def _import_what_never_changes() -> None:
    """All that is slow to import and is not the package itself, before the first fork."""
    for name in ("torch", "numpy", "pytest", "hypothesis", "onnx", "onnxruntime", "PIL.Image", "torch.fx", "coverage"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _refuse_too_early() -> None:
    present = sorted(name for name in sys.modules if name.split(".")[0] == "vaeprune")
    assert not present, f"imported too early: {present[:3]}"
    gc.freeze()


class _Mutating(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its mutated source, and all others as usual."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.path = ROOT / mutant.path
        self.name = mutant.path.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        source = with_mutant(self.path.read_text(encoding="utf-8"), self.mutant)
        exec(compile(source, str(self.path), "exec"), module.__dict__)
