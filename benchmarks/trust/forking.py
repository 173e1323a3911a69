"""Command lines run in forks of a process that has imported everything: a hundred times cheaper than starting torch."""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_ROOM = 6 << 30  # address space beyond what the parent has: a safety net for the machine


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code`: its exit code, −signal where it was killed; `wall`, `cpu` in seconds, `peak` in bytes.

    `late`: it did not end within the time it was given.
    """

    code: int
    wall: float
    cpu: float
    peak: int
    out: str
    err: str
    late: bool = False


def prepare() -> None:
    """Import all that a command may need, before the first fork. Nothing here may start a thread."""
    import pkgutil

    import onnx
    import onnxruntime
    import torch
    import vaeprune.cli.__main__
    from PIL import Image

    import vaeprune

    torch.set_num_threads(1)
    Image.init()
    for module in pkgutil.walk_packages(vaeprune.__path__, "vaeprune."):
        importlib.import_module(module.name)
    assert onnx is not None
    assert onnxruntime is not None


def rehearse(words: Sequence[object], desk: Path) -> Ended:
    """Run a command in a fork, and import here whatever it has imported there: the next one need not."""

    def work() -> int:
        from vaeprune.cli.__main__ import run

        before = set(sys.modules)
        code = run([str(word) for word in words])
        names.write_text("\n".join(name for name in sys.modules if name not in before))
        return code

    names = desk.parent / "imported"
    ended = child(work, desk, limit=1200)
    if names.is_file():
        for name in names.read_text().split("\n"):
            with contextlib.suppress(ImportError):  # some are made by others and have no place of their own
                importlib.import_module(name or "sys")
        names.unlink()
    gc.freeze()  # else each fork's first collection copies all of it
    return ended


def command(words: Sequence[object], desk: Path, *, limit: float = 60.0, **options: Any) -> Ended:
    """Run `vaeprune WORDS` in a fork, with `desk` as its working folder."""

    def work() -> int:
        from vaeprune.cli.__main__ import run

        return run([str(word) for word in words])

    return child(work, desk, limit=limit, **options)


def child(
    work: Callable[[], int],
    desk: Path,
    *,
    limit: float = 60.0,
    cpu: float | None = None,
    spare: Path | None = None,
    watch: Callable[[int], None] | None = None,
) -> Ended:
    """Run `work` in a fork; `watch` is given its process number while it runs and may kill it.

    `limit`, `cpu`: seconds of everybody's and of its own time, after which it is killed. `spare`: its folder for
    temporary files, else one beside the desk.
    """
    spare = spare or desk.parent / "tmp"
    spare.mkdir(exist_ok=True)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            if cpu is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu) + 5))
            _be_the_child(work, desk, spare, out.fileno(), err.fileno())
        if watch:
            watch(process)
        late = not _wait(process, start + limit)
        if late:
            os.kill(process, signal.SIGKILL)
        _, status, used = os.wait4(process, 0)
        wall = time.monotonic() - start
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "surrogateescape"))
        took, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
        return Ended(os.waitstatus_to_exitcode(status), wall, took, peak, texts[0], texts[1], late)


def _wait(process: int, until: float) -> bool:
    """Whether the process ended in time; it stays to be waited for."""
    pause = 0.001
    while time.monotonic() < until:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return False


def _be_the_child(work: Callable[[], int], desk: Path, spare: Path, out: int, err: int) -> None:
    code = 70
    try:
        os.chdir(desk)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="surrogateescape", closefd=False, buffering=1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        tempfile.tempdir = os.environ["TMPDIR"] = str(spare)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  a child never returns into its parent's code
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
