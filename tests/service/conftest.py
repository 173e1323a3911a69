"""Pairs and services that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx_pairs import CONSTANTS, Pair, write_lineage, write_pair
from running import BODY, Running, serving

ROWS, QUEUE, CONNECTIONS = 64, 100, 100


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Six latents, of which 1 and 4 are idle."""
    return write_pair(tmp_path_factory.mktemp("pairs") / "original", latent_shape=(6,), idle=(1, 4), seed=1)


@pytest.fixture(scope="session")
def small(original: Pair) -> Pair:
    """The other four, cut out of it, with the plan."""
    folder = original.folder.with_name("small")
    pair = write_pair(folder, latent_shape=(4,), seed=2)
    write_lineage(folder, 6, CONSTANTS)
    return pair


@pytest.fixture(scope="session")
def service(small: Pair, original: Pair) -> Iterator[Running]:
    """The small model beside the original, with limits that a test can reach."""
    words = ("--max-batch", ROWS, "--queue", QUEUE, "--connections", CONNECTIONS, "--max-body", BODY, "--timeout", 3)
    with serving(small.folder, "--against", original.folder, *words) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for a pair of one's own."""
    return tmp_path / "pair"


@pytest.fixture(autouse=True)
def _next_is_served(request):
    """Whatever a test did to the service, the next request must be answered, and rightly."""
    yield
    if "service" in request.fixturenames:
        running, small = request.getfixturevalue("service"), request.getfixturevalue("small")
        z = np.random.default_rng(0).standard_normal((2, 4), np.float32)
        answer = running.post_npy("/decode", z)
        assert answer.status == 200, answer
        np.testing.assert_allclose(answer.npy, small.decode(z), atol=1e-6)
