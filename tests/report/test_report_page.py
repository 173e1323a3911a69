"""The page: one file that says everything, in words that cannot do anything, the same each time."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import planted
from vaeprune.errors import StorageError
from vaeprune.onnx_export import export_onnx
from vaeprune.report import Against, write_report
from vaeprune.report.measured import rows_sha256
from vaeprune.storage import weights_sha256
from vaeprune.training import Epoch, History

WHEN = datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
HOSTILE = "<script>alert(\"1\")</script><img src=x onerror=alert(2)> & 'quotes'"


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text, tables and headings among them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.headings, self.cells, self._within = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._within.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self._within):
            self.text.append(data)
        if "h2" in self._within:
            self.headings.append(data)
        if {"td", "th"} & set(self._within):
            self.cells[-1] += data

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def both(cut_model, tmp_path_factory):
    """The page of a model and its cut, with ONNX files and a history, and the report behind it."""
    folder = tmp_path_factory.mktemp("both")
    export_onnx(cut_model.small, folder)
    moving = [Epoch(n, 9.0, 8.0, 1.0, (0.9, 0.0) * 3, (0.5 / n, 1.0) * 3) for n in (1, 2, 3)]
    cut_model.vae.provenance["history"] = History(tuple(moving))
    other = Against(cut_model.small, "small", cut_model.plan, folder)
    try:
        report = write_report(
            cut_model.vae, cut_model.sets, folder / "page.html", against=other, name="big",
            analysis=cut_model.analysis, written=WHEN,
        )  # fmt: skip
    finally:
        del cut_model.vae.provenance["history"]
    return (folder / "page.html").read_text(encoding="utf-8"), report


def test_everything_a_reader_needs_has_its_place(both):
    assert Page(both[0]).headings == [
        "Verdicts", "Figures", "Reconstructions", "Samples from the prior", "Traversals", "Along training",
        "Sizes and evidence", "Self-checks", "What was measured, and how",
    ]  # fmt: skip


def test_what_was_measured_and_how_can_be_checked(both, cut_model):
    shown = Page(both[0]).words
    assert weights_sha256(cut_model.vae.state_dict()) in shown
    assert weights_sha256(cut_model.small.state_dict()) in shown
    assert rows_sha256(cut_model.sets.verify) in shown
    assert f"torch {torch.__version__}" in shown
    sets = cut_model.sets
    rows = f"{cut_model.analysis.n_samples} calibrate, {sets.select.count} select, {sets.verify.count} verify"
    assert rows in shown
    assert "variance 0.01, posterior_variance 0.8, ablation 0.05, noise 0.01" in shown


def test_another_row_has_another_hash(cut_model):
    rows = cut_model.sets.verify
    other = type(rows)("rows", rows.tensors[0] + 1e-3)
    assert rows_sha256(rows) != rows_sha256(other)


def test_sizes_and_each_gate_stand_in_the_tables(both):
    text, report = both
    cells = Page(text).cells
    for gate in report.evidence.gates:
        at = cells.index(gate.name)
        assert cells[at + 1 : at + 4] == [f"{gate.measured:.3g}", f"{gate.limit:.3g}", "passed"]
    at = cells.index("latents")
    assert cells[at : at + 4] == ["latents", "6", "4", "-33.3%"]
    assert "bytes of ONNX files" in cells
    assert "ONNX decoder" in cells


def test_the_figures_are_a_table_and_all_digits_can_be_copied(both, cut_model):
    page = Page(both[0])
    copied = both[0].split('<pre tabindex="0">')[1].split("</pre>")[0].splitlines()
    names = copied[0].split("\t")
    assert names[:3] == ["index", "verdict", "mean"]
    for line, latent in zip(copied[1:], cut_model.analysis.latents, strict=True):
        values = dict(zip(names, line.split("\t"), strict=True))
        assert float(values["variance"]) == latent.variance
        assert float(values["ablation_cost"]) == latent.ablation_cost
        assert values["verdict"] == latent.verdict
    at = page.cells.index("reason") + 1
    assert page.cells[at : at + 3] == [
        "0",
        cut_model.analysis.latents[0].verdict,
        f"{cut_model.analysis.latents[0].kl:.3f}",
    ]


def test_before_and_after_stand_below_each_other_with_their_difference(both):
    text = both[0]
    labels = re.findall(r'<div class="label">(.*?)</div>', text)
    assert labels[:3] == ["original", "before", "after"]
    assert labels[3].startswith("difference × ")
    assert labels[4:6] == ["before", "after"]
    assert [label.split()[0] for label in labels[-6:]] == ["0", "1", "2", "3", "4", "5"]
    assert labels[-5] == "1 inactive 0.0%"


def test_without_a_second_model_the_idle_latents_are_held_beside(cut_model, tmp_path):
    report = write_report(cut_model.vae, cut_model.sets, tmp_path / "one.html", analysis=cut_model.analysis)
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    labels = re.findall(r'<div class="label">(.*?)</div>', text)
    assert labels[:4] == ["original", "model", "idle held", "difference × 1"]
    assert report.evidence is None
    assert "Sizes and evidence" not in Page(text).headings


def test_a_page_needs_nothing_else_and_runs_nothing(both):
    page = Page(both[0])
    assert not [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed", "form")]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in both[0]
    assert set(re.findall(r"https?://[^\s\"'<]*", both[0])) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


def test_every_picture_says_what_it_shows(both):
    page = Page(both[0])
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    plots = [attributes for tag, attributes in page.elements if attributes.get("role") == "img"]
    assert len(pictures) == 4 + 3 + 6
    assert len(plots) == 3
    for attributes in (*pictures, *plots):
        assert len(attributes.get("alt") or attributes.get("aria-label")) > 20


def test_names_with_html_in_them_are_only_text(cut_model, tmp_path):
    sets = cut_model.sets
    hostile = type(sets)(HOSTILE, sets.seed, sets.calibrate, sets.select, sets.verify, sets.whole)
    other = Against(cut_model.small, HOSTILE, cut_model.plan)
    command = f"vaeprune shrink '{HOSTILE}'"
    advice = type(cut_model.analysis.advice)("shrink", 4, HOSTILE, command)
    latents = tuple(type(latent)(**{**vars(latent), "reason": HOSTILE}) for latent in cut_model.analysis.latents)
    analysis = type(cut_model.analysis)(**{**vars(cut_model.analysis), "advice": advice, "latents": latents})
    write_report(cut_model.vae, hostile, tmp_path / "page.html", against=other, name=HOSTILE, analysis=analysis)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert "onerror=alert(2)>" not in text.replace("onerror=alert(2)&gt;", "")
    assert not [a for tag, a in page.elements if tag == "img" and not a["src"].startswith("data:image/png;base64,")]
    assert page.words.count('<script>alert("1")</script>') >= 5  # as it was typed, and as text


def test_the_same_inputs_give_the_same_bytes_but_for_the_time(cut_model, tmp_path):
    texts = []
    for name, when in (("a", WHEN), ("b", WHEN), ("c", None)):
        write_report(cut_model.vae, cut_model.sets, tmp_path / name, written=when)
        texts.append((tmp_path / name).read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    without = [re.sub(r"<time.*?</time>", "", text) for text in texts]
    assert without[0] == without[2]


def test_a_failed_check_is_the_first_warning(cut_model, tmp_path):
    other = planted.dense((1, 4), 6, input_shape=(1, 9, 7), seed=3)
    report = write_report(cut_model.vae, cut_model.sets, tmp_path / "p.html", against=Against(other, "another"))
    assert not report.evidence.passed
    assert report.warnings[0].startswith("the two models do not give the same outputs: mean path, ELBO loss")
    shown = Page((tmp_path / "p.html").read_text(encoding="utf-8")).words
    assert report.warnings[0] in shown
    assert "FAILED" in shown
    assert "another came without its plan: what was removed is not known, so nothing is compared exactly" in shown


def test_models_of_other_latents_without_a_plan_have_no_samples_to_compare(cut_model, tmp_path):
    other = Against(cut_model.small, "small")
    report = write_report(cut_model.vae, cut_model.sets, tmp_path / "p.html", against=other)
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Samples from the prior" not in page.headings
    assert "no plan says which are the same: no samples are compared" in " ".join(report.warnings)


def test_vectors_are_drawn_as_lines_and_that_is_said(written):
    text, report = written(3, (12,), planted.rows(300, (12,)) * 4 - 2)
    assert "<img" not in text
    assert any(w.startswith("rows of shape (12,) are no pictures") for w in report.warnings)
    assert text.count("<svg") == 2 + 2 + 1 + 3 + (2 if report.analysis.indices("inactive") else 0) * 2


@pytest.mark.parametrize("shape", [(3, 5, 9), (1, 3, 2)])
def test_colours_and_odd_sizes_are_drawn(written, shape):
    text, report = written(3, shape, planted.rows(300, shape))
    assert text.count("data:image/png") >= 6
    assert not any("no pictures" in warning for warning in report.warnings)


@pytest.mark.slow
def test_of_many_latents_the_first_by_kl_stand_open_and_the_rest_is_folded(written):
    text, report = written(120, (5, 4), planted.rows(300, (5, 4)), analysis=None)
    open_part, folded = text.split("<summary>The other 96 latents", 1)
    by_kl = sorted(report.analysis.latents, key=lambda latent: -latent.kl)
    shown = re.findall(r'<tr><td class="figure">(\d+)</td>', open_part)
    assert shown == [str(latent.index) for latent in by_kl[:24]]
    assert len(re.findall(r'<tr><td class="figure">(\d+)</td>', folded)) == 96
    assert "<summary>The next 96 latents, by falling KL, drawn smaller</summary>" in text
    assert len(text) < 5_000_000


def test_a_file_in_the_way_is_refused_before_anything_is_measured(cut_model, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(StorageError, match="already exists; choose another name or pass --force to replace it"):
        write_report(cut_model.vae, "no such data", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"


def test_a_warning_given_while_measuring_stands_on_the_page_and_is_given_on(cut_model, tmp_path):
    class Restless:
        """Rows that differ from pass to pass."""

        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([planted.rows(300, (1, 9, 7), seed=self.passes)])

    with pytest.warns(UserWarning, match="its rows differ from pass to pass"):
        report = write_report(cut_model.vae, Restless(), tmp_path / "p.html")
    assert any("its rows differ from pass to pass" in warning for warning in report.warnings)


def test_a_report_in_json_has_what_it_rests_on(both):
    entry = json.loads(json.dumps(both[1].to_json(), allow_nan=False))
    assert entry["evidence"]["passed"] is True
    assert entry["analysis"]["n_inactive"] == 2
    assert entry["file_bytes"] == len(both[0].encode())


class ForwardOnly(nn.Module):
    """Somebody's VAE without a decoder that could be called with z."""

    def __init__(self):
        super().__init__()
        self.mean, self.spread, self.out = nn.Linear(63, 3), nn.Linear(63, 3), nn.Linear(3, 63)
        planted.randomise(self, 0)

    def forward(self, x):
        mean, logvar = self.mean(x.flatten(1)), self.spread(x.flatten(1)) - 2
        return torch.sigmoid(self.out(mean)), mean, logvar


def test_without_a_decoder_the_page_says_so_and_draws_no_outputs(tmp_path):
    data = planted.rows(300, (63,))
    report = write_report(ForwardOnly().float(), data, tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Reconstructions" not in page.headings
    told = "no decoder could be called with z: verdicts rest on the encoder alone, and nothing is drawn"
    assert told in report.warnings
    assert told in page.words
