"""Readers of strangers' files on spoiled ones: an error of this package, or a value; nothing else, ever.

The short form of `python -m benchmarks.trust malformed`: sound files in `corpus/`, spoiled by Hypothesis.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaeprune.data.images import load_images
from vaeprune.data.sources import FileSource
from vaeprune.errors import VaepruneError
from vaeprune.model_folder import load
from vaeprune.storage import read_json, read_tensors
from vaeprune.surgery.plan import read_plan
from vaeprune.training import History

CORPUS = Path(__file__).parent / "corpus"
brief = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 10**400, 1e308])
texts = st.text(max_size=20) | st.sampled_from(["../../x", "/etc/passwd", "os:system", "\x1b[31m", "dense"])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoiled_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Up to four runs of bytes replaced, left out or put in, and perhaps the end cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        gone = draw(st.sampled_from([0, 1, 1, 4, 40]))
        found[at : at + gone] = draw(st.binary(max_size=8))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


@st.composite
def spoiled_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Some entry, however deep, replaced, left out or joined by another."""
    entry = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        owner = entry
        while True:
            keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(owner[key], (dict, list)) and draw(st.booleans()):
                owner = owner[key]
                continue
            how = draw(st.sampled_from(["replace", "leave out", "join"]))
            if how == "leave out":
                del owner[key]
            elif how == "replace":
                owner[key] = draw(values)
            elif isinstance(owner, dict):
                owner[draw(texts)] = draw(values)
            else:
                owner.insert(key, draw(values))
            break
    return json.dumps(entry).encode("utf-8", "surrogatepass")


def read(what: Callable[[], Any]) -> None:
    """It may refuse in this package's words, on one line."""
    refusal: VaepruneError | None = None
    try:
        what()
    except VaepruneError as error:
        refusal = error
    assert refusal is None or (refusal.message and str(refusal).isprintable())


def rows_of(path: Path) -> int:
    return sum(len(block[0]) for block in FileSource(path).blocks())


JSON_READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": load,
    "history.json": lambda folder: History.from_json(read_json(folder / "history.json", "history"), "history.json"),
    "plan.json": read_plan,
}
BYTE_READERS: dict[str, Callable[[Path], Any]] = {
    **JSON_READERS,
    "model.safetensors": load,
    "plan.safetensors": lambda folder: read_tensors(folder / "plan.safetensors"),
    "rows.npy": lambda folder: rows_of(folder / "rows.npy"),
    "rows.npz": lambda folder: rows_of(folder / "rows.npz"),
    "picture.png": load_images,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the sound files."""
    for path in CORPUS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", BYTE_READERS)
def test_the_sound_files_are_read(folder: Path, name: str) -> None:
    assert BYTE_READERS[name](folder) is not None


@pytest.mark.parametrize("name", BYTE_READERS)
@given(data=st.data())
@brief
def test_spoiled_bytes_are_read_or_refused(folder: Path, name: str, data: st.DataObject) -> None:
    (folder / name).write_bytes(data.draw(spoiled_bytes((CORPUS / name).read_bytes())))
    read(lambda: BYTE_READERS[name](folder))


@pytest.mark.parametrize("name", JSON_READERS)
@given(data=st.data())
@brief
def test_spoiled_entries_are_read_or_refused(folder: Path, name: str, data: st.DataObject) -> None:
    (folder / name).write_bytes(data.draw(spoiled_json((CORPUS / name).read_bytes())))
    read(lambda: JSON_READERS[name](folder))
