"""Which tests reach which line of the code that is mutated: measured once, a file of tests at a time, and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trust.forking import child

ROOT = Path(__file__).parents[2]
_WHERE = ("vaeprune/surgery", "vaeprune/analysis", "vaeprune/verification.py", "vaeprune/evidence.py")
_TESTS = (
    "tests/surgery", "tests/analysis", "tests/test_verification.py", "tests/test_gates.py", "tests/test_numbers.py",
    "tests/test_shrinking.py", "tests/test_shrinking_foreign.py", "tests/test_growing.py", "tests/test_recovering.py",
)  # fmt: skip
_KEPT = Path("out/benchmarks/reach")
_OPTIONS = (
    "-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", "--no-header",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip
# torchvision needs a word from this package before it can be imported, and these import torchvision
_NEVER_EARLY = {"torchvision", "diffusers", "pythae", "monai", "transformers"}


@dataclass(frozen=True)
class Reach:
    """`lines`: {file: {line: [test, …]}}. `seconds`: processor time of each test, under coverage."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def tests(self, path: str, first: int, last: int, at_import: bool) -> list[str]:
        """The tests that run any of these lines of a file, those named after it first, then the fastest.

        Of lines that are run while the module is imported whatever uses the module may tell.
        """
        lines = self.lines.get(path, {})
        found = {test for line in range(first, last + 1) for test in lines.get(str(line), ())}
        if at_import:
            found = {test for reached in lines.values() for test in reached}
        own = f"test_{Path(path).name}"
        return sorted(found, key=lambda test: (own not in test, self.seconds.get(test, 1.0), test))


def tests_mark() -> str:
    """A digest of the tests as they are."""
    digest = hashlib.sha256()
    for path in _files(_TESTS, "test_*.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def sources() -> list[Path]:
    """The files that are mutated."""
    return [path for path in _files(_WHERE, "*.py") if path.name != "__init__.py"]


def measured() -> Reach:
    """What is kept, and what is missing measured now; another process may be at work on the rest.

    All that tests import, and is neither theirs nor this package, is imported here: later forks have it.
    """
    _KEPT.mkdir(parents=True, exist_ok=True)
    names = [path.relative_to(ROOT).as_posix() for path in _files(_TESTS, "test_*.py")]
    for wait in (False, True):
        for name in names:
            with _mine(name, wait) as mine:
                if mine and _read(name) is None:
                    print(f"which lines {name} reaches", flush=True)
                    _place(name).write_text(json.dumps({"mark": _mark(name), **_measured(name)}))
            _import_early((_read(name) or {}).get("modules", ()))
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for kept in (_read(name) or {} for name in names):
        seconds |= kept["seconds"]
        for file, found in kept["lines"].items():
            for line, tests in found.items():
                lines.setdefault(file, {}).setdefault(line, []).extend(tests)
    return Reach(lines, seconds)


def run_pytest(words: Sequence[str]) -> int:
    """Pytest's exit code; to be called in a fork."""
    import pytest

    with contextlib.suppress(ValueError):
        sys.path.remove("")
    sys.path.insert(0, str(ROOT))
    return int(pytest.main([*_OPTIONS, *words]))


def _files(names: Sequence[str], pattern: str) -> list[Path]:
    return [
        path
        for place in map(ROOT.joinpath, names)
        for path in (sorted(place.rglob(pattern)) if place.is_dir() else [place])
    ]


def _place(name: str) -> Path:
    return _KEPT / f"{name.replace('/', '.')}.json"


def _mark(name: str) -> str:
    digest = hashlib.sha256()
    for path in (*sources(), ROOT / name):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(name: str) -> dict[str, Any] | None:
    place = _place(name)
    kept: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    return kept if kept.get("mark") == _mark(name) else None


@contextlib.contextmanager
def _mine(name: str, wait: bool) -> Iterator[bool]:
    with _place(name).with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True


def _measured(name: str) -> dict[str, Any]:
    import coverage

    with tempfile.TemporaryDirectory() as room:
        data, times, imported = (Path(room) / part for part in ("coverage", "times.json", "imported.json"))

        def work() -> int:
            os.environ["VAEPRUNE_TEST_TIMES"] = str(times)
            before = set(sys.modules)
            running = coverage.Coverage(data_file=str(data), source=[str(ROOT / "vaeprune")], config_file=False)
            running.start()
            code = run_pytest(["-p", "benchmarks.trust.reaching", f"--basetemp={room}/tests", name])
            running.stop()
            running.save()
            imported.write_text(json.dumps([module for module in sys.modules if module not in before]))
            return code

        ended = child(work, ROOT, spare=Path(room), limit=3600)
        if ended.code != 0:
            raise SystemExit(f"{name} fail as they are: exit {ended.code}:\n{(ended.out + ended.err)[-2000:]}")
        found = coverage.CoverageData(str(data))
        found.read()
        lines: dict[str, dict[str, list[str]]] = {}
        for path in sources():
            reached = found.contexts_by_lineno(str(path))
            named = {str(line): sorted(t for t in tests if t) for line, tests in reached.items()}
            lines[path.relative_to(ROOT).as_posix()] = {line: tests for line, tests in named.items() if tests}
        return {
            "lines": lines,
            "seconds": json.loads(times.read_text()),
            "modules": _installed(json.loads(imported.read_text())),
        }


def _installed(modules: Sequence[str]) -> list[str]:
    """Those that are neither of this repository nor in need of it."""
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {path.name for path in ROOT.iterdir()}
    return [name for name in modules if name.partition(".")[0] not in own | _NEVER_EARLY]


def _import_early(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # some are made by others and have no place of their own
            importlib.import_module(name)
