"""Mutation testing: small wrongs in the code that decides, each run against the tests that reach its line.

Which tests reach a line is measured once, test by test, and kept (`coverage`, one context a test). A mutant is made in
memory while its module is imported, so no file is ever changed; its tests run fastest first in a fork, and stop at the
first failure. Mutants no test reaches, or that pass all of theirs, survive.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.trust.campaigns import Ledger, joined, show, source_mark
from benchmarks.trust.forking import child
from benchmarks.trust.mutating import Mutant, mutants_of, with_mutant

_PIECE = 5
_ROOT = Path(__file__).parents[2]
_WHERE = ("vaeprune/surgery", "vaeprune/analysis", "vaeprune/verification.py", "vaeprune/evidence.py")
_REACH = Path("out/benchmarks/reach.json")
_MOST_TEST_SECONDS = 120.0  # of the tests of one mutant, as they took when reach was measured
_KILLED = (1, 2, 3, 4)  # pytest's: a test failed, collecting them did, pytest itself, a conftest could not be imported
_ALWAYS = (
    "-q",
    "-x",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=",
    "--no-header",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
_TESTS = (
    "tests/surgery", "tests/analysis", "tests/test_verification.py", "tests/test_gates.py", "tests/test_numbers.py",
    "tests/test_shrinking.py", "tests/test_shrinking_foreign.py", "tests/test_growing.py", "tests/test_recovering.py",
)  # fmt: skip


def campaign(ledger: Ledger, count: int) -> None:
    """Run them and print the result."""
    reach = _reach()
    chosen = _chosen(ledger.seed, count)
    _import_what_never_changes()

    _refuse_unsound(chosen[0], reach)

    def piece(which: range) -> dict[str, Any]:
        return {"mutants": [_tried(chosen[number], reach) for number in which]}

    tried = joined(ledger.pieces(len(chosen), _PIECE, piece), "mutants")
    survivors = [m for m in tried if not m["killed"]]
    for mutant in survivors:
        print(f"    survives {mutant['tests']} tests: {mutant['where']}: {mutant['was']}  →  {mutant['becomes']}")
    killed = len(tried) - len(survivors)
    show("mutants", "400", f"{len(tried)} of {len(_all_mutants()):,} possible")
    show("killed", "85%", f"{killed / len(tried):.1%} ({killed} of {len(tried)})")
    show("survivors that no test reaches", "", str(sum(m["tests"] == 0 for m in survivors)))


def _sources() -> list[Path]:
    found: list[Path] = []
    for name in _WHERE:
        place = _ROOT / name
        found += sorted(place.glob("*.py")) if place.is_dir() else [place]
    return [path for path in found if path.name != "__init__.py"]


def _all_mutants() -> list[Mutant]:
    return [
        mutant
        for path in _sources()
        for mutant in mutants_of(path.read_text(encoding="utf-8"), path.relative_to(_ROOT).as_posix())
    ]


def _chosen(seed: int, count: int) -> list[Mutant]:
    everything = _all_mutants()
    return random.Random(f"mutants {seed}").sample(everything, min(count, len(everything)))


def _refuse_unsound(mutant: Mutant, reach: dict[str, Any]) -> None:
    """Killing says nothing where the tests fail without a mutant, or do not run."""
    tests = _tests_for(mutant, reach)[:5]
    ended = child(lambda: _pytest_with(None, tests), _ROOT, limit=600)
    if ended.code != 0:
        raise SystemExit(f"{tests} fail without a mutant: exit {ended.code}: {(ended.out + ended.err)[-800:]}")


# --- which tests reach which line


def _reach() -> dict[str, Any]:
    """{"lines": {file: {line: [test, …]}}, "seconds": {test: …}}; measured file by file of tests, and kept."""
    kept = json.loads(_REACH.read_text()) if _REACH.is_file() else {}
    _REACH.parent.mkdir(parents=True, exist_ok=True)
    for tests in _test_files():
        mark = f"{source_mark()} {tests.stat().st_mtime_ns}"
        name = tests.relative_to(_ROOT).as_posix()
        if kept.get(name, {}).get("mark") != mark:
            print(f"which lines {name} reaches", flush=True)
            kept[name] = {"mark": mark, **_measured(name)}
            _REACH.write_text(json.dumps(kept))
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for name in (path.relative_to(_ROOT).as_posix() for path in _test_files()):
        seconds |= kept[name]["seconds"]
        for file, found in kept[name]["lines"].items():
            for line, tests in found.items():
                lines.setdefault(file, {}).setdefault(line, []).extend(tests)
    return {"lines": lines, "seconds": seconds}


def _test_files() -> list[Path]:
    found: list[Path] = []
    for name in _TESTS:
        place = _ROOT / name
        found += sorted(place.rglob("test_*.py")) if place.is_dir() else [place] if place.is_file() else []
    return found


def _measured(tests: str) -> dict[str, Any]:
    import coverage

    with tempfile.TemporaryDirectory() as room:
        data, times = Path(room) / "coverage", Path(room) / "times.json"
        environment = os.environ | {"COVERAGE_FILE": str(data), "VAEPRUNE_TEST_TIMES": str(times)}
        command = [sys.executable, "-m", "coverage", "run", "--rcfile", os.devnull, "--source", "vaeprune", "-m"]
        command += ["pytest", "-q", "-p", "benchmarks.trust.reaching", "-o", "addopts=", tests]
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{tests} fail as they are:\n{done.stdout[-2000:]}")
        found = coverage.CoverageData(str(data))
        found.read()
        lines: dict[str, dict[str, list[str]]] = {}
        for path in _sources():
            reached = found.contexts_by_lineno(str(path))
            named = {str(line): sorted(t for t in tests if t) for line, tests in reached.items()}
            lines[path.relative_to(_ROOT).as_posix()] = {line: tests for line, tests in named.items() if tests}
        return {"lines": lines, "seconds": json.loads(times.read_text())}


# --- one mutant


def _tried(mutant: Mutant, reach: dict[str, Any]) -> dict[str, Any]:
    tests = _tests_for(mutant, reach)
    entry = {"where": f"{mutant.path}:{mutant.line}", "was": mutant.was, "becomes": mutant.becomes, "tests": len(tests)}
    if not tests:
        return entry | {"killed": False, "how": "no test reaches it"}
    seconds = sum(reach["seconds"].get(test, 1.0) for test in tests)
    ended = child(lambda: _pytest_with(mutant, tests), _ROOT, limit=60 + 8 * seconds)
    how = "too slow" if ended.late else f"exit {ended.code}"
    if not ended.late and ended.code not in (0, *_KILLED) and ended.code > 0:
        raise SystemExit(f"{mutant}: pytest did not run its tests: exit {ended.code}: {(ended.out + ended.err)[-800:]}")
    return entry | {"killed": ended.late or ended.code != 0, "how": how}


def _tests_for(mutant: Mutant, reach: dict[str, Any]) -> list[str]:
    lines = reach["lines"].get(mutant.path, {})
    tests = {test for line in range(mutant.line, mutant.last + 1) for test in lines.get(str(line), ())}
    if not tests:  # run while the module is imported, so whatever uses the module may tell
        tests = {test for reached in lines.values() for test in reached}
    chosen: list[str] = []
    total = 0.0
    for test in sorted(tests, key=lambda test: (reach["seconds"].get(test, 1.0), test)):
        total += reach["seconds"].get(test, 1.0)
        if chosen and total > _MOST_TEST_SECONDS:
            break
        chosen.append(test)
    return chosen


def _pytest_with(mutant: Mutant | None, tests: Sequence[str]) -> int:
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, _Mutating(mutant))
    with contextlib.suppress(ValueError):
        sys.path.remove("")
    sys.path.insert(0, str(_ROOT))
    return int(pytest.main([*_ALWAYS, *tests]))


def _import_what_never_changes() -> None:
    """All that is slow to import and is not the package itself, before the first fork."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in (
        "torch",
        "numpy",
        "pytest",
        "hypothesis",
        "onnx",
        "onnxruntime",
        "PIL.Image",
        "torch.fx",
        "typer",
        "rich",
    ):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    present = sorted(name for name in sys.modules if name.split(".")[0] == "vaeprune")
    assert not present, f"imported too early: {present[:3]}"


class _Mutating(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its mutated source, and all others as usual."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.path = _ROOT / mutant.path
        self.name = mutant.path.removesuffix(".py").replace("/", ".")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        source = with_mutant(self.path.read_text(encoding="utf-8"), self.mutant)
        exec(compile(source, str(self.path), "exec"), module.__dict__)
