"""`kill -9` at random moments of every command that writes a folder, and what is there afterwards.

Half of the kills come at any moment of the command's life, half while its folder is written. After each the source is
as it was, the target absent or whole, and the same command run again cleans up and gives what an uninterrupted run
gives, byte for byte.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trust import materials
from benchmarks.trust.campaigns import Ledger, joined, show
from benchmarks.trust.forking import Ended, child, command, prepare, rehearse

_PIECE = 10
_MARK = ".vaeprune-unfinished-"
_SHRINK = (
    "shrink", "model", "--data", "rows.npy", "--remove", "1", "--keep", "0,2", "--scope", "latents",
    "--tolerance", "9", "--max-elbo-loss", "99", "--quiet", "--out", "out",
)  # fmt: skip
_FRESH = ("--data", "rows.npy", "--hidden", "8", "--latent", "3")
_COMMANDS = {
    "train": ("train", *_FRESH, "--epochs", "4", "--quiet", "--out", "out"),
    "resume": ("train", "--resume", "--epochs", "5", "--quiet", "--out", "out"),
    "shrink": _SHRINK,
    "replace": (*_SHRINK, "--force"),
    "export": ("export", "model", "--data", "rows.npy", "--out", "out"),
    "grow": ("grow", "model", "--data", "rows.npy", "--latent", "5", "--quiet", "--out", "out"),
    "report": ("report", "model", "--data", "rows.npy", "--out", "out"),
}
_DATE = re.compile(rb"<time datetime=.*?</time>")
_TRAINING = ("train", "resume")
Folder = dict[str, bytes]


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: how long it took, when its folder was begun, and each state its target may be in."""

    seconds: float
    writing: float
    states: tuple[Folder, ...]
    last: Folder


def campaign(ledger: Ledger, count: int) -> None:
    """Run them and print the result."""
    from vaeprune.cli.app import SUMMARIES

    names = [name for name, words in _COMMANDS.items() if words[0] in SUMMARIES]
    with tempfile.TemporaryDirectory() as room:
        prepare()
        sound = Path(room) / "sound"
        sound.mkdir()
        materials.make(sound)
        shutil.copytree(sound / "model", sound / "begun")
        for name in names:
            rehearse(_COMMANDS[name], _desk(name, sound, Path(room)))
        wholes: dict[str, Whole] = {}

        def piece(which: range) -> dict[str, Any]:
            found = []
            for number in which:
                name = names[number % len(names)]
                if name not in wholes:
                    wholes[name] = _whole(name, sound, Path(room))
                found.append(_kill(name, number, ledger.seed, sound, Path(room), wholes[name]))
            return {"kills": found}

        kills = joined(ledger.pieces(count, _PIECE, piece), "kills")
    for kill in kills:
        if kill["wrong"]:
            print(f"    {kill}")
    show("kills at random moments", "300", f"{sum(k['killed'] for k in kills)} of {len(kills)} tried")
    show("of them while a folder was written", "", str(sum(k["leftover"] for k in kills)))
    show("lost, half-written or different models", "0", str(sum(bool(k["wrong"]) for k in kills)))
    for name in names:
        show(f"    {name}", "", str(sum(k["command"] == name for k in kills)))
    missing = [name for name in _COMMANDS if name not in names]
    if missing:
        print(f"not a command yet: {', '.join(missing)}")


def _desk(name: str, sound: Path, room: Path) -> Path:
    desk = room / "desk"
    shutil.rmtree(desk, ignore_errors=True)
    shutil.copytree(sound, desk)
    if name == "resume":
        (desk / "begun").rename(desk / "out")
    if name == "replace":
        shutil.copytree(desk / "begun", desk / "out")
    return desk


def _whole(name: str, sound: Path, room: Path) -> Whole:
    """Run it uninterrupted, and keep each state that its target is put into on the way."""
    desk, kept = _desk(name, sound, room), room / "states"
    shutil.rmtree(kept, ignore_errors=True)
    states: list[Folder] = [folder(desk / "out")] if (desk / "out").exists() else []
    start, writing = time.monotonic(), []

    def keeping() -> int:
        from vaeprune.cli.__main__ import run

        from vaeprune import storage

        put = storage._put_in_place

        def and_keep(temporary: Path, target: Path) -> None:
            put(temporary, target)
            shutil.copytree(target, kept / str(time.monotonic_ns()))

        storage._put_in_place = and_keep
        return run(_COMMANDS[name])

    def watch(process: int) -> None:
        while not writing and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if _unfinished(desk):
                writing.append(time.monotonic() - start)
            time.sleep(0.001)

    ended = child(keeping, desk, watch=watch, limit=1200)
    assert ended.code == 0, (name, ended)
    states += [folder(state) for state in sorted(kept.glob("*"))] or [folder(desk / "out")]  # a file is put once
    return Whole(ended.wall, writing[0] if writing else 0.5 * ended.wall, tuple(states), folder(desk / "out"))


def _kill(name: str, number: int, seed: int, sound: Path, room: Path, whole: Whole) -> dict[str, Any]:
    """One kill, tried again and sooner where the command was faster; then what is there, and what comes of it."""
    rng = random.Random(f"kill {seed}:{number}")
    for attempt in range(6):
        desk = _desk(name, sound, room)
        ended = command(_COMMANDS[name], desk, watch=_killer(rng, desk, whole, 0.7**attempt), limit=1200)
        killed = ended.code == -signal.SIGKILL
        if killed:
            break
    leftover = bool(_unfinished(desk))
    wrong = _wrong_after(desk, sound, name, killed, ended, whole)
    done = folder(desk / "out") == whole.last
    second = command(_again(name, (desk / "out").exists(), done), desk, limit=1200)
    if second.code != 0:
        wrong.append(f"the next run: exit {second.code}: {second.err[-200:]}")
    elif not (done and name in _TRAINING) and folder(desk / "out") != whole.last:
        wrong.append(f"the next run gives something else: {_differing(folder(desk / 'out'), whole.last)}")
    if _unfinished(desk):
        wrong.append(f"leftovers stay: {_unfinished(desk)}")
    return {"number": number, "command": name, "killed": killed, "leftover": leftover, "wrong": wrong}


def _again(name: str, there: bool, done: bool) -> tuple[str, ...]:
    """The command that a person would run next; a training that is done already goes on for one epoch more."""
    if name in _TRAINING and there:
        epochs = {"train": 4, "resume": 5}[name] + done
        return ("train", "--resume", "--epochs", str(epochs), "--quiet", "--out", "out")
    return (*_COMMANDS[name], "--force") if there and name != "replace" else _COMMANDS[name]


def _killer(rng: random.Random, desk: Path, whole: Whole, sooner: float) -> Callable[[int], None]:
    anywhere, share = rng.random() < 0.5, rng.random()
    nth = rng.randrange(4)

    def kill(process: int) -> None:
        start, seen, before = time.monotonic(), 0, False
        wait = share * sooner * whole.seconds if anywhere else None
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            now = bool(_unfinished(desk))
            seen, before = seen + (now and not before), now
            if wait is None and now and (seen > nth or whole.writing > 0.3 * whole.seconds):
                length = min(1.0, whole.seconds - whole.writing) if len(whole.states) < 3 else 0.03
                wait = time.monotonic() - start + share * sooner * length
            if wait is not None and time.monotonic() - start >= wait:
                os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.0005)

    return kill


def _wrong_after(desk: Path, sound: Path, name: str, killed: bool, ended: Ended, whole: Whole) -> list[str]:
    sources = ("model", "rows.npy", "shrunk")
    wrong = [f"{part} was changed" for part in sources if folder(desk / part) != folder(sound / part)]
    if not killed and ended.code != 0:
        wrong.append(f"exit {ended.code}: {ended.err[-200:]}")
    found = folder(desk / "out")
    if found and found not in whole.states:
        wrong.append(f"half a target: {_differing(found, whole.last)}")
    if not found and name in ("resume", "replace"):
        wrong.append("the target that stood there is gone")
    return wrong


def folder(path: Path) -> Folder:
    """Everything below a folder by relative path, or a page alone, but for its date; empty if there is nothing."""
    if path.is_file():
        return {path.name: _DATE.sub(b"", path.read_bytes())}
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def _differing(a: Folder, b: Folder) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _unfinished(desk: Path) -> list[str]:
    return [entry.name for entry in os.scandir(desk) if _MARK in entry.name]
