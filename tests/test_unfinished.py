"""What a killed process left is known and removed; what another is writing is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vaeprune.storage import new_file, new_folder

pytest.importorskip("fcntl", reason="leftovers are known by locks that only POSIX systems have")

WRITER = """
import os, pathlib, signal, sys
from vaeprune import storage
from vaeprune.storage import {kind}
target = pathlib.Path(sys.argv[1])
with {kind}(target, force=True) as made:
    (made / "config.json" if made.is_dir() else made).write_text("half")
    print("writing", flush=True)
    {then}
"""


def writer(target: Path, kind: str, then: str) -> subprocess.Popen[str]:
    code = WRITER.format(kind=kind, then=then)
    started = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "writing\n"
    return started


def killed(target: Path, kind: str) -> None:
    with writer(target, kind, "os.kill(os.getpid(), signal.SIGKILL)") as started:
        assert started.wait() == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["new_folder", "new_file"])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "model"
    killed(target, kind)
    (leftover,) = names(tmp_path)
    assert leftover.startswith(".model.vaeprune-unfinished-")
    with {"new_folder": new_folder, "new_file": new_file}[kind](target) as made:
        assert names(tmp_path) == [made.name]
        assert made.name != leftover
    assert names(tmp_path) == ["model"]


def test_leftovers_of_another_target_stay(tmp_path: Path) -> None:
    killed(tmp_path / "model", "new_folder")
    (leftover,) = names(tmp_path)
    with new_folder(tmp_path / "model2"):
        pass
    assert names(tmp_path) == [leftover, "model2"]


@pytest.mark.parametrize("kind", ["new_folder", "new_file"])
def test_what_another_process_is_writing_stays_and_one_of_both_loses(tmp_path: Path, kind: str) -> None:
    """Both begin with nothing there; whoever ends second finds the target in the way and writes nothing."""
    target = tmp_path / "model"
    then = "sys.stdin.readline()"
    code = WRITER.format(kind=kind, then=then).replace("force=True", "force=False")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "writing\n"
        with {"new_folder": new_folder, "new_file": new_file}[kind](target) as made:
            assert len(names(tmp_path)) == 2
            (made / "mine" if made.is_dir() else made).write_text("mine")
        _, err = other.communicate("\n")
    assert other.returncode == 1
    assert "model: already exists" in err
    assert names(tmp_path) == ["model"]
    mine = tmp_path / "model" / "mine" if kind == "new_folder" else tmp_path / "model"
    assert mine.read_text() == "mine"


def model_at(folder: Path, mark: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"format": 1, "architecture": {"name": "dense"}, "likelihood": {}}')
    (folder / "mark").write_text(mark)
    return folder


def test_a_model_that_was_set_aside_and_never_replaced_is_put_back(tmp_path: Path) -> None:
    """Killed between the two renames of a system that cannot swap: the old model is there under another name only."""
    target = model_at(tmp_path / "model", "old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from vaeprune import storage\n"
        "storage._exchange = lambda a, b: False\n"
        "rename = pathlib.Path.rename\n"
        "def dying(self, new):\n"
        "    rename(self, new)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.rename = dying\n"
        "with storage.new_folder(pathlib.Path(sys.argv[1]), force=True) as made:\n"
        "    (made / 'mark').write_text('new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == -signal.SIGKILL
    assert not target.exists()

    def fails() -> None:
        with new_folder(target, force=True):
            assert (target / "mark").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_the_old_model_left_by_a_run_killed_after_the_swap_is_removed(tmp_path: Path) -> None:
    model_at(tmp_path / "model", "new")
    model_at(tmp_path / ".model.vaeprune-unfinished-abcd1234-old", "old")
    with new_file(tmp_path / "model.npy") as made:
        made.write_text("")
    assert len(names(tmp_path)) == 3
    with new_folder(tmp_path / "model", force=True):
        pass
    assert names(tmp_path) == ["model", "model.npy"]


def test_a_link_with_the_name_of_a_leftover_is_not_followed(tmp_path: Path) -> None:
    keep = model_at(tmp_path / "keep", "keep")
    (tmp_path / ".model.vaeprune-unfinished-abcd1234").symlink_to(keep)
    with new_folder(tmp_path / "model"):
        pass
    assert (keep / "mark").read_text() == "keep"
