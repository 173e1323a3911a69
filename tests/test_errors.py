from __future__ import annotations

import inspect
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vaeprune import errors, ranks
from vaeprune.data import as_data
from vaeprune.errors import (
    DataError,
    OnnxMismatch,
    UsageError,
    VaepruneError,
    VerificationFailed,
    in_markdown,
    one_line,
)
from vaeprune.evidence import Gate
from vaeprune.model_folder import check_state_dict
from vaeprune.onnx_running import OnnxFile
from vaeprune.opening import Source, open_model
from vaeprune.storage import read_json
from vaeprune.surgery.cut import network_of
from vaeprune.surgery.same_function import refuse_deaf
from vaeprune.training.growth import Growth

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


def lose_a_rank() -> None:
    with ranks.joined():
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")


def read_by_nothing() -> None:
    deaf: Any = SimpleNamespace(latent_shape=(2,), decode=lambda z: torch.zeros(1, 3))
    refuse_deaf(deaf, (torch.zeros(1, 3),), [1])


def fail_to_match() -> None:
    raise OnnxMismatch((Gate("encoder", 1e-6, 1e-4), Gate("decoder", 0.25, 1e-4)))


def fail_to_verify() -> None:
    evidence: Any = SimpleNamespace(failed_gates=[Gate("prior samples", 0.5, 0.02)])
    raise VerificationFailed(evidence)


WHAT_IS_SAID: dict[str, tuple[Callable[[], object], str]] = {
    "UsageError": (
        lambda: open_model(Source("model", spread="wide"), as_data(torch.rand(200, 3))),  # type: ignore[arg-type]
        "--spread: got 'wide', expected one of ",
    ),
    "StorageError": (lambda: read_json(Path("no.json"), "plan"), "no.json: no such file, expected the plan"),
    "ModelError": (
        lambda: check_state_dict({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, "weights"),
        "weights: does not fit its config: w has shape (3,), expected (2,); restore both from one source",
    ),
    "DataError": (
        lambda: as_data(torch.rand(5, 3)),
        "data: got 5 rows, which leaves none to check the result on; give ",
    ),
    "TrainingError": (lambda: Growth(0, 0, 1.0), "growth: latents is 0, expected at least 1"),
    "TraceError": (read_by_nothing, "decoder: new latent 1 would not be read by anything"),
    "PlanError": (lambda: network_of("model"), "cut: got str, expected an nn.Module"),
    "ExportError": (lambda: OnnxFile(Path("no.onnx")), "no.onnx: no such file, expected an ONNX model; run `vaeprune "),
    "RankError": (lose_a_rank, "another rank ended before its work was done; see what it said"),
    "OnnxMismatch": (fail_to_match, "export failed: decoder 0.25 > 0.0001; nothing was written; take another --prec"),
    "VerificationFailed": (fail_to_verify, "verification failed: prior samples 0.5 > 0.02; nothing was written; keep "),
}


def test_every_error_has_its_text_tested_here() -> None:
    assert WHAT_IS_SAID.keys() == {c.__name__ for c in ALL} - {"VaepruneError"}


@pytest.mark.parametrize("kind", WHAT_IS_SAID)
def test_an_error_says_where_what_was_found_and_what_was_expected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rank_0 = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in rank_0.items():
        monkeypatch.setenv(name, value)
    fails, said = WHAT_IS_SAID[kind]
    with pytest.raises(VaepruneError) as caught:
        fails()
    assert type(caught.value).__name__ == kind
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("![](http://x/y.png)", r"!\[\](http://x/y.png)"),
        ("a & b | `c` *d*", r"a &amp; b \| \`c\` \*d\*"),
        ("a\n# b", r"a\\n# b"),
        ("models/größe_2.npy", "models/größe_2.npy"),
    ],
)
def test_a_name_in_a_card_is_neither_html_nor_markdown(hostile: str, shown: str) -> None:
    assert in_markdown(hostile) == shown
