"""Ctrl-C pressed again and again, as people do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaeprune.model_folder import load


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_ctrl_c_twice_ends_with_a_word_and_a_whole_model(rows, desk, pause):
    words = [
        "train",
        "--data",
        rows,
        "--hidden",
        "16,8",
        "--latent",
        "4",
        "--epochs",
        "9999",
        "--out",
        "model",
        "--quiet",
    ]
    command = [sys.executable, "-m", "vaeprune.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        until = time.monotonic() + 120
        while not (desk / "model").exists():
            assert time.monotonic() < until
            assert started.poll() is None
            time.sleep(0.01)
        for _ in range(2):
            os.kill(started.pid, signal.SIGINT)
            time.sleep(pause)
        out, err = started.communicate(timeout=120)
    assert started.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted"
    assert [path.name for path in desk.iterdir()] == ["model"]
    assert load(Path("model")).latent_size == 4
