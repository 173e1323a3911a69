from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from holes import HUGE, SOME, hole, peak
from vaeprune import storage
from vaeprune.errors import StorageError
from vaeprune.storage import (
    new_file,
    new_folder,
    read_json,
    read_tensors,
    refuse_existing,
    refuse_foreign_folder,
    refuse_non_finite,
    weights_sha256,
    write_json,
    write_tensors,
)


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model folder, as far as storage can tell, with one file more."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"format": 1, "architecture": {"name": "dense"}, "likelihood": {}}')
    (folder / "old.txt").write_text("old")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk looks like: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# New folders


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "model"
    with new_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert folder.parent == target.parent
        assert not target.exists()
    assert contents(target) == {"a.txt": b"a"}
    assert names(target.parent) == ["model"]


@pytest.mark.parametrize("wrong", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_inside_leaves_nothing(tmp_path: Path, wrong: BaseException) -> None:
    def write() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "a.txt").write_text("a")
            raise wrong

    with pytest.raises(type(wrong)):
        write()
    assert names(tmp_path) == []


def test_the_old_folder_stays_when_its_replacement_fails(tmp_path: Path, model_folder: Path) -> None:
    before = contents(model_folder)

    def write() -> None:
        with new_folder(model_folder, force=True) as folder:
            (folder / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert contents(model_folder) == before
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
def test_force_replaces_the_whole_folder(
    tmp_path: Path, model_folder: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not atomic:
        monkeypatch.setattr(storage, "_exchange", lambda a, b: False)
    with new_folder(model_folder, force=True) as folder:
        (folder / "new.txt").write_text("new")
        assert (model_folder / "old.txt").exists()
    assert contents(model_folder) == {"new.txt": b"new"}
    assert names(tmp_path) == ["model"]


def test_two_renames_of_which_the_second_fails_put_the_old_folder_back(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(model_folder)
    rename = Path.rename

    def fail_on_the_second(self: Path, target: Path) -> Path:
        if Path(target) == model_folder and "-old" not in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(storage, "_exchange", lambda a, b: False)
    monkeypatch.setattr(Path, "rename", fail_on_the_second)
    with pytest.raises(StorageError, match="cannot be written: Input/output error"), new_folder(model_folder, True):
        pass
    assert model_folder.is_dir(), "the old folder is gone"
    assert contents(model_folder) == before


def test_an_empty_folder_may_be_replaced_with_force(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with new_folder(tmp_path / "model", force=True) as folder:
        (folder / "a.txt").write_text("a")
    assert contents(tmp_path / "model") == {"a.txt": b"a"}


def test_an_existing_folder_is_refused_without_force(model_folder: Path) -> None:
    before = contents(model_folder)
    with pytest.raises(StorageError) as caught, new_folder(model_folder):
        pytest.fail("entered")
    assert caught.value.message == f"{model_folder}: already exists"
    assert caught.value.hint == "choose another name or pass --force to replace it"
    assert contents(model_folder) == before


def test_a_folder_that_appears_meanwhile_is_not_replaced_without_force(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write() -> None:
        with new_folder(target) as folder:
            (folder / "mine.txt").write_text("mine")
            target.mkdir()
            (target / "theirs.txt").write_text("theirs")

    with pytest.raises(StorageError):
        write()
    assert contents(target) == {"theirs.txt": b"theirs"}


def test_force_refuses_a_folder_that_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(StorageError) as caught, new_folder(tmp_path / "photos", force=True):
        pytest.fail("entered")
    assert caught.value.message == f"{tmp_path / 'photos'}: is not empty and not a model folder"
    assert caught.value.hint == "--force replaces model folders only; remove it first"
    assert contents(tmp_path / "photos") == {"cat.png": b"cat"}


@pytest.mark.parametrize(
    "config",
    ['{"compilerOptions": {}}', '{"_class_name": "AutoencoderKL"}', "[]", "[" * 100_000],
    ids=["tsconfig", "diffusers", "a list", "deep"],
)
def test_force_refuses_a_folder_with_somebody_elses_config(tmp_path: Path, config: str) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text(config)
    (tmp_path / "project" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="not a model folder"):
        refuse_foreign_folder(tmp_path / "project")


def test_force_refuses_to_replace_a_file_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(StorageError), new_folder(tmp_path / "model", force=True):
        pass
    assert (tmp_path / "model").read_text() == "a file"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("new", [new_folder, new_file])
def test_a_symbolic_link_is_refused_also_with_force(tmp_path: Path, model_folder: Path, new: Any) -> None:
    link = tmp_path / "link"
    link.symlink_to(model_folder)
    with pytest.raises(StorageError) as caught, new(link, force=True):
        pytest.fail("entered")
    assert str(caught.value) == f"{link}: is a symbolic link; name the folder itself"
    with pytest.raises(StorageError, match="already exists"), new(link):
        pytest.fail("entered")
    assert link.is_symlink()
    assert (model_folder / "old.txt").exists()


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="already exists"):
        refuse_existing(tmp_path / "link", force=False)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        refuse_existing(tmp_path / "file" / "model", force=True)
    assert caught.value.message == f"{tmp_path / 'file'}: is a file, expected a folder to write model into"


def test_a_folder_below_a_file_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "deeper" / "model"
    with pytest.raises(StorageError, match=r"model: cannot be written: Not a directory"), new_folder(target):
        pytest.fail("entered")


def test_a_new_folder_is_as_readable_as_the_umask_lets_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "model"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_the_old_folder(
    tmp_path: Path, model_folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    before = contents(model_folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught, new_folder(model_folder, force=True) as folder:
        (folder / "a.txt").write_text("a")
    assert caught.value.message == f"{model_folder}: cannot be written: {os.strerror(number)}"
    assert caught.value.hint == "free some space and run again"
    assert contents(model_folder) == before
    assert names(tmp_path) == ["model"]


def test_weights_that_do_not_fit_on_the_disk_leave_the_old_folder(tmp_path: Path, model_folder: Path) -> None:
    before = contents(model_folder)
    refused = pytest.raises(StorageError, match="model: cannot be written")
    with largest_file(10_000), refused, new_folder(model_folder, force=True) as folder:
        write_tensors(folder / "model.safetensors", {"w": torch.zeros(100_000)})
    assert contents(model_folder) == before
    assert names(tmp_path) == ["model"]


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_folder(model_folder: Path) -> None:
    before = contents(model_folder)
    script = (
        "import os, signal, sys, pathlib\n"
        "from vaeprune.storage import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1]), force=True) as folder:\n"
        "    (folder / 'config.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(model_folder)]).returncode == -9
    assert contents(model_folder) == before


# New files


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "z.npy"
    with new_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert contents(tmp_path) == {"z.npy": b"new"}


def test_the_old_file_stays_when_its_replacement_fails(tmp_path: Path) -> None:
    (tmp_path / "z.npy").write_text("old")

    def write() -> None:
        with new_file(tmp_path / "z.npy", force=True) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert contents(tmp_path) == {"z.npy": b"old"}


def test_an_existing_file_is_refused_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    (tmp_path / "z.npy").write_text("old")
    with pytest.raises(StorageError, match=r"z\.npy: already exists"), new_file(tmp_path / "z.npy"):
        pytest.fail("entered")
    with new_file(tmp_path / "z.npy", force=True) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"z.npy": b"new"}


def test_a_file_that_appears_meanwhile_is_not_replaced_without_force(tmp_path: Path) -> None:
    def write() -> None:
        with new_file(tmp_path / "z.npy") as temporary:
            temporary.write_text("mine")
            (tmp_path / "z.npy").write_text("theirs")

    with pytest.raises(StorageError):
        write()
    assert contents(tmp_path) == {"z.npy": b"theirs"}


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "z.npy").mkdir()
    with pytest.raises(StorageError) as caught, new_file(tmp_path / "z.npy", force=True):
        pytest.fail("entered")
    assert caught.value.message == f"{tmp_path / 'z.npy'}: is a folder, expected a file name"


def test_a_file_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "z.npy").write_text("old")
    refused = pytest.raises(StorageError, match=r"z\.npy: cannot be written: File too large")
    with largest_file(1000), refused, new_file(tmp_path / "z.npy", force=True) as temporary:
        temporary.write_bytes(bytes(10_000))
    assert contents(tmp_path) == {"z.npy": b"old"}


# JSON


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\n"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "plan") == value
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("}\n")
    assert json.loads((tmp_path / "x.json").read_bytes()) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": value})


def test_missing_json_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_json(tmp_path / "plan.json", "plan")
    assert caught.value.message == f"{tmp_path / 'plan.json'}: no such file, expected the plan"


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1', "{'a': 1}", '{"a": NaN}', "[-Infinity]", "[" * 100_000, "1" * 5000, '{"a": 1} x']
)
def test_damaged_json_is_one_line_of_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StorageError) as caught:
        read_json(tmp_path / "plan.json", "plan")
    assert caught.value.message.startswith(f"{tmp_path / 'plan.json'}: is not valid JSON: ")
    assert caught.value.hint == "restore the plan from its source"


def test_json_that_is_not_text_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError, match="cannot be read as the plan"):
        read_json(tmp_path / "plan.json", "plan")
    with pytest.raises(StorageError, match="cannot be read as the plan"):
        read_json(tmp_path, "plan")


# Tensors


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    w = torch.arange(12, dtype=torch.float32).view(3, 4)
    tensors = {
        "w": w,
        "tied": w,
        "transposed": w.T,
        "strided": w[:, ::2],
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "learnt": torch.nn.Parameter(torch.tensor([1e-40, -0.0])),
    }
    write_tensors(tmp_path / "t", tensors)
    found = read_tensors(tmp_path / "t")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.detach()), name


def test_truncated_tensors_are_refused_at_every_length(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", {"a": torch.ones(3, 4), "b": torch.ones(5)})
    whole = (tmp_path / "whole").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(StorageError) as caught:
            read_tensors(tmp_path / "cut")
        assert caught.value.message.startswith(f"{tmp_path / 'cut'}: is not a complete safetensors file")
        assert caught.value.hint == "it may be truncated; copy it again"


def test_a_header_that_promises_terabytes_is_refused(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "t").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(StorageError, match="is not a complete safetensors file"):
        read_tensors(tmp_path / "t")
    (tmp_path / "t").write_bytes((2**60).to_bytes(8, "little") + header)
    with pytest.raises(StorageError, match="is not a complete safetensors file"):
        read_tensors(tmp_path / "t")


@pytest.mark.parametrize("name", ["nothing", "."])
def test_tensors_that_are_not_there_are_one_line_of_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError) as caught:
        read_tensors(tmp_path / name)
    assert caught.value.message == f"{tmp_path / name}: no such file, expected safetensors"


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_never_unpickled(tmp_path: Path, save: Any) -> None:
    canary = tmp_path / "canary"
    save({"w": Canary(canary)}, tmp_path / "t")
    with pytest.raises(StorageError, match="is not a complete safetensors file"):
        read_tensors(tmp_path / "t")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "a canary that cannot sing proves nothing"


def test_nan_and_infinity_are_named() -> None:
    tensors = {
        "a": torch.tensor([1.0, float("nan")]),
        "fine": torch.ones(2),
        "count": torch.tensor(3),
        "b": torch.tensor([float("-inf")], dtype=torch.float16),
    }
    with pytest.raises(StorageError) as caught:
        refuse_non_finite(tensors, "model.safetensors")
    assert caught.value.message == "model.safetensors: NaN or infinite values in a, b"
    refuse_non_finite({"fine": torch.ones(2)}, "model.safetensors")


# The identity of weights


def digest(entries: list[tuple[str, str, str, bytes]]) -> str:
    return hashlib.sha256(b"".join(f"{n}\0{t}\0{s}\0".encode() + b for n, t, s, b in entries)).hexdigest()


def test_the_sha256_is_over_names_types_shapes_and_bytes_in_order_of_name() -> None:
    w, n = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5)
    expected = digest(
        [("n", "torch.int64", "()", n.numpy().tobytes()), ("w", "torch.float32", "(2, 2)", w.numpy().tobytes())]
    )
    assert weights_sha256({"w": w, "n": n}) == weights_sha256({"n": n, "w": w}) == expected


def test_the_sha256_does_not_see_strides_or_gradients() -> None:
    w = torch.arange(24.0).view(1, 2, 3, 4)
    expected = weights_sha256({"w": w})
    assert weights_sha256({"w": w.to(memory_format=torch.channels_last)}) == expected
    assert weights_sha256({"w": torch.nn.Parameter(w)}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.tensor([1.0, 2.0])},
        {"w": torch.tensor([1.0, 2.0000002])},
        {"w": torch.tensor([[1.0, 2.0]])},
        {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"w": torch.tensor([1.0, 2.0]), "x": torch.tensor([])},
    ],
)
def test_the_sha256_sees_every_other_difference(other: dict[str, Tensor]) -> None:
    assert weights_sha256(other) != weights_sha256({"w": torch.tensor([1.0, 2.0])})


def test_the_sha256_takes_every_kind_of_tensor() -> None:
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.int8):
        assert len(weights_sha256({"w": torch.ones(3, dtype=dtype)})) == 64


# Files that would be waited for, or that change


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "w.safetensors", {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5)})
    return tmp_path / "w.safetensors"


def test_tensors_stay_as_they_were_read_whatever_becomes_of_the_file(weights: Path) -> None:
    """A memory map would show the new values, or kill the process where the file is cut."""
    found = read_tensors(weights)
    content = weights.read_bytes()
    with weights.open("r+b") as file:
        file.seek(len(content) - 44)
        file.write(bytes(44))
        file.truncate(100)
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(found["b"], torch.ones(5))


@pytest.mark.parametrize("keep", [0, 8, 60, -1])
def test_a_file_that_is_cut_while_it_is_read_is_one_line_of_error(weights: Path, keep: int) -> None:
    def unplug(_: dict[str, Tensor]) -> None:
        with weights.open("r+b") as file:
            file.truncate(keep % weights.stat().st_size)

    with pytest.raises(StorageError, match="changed while it was read"):
        read_tensors(weights, unplug)


def test_a_file_that_promises_more_than_there_is_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole(tmp_path / "plan.safetensors", {"bias:w": HUGE})
    monkeypatch.setattr(storage, "_memory", lambda: 1 << 30)
    before = peak()
    with pytest.raises(StorageError) as caught:
        read_tensors(tmp_path / "plan.safetensors")
    assert caught.value.message.endswith(
        "promises 4,294,967,296 bytes, more than this machine's 1,073,741,824 of memory"
    )
    assert peak() - before < SOME


def test_what_a_check_of_shapes_raises_comes_before_any_value_is_read(weights: Path) -> None:
    def refuse(found: dict[str, Tensor]) -> None:
        raise StorageError(f"has {tuple(found['a'].shape)}")

    with pytest.raises(StorageError, match=r"has \(2, 3\)"):
        read_tensors(weights, refuse)


def header(entries: object, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header({}, 2**63 - 1),
        header({}, 200_000_000),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        header({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}}) + bytes(16),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(4),
        header(
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            }
        )
        + bytes(12),
        header({"a": {"dtype": "F32", "shape": [0], "data_offsets": [2**63, 2**63]}}),
        header(b"{" * 5000),
    ],
    ids=["2^63 header", "200 MB header", "4 TB", "overflow", "4 EB in 16 bytes", "negative", "backwards", "overlap",
         "beyond", "deep"],
)  # fmt: skip
def test_a_header_that_promises_what_is_not_there_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bomb").write_bytes(content)
    with pytest.raises(StorageError, match="is not a complete safetensors file"):
        read_tensors(tmp_path / "bomb")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(StorageError, match="is not a file, so it cannot be read as the config"):
        read_json(tmp_path / "config.json", "config")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(StorageError, match="no such file, expected safetensors"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_link_to_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="is not a file"):
        read_json(tmp_path / "config.json", "config")


def test_json_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(StorageError) as caught:
        read_json(tmp_path / "config.json", "config")
    assert caught.value.message.endswith("has 5,368,709,120 bytes, the config has at most 67,108,864")


# Places that may not be written


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that this process may read and not write, also where the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="vaeprune-forbidden-"))
    try:
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # nobody
        yield folder
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users here")
@pytest.mark.parametrize("new", [new_folder, new_file])
@pytest.mark.parametrize("name", ["model", "deep/model"])
def test_a_place_that_may_not_be_written_is_one_line_of_error(forbidden: Path, new: Any, name: str) -> None:
    with pytest.raises(StorageError) as caught, new(forbidden / name):
        pytest.fail("entered")
    assert str(caught.value) == f"{forbidden / name}: cannot be written: Permission denied"


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users here")
def test_files_that_may_not_be_read_are_one_line_of_error() -> None:
    folder = Path(tempfile.mkdtemp(prefix="vaeprune-forbidden-"))
    folder.chmod(0o755)
    try:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text("{}")
            (folder / name).chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        with pytest.raises(StorageError, match=r"config\.json: cannot be read as the config: .*Permission denied"):
            read_json(folder / "config.json", "config")
        with pytest.raises(StorageError, match=r"model\.safetensors: cannot be read: Permission denied"):
            read_tensors(folder / "model.safetensors")
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        shutil.rmtree(folder)
