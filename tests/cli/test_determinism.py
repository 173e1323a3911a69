"""The same command on the same machine writes the same bytes."""

from __future__ import annotations

import pytest

SMALL = ("--hidden", "16,8", "--latent", 4, "--epochs", 2, "--rows", 200, "--trace-every", 2)


@pytest.mark.parametrize("command", ["train", "shrink", "export", "grow", "encode"])
def test_a_command_run_again_writes_the_same_bytes(vaeprune, idle_model, busy_model, rows, desk, contents_of, command):
    """In every file: weights, plan, evidence, ONNX, history, card. Folders of one name, since cards hold it."""
    words = {
        "train": ("train", "--data", rows, *SMALL, "--quiet"),
        "shrink": ("shrink", idle_model, "--data", rows),
        "export": ("export", idle_model, "--data", rows),
        "grow": ("grow", busy_model, "--latent", 7, "--data", rows),
        "encode": ("encode", idle_model, "--data", rows),
    }[command]
    printed = []
    for place in ("one", "two"):
        ran = vaeprune(*words, "--out", f"{place}/new")
        assert ran.code == 0, ran.err
        printed.append(ran.out.replace(f"{place}/", ""))
    assert contents_of(desk / "one") == contents_of(desk / "two")
    assert printed[0] == printed[1]
    assert contents_of(desk / "one")


def test_another_seed_writes_other_weights(vaeprune, rows, desk, contents_of):
    """So that the test above is not one of files that never change."""
    for seed in (0, 1):
        assert vaeprune("train", "--data", rows, *SMALL, "--quiet", "--seed", seed, "--out", f"{seed}").code == 0
    assert contents_of(desk / "0")["model.safetensors"] != contents_of(desk / "1")["model.safetensors"]
