"""The command line in process and as a process, and small model folders whose idle latents are planted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vaeprune.cli.__main__ import run

from taught import ROWS, planted
from vaeprune.architectures.dense import DenseVAE
from vaeprune.data import tiles
from vaeprune.model_folder import ModelFolder, write_model_folder
from vaeprune.training_run import Recipe

IDLE = (1, 4)


@dataclass(frozen=True)
class Ran:
    """A finished command line: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as the one JSON object it must be; anything beside it is a failure."""
        value = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert isinstance(value, dict)
        return value


Command = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _own_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in an empty folder of its own, off a terminal, without wishes about colour or tracebacks."""
    desk = tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    for name in ("NO_COLOR", "FORCE_COLOR", "VAEPRUNE_DEBUG", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def desk() -> Path:
    """The empty folder the test works in."""
    return Path.cwd()


@pytest.fixture
def vaeprune(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process."""

    def command(*words: object) -> Ran:
        capsys.readouterr()
        code = run([str(word) for word in words])
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return command


@pytest.fixture
def process() -> Command:
    """Run a command line as a process of its own, started by the command `within` if there is one."""

    def command(*words: object, within: Sequence[str] = (), **options: Any) -> Ran:
        done = subprocess.run(
            [*within, sys.executable, "-m", "vaeprune.cli", *map(str, words)],
            capture_output=True, encoding="utf-8", errors="surrogateescape", **options,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    return command


@pytest.fixture
def refused(vaeprune: Command, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Check a refusal: exit 2, one line on stderr, with --json an error object, nothing written anywhere.

    Gives back the error object.
    """

    def check(*words: object, told: Sequence[str] = ()) -> dict[str, str]:
        before = contents(tmp_path)
        plain = vaeprune(*words)
        assert_one_line_of_error(plain)
        assert plain.out == ""
        machine = vaeprune(*words, "--json")
        assert_one_line_of_error(machine)
        assert set(machine.json) == {"error"}
        error = machine.json["error"]
        assert set(error) == {"type", "message", "hint"}
        assert plain.err == f"vaeprune: error: {error['message']}" + (f"; {error['hint']}\n" if error["hint"] else "\n")
        assert error["type"] != "UnexpectedError", plain.err
        for words_told in told:
            assert words_told in plain.err
        assert contents(tmp_path) == before
        return error

    return check


def assert_one_line_of_error(ran: Ran) -> None:
    """Exit 2 and one printable line on stderr."""
    assert ran.code == 2, ran
    assert ran.err.startswith("vaeprune: error: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err[:-1].isprintable(), ran.err


@pytest.fixture
def contents_of() -> Callable[[Path], dict[str, bytes | None]]:
    """Everything below a folder by relative path: bytes of files, None for folders."""
    return contents


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- data


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what tests share and never change."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def rows(shelf: Path) -> Path:
    """600 pictures of tiles in an .npy file, uint8."""
    path = shelf / "rows.npy"
    np.save(path, tiles(ROWS, seed=5).numpy())
    return path


# --- models


@pytest.fixture(scope="session")
def recipe(rows: Path) -> Recipe:
    """The training that the planted models claim to come from."""
    return Recipe(data=str(rows), rows=100, hidden=(32, 16), latent=4, epochs=1)


@pytest.fixture(scope="session")
def idle_model(shelf: Path, recipe: Recipe) -> Path:
    """Six latents, of which 1 and 4 are idle."""
    return _written(shelf / "idle", planted(IDLE), recipe)


@pytest.fixture(scope="session")
def other_idle_model(shelf: Path) -> Path:
    """As `idle_model`, with other weights."""
    return _written(shelf / "other", planted(IDLE, seed=4), None)


@pytest.fixture(scope="session")
def busy_model(shelf: Path, recipe: Recipe) -> Path:
    """Four latents, all of them active."""
    return _written(shelf / "busy", planted((), latents=4), recipe)


@pytest.fixture(scope="session")
def collapsed_model(shelf: Path) -> Path:
    """Three latents, all of them idle."""
    return _written(shelf / "collapsed", planted((0, 1, 2), latents=3), None)


@pytest.fixture(scope="session")
def refused_model(shelf: Path, recipe: Recipe) -> Path:
    """A model trained without the KL, whose variances say nothing."""
    return _written(shelf / "no-kl", planted(IDLE), dataclasses.replace(recipe, kl="none"))


@pytest.fixture(scope="session")
def shrinking(shelf: Path, idle_model: Path, rows: Path) -> Ran:
    """`shrink` of the idle model on the rows, into the folder `shrunk`."""
    return _run_now("shrink", idle_model, "--data", rows, "--out", shelf / "shrunk", "--json")


@pytest.fixture(scope="session")
def shrunk(shelf: Path, shrinking: Ran) -> Path:
    """The folder that `shrinking` wrote."""
    assert shrinking.code == 0, shrinking
    return shelf / "shrunk"


@pytest.fixture(scope="session")
def training(shelf: Path, rows: Path) -> Path:
    """A model of 4 latents after two of three epochs' worth of training."""
    done = _run_now("train", "--data", rows, "--hidden", "16,8", "--latent", 4, "--epochs", 2, "--out", shelf / "two")
    assert done.code == 0, done
    return shelf / "two"


@pytest.fixture
def writing(idle_model: Path, rows: Path) -> Callable[..., tuple[object, ...]]:
    """The command line of each command that writes something, given where to, and perhaps the rows."""
    options: dict[str, tuple[object, ...]] = {
        "train": ("--hidden", "16,8", "--latent", 4, "--epochs", 1, "--quiet"),
        "grow": (idle_model, "--latent", 8),
    }

    def words(command: str, out: object, data: Path = rows) -> tuple[object, ...]:
        return (command, *options.get(command, (idle_model,)), "--data", data, "--out", out)

    return words


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a model folder that may be damaged."""

    def copy(folder: Path, name: str = "model") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copy


@pytest.fixture
def changed_config(copied: Callable[[Path], Path]) -> Callable[..., Path]:
    """A copy of a model folder with other entries in its config.json; None takes the file's place as it is."""

    def change(folder: Path, **entries: Any) -> Path:
        model = copied(folder)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | entries))
        return model

    return change


def _written(folder: Path, vae: DenseVAE, recipe: Recipe | None) -> Path:
    write_model_folder(ModelFolder(vae, json.loads(json.dumps(recipe.to_json())) if recipe else None), folder)
    return folder


def _run_now(*words: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def mnist_model() -> Path:
    """The ready-made model of MNIST."""
    return _ready_made("mnist-dense")


@pytest.fixture(scope="session")
def tiles_model() -> Path:
    """The ready-made model of the tiles."""
    return _ready_made("tiles-dense")


def _ready_made(name: str) -> Path:
    folder = Path(__file__).parents[2] / "models" / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage is not measured in processes that are started: it would want room of its own there."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture
def no_write_beyond(process: Command, unmeasured: None) -> Callable[..., Ran]:
    """Run a command line as a process whose files may not grow beyond some bytes: to it, a full disk."""
    resource = pytest.importorskip("resource")

    def command(limit: int, *words: object) -> Ran:
        def full_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        quiet = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        return process(*words, preexec_fn=full_disk, env=quiet)

    return command
