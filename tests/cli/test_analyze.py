"""`vaeprune analyze`: its JSON contract, its table, and commands that run as they are printed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaeprune import analyze, load
from vaeprune.data import open_data, tiles

CONTRACT = {"model", "data", "n_samples", "latent_size", "n_active", "n_inactive", "n_mixed", "latents", "advice"}
LATENT = {"index", "mean", "variance", "posterior_variance", "kl", "verdict", "ablation_cost", "noise_reaction"}
ADVICE = {"action", "latent_size", "reason", "command"}
VERDICTS = ["active", "inactive", "active", "active", "inactive", "active"]


def verdicts(found: dict) -> list[str]:
    return [latent["verdict"] for latent in found["latents"]]


def test_json_has_the_keys_of_the_contract(vaeprune, idle_model, rows):
    ran = vaeprune("analyze", idle_model, "--data", rows, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert found.keys() >= CONTRACT
    assert all(latent.keys() >= LATENT for latent in found["latents"])
    assert found["advice"].keys() == ADVICE
    assert (found["model"], found["data"]) == (str(idle_model), str(rows))
    assert (found["latent_size"], found["n_active"], found["n_inactive"], found["n_mixed"]) == (6, 4, 2, 0)
    assert verdicts(found) == VERDICTS
    assert [latent["index"] for latent in found["latents"]] == list(range(6))


def test_json_is_what_the_library_says(vaeprune, idle_model, rows):
    found = vaeprune("analyze", idle_model, "--data", rows, "--json").json
    expected = json.loads(json.dumps(analyze(load(idle_model), open_data(str(rows))).to_json()))
    expected["advice"]["command"] = found["advice"]["command"]
    assert found == {"model": str(idle_model), **expected}


@pytest.mark.parametrize(
    ("ablate", "measured"), [("none", []), ("candidates", list(range(6))), ("all", list(range(6)))]
)
def test_what_was_not_measured_is_null(vaeprune, idle_model, rows, ablate, measured):
    found = vaeprune("analyze", idle_model, "--data", rows, "--ablate", ablate, "--json").json
    for key in ("ablation_cost", "noise_reaction"):
        assert [latent["index"] for latent in found["latents"] if latent[key] is not None] == measured
    assert (found["joint_ablation_cost"] is None) == (not measured)
    assert [i for i, verdict in enumerate(verdicts(found)) if verdict == "inactive"] == [1, 4]


def test_verdicts_without_ablation_are_called_provisional(vaeprune, idle_model, rows):
    ran = vaeprune("analyze", idle_model, "--data", rows, "--ablate", "none")
    assert ran.out.count("inactive  provisional: the decoder was not tried") == 2


def test_the_same_question_has_the_same_answer(vaeprune, idle_model, rows):
    first, second = (vaeprune("analyze", idle_model, "--data", rows, "--json").out for _ in range(2))
    assert first == second


def test_table_has_a_line_for_each_latent_and_the_advice(vaeprune, idle_model, rows, monkeypatch):
    monkeypatch.chdir(rows.parent)
    assert idle_model.parent == rows.parent
    ran = vaeprune("analyze", "idle", "--data", "rows.npy")
    assert (ran.code, ran.err) == (0, "")
    title, header, *lines = ran.out.splitlines()
    count = sum(len(x) for (x,) in open_data("rows.npy").calibrate.batches(100))
    assert title.strip() == f"idle on rows.npy, {count} rows"
    names = ["no.", "variance", "± 95%", "mean σ²", "sum", "KL nats", "ablation nats", "noise", "verdict"]
    assert header.split() == " ".join(names).split()
    assert [line.split()[0] for line in lines[:6]] == list("012345")
    assert [line.split()[-1] for line in lines[:6]] == VERDICTS
    assert "6 latents: 4 active, 2 inactive, 0 mixed; fixing all inactive ones at once costs 0.0000 nats" in lines
    assert any(line.startswith("advice: shrink: 2 of 6 latents are inactive;") for line in lines)
    assert lines[-1] == "    vaeprune shrink idle --data rows.npy --out idle-4"


def test_each_self_check_has_its_line_and_its_figures(vaeprune, idle_model, rows):
    out = vaeprune("analyze", idle_model, "--data", rows).out.splitlines()
    found = vaeprune("analyze", idle_model, "--data", rows, "--json").json
    checks = found["self_checks"]
    (law,) = [line for line in out if line.startswith("variance law: ")]
    assert f"median {checks['variance_law']['median']:.3f}" in law
    (aggregate,) = [line for line in out if line.startswith("aggregate posterior: ")]
    assert f"{checks['aggregate']['effective_rank']:.2f} of 4 in use" in aggregate
    (decoder,) = [line for line in out if line.startswith("σ² from the decoder: ")]
    assert f"median {checks['jacobian']['ratio']:.2f}" in decoder
    assert decoder.endswith("β = 1")
    assert len(checks["jacobian"]["predicted"]) == 6
    (kl,) = [line for line in out if line.startswith("KL: ")]
    assert kl.startswith(
        f"KL: {checks['information']['nats']:.3f} nats ({checks['information']['bits']:.3f} bits) per row"
    )
    unseen = (
        f"a use by less than {3 / found['n_samples']:.2%} of the data may go unseen in {found['n_samples']} rows (95%)"
    )
    assert unseen in out


def test_without_the_decoder_the_check_of_it_is_null_and_says_why(vaeprune, idle_model, rows):
    ran = vaeprune("analyze", idle_model, "--data", rows, "--ablate", "none")
    assert "σ² from the decoder: not measured: the decoder was not tried" in ran.out.splitlines()
    found = vaeprune("analyze", idle_model, "--data", rows, "--ablate", "none", "--json").json
    assert found["self_checks"]["jacobian"]["predicted"] is None
    assert found["self_checks"]["jacobian"]["ratio"] is None


def test_criteria_print_the_peers_rules_beside_ours(vaeprune, idle_model, rows):
    out = vaeprune("analyze", idle_model, "--data", rows, "--criteria").out.splitlines()
    start = next(i for i, line in enumerate(out) if line.startswith("rule"))
    table = {line[:18].strip(): line for line in out[start + 1 : start + 9]}
    assert list(table) == [
        "vaeprune", "active units", "posterior variance", "mean KL", "variable filter", "FONDUE, filter",
        "FONDUE, dimension", "ARD-VAE",
    ]  # fmt: skip
    for name in ("vaeprune", "active units", "posterior variance", "mean KL", "ARD-VAE"):
        assert table[name][18:].split()[:2] == ["4", "A·AA·A"]
    assert out[-1].startswith("    vaeprune shrink ")
    assert vaeprune("analyze", idle_model, "--data", rows, "--json").json["criteria"] is None
    found = vaeprune("analyze", idle_model, "--data", rows, "--criteria", "--json").json["criteria"]
    assert [rule["name"] for rule in found] == list(table)


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (
            np.full((400, 28, 28), 7, np.uint8),
            "got 400 rows that are all alike, which leaves none to check the result on",
        ),
        (np.zeros((1, 28, 28), np.uint8), "got 1 row, which leaves none to check the result on"),
    ],
    ids=["constant", "one"],
)
def test_data_that_can_tell_nothing_are_refused_with_the_reason(vaeprune, idle_model, x, told):
    np.save("few.npy", x)
    ran = vaeprune("analyze", idle_model, "--data", "few.npy")
    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err


def test_lines_are_not_wrapped_off_a_terminal(vaeprune, idle_model, rows, monkeypatch):
    wide = vaeprune("analyze", idle_model, "--data", rows).out
    monkeypatch.setenv("COLUMNS", "30")
    assert vaeprune("analyze", idle_model, "--data", rows).out == wide


def test_long_names_are_not_wrapped_off_a_terminal(vaeprune, idle_model, rows, copied):
    model = copied(idle_model, "a" * 180)
    assert f"{model} on {rows}, " in vaeprune("analyze", model, "--data", rows).out


# --- data


def test_named_tiles_calibrate_on_their_first_rows(vaeprune, idle_model):
    found = vaeprune("analyze", idle_model, "--data", "tiles", "--rows", 3000, "--json").json
    assert (found["data"], found["n_samples"]) == ("tiles", 3000)
    assert verdicts(found) == VERDICTS


def test_pictures_npz_and_npy_of_the_same_rows_agree(vaeprune, idle_model):
    images = tiles(120, seed=1).numpy()
    np.save("rows.npy", images)
    np.savez("rows.npz", x=images, y=np.arange(120))
    Path("pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"pictures/{i:03}.png")
    found = [
        vaeprune("analyze", idle_model, "--data", data, "--held-out", "rows.npy", "--json").json
        for data in ("rows.npy", "rows.npz")
    ]
    found.append(vaeprune("analyze", idle_model, "--data", "pictures", "--held-out", "pictures", "--json").json)
    means = [[latent["mean"] for latent in one["latents"]] for one in found]
    assert [one["n_samples"] for one in found] == [120, 120, 120]
    assert means[0] == means[1]
    np.testing.assert_allclose(means[0], means[2], rtol=0, atol=1e-6)


def test_rows_and_order_do_not_move_the_split(vaeprune, idle_model, rows):
    images = np.load(rows)
    np.save("turned.npy", images[::-1].copy())
    there, back = (
        vaeprune("analyze", idle_model, "--data", data, "--ablate", "all", "--json").json
        for data in (rows, "turned.npy")
    )
    for key in ("mean", "variance", "kl"):
        np.testing.assert_allclose(
            [latent[key] for latent in there["latents"]], [latent[key] for latent in back["latents"]], atol=1e-6
        )
    assert there["n_samples"] == back["n_samples"]


def test_seed_moves_the_split(vaeprune, idle_model, rows):
    sizes = {
        vaeprune("analyze", idle_model, "--data", rows, "--seed", seed, "--json").json["n_samples"] for seed in range(4)
    }
    assert len(sizes) > 1


def test_floats_are_taken_as_they_are(vaeprune, idle_model, rows):
    np.save("floats.npy", (np.load(rows) / 255).astype(np.float32))
    found = vaeprune("analyze", idle_model, "--data", "floats.npy", "--held-out", "floats.npy", "--json").json
    whole = vaeprune("analyze", idle_model, "--data", rows, "--held-out", rows, "--json").json
    for key in ("mean", "variance", "kl"):
        np.testing.assert_allclose(
            [latent[key] for latent in found["latents"]], [latent[key] for latent in whole["latents"]], atol=1e-6
        )


# --- advice and its command


def test_model_whose_decoder_is_dead_gets_a_diagnosis_and_no_command(vaeprune, collapsed_model, rows):
    advice = vaeprune("analyze", collapsed_model, "--data", rows, "--json").json["advice"]
    assert (advice["action"], advice["command"]) == ("retrain", None)
    assert advice["reason"].startswith("the decoder is dead: its output does not depend on z at all")


def test_shrunk_model_is_kept(vaeprune, shrunk, rows):
    advice = vaeprune("analyze", shrunk, "--data", rows, "--json").json["advice"]
    assert advice == {
        "action": "keep",
        "latent_size": 4,
        "reason": "this model was shrunk before and nothing in it is idle",
        "command": None,
    }


@pytest.mark.slow
def test_suggested_shrink_command_runs_as_printed(vaeprune, idle_model, rows, copied):
    model = copied(idle_model, "my 'best' model; really")
    program, *words = shlex.split(vaeprune("analyze", model, "--data", rows).out.splitlines()[-1])
    assert program == "vaeprune"
    assert vaeprune(*words).code == 0
    assert load(words[words.index("--out") + 1]).latent_size == 4


def test_suggested_grow_command_runs_as_printed(vaeprune, busy_model, rows):
    advice = vaeprune("analyze", busy_model, "--data", rows, "--json").json["advice"]
    assert (advice["action"], advice["latent_size"]) == ("grow", 8)
    program, *words = shlex.split(advice["command"])
    assert program == "vaeprune"
    assert vaeprune(*words).code == 0
    assert load("busy-8").latent_size == 8


def test_suggested_command_repeats_the_options_the_verdicts_rest_on(vaeprune, busy_model, rows):
    """Latents that are idle only by these limits, this seed and these rows would not be cut by the bare command."""
    options = ["--held-out", rows, "--rows", 300, "--seed", 3, "--max-variance", 100, "--min-posterior-variance", 1e-3]
    options += ["--max-ablation-cost", 11.5, "--max-noise", 0.08]  # above one latent's cost
    advice = vaeprune("analyze", busy_model, "--data", rows, *options, "--ablate", "all", "--json").json["advice"]
    if advice["action"] == "shrink":
        words = shlex.split(advice["command"])
        for option in options[::2]:
            assert option in words
    else:
        pytest.fail(f"the limits no longer make a latent idle: {advice}")


def test_partial_training_record_does_not_stop_the_analysis(vaeprune, busy_model, rows, changed_config):
    model = changed_config(busy_model, training={"by": "somebody else", "data": "theirs"})
    ran = vaeprune("analyze", model, "--data", rows, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["advice"]["action"] == "grow"
    assert shlex.split(ran.json["advice"]["command"])[:3] == ["vaeprune", "grow", str(model)]


# --- the terminal


def test_colour_only_where_it_is_wanted(vaeprune, idle_model, rows, monkeypatch):
    plain = vaeprune("analyze", idle_model, "--data", rows).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = vaeprune("analyze", idle_model, "--data", rows).out
    monkeypatch.setenv("NO_COLOR", "1")
    asked_not_to = vaeprune("analyze", idle_model, "--data", rows).out
    assert "\x1b" not in plain
    assert "\x1b[32mactive" in coloured
    assert "\x1b[3" not in asked_not_to


@pytest.mark.slow
def test_progress_bar_only_on_a_terminal(idle_model, rows):
    assert "\x1b" in stderr_on_a_terminal("analyze", idle_model, "--data", rows)
    assert stderr_on_a_terminal("analyze", idle_model, "--data", rows, "--quiet") == ""


def stderr_on_a_terminal(*words: object) -> str:
    """What a command line prints on stderr where that is a terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-m", "vaeprune.cli", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=theirs, env=environment,
    ) as started:  # fmt: skip
        os.close(theirs)
        seen = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # Linux: the other side has closed
                break
            if not more:
                break
            seen += more
    os.close(ours)
    assert started.returncode == 0
    return seen.decode()
