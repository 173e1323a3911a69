"""`vaeprune shrink`: a smaller model that gives the same outputs, or nothing at all."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from vaeprune.cli.__main__ import run

from vaeprune import load
from vaeprune.data import tiles
from vaeprune.storage import read_tensors
from vaeprune.surgery.plan import FORMAT

CONTRACT = {"out", "latent_size", "parameters", "removed_latents", "evidence"}
EVIDENCE = {"passed", "n_samples", "exact", "mean_path", "sampling", "prior_samples", "onnx"}
PARTS = {
    "exact": {"max_abs_error", "max_relative_error"},
    "mean_path": {"max_abs_error", "rms_error"},
    "sampling": {"elbo_difference", "ci95"},
    "prior_samples": {"max_abs_error", "rms_error"},
    "onnx": {"encoder_max_abs_error", "decoder_max_abs_error"},
}
FILES = {
    "README.md", "analysis.json", "config.json", "decoder.onnx", "encoder.onnx", "evidence.json", "model.safetensors",
    "plan.json", "plan.safetensors",
}  # fmt: skip
KEPT = [0, 2, 3, 5]
PER_LATENT = 2 * (16 + 1) + 16  # a row and a bias of both heads, a column of the decoder's first layer


def test_json_has_the_keys_of_the_contract(shrinking, shrunk):
    found = shrinking.json
    assert shrinking.err == ""
    assert found.keys() >= CONTRACT
    assert found["evidence"].keys() >= EVIDENCE
    assert all(found["evidence"][part].keys() >= keys for part, keys in PARTS.items())
    assert len(found["evidence"]["sampling"]["ci95"]) == 2
    assert found["out"] == str(shrunk)
    assert found["latent_size"] == {"before": 6, "after": 4}
    assert found["removed_latents"] == [1, 4]
    assert found["evidence"]["passed"] is True


def test_parameters_are_counted_in_the_files(shrinking, idle_model, shrunk):
    before, after = (
        sum(t.numel() for t in read_tensors(f / "model.safetensors").values()) for f in (idle_model, shrunk)
    )
    assert shrinking.json["parameters"] == {"before": before, "after": after}
    assert before - after == shrinking.json["parameters"]["before"] - shrinking.json["parameters"]["after"]
    assert before - after > 2 * PER_LATENT  # hidden units that never fire went, too


def test_latents_alone_cost_their_rows_and_columns(vaeprune, idle_model, rows):
    words = ("shrink", idle_model, "--data", rows, "--scope", "latents", "--dry-run", "--json")
    found = vaeprune(*words).json
    assert found["parameters"]["before"] - found["parameters"]["after"] == 2 * PER_LATENT
    assert (found["scope"], found["removed_channels"]) == ("latents", 0)


def test_folder_holds_model_plan_evidence_and_onnx(shrinking, shrunk):
    assert {p.name for p in shrunk.iterdir()} == FILES
    assert json.loads((shrunk / "evidence.json").read_text()) == shrinking.json["evidence"]
    plan = json.loads((shrunk / "plan.json").read_text())
    assert plan["kept_latents"] == KEPT
    assert json.loads((shrunk / "config.json").read_text())["shrunk"]["kept_latents"] == KEPT


def test_every_file_is_as_readable_as_its_folder(shrunk):
    """Whoever deploys the folder is often not who made it."""
    modes = {p.name: p.stat().st_mode & 0o777 for p in shrunk.iterdir()}
    assert modes == dict.fromkeys(FILES, modes["config.json"])


def test_smaller_model_gives_the_same_outputs(idle_model, shrunk):
    whole, smaller = load(idle_model), load(shrunk)
    x = tiles(50, seed=77).float().div(255).view(-1, 1, 28, 28)
    with torch.no_grad():
        p, q = whole.encode(x), smaller.encode(x)
        np.testing.assert_allclose(q.mean, p.mean[:, KEPT], rtol=0, atol=1e-6)
        np.testing.assert_allclose(q.logvar, p.logvar[:, KEPT], rtol=0, atol=1e-6)
        np.testing.assert_allclose(smaller.decode(q.mean), whole.decode(p.mean), rtol=0, atol=1e-6)


def test_original_stays_as_it_is(shrinking, idle_model):
    assert {p.name for p in idle_model.iterdir()} == {"config.json", "model.safetensors"}
    assert load(idle_model).latent_size == 6


@pytest.mark.slow
def test_text_tells_sizes_gates_and_files(vaeprune, idle_model, rows):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--out", "small")
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["latents", "6", "4"] in lines
    assert [" ".join(line[:-3]) for line in lines if line[-1:] == ["passed"]] == [
        "exact", "exact in float64", "mean path", "ELBO loss, upper 95% bound", "prior samples, RMS", "ONNX encoder",
        "ONNX decoder",
    ]  # fmt: skip
    assert "FAILED" not in ran.out
    assert [line[0] for line in lines[-len(FILES) :]] == [f"small/{name}" for name in sorted(FILES)]


@pytest.mark.slow
def test_keep_overrules_a_verdict(vaeprune, idle_model, rows):
    found = vaeprune("shrink", idle_model, "--data", rows, "--out", "small", "--keep", "1,0", "--json").json
    assert found["removed_latents"] == [4]
    assert load("small").latent_size == 5


@pytest.mark.slow
def test_force_replaces_a_model_folder(vaeprune, idle_model, busy_model, rows, copied, refused):
    old = copied(busy_model, "old")
    again = ("shrink", idle_model, "--data", rows, "--out", old)
    refused(*again, told=[f"{old}: already exists; choose another name or pass --force to replace it"])
    assert vaeprune(*again, "--force").code == 0
    assert {p.name for p in old.iterdir()} == FILES
    assert load(old).latent_size == 4


# --- nothing to cut


def test_shrinking_twice_finds_nothing_to_cut(vaeprune, shrunk, rows, desk):
    ran = vaeprune("shrink", shrunk, "--data", rows, "--out", "smaller", "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert found.keys() >= CONTRACT
    assert (found["out"], found["removed_latents"], found["evidence"]) == (None, [], None)
    assert found["latent_size"] == {"before": 4, "after": 4}
    assert found["parameters"]["before"] == found["parameters"]["after"] > 0
    assert found["advice"]["reason"] == "this model was shrunk before and nothing in it is idle"
    assert list(desk.iterdir()) == []


def test_nothing_to_cut_says_why(vaeprune, busy_model, rows, desk):
    ran = vaeprune("shrink", busy_model, "--data", rows, "--out", "smaller", "--scope", "latents")
    assert ran.code == 0
    assert "all 4 latents are active" in ran.out
    assert ran.out.splitlines()[-1] == "nothing to cut, so nothing was written"
    assert list(desk.iterdir()) == []


def test_collapsed_model_is_not_cut(vaeprune, collapsed_model, rows, desk):
    ran = vaeprune("shrink", collapsed_model, "--data", rows, "--out", "smaller", "--json")
    assert ran.code == 0
    assert ran.json["out"] is None
    assert ran.json["advice"]["action"] == "retrain"
    assert list(desk.iterdir()) == []


def test_keeping_all_idle_latents_leaves_nothing_to_cut_and_says_so(vaeprune, idle_model, rows, desk):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--out", "smaller", "--keep", "1,4", "--scope", "latents",
                   "--json")  # fmt: skip
    assert ran.code == 0
    assert ran.json["out"] is None
    assert list(desk.iterdir()) == []


def test_model_trained_without_kl_is_not_cut(vaeprune, refused_model, rows, desk):
    """The advice is to refuse: variances say nothing about use there."""
    ran = vaeprune("shrink", refused_model, "--data", rows, "--out", "smaller", "--json")
    assert ran.json["advice"]["action"] == "refuse"
    assert ran.json["out"] is None
    assert list(desk.iterdir()) == []


# --- a failed gate


@pytest.fixture
def failing(idle_model, rows):
    return ("shrink", idle_model, "--data", rows, "--remove", 0)


def test_failed_gate_exits_1_and_leaves_all_as_it_was(vaeprune, failing, busy_model, copied, tmp_path, contents_of):
    old = copied(busy_model, "old")
    before = contents_of(tmp_path)
    ran = vaeprune(*failing, "--out", old, "--force", "--json")
    assert ran.code == 1
    found = ran.json
    assert found.keys() >= CONTRACT
    assert (found["out"], found["removed_latents"]) == (None, [0, 1, 4])
    assert found["evidence"]["passed"] is False
    failed = [gate["name"] for gate in found["evidence"]["gates"] if not gate["passed"]]
    assert "mean path" in failed
    assert "exact" not in failed
    assert contents_of(tmp_path) == before


def test_failed_gate_is_named_with_figures_and_limit(vaeprune, failing, desk):
    ran = vaeprune(*failing, "--out", "small", "--quiet")
    assert ran.code == 1
    (line,) = [line for line in ran.out.splitlines() if line.startswith("mean path")]
    measured, limit, word = line.split()[-3:]
    assert float(measured) > float(limit) == 0.02
    assert word == "FAILED"
    assert ran.err.startswith("vaeprune: verification failed: ")
    assert f"mean path {measured} > 0.02" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert "files:" not in ran.out
    assert list(desk.iterdir()) == []


@pytest.mark.slow
def test_failed_gate_leaves_no_parent_folders_either(vaeprune, failing, desk):
    assert vaeprune(*failing, "--out", "results/today/small", "--quiet").code == 1
    assert list(desk.iterdir()) == []


@pytest.mark.slow
def test_wider_gates_let_the_same_cut_pass(vaeprune, failing):
    ran = vaeprune(*failing, "--out", "small", "--tolerance", 1, "--max-elbo-loss", 1000, "--json")
    assert ran.code == 0
    assert ran.json["evidence"]["passed"] is True
    assert load("small").latent_size == 3


@pytest.mark.slow
def test_gates_of_zero_let_nothing_pass(vaeprune, idle_model, rows, desk):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--out", "small", "--onnx-tolerance", 0, "--json")
    assert ran.code == 1
    assert list(desk.iterdir()) == []


# --- dry runs and plans


def test_dry_run_prints_the_slices_and_writes_nothing(vaeprune, idle_model, rows, tmp_path, contents_of):
    before = contents_of(tmp_path)
    ran = vaeprune("shrink", idle_model, "--data", rows, "--scope", "latents", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    plan = ran.out.partition("\nplan: remove latents 1, 4\n")[2].splitlines()
    assert sorted(plan[:-1]) == [
        "    decoder.0.bias: takes over constants of what is removed",
        "    decoder.0.weight: axis 1, 6 to 4",
        "    logvar_head.bias: axis 0, 6 to 4",
        "    logvar_head.weight: axis 0, 6 to 4",
        "    mean_head.bias: axis 0, 6 to 4",
        "    mean_head.weight: axis 0, 6 to 4",
    ]
    assert plan[-1] == "dry run: nothing was written"
    assert contents_of(tmp_path) == before


def test_dry_run_in_json_holds_the_plan_and_no_evidence(vaeprune, idle_model, rows, shrunk, desk):
    found = vaeprune("shrink", idle_model, "--data", rows, "--out", "small", "--dry-run", "--json").json
    assert found.keys() >= CONTRACT
    assert (found["out"], found["evidence"]) == (None, None)
    assert found["removed_latents"] == [1, 4]
    assert found["parameters"]["before"] - found["parameters"]["after"] > 2 * PER_LATENT
    assert found["plan"] == json.loads((shrunk / "plan.json").read_text())
    assert list(desk.iterdir()) == []


def test_replayed_plan_gives_the_same_bytes(vaeprune, idle_model, rows, shrunk):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--out", "again", "--plan", shrunk / "plan.json", "--json")
    assert ran.code == 0
    for file in ("model.safetensors", "plan.json", "plan.safetensors", "evidence.json"):
        assert Path("again", file).read_bytes() == (shrunk / file).read_bytes()


def test_plan_may_be_named_by_its_folder_and_tried_dry(vaeprune, idle_model, rows, shrunk):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--plan", shrunk, "--dry-run")
    assert ran.code == 0
    assert "plan: remove latents 1, 4" in ran.out


@pytest.mark.slow
def but_for_rounding(evidence):
    """What an ONNX file differs by is rounding, whose last bit is not the same in every run."""
    onnx, gates = evidence["onnx"], [gate for gate in evidence["gates"] if "ONNX" not in gate["name"]]
    assert max(onnx["encoder_max_abs_error"], onnx["decoder_max_abs_error"]) < 2e-6
    return evidence | {"onnx": None, "gates": gates}


def test_replay_and_verify_keep_the_split_of_the_plan(vaeprune, idle_model, rows):
    words = ("shrink", idle_model, "--data", rows)
    first = vaeprune(*words, "--out", "first", "--seed", 5, "--json").json
    second = vaeprune(*words, "--out", "second", "--plan", "first", "--json").json
    assert json.loads(Path("first/plan.json").read_text())["data"]["seed"] == 5
    assert but_for_rounding(second["evidence"]) == but_for_rounding(first["evidence"])
    for seed in ((), ("--seed", 9)):
        again = vaeprune("verify", idle_model, "first", "--data", rows, *seed, "--json").json
        assert but_for_rounding(again) == but_for_rounding(first["evidence"])


def test_plan_of_other_weights_is_refused(other_idle_model, rows, shrunk, refused):
    error = refused("shrink", other_idle_model, "--data", rows, "--out", "small", "--plan", shrunk)
    assert error == {
        "type": "PlanError",
        "message": "plan: was made for other weights than these",
        "hint": "make a new plan, or load the weights it names",
    }


def test_plan_with_keep_or_remove_is_refused(idle_model, rows, shrunk, refused):
    told = "--plan: a given plan is applied as it is; leave out --scope, --budget, --keep and --remove"
    refused("shrink", idle_model, "--data", rows, "--out", "small", "--plan", shrunk, "--keep", 1, told=[told])


def damage(plan: Path, **entries: object) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"format": FORMAT + 1}, f"is not a plan of format {FORMAT}"),
        ({"kept_latents": [0]}, "kept_latents contradicts its removals"),
        ({"removals": [{"latent": 9, "constant": 0.0, "verdict": "", "evidence": ""}]}, "removes latents [9] of 6"),
        ({"removals": 3}, "is not a complete plan"),
        ({"slices": [{"key": "mean_head.weight", "axis": 0, "size": 6, "kept": [5, 0]}]}, "is not a complete plan"),
        ({"numbers": []}, "its numbers are not those in plan.safetensors"),
        ({"data": {"seed": "five"}}, "plan.json"),
        ({"attributes": {"mean_head.forward": 4}}, "mean_head.forward: is not an integer of DenseVAE"),
        ({"attributes": {"nowhere.out_features": 4}}, "nowhere"),
    ],
    ids=["format", "kept", "latent", "removals", "unsorted", "bias", "seed", "method", "module"],
)
def test_damaged_plan_is_refused(idle_model, rows, shrunk, copied, refused, entries, told):
    plan = copied(shrunk, "damaged") / "plan.json"
    damage(plan, **entries)
    refused("shrink", idle_model, "--data", rows, "--out", "small", "--plan", plan, told=[told])


def test_plan_without_its_numbers_is_refused(idle_model, rows, shrunk, refused):
    Path("plan.json").write_bytes((shrunk / "plan.json").read_bytes())
    told = "plan.json: its numbers are gone: plan.safetensors: no such file"
    refused("shrink", idle_model, "--data", rows, "--out", "small", "--plan", "plan.json", told=[told])


def test_missing_plan_is_refused(idle_model, rows, refused):
    told = "nowhere.json: no such file, expected the plan"
    refused("shrink", idle_model, "--data", rows, "--out", "small", "--plan", "nowhere.json", told=[told])


# --- keep and remove


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--keep", "one"], "--keep: got 'one', expected whole numbers with commas between, like 1,4"),
        (["--remove", "1;2"], "--remove: got '1;2', expected whole numbers"),
        (["--remove", "1.5"], "--remove: got '1.5', expected whole numbers"),
        (["--keep", "9"], "keep: got latents [9], the model has 0 to 5; see `vaeprune analyze`"),
        (["--remove", "-1"], "remove: got latents [-1], the model has 0 to 5"),
        (["--keep", "2", "--remove", "2,3"], "latents [2] are both to be kept and to be removed"),
        (["--remove", "0,1,2,3,4,5"], "all 6 latents would go, at least one must stay"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_senseless_wishes_are_refused(idle_model, rows, refused, options, told):
    refused("shrink", idle_model, "--data", rows, "--out", "small", *options, told=[told])


def test_wishes_may_hold_spaces(vaeprune, idle_model, rows):
    ran = vaeprune("shrink", idle_model, "--data", rows, "--dry-run", "--keep", " 1 , 2", "--json")
    assert ran.json["removed_latents"] == [4]


def test_missing_out_is_refused_before_anything_is_computed(idle_model, refused):
    told = "--out: is missing; name a folder to write, or pass --dry-run"
    refused("shrink", idle_model, "--data", "nothing", told=[told])


def test_existing_out_is_refused_before_anything_is_computed(idle_model, desk, refused):
    Path("there").mkdir()
    told = "there: already exists; choose another name or pass --force to replace it"
    refused("shrink", idle_model, "--data", "nothing", "--out", "there", told=[told])


@pytest.mark.slow
def test_force_does_not_replace_a_folder_of_something_else(idle_model, rows, desk, refused):
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("all of it")
    told = "thesis: is not empty and not a model folder"
    refused("shrink", idle_model, "--data", rows, "--out", "thesis", "--force", told=[told])


# --- the models that come with the project


@pytest.mark.slow
@pytest.mark.mnist
def test_ready_made_mnist_model_shrinks(vaeprune, mnist_model, mnist_folder):
    ran = vaeprune("shrink", mnist_model, "--data", "mnist", "--data-dir", mnist_folder, "--out", "small", "--json")
    assert ran.code == 0
    found = ran.json
    assert found["evidence"]["passed"] is True
    assert found["latent_size"]["before"] == 16
    assert found["latent_size"]["after"] == load("small").latent_size == 16 - len(found["removed_latents"]) < 16


@pytest.mark.slow
def test_ready_made_tiles_model_shrinks(vaeprune, tiles_model):
    ran = vaeprune("shrink", tiles_model, "--data", "tiles", "--out", "small", "--json")
    assert ran.code == 0
    assert ran.json["evidence"]["passed"] is True
    assert load("small").latent_size == 16 - len(ran.json["removed_latents"]) < 16


# --- budgets and recovery


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--budget", "nan"], "budget: got nan, expected a finite number of nats, at least 0"),
        (["--budget=-1"], "budget: got -1.0, expected a finite number of nats, at least 0"),
        (["--budget", "inf"], "budget: got inf, expected a finite number of nats, at least 0"),
        (["--scope", "latents", "--budget", "1"], "budget: pays for hidden channels, but the scope is 'latents'"),
        (["--fair"], "fair: the original can only be trained as long if recover-epochs is more than 0"),
        (["--recover-epochs=-1"], "recover-epochs: got -1, expected at least 0"),
    ],
    ids=" ".join,
)
def test_senseless_budgets_are_refused(idle_model, rows, refused, options, told):
    refused("shrink", idle_model, "--data", rows, "--out", "small", *options, told=[told])


def test_a_plan_may_be_recovered_but_not_given_a_budget(idle_model, rows, shrunk, refused):
    told = "--plan: a given plan is applied as it is"
    refused("shrink", idle_model, "--data", rows, "--out", "s", "--plan", shrunk, "--budget", 1, told=[told])


@pytest.fixture(scope="session")
def budgeted(shelf, idle_model, rows):
    words = ["shrink", idle_model, "--data", rows, "--out", shelf / "budgeted", "--budget", 30, "--json"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    assert code == 0, (out.getvalue(), err.getvalue())
    return json.loads(out.getvalue()), shelf / "budgeted"


def test_json_of_a_budget_keeps_to_the_contract(budgeted, shrinking):
    found, folder = budgeted
    assert found.keys() >= CONTRACT
    assert found["evidence"].keys() >= EVIDENCE
    assert all(found["evidence"][part].keys() >= keys for part, keys in PARTS.items())
    assert found["scope"] == "budget"
    assert found["evidence"]["sampling"]["ci95"][1] <= 30
    assert found["parameters"]["after"] < shrinking.json["parameters"]["after"]
    assert {p.name for p in folder.iterdir()} == FILES


def test_replayed_budget_gives_the_same_bytes_and_verifies(vaeprune, idle_model, rows, budgeted):
    folder = budgeted[1]
    ran = vaeprune("shrink", idle_model, "--data", rows, "--out", "again", "--plan", folder, "--json")
    assert ran.code == 0
    for file in ("model.safetensors", "plan.json", "plan.safetensors", "evidence.json"):
        assert Path("again", file).read_bytes() == (folder / file).read_bytes()
    ran = vaeprune("verify", idle_model, folder, "--data", rows, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == json.loads((folder / "evidence.json").read_text())


def test_text_of_a_budget_gives_figures_that_are_no_gates(vaeprune, idle_model, rows, budgeted):
    ran = vaeprune("verify", idle_model, budgeted[1], "--data", rows)
    assert ran.code == 0
    assert "of the output's range: mean path differs by up to" in ran.out
    assert "FAILED" not in ran.out


def test_recovered_folder_says_that_nothing_is_compared_exactly(vaeprune, idle_model, rows):
    words = ("--data", rows, "--out", "tuned", "--recover-epochs", 1, "--fair", "--json")
    limits = ("--tolerance", 1, "--max-elbo-loss", 1000)
    ran = vaeprune("shrink", idle_model, *words, *limits)
    assert ran.code == 0, ran
    assert ran.json["evidence"]["exact"] is None
    assert ran.json["evidence"]["fair"].keys() == {"elbo_difference", "ci95"}
    ran = vaeprune("verify", idle_model, "tuned", "--data", rows, *limits, "--json")
    assert ran.code == 0
    assert ran.json["exact"] is None
    assert "tuned was fine-tuned for 1 epoch" in ran.err
    assert "nothing is compared exactly" in ran.err
