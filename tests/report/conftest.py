"""Small models whose idle latents are planted, with rows and a cut, for what is drawn of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest
from torch import Tensor

import planted
from vaeprune.analysis import Analysis, analyze
from vaeprune.architectures import DenseVAE
from vaeprune.data import DataSets, as_data
from vaeprune.report import Report, write_report
from vaeprune.surgery.cut import cut
from vaeprune.surgery.plan import Plan
from vaeprune.surgery.planning import plan

IDLE, LATENTS, SHAPE = (1, 4), 6, (1, 9, 7)
WHEN = datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Cut:
    """A model with two idle latents, what it became without them, and the rows."""

    vae: DenseVAE
    small: DenseVAE
    plan: Plan
    sets: DataSets
    analysis: Analysis


@pytest.fixture(scope="session")
def cut_model() -> Cut:
    vae = planted.dense(IDLE, LATENTS, input_shape=SHAPE)
    sets = as_data(planted.rows(300, SHAPE))
    analysis = analyze(vae, sets)
    assert analysis.indices("inactive") == list(IDLE)
    made = plan(vae, analysis, sets)
    assert made is not None
    small = cut(vae, made)
    assert isinstance(small, DenseVAE)
    return Cut(vae, small, made, sets, analysis)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., tuple[str, Report]]:
    """Write a report of a planted model, and give back the page."""

    def write(
        latents: int, shape: tuple[int, ...], data: Tensor | None = None, **options: object
    ) -> tuple[str, Report]:
        likelihood = planted.GAUSSIAN if len(shape) == 1 else planted.BERNOULLI
        vae = planted.dense((1,), latents, input_shape=shape, likelihood=likelihood)
        rows = planted.rows(200, shape) if data is None else data
        report = write_report(vae, rows, tmp_path / "page.html", written=WHEN, force=True, **options)
        return (tmp_path / "page.html").read_text(encoding="utf-8"), report

    return write
