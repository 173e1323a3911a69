"""What only a terminal shows: a preview of a sheet, and how many latents are active while a network is trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")


def on_a_terminal(*words, **environment):
    """Everything a command writes to a terminal of 24-bit colours."""
    ours, its = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    started = subprocess.Popen(
        [sys.executable, "-m", "vaeprune.cli", *map(str, words)], stdout=its, stderr=its, stdin=its,
        env=clean | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "100", "LINES": "40"} | environment,
    )  # fmt: skip
    os.close(its)
    said = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        said += more
    os.close(ours)
    assert started.wait() == 0, said
    return said.decode()


@pytest.mark.slow
def test_a_terminal_of_many_colours_shows_a_small_picture(idle_model):
    said = on_a_terminal("sample", idle_model, "--count", 4, "--columns", 2, "--out", "s.png")
    assert said.count("▀") > 500
    assert re.search(r"38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m▀", said)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert max(len(line) for line in plain.splitlines() if "▀" in line) <= 100


@pytest.mark.slow
def test_a_terminal_without_colours_gets_none(idle_model):
    said = on_a_terminal("sample", idle_model, "--count", 2, "--out", "s.png", NO_COLOR="1")
    assert "▀" not in said
    assert "s.png: 2 samples of" in said


def test_off_a_terminal_there_is_no_picture(vaeprune, idle_model):
    assert "▀" not in vaeprune("sample", idle_model, "--count", 2, "--out", "s.png").out


@pytest.mark.slow
def test_the_progress_line_of_a_training_shows_active_latents(rows):
    words = ["--hidden", "16,8", "--latent", 4, "--epochs", 3, "--out", "new"]
    said = on_a_terminal("train", "--data", rows, *words)
    assert re.search(r"epoch [23]  loss [\d.]+ = [\d.]+ \+ KL [\d.]+  active \d of 4", said)


def test_off_a_terminal_each_epochs_line_says_it_too(vaeprune, rows):
    err = vaeprune("train", "--data", rows, "--hidden", "16,8", "--latent", 4, "--epochs", 1, "--out", "new").err
    last = json.loads(Path("new/history.json").read_text())["epochs"][0]
    pairs = zip(last["variance"], last["posterior_variance"], strict=True)
    active = sum(not (v < 0.01 and s > 0.8) for v, s in pairs)
    assert re.search(rf"epoch +1 .* active {active} of 4$", err.strip())
