from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import importlib
import pickle
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vaeprune.data import torchvision_shim
from vaeprune.data.torchvision_sets import default_folder, load
from vaeprune.data.torchvision_shim import import_torchvision
from vaeprune.errors import DataError

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
GENERATOR = np.random.default_rng(0)
TRAIN = GENERATOR.integers(0, 256, (5, 28, 28), dtype=np.uint8)
TEST = GENERATOR.integers(0, 256, (3, 28, 28), dtype=np.uint8)


def idx(x: NDArray[np.uint8], kind: int = 8) -> bytes:
    """The format of the MNIST files: magic, sizes, bytes."""
    return struct.pack(f">HBB{x.ndim}I", 0, kind, x.ndim, *x.shape) + x.tobytes()


def raw_files(train: NDArray[np.uint8] = TRAIN, test: NDArray[np.uint8] = TEST) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(train),
        "train-labels-idx1-ubyte": idx(np.zeros(len(train), np.uint8)),
        "t10k-images-idx3-ubyte": idx(test),
        "t10k-labels-idx1-ubyte": idx(np.zeros(len(test), np.uint8)),
    }


def put_raw(folder: Path, name: str = "mnist", **other: bytes) -> Path:
    """Lay the files where torchvision looks for them; returns the folder of raw files."""
    raw = folder / CLASSES[name] / "raw"
    raw.mkdir(parents=True)
    for file, content in (raw_files() | {k.replace("_", "-"): v for k, v in other.items()}).items():
        (raw / file).write_bytes(content)
    return raw


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


def serve(handler: Any) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def www(tmp_path: Path) -> Path:
    """What the mirror serves."""
    folder = tmp_path / "www"
    folder.mkdir()
    for name, content in raw_files().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def mirror(www: Path) -> Iterator[str]:
    yield from serve(functools.partial(Quiet, directory=str(www)))


Point = Callable[[str, str], None]


@pytest.fixture
def point(www: Path, monkeypatch: pytest.MonkeyPatch) -> Point:
    """Let torchvision fetch from an address, with the checksums of what the mirror holds."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def set_mirror(name: str, address: str) -> None:
        dataset = getattr(import_torchvision("datasets"), CLASSES[name])
        sums = [(f"{file}.gz", hashlib.md5((www / f"{file}.gz").read_bytes()).hexdigest()) for file in raw_files()]
        monkeypatch.setattr(dataset, "mirrors", [address])
        monkeypatch.setattr(dataset, "resources", sums)

    return set_mirror


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/"


def check(train: torch.Tensor, test: torch.Tensor) -> None:
    assert train.dtype == test.dtype == torch.uint8
    assert np.array_equal(train.numpy(), TRAIN)
    assert np.array_equal(test.numpy(), TEST)


# Present


@pytest.mark.mnist
def test_mnist_has_60000_and_10000_digits(mnist_folder: Path) -> None:
    train, test = load("mnist", mnist_folder)
    assert (train.shape, test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    for images, name in ((train, "train"), (test, "t10k")):
        raw = (mnist_folder / "MNIST" / "raw" / f"{name}-images-idx3-ubyte").read_bytes()
        assert struct.unpack(">4I", raw[:16]) == (2051, len(images), 28, 28)
        assert images.numpy().tobytes() == raw[16:]


@pytest.mark.parametrize("name", CLASSES)
def test_files_that_are_there_are_read_and_nothing_is_fetched(
    tmp_path: Path, name: str, point: Point, closed_port: str
) -> None:
    point(name, closed_port)
    put_raw(tmp_path, name)
    check(*load(name, tmp_path))


def test_the_folder_comes_from_the_environment_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Point, closed_port: str
) -> None:
    point("mnist", closed_port)
    put_raw(tmp_path / "data")
    monkeypatch.setenv("VAEPRUNE_DATA_DIR", str(tmp_path / "data"))
    check(*load("mnist", None))


def test_the_default_folder_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAEPRUNE_DATA_DIR", str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named"
    monkeypatch.setenv("VAEPRUNE_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "vaeprune" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "vaeprune" / "datasets"


# Fetched


@pytest.mark.parametrize("name", CLASSES)
def test_missing_files_are_fetched_once_and_then_read(
    tmp_path: Path, name: str, point: Point, mirror: str, closed_port: str, capfd: pytest.CaptureFixture[str]
) -> None:
    point(name, mirror)
    check(*load(name, tmp_path / "data"))
    assert (tmp_path / "data" / CLASSES[name] / "raw" / "train-images-idx3-ubyte").read_bytes() == idx(TRAIN)
    assert capfd.readouterr().out == "", "stdout is for data"
    point(name, closed_port)
    check(*load(name, tmp_path / "data"))


def test_a_fetch_that_failed_half_way_is_taken_up_again(tmp_path: Path, www: Path, point: Point, mirror: str) -> None:
    point("mnist", mirror)
    late = www / "t10k-images-idx3-ubyte.gz"
    whole = late.read_bytes()
    late.write_bytes(whole[:100])
    with pytest.raises(DataError, match="Error downloading t10k-images-idx3-ubyte"):
        load("mnist", tmp_path / "data")
    late.write_bytes(whole)
    check(*load("mnist", tmp_path / "data"))


def test_neither_there_nor_to_be_had_is_one_line_of_error(tmp_path: Path, point: Point, closed_port: str) -> None:
    point("mnist", closed_port)
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)
    assert caught.value.message.startswith(f"mnist: not in {tmp_path} and cannot be downloaded or read: ")
    assert f"Tried {closed_port}" in caught.value.message
    assert "Connection refused" in caught.value.message
    assert caught.value.hint == "put torchvision's MNIST/raw folder there or name another folder with --data-dir"
    assert "\n" not in str(caught.value)


def test_a_file_with_another_checksum_is_refused(tmp_path: Path, www: Path, point: Point, mirror: str) -> None:
    point("mnist", mirror)
    (www / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(TEST)))
    with pytest.raises(DataError, match="File not found or corrupted"):
        load("mnist", tmp_path / "data")


class Nonsense(socketserver.StreamRequestHandler):
    """What stands on the port does not speak HTTP."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"220 mail.example.org ESMTP\r\n")


class TooShort(Quiet):
    """The connection ends in the middle of the file."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"half")


class Chunked(Quiet):
    """The connection ends in the middle of a chunk."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nhalf")


@pytest.mark.parametrize("handler", [Nonsense, TooShort, Chunked])
def test_a_mirror_that_talks_nonsense_is_one_line_of_error(tmp_path: Path, point: Point, handler: Any) -> None:
    server = serve(handler)
    point("mnist", next(server))
    try:
        with pytest.raises(DataError, match=f"mnist: not in {tmp_path} and cannot be downloaded or read: "):
            load("mnist", tmp_path)
    finally:
        next(server, None)


# Damaged


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"not an idx file at all",
        idx(TRAIN)[:-1000],
        idx(TRAIN)[:16],
        idx(TRAIN, kind=9),
        idx(TRAIN, kind=10),
        idx(TRAIN, kind=200),
        idx(TRAIN.reshape(5, 784)),
        idx(TRAIN.reshape(5, 2, 14, 28)),
        idx(TRAIN.reshape(5, 14, 56)),
        idx(TRAIN[:0]),
    ],
    ids=[
        "empty", "two bytes", "text", "truncated", "header only", "int8", "unknown type", "type 200", "two axes",
        "four axes", "14x56", "no images",
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line_of_error(tmp_path: Path, content: bytes) -> None:
    raw = put_raw(tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)
    assert caught.value.message.startswith("mnist: ")
    assert str(tmp_path) in caught.value.message


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("whole", [True, False], ids=["raw files whole", "raw file damaged"])
def test_torchvisions_old_pickles_are_never_unpickled(tmp_path: Path, whole: bool) -> None:
    raw = put_raw(tmp_path)
    if not whole:
        (raw / "train-images-idx3-ubyte").write_bytes(idx(TRAIN)[:-1])
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=2))
    if whole:
        assert np.array_equal(load("mnist", tmp_path)[0].numpy(), TRAIN)
    else:
        with pytest.raises(DataError, match="cannot be downloaded or read"):
            load("mnist", tmp_path)
    assert not (tmp_path / "canary").exists()


def test_files_at_hand_are_read_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> None:
        raise AssertionError(f"torchvision.{name} was imported")

    monkeypatch.setattr("vaeprune.data.torchvision_sets.import_torchvision", imported)
    for name in CLASSES:
        put_raw(tmp_path, name)
        train, test = load(name, tmp_path)
        assert np.array_equal(train.numpy(), TRAIN)
        assert np.array_equal(test.numpy(), TEST)


# Importing torchvision


def test_datasets_can_be_imported_beside_any_torch() -> None:
    assert import_torchvision("datasets").MNIST.__name__ == "MNIST"
    assert import_torchvision("datasets") is import_torchvision("datasets")


def test_missing_operators_are_declared_and_the_import_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    declared: list[tuple[str, str]] = []
    real = importlib.import_module

    def fail_until_declared(name: str) -> Any:
        if len(declared) < 2:
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(torchvision_shim.importlib, "import_module", fail_until_declared)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: declared.append((name, schema)))
    assert import_torchvision("datasets").__name__ == "torchvision.datasets"
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert declared == [("torchvision::nms", schema), ("torchvision::qnms", schema)]


def test_an_import_that_fails_otherwise_is_not_hushed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(torchvision_shim.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision("datasets")
