"""`vaeprune report`: one file, its exit code, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vaeprune.data import tiles


@pytest.mark.slow
def test_a_model_and_its_cut_on_one_page(vaeprune, idle_model, shrunk, rows):
    ran = vaeprune("report", idle_model, "--against", shrunk, "--data", rows, "--out", "page.html", "--json")
    assert ran.code == 0, ran
    assert ran.json["out"] == "page.html"
    assert ran.json["model"] == str(idle_model)
    assert ran.json["against"] == str(shrunk)
    assert ran.json["evidence"]["passed"] is True
    assert ran.json["evidence"]["onnx"] is not None
    assert ran.json["analysis"]["n_inactive"] == 2
    text = Path("page.html").read_text(encoding="utf-8")
    assert ran.json["file_bytes"] == Path("page.html").stat().st_size == len(text.encode())
    assert f"vaeprune shrink {idle_model} --data {rows}" in text
    assert "FLOPs of a row, ONNX" in text


def test_without_json_one_line_says_what_was_written(vaeprune, idle_model, rows):
    ran = vaeprune("report", idle_model, "--data", rows, "--out", "page.html", "--quiet")
    size = Path("page.html").stat().st_size
    assert ran.out == f"page.html: {size:,} bytes; 4 active, 2 inactive, 0 mixed of 6 latents\n"
    assert ran.err == ""


def test_a_cut_that_fails_its_checks_is_exit_1_and_the_page_says_so(vaeprune, idle_model, other_idle_model, rows):
    ran = vaeprune("report", idle_model, "--against", other_idle_model, "--data", rows, "--out", "page.html")
    assert ran.code == 1
    assert "warning: the two models do not give the same outputs: mean path" in ran.err
    assert '<b class="failed">FAILED</b>' in Path("page.html").read_text(encoding="utf-8")


def test_stricter_tolerances_are_the_pages_limits(vaeprune, idle_model, shrunk, rows):
    words = ["report", idle_model, "--against", shrunk, "--data", rows, "--out", "page.html", "--tolerance", 1e-9]
    ran = vaeprune(*words, "--json")
    assert ran.code == 1
    assert {gate["name"]: gate["limit"] for gate in ran.json["evidence"]["gates"]}["mean path"] == 1e-9


def test_file_names_with_html_in_them_are_only_text(vaeprune, idle_model, desk):
    name = "<img src=x onerror=alert(1)>&amp;.npy"
    np.save(desk / name, tiles(600, seed=5).numpy())
    ran = vaeprune("report", idle_model, "--data", name, "--out", "page.html", "--quiet")
    assert ran.code == 0
    text = Path("page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;.npy" in text


def test_what_is_in_the_way_is_kept_unless_forced(refused, vaeprune, idle_model, rows):
    Path("page.html").write_text("mine")
    told = ["page.html: already exists; choose another name or pass --force to replace it"]
    refused("report", idle_model, "--data", rows, "--out", "page.html", told=told)
    assert vaeprune("report", idle_model, "--data", rows, "--out", "page.html", "--force").code == 0
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_cut_of_other_weights_is_refused(refused, other_idle_model, shrunk, rows):
    told = ["plan"]
    refused("report", other_idle_model, "--against", shrunk, "--data", rows, "--out", "page.html", told=told)
