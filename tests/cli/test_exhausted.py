"""Disks without room, places that take nothing, memory that ends, data that go, and Ctrl-C: for all that is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaeprune import storage
from vaeprune.architectures.dense import DenseVAE
from vaeprune.model_folder import load

WRITERS = ["train", "shrink", "export", "grow", "report"]
FOLDERS_OF_MODELS = {"train", "shrink", "grow"}


def one_line_of_error(ran: Any) -> bool:
    return ran.code == 2 and ran.err.startswith("vaeprune: error: ") and ran.err.count("\n") == 1 and ran.out == ""


# --- disks


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a file system in memory, with options of mount."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        place.mkdir()
        if shutil.which("mount") is None:
            pytest.skip("no mount here")
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_said_and_nothing_stays_on_it(vaeprune, writing, mounted, idle_model, contents_of, command):
    before, disk = contents_of(idle_model), mounted("size=16k")
    ran = vaeprune(*writing(command, disk / "new"))
    assert one_line_of_error(ran), ran
    assert ran.err.startswith(f"vaeprune: error: {disk / 'new'}: cannot be written: "), ran.err
    assert "No space left on device" in ran.err
    assert list(disk.iterdir()) == []
    assert contents_of(idle_model) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_a_disk_that_takes_nothing_is_said(vaeprune, writing, mounted, command):
    disk = mounted("ro")
    ran = vaeprune(*writing(command, disk / "new"))
    assert one_line_of_error(ran), ran
    assert f"{disk / 'new'}: cannot be written: Read-only file system" in ran.err


@pytest.fixture
def as_anybody() -> list[str]:
    """What starts a process to which modes of files apply, though it be root's."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no modes of files here")
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may do anything here: there is no setpriv")
    without = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_may_not_be_written_is_said(process, as_anybody, writing, tmp_path, command):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    ran = process(*writing(command, closed / "new"), within=as_anybody)
    assert one_line_of_error(ran), ran
    assert f"{closed / 'new'}: cannot be written: Permission denied" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_rows_that_may_not_be_read_are_said(process, as_anybody, writing, rows, desk, command):
    closed = desk / "closed.npy"
    shutil.copy(rows, closed)
    closed.chmod(0)
    ran = process(*writing(command, "new", closed), within=as_anybody)
    assert one_line_of_error(ran), ran
    assert "closed.npy: " in ran.err
    assert "Permission denied" in ran.err
    assert list(desk.iterdir()) == [closed]


# --- data


@pytest.fixture
def cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More rows than are read at once, whose end goes when the first are encoded. A map of them would be deadly."""
    rows = tmp_path / "many.npy"
    np.save(rows, np.random.default_rng(0).integers(0, 2, (6000, 784), dtype=np.uint8) * 255)
    encode = DenseVAE.encode

    def cutting(self: DenseVAE, *arguments: Any) -> Any:
        os.truncate(rows, 100_000)
        return encode(self, *arguments)

    monkeypatch.setattr(DenseVAE, "encode", cutting)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("command", ["shrink", "report"])
def test_rows_that_are_cut_off_while_they_are_read_are_said(vaeprune, writing, cut_off, desk, command):
    ran = vaeprune(*writing(command, "new", cut_off))
    assert one_line_of_error(ran), ran
    assert "many.npy: " in ran.err
    assert list(desk.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "export", "grow"])
def test_rows_that_are_cut_off_once_they_are_read_change_nothing(
    vaeprune, writing, cut_off, contents_of, monkeypatch, desk, command
):
    """These have all that they need in memory by then."""
    whole = cut_off.read_bytes()
    ran = vaeprune(*writing(command, "new", cut_off))
    assert ran.code == 0, ran
    assert cut_off.stat().st_size == 100_000
    found = contents_of(desk / "new")
    shutil.rmtree("new")
    cut_off.write_bytes(whole)
    monkeypatch.undo()
    monkeypatch.chdir(desk)
    assert vaeprune(*writing(command, "new", cut_off)).code == 0
    assert cut_off.read_bytes() == whole
    assert contents_of(desk / "new") == found


# --- memory

STARVING = """
import json, os, resource, sys, traceback
import onnx, onnxruntime, torch
from vaeprune.cli.__main__ import run

torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
codes = []
for room in map(int, sys.argv[1].split(",")):
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(os.open(f"{room}.err", os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20),) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = run([*sys.argv[2:], "--out", f"new{room}"])
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no limit on memory that holds")
@pytest.mark.parametrize("command", WRITERS)
def test_memory_that_ends_is_one_line_or_the_end_and_no_half_of_anything(
    vaeprune, writing, idle_model, contents_of, desk, unmeasured, command
):
    before, rooms = contents_of(idle_model), (1, 5, 6, 8, 40)
    quiet = {"OMP_NUM_THREADS": "1", "TMPDIR": str(desk.parent)}
    words = [sys.executable, "-c", STARVING, ",".join(map(str, rooms)), *map(str, writing(command, "new")[:-2])]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | quiet)
    codes = dict(zip(rooms, json.loads(done.stdout.splitlines()[-1]), strict=True))
    assert any(codes.values()), "there was memory enough"
    assert "not enough memory" in (desk / f"{rooms[0]}.err").read_text() or codes[rooms[0]] < 0
    for room, code in codes.items():
        said, out = (desk / f"{room}.err").read_text(), desk / f"new{room}"
        assert code == 0 or code == 2 or code < 0, (code, said)
        if code == 2:
            assert [line[:17] for line in said.splitlines()] == ["vaeprune: error: "], said
        assert out.exists() == (code == 0)
        if code == 0 and command in FOLDERS_OF_MODELS:
            load(out)
        if code != 0 and list(desk.glob(f".new{room}.*")):  # to remove what was begun takes memory, too
            assert vaeprune(*writing(command, out.name)).code == 0
        assert not list(desk.glob(f".new{room}.*"))
    assert contents_of(idle_model) == before


# --- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_ctrl_c_twice_while_it_is_written_leaves_nothing(vaeprune, writing, desk, monkeypatch, command):
    """First while what was written goes to the disk, then while it is removed again."""
    remove, pressed = shutil.rmtree, []

    def press(*_: Any) -> None:
        pressed.append("flush")
        raise KeyboardInterrupt

    def press_again(*arguments: Any, **named: Any) -> None:
        if len(pressed) == 1:
            pressed.append("remove")
            raise KeyboardInterrupt
        remove(*arguments, **named)

    monkeypatch.setattr(storage, "_flush", press)
    monkeypatch.setattr(shutil, "rmtree", press_again)
    ran = vaeprune(*writing(command, "new"))
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1] == "interrupted"
    assert pressed == (["flush"] if command == "report" else ["flush", "remove"])  # a page is a single file
    assert list(desk.iterdir()) == []
