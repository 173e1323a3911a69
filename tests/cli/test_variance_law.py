"""What is assumed of a stranger's spread is held against the variance law, on stderr."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vaeprune.cli.__main__ import run

MODEL = """
import torch
from torch import nn

class Law(nn.Module):
    def __init__(self, inflated=False):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.back = nn.Linear(4, 6), nn.Linear(3, 4)
        self.inflated = inflated
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:3, :3] = torch.eye(3)
            self.head.bias[3:] = -4.0            # mean has variance 1, so the posterior has next to none

    def encode(self, x):
        mean, logvar = self.head(x).chunk(2, 1)
        return mean, logvar + 6 * self.inflated

    def decode(self, z):
        return self.back(z)
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "near 1, as it is for"), (["--model-arg", "inflated=true"], "not near 1: the spread is something else")],
)
def test_the_law_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("law_model.py").write_text(MODEL)
    np.save("x.npy", np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32))
    words = ["law_model.py:Law", *options, "--spread", "logvar", "--data", "x.npy", "--ablate", "none"]
    assert run(["analyze", *words]) == 0
    (law,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("variance law: ")]
    assert told in law
