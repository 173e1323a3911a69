"""Every snippet of docs/your-model.md runs, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from vaeprune.cli.__main__ import run

PAGE = Path(__file__).parents[1] / "docs" / "your-model.md"
FENCED = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_snippet_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_vae", raising=False)
    snippets = FENCED.findall(PAGE.read_text(encoding="utf-8"))
    assert {kind for kind, _ in snippets} == {"python", "sh"}
    names: dict[str, Any] = {}
    for kind, text in snippets:
        if kind == "sh":
            for line in text.strip().splitlines():
                assert run(shlex.split(line)[1:]) == 0, line
        elif text.startswith("# file: "):
            Path(text.splitlines()[0].removeprefix("# file: ")).write_text(text, encoding="utf-8")
            exec(compile(text.replace("class VAE", "class _Unused"), "page", "exec"), names)
        else:
            exec(compile(text, "page", "exec"), names)
