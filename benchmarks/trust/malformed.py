"""Malformed inputs: whatever a file or a command line holds, one line of error or a right result.

Each input is made from a sound one by its number alone, so any of them can be made again. A child counts as hung
after ten seconds of its own time, or twenty minutes of everybody's.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trust import materials
from benchmarks.trust.campaigns import Ledger, joined, show
from benchmarks.trust.forking import Ended, command, prepare, rehearse
from benchmarks.trust.mutations import (
    ODD_NUMBERS,
    ODD_TEXTS,
    bomb_png,
    bytes_changed,
    json_changed,
    npy_changed,
    npz_changed,
    pickled,
    safetensors_changed,
)

MOST_SECONDS, MOST_BYTES = 10.0, 2 << 30
_PIECE = 50
_READERS = (
    ("encode", "model", "--data", "rows.npy", "--out", "out"),
    ("analyze", "model", "--data", "rows.npy", "--ablate", "none"),
    ("analyze", "model", "--data", "rows.npy"),
    ("train", "--resume", "--out", "model", "--epochs", "3", "--quiet"),
    ("grow", "model", "--latent", "5", "--data", "rows.npy", "--out", "out"),
    ("verify", "model", "shrunk", "--data", "rows.npy"),
)
_ON_ROWS = (
    ("encode", "model", "--out", "out", "--data"),
    ("analyze", "model", "--ablate", "none", "--data"),
    ("train", "--hidden", "4", "--latent", "2", "--epochs", "1", "--quiet", "--out", "out", "--data"),
    ("encode", "model", "--out", "out", "--condition", "labels", "--data"),
)


def campaign(ledger: Ledger, count: int) -> None:
    """Run them and print the result."""
    with tempfile.TemporaryDirectory() as name:
        prepare()
        sound = Path(name) / "sound"
        sound.mkdir()
        materials.make(sound)
        _refuse_unsound(sound, Path(name))
        found = ledger.pieces(count, _PIECE, lambda which: _piece(sound, Path(name), ledger.seed, which))
    wrong = joined(found, "wrong")
    for entry in wrong[:20]:
        print(f"    {entry}")
    exits = {code: sum(piece["exits"].get(code, 0) for piece in found) for code in ("0", "1", "2", "130")}
    print(f"exit codes: {exits}")
    show("malformed inputs", "20,000", f"{sum(piece['inputs'] for piece in found):,}")
    for flaw, what in FLAWS.items():
        show(what, "0", str(sum(flaw in entry["flaws"] for entry in wrong)))
    show("longest, seconds of its own time", "10", f"{max(piece['longest'] for piece in found):.1f}")
    show("largest, bytes in memory", "2 GB", f"{max(piece['largest'] for piece in found) / 1e9:.2f} GB")


FLAWS = {
    "traceback": "tracebacks, or errors nobody expected",
    "hang": "hangs over 10 s",
    "memory": "processes over 2 GB",
    "outside": "files outside the target",
    "executed": "code executed",
    "report": "other exit codes, or errors that are not one line",
}


def _refuse_unsound(sound: Path, room: Path) -> None:
    """The campaign says nothing where a command fails on sound files already; a cut that fails its gates is none."""
    desk = room / "desk"
    for words in (*_READERS, *_PLANS, *((*words, "rows.npy") for words in _ON_ROWS[:3]), (*_ON_ROWS[0], "pictures")):
        shutil.copytree(sound, desk)
        ended = rehearse(words, desk)
        shutil.rmtree(desk)
        if ended.code not in (0, 1) or (ended.code == 1 and words[0] not in ("verify", "shrink")):
            raise SystemExit(f"{' '.join(words)}: exit {ended.code} on sound files: {ended.err[-300:]}")


def _piece(sound: Path, room: Path, seed: int, which: range) -> dict[str, Any]:
    wrong: list[dict[str, Any]] = []
    exits: dict[str, int] = {}
    longest, largest = 0.0, 0
    for number in which:
        desk, canary = room / "desk", room / "canary"
        rng = random.Random(f"{seed}:{number}")
        kind = rng.choice(list(KINDS))
        shutil.copytree(sound, desk, ignore=None if kind == "pictures" else shutil.ignore_patterns("pictures"))
        words = KINDS[kind](rng, desk, canary)
        before = _contents(desk)
        ended = command(words, desk, limit=1200)
        target = words[words.index("--out") + 1] if "--out" in words and kind != "command line" else ""
        flaws = _flaws(ended, words, before, desk, target)
        if canary.exists():
            flaws.append("executed")
            canary.unlink()
        strays = sorted(p.name for p in room.iterdir() if p.name not in ("sound", "desk", "tmp"))
        strays += [p for p in ("/tmp/outside", "/tmp/outside.npy") if Path(p).exists()]
        if strays:
            flaws.append("outside")
        if flaws:
            said = ended.err[-300:]
            wrong.append({"number": number, "kind": kind, "words": repr(words)[:300], "flaws": flaws, "said": said})
        exits[str(ended.code)] = exits.get(str(ended.code), 0) + 1
        longest, largest = max(longest, ended.cpu), max(largest, ended.peak)
        shutil.rmtree(desk)
    return {"inputs": len(which), "wrong": wrong, "exits": exits, "longest": longest, "largest": largest}


def _flaws(ended: Ended, words: list[str], before: dict[str, bytes], desk: Path, target: str) -> list[str]:
    flaws = []
    if "Traceback" in ended.err or "this is a bug" in ended.err:
        flaws.append("traceback")
    if ended.late or ended.cpu > MOST_SECONDS:
        flaws.append("hang")
    if ended.peak > MOST_BYTES:
        flaws.append("memory")
    errors = [line for line in ended.err.splitlines() if line.startswith("vaeprune: error: ")]
    if ended.code not in (0, 1, 2) or (ended.code == 2) != (len(errors) == 1) or not _printable(ended):
        flaws.append("report")
    after = _contents(desk)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    allowed = {name for name in changed if target and (name == target or name.startswith(f"{target}/"))}
    if words and words[0] == "train" and ended.code == 0:
        allowed |= {name for name in changed if name.startswith("model/")}
    if changed - allowed and target:
        flaws.append("outside")
    return flaws


def _printable(ended: Ended) -> bool:
    return all(c.isprintable() or c == "\n" for c in ended.err + ended.out if not "\udc80" <= c <= "\udcff")


def _contents(desk: Path) -> dict[str, bytes]:
    return {str(p.relative_to(desk)): p.read_bytes() for p in desk.rglob("*") if p.is_file() and not p.is_symlink()}


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _json_file(name: str, commands: tuple[tuple[str, ...], ...]) -> Callable[..., list[str]]:
    def make(rng: random.Random, desk: Path, canary: Path) -> list[str]:
        _rewrite(desk / name, json_changed(rng, (desk / name).read_text()))
        return list(rng.choice(commands))

    return make


def _tensors(rng: random.Random, desk: Path, canary: Path) -> list[str]:
    name = rng.choice(("model/model.safetensors", "model/training_state.safetensors", "shrunk/plan.safetensors"))
    _rewrite(desk / name, safetensors_changed(rng, (desk / name).read_bytes(), canary))
    if name.startswith("shrunk"):
        return list(_PLANS[rng.randrange(2)])
    return list(_READERS[3] if "state" in name else rng.choice(_READERS))


def _checkpoint(rng: random.Random, desk: Path, canary: Path) -> list[str]:
    name = rng.choice(("ckpt.pt", "ckpt.bin", "ckpt.safetensors"))
    content = pickled(rng, canary)
    (desk / name).write_bytes(content if rng.random() < 0.7 else bytes_changed(rng, content))
    factory = "vaeprune.architectures.dense:DenseVAE"
    sizes = ("--model-arg", "input_shape=12,", "--model-arg", "encoder_widths=8,", "--model-arg", "decoder_widths=8,")
    return [
        "encode",
        factory,
        "--weights",
        name,
        *sizes,
        "--model-arg",
        "latent_size=3",
        "--data",
        "rows.npy",
        "--out",
        "out",
    ]


def _array(rng: random.Random, desk: Path, canary: Path) -> list[str]:
    rows = np.load(desk / "rows.npy")
    name, make = rng.choice((("bad.npy", npy_changed), ("bad.npz", npz_changed)))
    (desk / name).write_bytes(make(rng, rows, canary))
    return [*rng.choice(_ON_ROWS), name]


def _pictures(rng: random.Random, desk: Path, canary: Path) -> list[str]:
    from PIL import Image

    pictures = desk / "pictures"
    how = rng.randrange(6)
    victim = pictures / f"{rng.randrange(100):03}.png"
    if how == 0:
        _rewrite(victim, bytes_changed(rng, victim.read_bytes()))
    elif how == 1:
        suffix = rng.choice((".gif", ".bmp", ".tif", ".jpg", ".webp", ".ppm", ".pgm"))
        Image.open(victim).convert("RGB" if suffix == ".ppm" else "L").save(pictures / f"new{suffix}")
        _rewrite(pictures / f"new{suffix}", bytes_changed(rng, (pictures / f"new{suffix}").read_bytes()))
    elif how == 2:
        _rewrite(victim, bomb_png(rng.choice((1000, 4000, 12_000))))
    elif how == 3:
        mode = rng.choice(("I;16", "F", "P", "1", "LA", "RGBA", "CMYK", "RGB"))
        Image.new(mode, (4, 3)).save(pictures / f"new.{'tif' if mode in ('F', 'CMYK', 'I;16') else 'png'}")
    elif how == 4:
        name = rng.choice(("\x1b[31m.png", "a\nb.png", "<script>.png", "é.png", "-rf.png"))
        (pictures / name).write_bytes(bytes_changed(rng, victim.read_bytes()))
    else:
        (pictures / "link.png").symlink_to(
            rng.choice(("/dev/zero", "/etc/passwd", "..", "link.png", "nowhere", str(desk / "rows.npy")))
        )
    return [*rng.choice(_ON_ROWS[:3]), "pictures"]


def _command_line(rng: random.Random, desk: Path, canary: Path) -> list[str]:
    """A sound one with words replaced, left out, doubled, put in; no word names a place beyond the desk."""
    words = list(rng.choice((*_READERS, *_PLANS, *((*w, "rows.npy") for w in _ON_ROWS))))
    texts = [
        t for t in (*ODD_TEXTS, *map(str, ODD_NUMBERS), "nan", "inf", *_OPTIONS) if not set("\0/") & set(t)
    ]  # no place beyond the desk
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(1, len(words) + 1)
        how = rng.randrange(4)
        if how == 0:
            words[at : at + 1] = [rng.choice(texts)]
        elif how == 1:
            del words[at : at + 1]
        elif how == 2:
            words[at:at] = [rng.choice(_OPTIONS), rng.choice(texts)]
        else:
            words[at:at] = [rng.choice(texts)]
    return words


_PLANS = (
    ("verify", "model", "shrunk", "--data", "rows.npy"),
    ("shrink", "model", "--data", "rows.npy", "--plan", "shrunk/plan.json", "--dry-run"),
    ("shrink", "model", "--data", "rows.npy", "--plan", "shrunk/plan.json", "--out", "out"),
)
_OPTIONS = (
    "--data", "--out", "--rows", "--seed", "--ablate", "--max-variance", "--tolerance", "--keep", "--remove", "--scope",
    "--budget", "--for", "--plan", "--json", "--quiet", "--force", "--device", "--held-out", "--condition", "--weights",
    "--model-arg", "--factory", "--input-shape", "--input-range", "--spread", "--likelihood", "--scale", "--latent",
    "--warm-up", "--epochs", "--batch-size", "--learning-rate", "--beta", "--hidden", "--resume", "--objective",
    "--help",
)  # fmt: skip
KINDS: dict[str, Callable[[random.Random, Path, Path], list[str]]] = {
    "config.json": _json_file("model/config.json", _READERS),
    "history.json": _json_file("model/history.json", (_READERS[1], _READERS[3])),
    "plan.json": _json_file("shrunk/plan.json", (*_PLANS[:2], *_PLANS)),
    "safetensors": _tensors,
    "checkpoint": _checkpoint,
    "array": _array,
    "pictures": _pictures,
    "command line": _command_line,
}
