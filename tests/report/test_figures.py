"""Plots: what stands in them, in which colours, and that they are the same each time."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import planted
from vaeprune.analysis import analyze
from vaeprune.report import figures
from vaeprune.training import Epoch, History, TracePoint

COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def words(svg):
    """All text in an SVG element, in order."""
    return [node.text for node in ET.fromstring(svg).iter() if node.tag.endswith("text") and node.text]


def test_the_scatter_numbers_each_latent_and_says_what_it_shows(cut_model):
    plot = figures.scatter(cut_model.analysis)
    shown = words(plot.svg)
    assert {"0", "1", "2", "3", "4", "5"} <= set(shown)
    assert "inactive" in shown
    assert "6 latents" in plot.alt
    assert "2 inactive" in plot.alt


def test_bars_show_kl_and_cost_of_each(cut_model):
    latents = cut_model.analysis.latents
    plot = figures.bars(latents, 6)
    shown = words(plot.svg)
    dearest = max(latents, key=lambda latent: latent.kl)
    assert f"{dearest.kl:.3g}" in shown or f"{dearest.kl:.3f}" in shown
    assert shown.count("0") >= 2  # the idle ones, whose bars are empty
    assert figures.bars(latents[:2], 6).alt.endswith("for the 2 of 6 latents with the largest KL")


def test_a_latent_that_was_not_tried_has_no_bar(cut_model):
    untried = [dataclasses.replace(latent, ablation_cost=None) for latent in cut_model.analysis.latents]
    assert len(words(figures.bars(untried, 6).svg)) < len(words(figures.bars(cut_model.analysis.latents, 6).svg))


def test_figures_take_their_colours_from_the_page(cut_model):
    for plot in (figures.scatter(cut_model.analysis), figures.bars(cut_model.analysis.latents, 6)):
        assert "var(--inactive)" in plot.svg
        assert set(COLOUR.findall(plot.svg)) <= {"#000000"}  # matplotlib's default where nothing is drawn in it
        assert "<style" not in plot.svg
        assert "DejaVu" not in plot.svg


def test_the_same_figures_give_the_same_bytes(cut_model):
    assert figures.scatter(cut_model.analysis) == figures.scatter(cut_model.analysis)


def epoch(number, sigma2):
    variance = tuple(max(0.0, 1 - s) for s in sigma2)
    return Epoch(number, 1.0, 1.0, 1.0, variance, tuple(sigma2))


def test_training_is_drawn_from_the_trace_or_else_from_the_epochs():
    epochs = tuple(epoch(n, (0.5 / n, 1.0)) for n in (1, 2, 3))
    plot = figures.training(History(epochs), ["active", "inactive"])
    assert "1 of 2 end near 1" in plot.alt
    assert "minibatch" not in words(plot.svg)
    trace = tuple(TracePoint(step, (0.5, 0.0), (0.5, 1.0)) for step in (1, 100, 200))
    assert "minibatch" in words(figures.training(History(epochs, trace), ["active", "inactive"]).svg)


def test_without_a_history_of_these_latents_nothing_is_drawn():
    assert figures.training(History(), ["active"]) is None
    assert figures.training(History((epoch(1, (0.5,)),)), ["active"]) is None
    two = History(tuple(epoch(n, (0.5, 1.0)) for n in (1, 2, 3)))
    assert figures.training(two, ["active"]) is None


def test_latents_added_during_training_are_drawn_from_there_on():
    epochs = (epoch(1, (0.5,)), epoch(2, (0.4, 1.0)), epoch(3, (0.3, 1.0)))
    assert figures.training(History(epochs), ["active", "inactive"]) is not None


def test_hundreds_of_latents_stand_without_numbers():
    analysis = analyze(planted.dense((1,), 60, input_shape=(5, 4)), planted.rows(200, (5, 4)))
    plot = figures.scatter(analysis)
    assert "57" not in words(plot.svg)
    assert "60 latents" in plot.alt
