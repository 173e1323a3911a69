"""A pytest plugin: tells coverage which test runs, in all its phases, and notes the processor seconds of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

_seconds: dict[str, float] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    running = coverage.Coverage.current()
    if running is not None:
        running.switch_context(item.nodeid)
    start = sum(os.times()[:4])
    yield
    _seconds[item.nodeid] = sum(os.times()[:4]) - start


def pytest_sessionfinish() -> None:
    if "VAEPRUNE_TEST_TIMES" in os.environ:
        Path(os.environ["VAEPRUNE_TEST_TIMES"]).write_text(json.dumps(_seconds))
