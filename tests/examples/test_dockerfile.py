"""The Dockerfile of the service: linted, and its steps taken one by one without Docker."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from example_places import EXAMPLES

DOCKERFILE = EXAMPLES / "docker" / "Dockerfile"
PROJECT = EXAMPLES.parent


def instructions() -> list[tuple[str, str]]:
    """Each instruction with what it is told, continued lines joined and comments gone."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def told(instruction: str) -> list[str]:
    return [words for name, words in instructions() if name == instruction]


def test_a_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_is_not_run_by_root_and_needs_no_torch() -> None:
    kinds = [name for name, _ in instructions()]
    last_stage = len(kinds) - 1 - kinds[::-1].index("FROM")
    assert "USER" in kinds[last_stage : kinds.index("CMD")]
    (user,) = told("USER")
    assert user.isdigit()
    assert int(user) > 0
    assert not any("torch" in words for words in told("RUN"))


def test_what_is_copied_is_there() -> None:
    sources = [word for words in told("COPY") if "--from" not in words for word in words.split()[:-1]]
    assert [name for name in sources if not (PROJECT / name).exists()] == []


@pytest.mark.slow
def test_its_steps_one_by_one_give_a_service_without_torch(small: Path, tmp_path: Path) -> None:
    """COPY and RUN into a folder in place of the image, then CMD as a process, asked for its health."""
    if not os.environ.get("VAEPRUNE_DOCKER_STEPS"):
        pytest.skip("VAEPRUNE_DOCKER_STEPS is not set, and the steps install packages from an index")
    if importlib.util.find_spec("vaeprune.service") is None:
        pytest.skip("there is no service to start")

    def here(words: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|source|model)\b", rf"{tmp_path}/\1", words)

    for words in told("COPY"):
        if "--from" not in words:
            *sources, target = here(words).split()
            Path(target).mkdir(parents=True, exist_ok=True)
            for source in sources:
                if (PROJECT / source).is_dir():
                    shutil.copytree(PROJECT / source, target, dirs_exist_ok=True)
                else:
                    shutil.copy(PROJECT / source, target)
    for words in told("RUN"):
        if not words.startswith("useradd"):
            subprocess.run(here(words), shell=True, check=True)
    shutil.copytree(small, tmp_path / "model")
    installed = {
        path.name for path in next((tmp_path / "opt/vaeprune/lib").iterdir()).joinpath("site-packages").iterdir()
    }
    assert "vaeprune" in installed
    assert "torch" not in installed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [here(word) for word in json.loads(told("CMD")[-1])]
    command[command.index("--port") + 1] = str(port)
    command[command.index("--host") + 1] = "127.0.0.1"
    environment = {"PATH": os.environ["PATH"], "VAEPRUNE_TOKEN": "a-token-of-enough-characters"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as service:
        try:
            assert _health(port) == 200
        finally:
            service.terminate()
    assert service.returncode == 0


def _health(port: int) -> int:
    for _ in range(100):
        with (
            contextlib.suppress(urllib.error.URLError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer,
        ):
            return int(answer.status)
        time.sleep(0.2)
    pytest.fail("the service did not come up in 20 s")
