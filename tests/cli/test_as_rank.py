"""Two processes on the CPU (gloo) beside one, each a command of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from planted import dense, rows
from vaeprune.model_folder import ModelFolder, write_model_folder

pytestmark = pytest.mark.slow

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vaeprune.cli"]
_DYING = """
import os
import numpy as np

class Rows:
    def __iter__(self):
        x = np.random.default_rng(0).random((400, 12), np.float32)
        self.passes = getattr(self, "passes", 0) + 1
        for start in range(0, 400, 50):
            if self.passes > 3 and os.environ.get("RANK") == "1":
                {how}
            yield x[start : start + 50]

def rows():
    return Rows()
"""


def ran(*words: object, several: bool = True, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    start = _TWO if several else [sys.executable, "-m", "vaeprune.cli"]
    command = [*start, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=_ENVIRONMENT, cwd=folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model_folder(ModelFolder(dense((1, 4))), tmp_path / "model", "")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", rows(1500).numpy())
    return tmp_path / "rows.npy"


def test_analyze_by_two_processes_says_what_one_says(model: Path, data: Path) -> None:
    two = ran("analyze", model, "--data", data, "--json", "--ablate", "all")
    assert two.returncode == 0, two.stderr
    one = ran("analyze", model, "--data", data, "--json", "--ablate", "all", several=False)
    a, b = json.loads(one.stdout), json.loads(two.stdout)  # one object: the other rank is silent
    assert a["n_samples"] == b["n_samples"]
    for x, y in zip(a["latents"], b["latents"], strict=True):
        assert (x["verdict"], x["reason"]) == (y["verdict"], y["reason"])
        # the last digits of mu depend on how many rows are multiplied at once; of the merging see test_ranks.py
        for name in ("mean", "variance", "posterior_variance", "kl", "ablation_cost", "noise_reaction"):
            assert y[name] == pytest.approx(x[name], rel=1e-5, abs=1e-7), name


def test_a_training_step_by_two_processes_is_that_of_one(data: Path, tmp_path: Path) -> None:
    words = ["train", "--data", data, "--hidden", "8", "--latent", "3", "--epochs", "1", "--batch-size", "300"]
    for name, several in (("two", True), ("one", False)):
        done = ran(*words, "--trace-every", "1", "--rows", "500", "--out", tmp_path / name, several=several)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("1 epochs, loss") == 1
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-5, atol=1e-5)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for x, y in zip(histories[0]["epochs"], histories[1]["epochs"], strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
    for x, y in zip(histories[0]["trace"], histories[1]["trace"], strict=True):
        assert y["variance"] == pytest.approx(x["variance"], rel=1e-4)


def test_two_processes_write_one_smaller_model_with_the_evidence_of_one(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = []
    for name, several in (("two", True), ("one", False)):
        out = tmp_path / name
        done = ran("shrink", model, "--data", data, "--out", out, "--json", several=several)
        assert done.returncode == 0, done.stderr
        assert "encoder.onnx" in {path.name for path in out.iterdir()}
        found.append(json.loads(done.stdout))
    two, one = found
    assert two["removed_latents"] == one["removed_latents"] == [1, 4]
    assert two["evidence"]["n_samples"] == one["evidence"]["n_samples"]
    for kind in ("mean_path", "prior_samples"):
        for name, value in one["evidence"][kind].items():
            assert two["evidence"][kind][name] == pytest.approx(value, rel=1e-4, abs=1e-7)
    loss = one["evidence"]["sampling"]["elbo_difference"]
    assert two["evidence"]["sampling"]["elbo_difference"] == pytest.approx(loss, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("how", "told"),
    [("raise OSError('the disk is gone')", "rank 1: "), ("os._exit(9)", "another rank ended before its work was done")],
    ids=["raises", "dies"],
)
def test_a_rank_that_dies_ends_the_run_with_its_error_and_no_output(
    model: Path, tmp_path: Path, how: str, told: str
) -> None:
    (tmp_path / "data.py").write_text(_DYING.format(how=how), encoding="utf-8")
    done = ran("shrink", model, "--data", "data.py:rows", "--out", "small", folder=tmp_path)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "vaeprune: error:" in line]
    assert len(errors) == 1, done.stderr
    assert told in errors[0]
    if "raise" in how:
        assert "the disk is gone" in errors[0]
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} - {"desk", "__pycache__"} == {"model", "data.py"}


def test_an_error_that_all_ranks_make_is_said_once(tmp_path: Path) -> None:
    done = ran("analyze", tmp_path / "nowhere", "--data", "tiles", "--rows", "500")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "vaeprune: error:" in line]
    assert len(errors) == 1
    assert "no such model folder" in errors[0]


def test_commands_that_gain_nothing_from_ranks_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    done = ran("encode", model, "--data", data, "--out", tmp_path / "z.npy")
    assert done.returncode != 0
    assert "torchrun: goes with train, analyze, shrink, got 'encode'; start it without torchrun" in done.stderr
    assert not (tmp_path / "z.npy").exists()
