from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from vaeprune import errors
from vaeprune.errors import DataError, UsageError, VaepruneError, VerificationFailed, one_line

ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, VaepruneError)]


def test_every_error_is_drawn_in_the_tree_and_the_tree_draws_no_other() -> None:
    drawn = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line.startswith(("├", "└"))}
    assert drawn == {c.__name__ for c in ALL} - {"VaepruneError"}


@pytest.mark.parametrize("kind", ALL)
def test_one_except_clause_catches_every_error(kind: type[VaepruneError]) -> None:
    assert issubclass(kind, VaepruneError)
    assert kind.__bases__ == ((Exception,) if kind is VaepruneError else (VaepruneError,))


def test_the_hint_follows_the_message_on_one_line() -> None:
    error = UsageError("--rows: got 0, expected at least 1", "leave it out")
    assert str(error) == "--rows: got 0, expected at least 1; leave it out"
    assert (error.message, error.hint) == ("--rows: got 0, expected at least 1", "leave it out")


def test_without_a_hint_the_message_stands_alone() -> None:
    error = DataError("x.npy: no such file")
    assert str(error) == error.message == "x.npy: no such file"
    assert error.hint == ""


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nerror: all is well", r"a\nerror: all is well"),
        ("a\r\x1b[2Kb", r"a\r\x1b[2Kb"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u2028b", r"a\u2028b"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("bad\udcffname", r"bad\udcffname"),
        ("größe 像素 µ", "größe 像素 µ"),
    ],
)
def test_control_characters_are_made_visible(hostile: str, shown: str) -> None:
    assert one_line(hostile) == shown
    error = VaepruneError(hostile, hostile)
    assert str(error) == f"{shown}; {shown}"
    assert (error.message, error.hint) == (shown, shown)


def test_a_failed_verification_names_each_failed_gate_and_its_limit() -> None:
    evidence: Any = SimpleNamespace(
        failed_gates=[
            SimpleNamespace(name="exact", measured=0.25, limit=1e-5),
            SimpleNamespace(name="ELBO loss", measured=1.5, limit=0.1),
        ]
    )
    error = VerificationFailed(evidence)
    assert error.message == "verification failed: exact 0.25 > 1e-05, ELBO loss 1.5 > 0.1"
    assert "nothing was written" in error.hint
    assert error.evidence is evidence
    assert error.result is None
