"""The rules a search goes by, on histories written out by hand."""

from __future__ import annotations

import pytest

from vaeprune.latent_counts import Count
from vaeprune.search_path import decide, patience, settled, start_size
from vaeprune.training import Epoch, History


def history(*used: int, size: int = 4) -> History:
    """An epoch for each number of latents in use; the others are on their way."""
    return History(
        tuple(
            Epoch(i + 1, 1.0, 0.5, 0.5, (0.9,) * n + (0.4,) * (size - n), (0.1,) * n + (0.6,) * (size - n))
            for i, n in enumerate(used)
        )
    )


@pytest.mark.parametrize(
    ("used", "since"),
    [
        ((0, 0, 0), 1),
        ((0, 1, 1, 1), 2),
        ((1, 0, 0, 0, 0), 2),
        ((0, 0, 1), None),
        ((0, 0), None),
        ((0, 0, 0, 1, 0, 0), None),
    ],
)
def test_settled_is_the_first_epoch_of_the_last_number(used, since):
    assert settled(history(*used), patience=3) == since


def test_patience_is_a_quarter_of_the_epochs_and_long_enough_for_weights_to_travel():
    assert patience(40, steps=469, learning_rate=1e-3) == 10
    assert patience(400, steps=469, learning_rate=1e-3) == 100
    assert patience(8, steps=469, learning_rate=1e-2) == 5
    assert patience(40, steps=10, learning_rate=1e-3) == 400


def test_start_is_a_tenth_above_the_principal_components_within_bounds():
    assert start_size(1, ceiling=784) == 2
    assert start_size(30, ceiling=784) == 33
    assert start_size(331, ceiling=784) == 64
    assert start_size(5, ceiling=3) == 3


@pytest.mark.parametrize(
    ("counts", "since", "done", "decision", "reason"),
    [
        ((6, 10, 0), 9, 40, "shrink", "10 idle, so there were enough; settled in epoch 9"),
        ((6, 9, 1), None, 40, "shrink", "9 idle, so there were enough; not settled"),
        ((6, 0, 10), 9, 40, "keep", "none idle, but 10 not plainly in use; settled in epoch 9"),
        ((16, 0, 0), 2, 12, "double", "all in use since epoch 2; given up after 12 of 40 epochs"),
        ((16, 0, 0), None, 40, "keep", "all in use, but that has not settled within 40 epochs"),
        ((0, 16, 0), 2, 40, "collapsed", "none of 16 is active after 40 epochs: the posterior has collapsed"),
        (
            (0, 3, 13), None, 40,
            "collapsed", "none of 16 is active after 40 epochs: the posterior has collapsed, or training was too short",
        ),
    ],
)  # fmt: skip
def test_decision_and_its_reason(counts, since, done, decision, reason):
    assert decide(Count("m", *counts, kl=1.0), since, done, 40, ceiling=784) == (decision, reason)


def test_nothing_beyond_the_ceiling_is_tried():
    found = decide(Count("m", 16, 0, 0, 1.0), 2, 40, 40, ceiling=16)
    assert found == ("keep", "all in use since epoch 2, but these data have no use for more than 16")
