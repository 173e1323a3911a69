"""`vaeprune analyze A B C`: how far counts agree."""

from __future__ import annotations

import pytest

NAMES = ("n_active", "n_inactive", "n_mixed")


@pytest.fixture
def each(vaeprune, idle_model, busy_model, rows):
    """The JSON of each model alone."""
    return [vaeprune("analyze", model, "--data", rows, "--json").json for model in (idle_model, busy_model)]


def test_json_holds_each_model_as_it_is_alone_and_the_spread(vaeprune, idle_model, busy_model, rows, each):
    found = vaeprune("analyze", idle_model, busy_model, "--data", rows, "--json").json
    assert found["data"] == str(rows)
    for one, alone in zip(found["models"], each, strict=True):
        alone["advice"]["command"] = None  # said only where one model is asked about
        assert one == alone
    for name in NAMES:
        a, b = (alone[name] for alone in each)
        assert found[name] == {"lowest": min(a, b), "highest": max(a, b), "mean": (a + b) / 2}
    sums = [sum(latent["kl"] for latent in alone["latents"]) for alone in each]
    assert found["kl"] == {"lowest": min(sums), "highest": max(sums), "mean": pytest.approx(sum(sums) / 2)}


def test_table_has_a_line_for_each_model_and_the_range(vaeprune, idle_model, busy_model, rows, each):
    ran = vaeprune("analyze", idle_model, busy_model, "--data", rows)
    assert (ran.code, ran.err) == (0, "")
    title, header, *lines = ran.out.splitlines()
    assert title == f"2 models on {rows}, {each[0]['n_samples']} rows"
    assert header.split() == ["model", "latents", "active", "inactive", "mixed", "KL", "nats", "advice"]
    for line, model, alone in zip(lines, (idle_model, busy_model), each, strict=False):
        kl = sum(latent["kl"] for latent in alone["latents"])
        numbers = [str(alone[name]) for name in ("latent_size", *NAMES)]
        assert line.split() == [str(model), *numbers, f"{kl:.2f}", alone["advice"]["action"]]
    active = sorted(alone["n_active"] for alone in each)
    if active[0] != active[1]:
        assert lines[-1].startswith(f"active: {active[0]} to {active[1]}, mean ")
    else:
        assert lines[-1].startswith(f"active: {active[0]}; mixed: ")


def test_counts_without_the_decoder_are_said_to_be_provisional(vaeprune, idle_model, busy_model, rows):
    said = "counts are provisional: the decoder was not tried on all latents"
    for options, told in (((), False), (("--ablate", "none"), True)):
        ran = vaeprune("analyze", idle_model, busy_model, "--data", rows, *options)
        assert (said in ran.out.splitlines()) == told


@pytest.mark.parametrize(
    "option", [("--criteria",), ("--objective", "elbo"), ("--bf16",)], ids=["criteria", "objective", "bf16"]
)
def test_what_is_shown_for_one_model_is_refused_for_several(idle_model, busy_model, rows, refused, option):
    options = "--criteria, --objective, --until-certain, --no-comoments, --bf16"
    told = [f"{options}: go with one MODEL; analyze the models one by one"]
    refused("analyze", idle_model, busy_model, "--data", rows, *option, told=told)


def test_a_model_that_cannot_be_read_is_named(idle_model, rows, refused):
    refused("analyze", idle_model, "nowhere", "--data", rows, told=["nowhere: no such model folder"])


def test_a_model_of_other_rows_is_named(vaeprune, idle_model, rows, refused, tmp_path):
    import numpy as np

    np.save(tmp_path / "small.npy", np.random.default_rng(0).integers(0, 256, (200, 5, 5), dtype=np.uint8))
    done = vaeprune(
        "train", "--data", tmp_path / "small.npy", "--hidden", 4, "--latent", 2, "--epochs", 1, "--out", tmp_path / "m"
    )
    assert done.code == 0
    refused("analyze", idle_model, tmp_path / "m", "--data", rows, told=[f"{tmp_path / 'm'}: ", "rows have shape"])
