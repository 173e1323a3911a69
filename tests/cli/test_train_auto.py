"""`vaeprune train --latent auto`: what is printed, what is in the way, Ctrl-C and going on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from interrupting import interrupting
from linear_rows import linear_rows
from vaeprune import load
from vaeprune.evidence import Gate
from vaeprune.search_path import LatentSearch
from vaeprune.training.objective import Objective

# the options of linear_rows.linear_recipe
NETWORK = ("--hidden", "24,16", "--likelihood", "gaussian", "--scale", 0.5, "--learning-rate", 0.01)
LINEAR = (*NETWORK, "--batch-size", 96, "--epochs", 80, "--starts", 1)
BATCHES = 13  # of 96 in the 60% of 2,000 rows


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two useful directions."""
    path = tmp_path_factory.mktemp("linear") / "two.npy"
    np.save(path, linear_rows(12, 9))
    return path


def auto(linear: Path, out: str, *more: object) -> tuple[object, ...]:
    return ("train", "--data", linear, *LINEAR, "--latent", "auto", "--out", out, *more)


def test_prints_the_path_the_sizes_and_the_evidence(vaeprune, linear):
    ran = vaeprune(*auto(linear, "small", "--seeds", 2))
    assert ran.code == 0, ran.err
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[0] == f"2 principal components hold 99% of the variance of {linear}"
    assert lines[2] == "latents seed epochs loss active inactive mixed decided"
    for seed, line in enumerate(lines[3:5]):
        words = line.split()
        assert words[:3] == ["3", str(seed), "80"]
        assert words[4:8] == ["2", "1", "0", "shrink:"]
        assert "1 idle, so there were enough; settled in epoch " in line
    assert any(line.startswith("active latents: 2, over 2 searches; seed ") for line in lines)
    assert "latents 3 2" in lines
    assert any(line.startswith("evidence from ") for line in lines)
    assert lines[-2:] == [
        "small: the result", "small-oversized: the oversized networks, and the path as search.json",
    ]  # fmt: skip
    assert load("small").latent_size == 2
    started = [line for line in ran.err.splitlines() if line.startswith("3 latents, seed ")]
    assert started == ["3 latents, seed 0", "3 latents, seed 1"]


def test_table_shows_which_seeds_were_given_up_and_why(vaeprune, linear):
    ran = vaeprune(*auto(linear, "small", "--starts", 2))
    assert ran.code == 0, ran.err
    poorer, kept = (line.split(None, 7) for line in ran.out.splitlines()[3:5])
    assert {poorer[1], kept[1]} == {"0", "1"}
    assert poorer[7].startswith("poorer: ")
    assert f"nats per training row in epoch {poorer[2]}, where seed {kept[1]} has " in poorer[7]
    assert kept[7].startswith("shrink: 1 idle")


def test_json_is_one_object_that_reads_back(vaeprune, linear):
    ran = vaeprune(*auto(linear, "small", "--json"))
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert (found["out"], found["latent_size"], found["chosen"]) == ("small", 2, 0)
    assert found["counts"]["active"] == {"lowest": 2, "highest": 2, "mean": 2}
    assert found["shrink"]["evidence"]["passed"] is True
    written = json.loads(Path("small-oversized/search.json").read_text())
    assert written.items() <= found.items()
    assert LatentSearch.from_json(found) == LatentSearch.from_json(written)


def test_command_shown_after_ctrl_c_goes_on(vaeprune, linear):
    with interrupting(step=3 * BATCHES + 2):
        ran = vaeprune(*auto(linear, "small", "--quiet"))
    assert (ran.code, ran.out) == (130, "")
    assert sorted(p.name for p in Path().iterdir()) == ["small-oversized"]
    (shown,) = [line for line in ran.err.splitlines() if "go on with: " in line]
    assert shown.startswith("small-oversized holds the finished epochs; ")
    program, *words = shlex.split(shown.partition("go on with: ")[2])
    assert (program, words[-1]) == ("vaeprune", "--resume")
    assert vaeprune(*words, "--quiet").code == 0
    assert load("small").latent_size == 2


def test_ctrl_c_before_the_first_epoch_leaves_nothing(vaeprune, linear, desk):
    with interrupting(step=2):
        ran = vaeprune(*auto(linear, "small", "--quiet"))
    assert (ran.code, ran.out, ran.err.split()) == (130, "", ["interrupted"])
    assert list(desk.iterdir()) == []


def test_failed_verification_shows_the_path_and_writes_no_result(vaeprune, linear):
    with patch.object(Gate, "passed", property(lambda gate: gate.name != "mean path")):
        ran = vaeprune(*auto(linear, "small", "--quiet"))
    assert ran.code == 1
    assert "verification failed" in ran.err
    assert "shrink: 1 idle, so there were enough" in ran.out
    assert "FAILED" in ran.out
    assert ran.out.splitlines()[-1] == ("nothing was written to small; the oversized networks stay in small-oversized")
    assert sorted(p.name for p in Path().iterdir()) == ["small-oversized"]


def test_data_without_structure_give_no_folder_and_the_reason(vaeprune):
    np.save("noise.npy", np.random.default_rng(0).normal(size=(600, 3, 4)).astype(np.float32))
    words = ("train", "--data", "noise.npy", *LINEAR, "--scale", 1, "--latent", "auto", "--out", "x", "--quiet")
    ran = vaeprune(*words)
    assert ran.code == 0
    assert "collapsed: none of " in ran.out
    assert "no network is kept: either rows have nothing in common" in ran.out
    assert "no result was written" in ran.out
    assert not Path("x").exists()


# --- refused before anything is trained


@pytest.fixture
def nothing_trained():
    """Fail where a minibatch is trained on."""
    with patch.object(Objective, "__call__", lambda *_: pytest.fail("something was trained")):
        yield


@pytest.mark.usefixtures("nothing_trained")
def test_existing_targets_are_refused(linear, refused):
    Path("small").mkdir()
    refused(*auto(linear, "small"), told=["small: already exists; choose another name or pass --force to replace it"])
    Path("small").rmdir()
    Path("small-oversized").mkdir()
    refused(*auto(linear, "small"), told=["small-oversized: already exists"])


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--latent", "many"), "--latent: got 'many', expected a whole number or auto"),
        (("--latent", 4, "--seeds", 2), "--seeds: goes with --latent auto; train several seeds one by one"),
        (("--seeds", 0), "--seeds: got 0, expected at least 1"),
        (("--starts", 0), "--starts: got 0, expected at least 1"),
        (("--kl", "none"), "--latent auto: got kl 'none'"),
        (("--resume",), "small-oversized: no such folder, so there is no search to go on with"),
    ],
    ids=["size", "seeds alone", "no seed", "no start", "no KL", "nothing to resume"],
)
def test_options_that_make_no_sense_are_refused(linear, refused, more, told):
    refused(*auto(linear, "small", *more), told=[told])


@pytest.mark.usefixtures("nothing_trained")
def test_data_must_be_named(refused):
    refused("train", "--latent", "auto", "--out", "small", told=["--data: is missing"])


@pytest.mark.usefixtures("nothing_trained")
def test_constant_data_are_refused(refused, tmp_path):
    np.save(tmp_path / "c.npy", np.full((600, 3, 4), 7, np.uint8))
    refused(
        "train", "--data", tmp_path / "c.npy", "--latent", "auto", "--out", "small",
        told=["all rows are equal, so there is nothing for latents to tell apart; check the data"],
    )  # fmt: skip
